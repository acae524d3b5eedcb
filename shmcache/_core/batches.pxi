# Batches: group by shard, take each lock once, let cache misses overlap.


class _Moved(Exception):
    """A namespace was invalidated while a batch was under way: its keys lie elsewhere now."""


cdef dict _get_many(Handle h, object keys):
    cdef CKey ck[64]
    cdef list batch, keep
    cdef Py_ssize_t i, n, start, total
    cdef object key, value
    cdef dict found = {}, clash = None
    cdef list wanted = list(keys)

    h.ready()
    total = len(wanted)
    for start in range(0, total, 64):
        batch = wanted[start:start + 64]
        n = len(batch)
        keep = []
        for i in range(n):
            key = batch[i]
            keep.append(_encode_key(h, key, &ck[i]))
            if ck[i].k.kind != SHM_K_STR and ck[i].k.kind != SHM_K_BYTES:
                if clash is None:
                    clash = {}
                _refuse_clash(clash, key, ck[i].k.kind, _content(&ck[i].k))
        h.ready()  # a key's own code may have run
        for i in range(n):
            shm_prefetch_bucket(&h.view, ck[i].k.hash)
        for i in range(n):
            shm_prefetch_entry(&h.view, ck[i].k.hash)
        for i in range(n):
            if h.local is not None:
                value = h.local_get(batch[i])
            else:
                value = h.fetch(&ck[i].k, NULL, True)
            if value is not _MISSING:
                found[batch[i]] = value
            h.ready()  # so may the codec's, and a large copy releases the GIL
    return found


cdef object _set_many(Handle h, object mapping, object ttl):
    cdef list items = list(mapping.items() if hasattr(mapping, "items") else mapping)
    cdef Py_ssize_t i, j, n = len(items)
    cdef CKey k
    cdef CValue v
    cdef uint64_t ttl_ms = _ttl_ms(ttl, h.default_ttl_ms)
    cdef uint32_t shard
    cdef object key, keep, keep_value
    cdef list group, left = [], ready = []
    cdef dict clash = {}
    cdef dict by_shard = {}
    cdef list shards

    h.ready()
    for i in range(n):
        key, value = items[i]
        keep = _encode_key_for_write(h, key, &k)
        if k.k.kind != SHM_K_STR and k.k.kind != SHM_K_BYTES:
            _refuse_clash(clash, key, k.k.kind, _content(&k.k))
        keep_value = _encode_value(h, value, &v)
        h.check_size(&k, &v, ttl_ms)
        if v.data == <const void *>v.own:  # short and without an owner: give it one
            keep_value = PyBytes_FromStringAndSize(<const char *>v.own, v.len)
        ready.append((key, keep_value, v.kind))
        shard = shm_shard_of(&h.view, k.k.hash)
        if shard in by_shard:
            (<list>by_shard[shard]).append(i)
        else:
            by_shard[shard] = [i]
    h.ready()
    shards = sorted(by_shard)
    for j in range(len(shards)):
        shard = shards[j]
        try:
            _set_group(h, shard, by_shard[shard], ready, ttl_ms, left)
        except _Moved:
            for i in by_shard[shard]:
                h.put(items[i][0], items[i][1], ttl, SHM_PUT_SET, 0, False, h.timeout_s)
        except _errors.LockTimeout as error:
            for shard in shards[j:]:
                left.extend([(<tuple>ready[i])[0] for i in by_shard[shard]])
            raise type(error)(str(error), keys=tuple(left)) from None
    if left:
        raise _errors.CacheFull(
            f"no room for {len(left)} of {n} entries in cache {h.name!r}, the first of them "
            f"{left[0]!r:.80}; `.keys` names them; the others are stored, nothing was dropped "
            "(delete entries, let them expire, or make the cache larger)", keys=tuple(left))


cdef int _set_group(Handle h, uint32_t shard, list group, list ready, uint64_t ttl_ms,
                   list left) except -1:
    """Store the items of one shard under one lock; what does not fit goes to `left`.

    Encoding and hashing are done before the lock: what is inside touches C arrays only.
    """
    cdef Py_ssize_t i, n = len(group)
    cdef CKey *ck = <CKey *>malloc(n * sizeof(CKey))
    cdef shm_put *puts = <shm_put *>malloc(n * sizeof(shm_put))
    cdef int *results = <int *>malloc(n * sizeof(int))
    cdef list keep = []
    cdef object key, value
    cdef shm_op op
    cdef uint64_t now
    try:
        if ck == NULL or puts == NULL or results == NULL:
            raise MemoryError()
        for i in range(n):
            key, value, kind = <tuple>ready[group[i]]
            keep.append(_encode_key_for_write(h, key, &ck[i]))
            memset(&puts[i], 0, sizeof(shm_put))
            if type(value) is str:
                puts[i].value = PyUnicode_DATA(value)
                puts[i].value_len = <uint32_t>PyUnicode_GET_LENGTH(value)
            else:
                puts[i].value = PyBytes_AS_STRING(value)
                puts[i].value_len = <uint32_t>PyBytes_GET_SIZE(value)
            puts[i].value_kind = kind
            puts[i].mode = SHM_PUT_SET
        h.ready()
        for i in range(n):
            if shm_shard_of(&h.view, ck[i].k.hash) != shard:
                h.moved()
            shm_prefetch_bucket(&h.view, ck[i].k.hash)
        h.acquire(shard, h.timeout_s)
        now = shm_now_ms()
        for i in range(n):
            puts[i].expiry = shm_expiry_word(now + ttl_ms, 0) if ttl_ms else 0
            shm_op_begin(&op, &h.view, shard, now)
            results[i] = shm_store(&op, &ck[i].k, &puts[i])
        h.release(shard)
        for i in range(n):
            if results[i] == SHM_FULL:
                left.append((<tuple>ready[group[i]])[0])
            elif results[i] == SHM_CORRUPT:
                raise h.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked",
                                   &ck[i].k)
    finally:
        free(ck)
        free(puts)
        free(results)
    return 0


cdef object _delete_many(Handle h, object keys):
    cdef list wanted = list(keys), group
    cdef Py_ssize_t i, n, j
    cdef CKey k
    cdef object key, keep
    cdef dict by_shard = {}
    cdef list shards
    cdef uint32_t shard
    cdef uint64_t removed = 0

    h.ready()
    for key in wanted:
        keep = _encode_key(h, key, &k)
        shard = shm_shard_of(&h.view, k.k.hash)
        if shard in by_shard:
            (<list>by_shard[shard]).append(key)
        else:
            by_shard[shard] = [key]
    shards = sorted(by_shard)
    for j in range(len(shards)):
        shard = shards[j]
        try:
            removed += _delete_group(h, shard, by_shard[shard])
        except _Moved:
            for key in by_shard[shard]:
                removed += h.remove(key, 0, h.timeout_s) == SHM_HIT
        except _errors.LockTimeout as error:
            left = [key for s in shards[j:] for key in by_shard[s]]
            raise type(error)(str(error), keys=tuple(left)) from None
    return removed


cdef uint64_t _delete_group(Handle h, uint32_t shard, list group) except? 0xffffffff:
    cdef Py_ssize_t i, n = len(group)
    cdef CKey *ck = <CKey *>malloc(n * sizeof(CKey))
    cdef list keep = []
    cdef shm_op op
    cdef uint64_t removed = 0, now
    try:
        if ck == NULL:
            raise MemoryError()
        for i in range(n):
            keep.append(_encode_key(h, group[i], &ck[i]))
        h.ready()
        for i in range(n):
            if shm_shard_of(&h.view, ck[i].k.hash) != shard:
                h.moved()
            shm_prefetch_bucket(&h.view, ck[i].k.hash)
        h.acquire(shard, h.timeout_s)
        now = shm_now_ms()
        for i in range(n):
            shm_op_begin(&op, &h.view, shard, now)
            if shm_remove(&op, &ck[i].k, 0) == SHM_HIT:
                removed += 1
        h.release(shard)
    finally:
        free(ck)
    return removed
