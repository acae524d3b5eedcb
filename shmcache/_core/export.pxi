# Export and import: entries and swap slots in the encoded form in which snapshots keep them.
#
# A record is an entry without anything that belongs to one segment only:
#
#   offset size field       little endian
#   0      4    value_len   bytes of the value
#   4      2    key_len     bytes of the key's content
#   6      1    key_kind    SHM_K_* type, and SHM_K_NAMESPACED
#   7      1    value_kind  SHM_V_*
#   8      8    ttl_ms      milliseconds left, 0: never expires
#   16     8    stale_ms    milliseconds of the stale window, 0 where there is none
#   24          the key's content; a namespaced one without its epoch: u16 n | path | own content
#               the value's bytes, as the codec or the binding encoded them
#
# Export reads as a cursor does, slot by slot, without a lock: copy, then ask whether the copy is
# good.  Import stores as `set` does.  Both trust neither side: what is damaged in the segment is
# left out, and what is no record is never stored.

cdef enum:
    RECORD_HEAD = 24      # bytes before a record's key
    EXPORT_SLOTS = 65536  # slots looked at in one call: a millisecond or two

cdef uint64_t _TTL_MOST = _limits.TTL_MAX_MS
cdef uint64_t _STALE_MOST = <uint64_t>0x7fff << 31  # what an expiry word can say


cdef struct Export:
    uint8_t *to
    size_t room      # bytes that `to` has
    size_t limit     # bytes that several records may take together
    size_t used
    uint64_t now_ms, position, end
    uint32_t records, damaged
    uint64_t epoch   # the one asked for last, and what was found: entries of one namespace
    bint epoch_live  # come in rows; only within one call, so that it does not grow old


cdef bint _key_sound(uint8_t kind, const uint8_t *content, uint32_t n, uint32_t epoch_len) \
        noexcept nogil:
    """Could this be a key?  `epoch_len`: the bytes of an epoch after a namespace's path."""
    cdef uint32_t levels = 0, at = 0
    cdef uint16_t path, length
    cdef uint8_t type = kind & SHM_K_TYPE
    if kind & ~(SHM_K_TYPE | SHM_K_NAMESPACED):
        return False
    if kind & SHM_K_NAMESPACED:
        if n < 2:
            return False
        memcpy(&path, content, 2)
        if path == 0 or path > SHM_MAX_PATH or n < <uint32_t>2 + path + epoch_len:
            return False
        while at < path:
            if path - at < 2:
                return False
            memcpy(&length, content + 2 + at, 2)
            if length == 0 or length > path - at - 2:
                return False
            at += <uint32_t>2 + length
            levels += 1
        if levels > LEVELS_MOST or n - epoch_len + 8 > SHM_MAX_KEY:
            return False
        n -= <uint32_t>2 + path + epoch_len
    if type == SHM_K_INT or type == SHM_K_FLOAT:
        return n == 8
    if type == SHM_K_BOOL:
        return n == 1
    if type == SHM_K_NONE:
        return n == 0
    if type == SHM_K_UUID:
        return n == 16
    return type == SHM_K_STR or type == SHM_K_BYTES or type == SHM_K_TUPLE


cdef bint _value_sound(uint32_t kind, uint64_t n) noexcept nogil:
    """Could this be a value?"""
    if kind == SHM_V_INT or kind == SHM_V_FLOAT:
        return n == 8
    if kind == SHM_V_NONE or kind == SHM_V_FALSE or kind == SHM_V_TRUE:
        return n == 0
    return (kind == SHM_V_BYTES or kind == SHM_V_STR or kind == SHM_V_BIGINT
            or kind == SHM_V_CODEC or kind == SHM_V_ASCII)


cdef bint _epoch_live(const shm_view *v, Export *e, const uint8_t *content) noexcept nogil:
    """Is the epoch of a namespaced key, a private copy, still its namespace's?"""
    cdef uint16_t n
    cdef uint64_t epoch, now
    memcpy(&n, content, 2)
    memcpy(&epoch, content + 2 + n, 8)
    if epoch == 0:
        return False
    if epoch != e.epoch:
        e.epoch = epoch
        e.epoch_live = shm_epoch_of_path(v, content + 2, n, &now) == SHM_HIT and now == epoch
    return e.epoch_live


cdef bint _export_slot(const shm_view *v, uint32_t shard, uint32_t slot, Export *e) \
        noexcept nogil:
    """Append the entry of one slot, if it has one.  False: there is no room for it."""
    cdef shm_hit hit
    cdef size_t size
    cdef uint64_t ttl_ms, stale_ms
    cdef uint8_t *to = e.to + e.used
    cdef uint8_t *content = to + RECORD_HEAD
    cdef uint16_t key_len, n
    cdef uint32_t tries
    for tries in range(SHM_READ_TRIES):
        if shm_slot_entry(v, shard, slot, &hit) != SHM_HIT:
            return True
        if (hit.key_kind & SHM_K_LEASE or hit.key_kind & SHM_K_TYPE == SHM_K_EPOCH
                or hit.expiry and shm_expiry_at(hit.expiry) <= e.now_ms):
            if shm_hit_valid(v, &hit):
                return True
            continue
        key_len = hit.key_len
        size = <size_t>RECORD_HEAD + key_len + hit.value_len
        if e.used + size > (e.limit if e.used else e.room):
            if shm_hit_valid(v, &hit):
                return False
            continue
        shm_bytes_copy(content, hit.key, <size_t>key_len + hit.value_len)
        if shm_hit_valid(v, &hit):
            break
    else:
        e.damaged += 1
        return True
    if (not _key_sound(hit.key_kind, content, key_len, 8)
            or not _value_sound(hit.value_kind, hit.value_len)):
        e.damaged += 1
        return True
    if hit.key_kind & SHM_K_NAMESPACED:
        if not _epoch_live(v, e, content):
            return True
        memcpy(&n, content, 2)
        memmove(content + 2 + n, content + 2 + n + 8,
                <size_t>key_len - 2 - n - 8 + hit.value_len)
        key_len -= 8
        size -= 8
    ttl_ms = stale_ms = 0
    if hit.expiry:
        ttl_ms = min(shm_expiry_at(hit.expiry) - e.now_ms, _TTL_MOST)
        stale_ms = shm_expiry_reclaim_at(hit.expiry) - shm_expiry_at(hit.expiry)
    memcpy(to, &hit.value_len, 4)
    memcpy(to + 4, &key_len, 2)
    to[6] = hit.key_kind
    to[7] = hit.value_kind
    memcpy(to + 8, &ttl_ms, 8)
    memcpy(to + 16, &stale_ms, 8)
    e.used += size
    e.records += 1
    return True


def export_records(Handle h, buffer, uint64_t position, uint64_t limit):
    """Append records of entries, from slot `position` on (0: the first), to a writable buffer.

    Several records take `limit` bytes at most; one alone may take the whole buffer, which must
    hold the largest entry and RECORD_HEAD bytes.  Returns (bytes, records, damaged, position):
    `damaged` entries were left out, and the next call goes on at that position, None at the end.

    Takes no lock; each record is whole, and each key that is present throughout is met once.
    Expired entries, leases, and namespaced entries whose namespace was invalidated are left out.
    Runs without the GIL.  Raises CacheClosed, CacheNotFound, ValueError (the buffer is too small).
    """
    cdef Py_buffer buf
    cdef Export e
    cdef shm_view view
    cdef object mapping
    cdef uint64_t slots, last
    h.ready()
    mapping = h.mapping  # and a view of its own: other threads may close or reopen the handle
    view = h.view
    slots = view.slot_count
    PyObject_GetBuffer(buffer, &buf, PyBUF_WRITABLE)
    try:
        memset(&e, 0, sizeof(e))
        e.to = <uint8_t *>buf.buf
        e.room = buf.len
        e.limit = limit
        e.position = position
        e.end = slots * view.shard_count
        last = min(e.end, position + EXPORT_SLOTS)
        if e.room < RECORD_HEAD + <size_t>view.max_entry_units * SHM_UNIT or e.limit > e.room:
            raise ValueError(f"a buffer of {buf.len} bytes does not hold the largest entry")
        with nogil:
            e.now_ms = shm_now_ms()
            while e.position < last:
                if not _export_slot(&view, <uint32_t>(e.position // slots),
                                    <uint32_t>(e.position % slots), &e):
                    break
                e.position += 1
    finally:
        PyBuffer_Release(&buf)
    h.again()
    h.same(mapping)
    return e.used, e.records, e.damaged, None if e.position >= e.end else e.position


cdef struct Record:
    const uint8_t *key
    const uint8_t *value
    uint64_t ttl_ms, stale_ms
    size_t size
    uint32_t value_len
    uint16_t key_len
    uint8_t key_kind, value_kind


cdef bint _parse_record(const uint8_t *at, size_t here, size_t left, Record *r) noexcept nogil:
    """The record at `at`, of which `here` bytes can be read, while `left` are said to follow.
    False: it is none."""
    if here < RECORD_HEAD:
        return False
    memcpy(&r.value_len, at, 4)
    memcpy(&r.key_len, at + 4, 2)
    r.key_kind = at[6]
    r.value_kind = at[7]
    memcpy(&r.ttl_ms, at + 8, 8)
    memcpy(&r.stale_ms, at + 16, 8)
    r.key = at + RECORD_HEAD
    r.value = r.key + r.key_len
    r.size = <size_t>RECORD_HEAD + r.key_len + r.value_len
    return (r.size <= left and here >= <size_t>RECORD_HEAD + r.key_len
            and _key_sound(r.key_kind, r.key, r.key_len, 0)
            and _value_sound(r.value_kind, r.value_len)
            and r.ttl_ms <= _TTL_MOST and r.stale_ms <= (_STALE_MOST if r.ttl_ms else 0))


cdef inline uint64_t _record_units(const Record *r) noexcept nogil:
    """What the record takes as an entry."""
    return shm_entry_units(<uint64_t>r.key_len + (8 if r.key_kind & SHM_K_NAMESPACED else 0),
                           r.value_len, r.ttl_ms != 0)


def check_records(buffer, uint32_t count, uint64_t length):
    """Are `length` bytes `count` records, one after the other, and nothing else?

    `buffer` holds them, or at least the first of them up to the end of its key.  Returns (True,
    units of 16 bytes that the largest takes as an entry), or (False, offset of what is wrong).
    """
    cdef Py_buffer buf
    cdef Record r
    cdef uint64_t at = 0, largest = 0
    cdef uint32_t i
    PyObject_GetBuffer(buffer, &buf, PyBUF_SIMPLE)
    try:
        for i in range(count):
            if at > <uint64_t>buf.len or not _parse_record(
                    <const uint8_t *>buf.buf + at, <size_t>(buf.len - at), length - at, &r):
                return False, at
            largest = max(largest, _record_units(&r))
            at += r.size
    finally:
        PyBuffer_Release(&buf)
    return (True, largest) if at == length else (False, at)


cdef uint64_t _epoch_to_store_under(Handle h, const uint8_t *path, uint32_t n) except 0:
    """The present epoch of a path; each level that has none gets one.  Blocks as `set`."""
    cdef uint8_t room[SHM_MAX_PATH + 10]
    cdef uint64_t above = 0, epoch = 0
    cdef uint32_t at = 0
    cdef uint16_t length
    cdef shm_key key
    cdef shm_hit hit
    cdef int r, tries = 100
    while at < n:
        memcpy(&length, path + at, 2)
        key = shm_epoch_key(&h.view, room, path, at + 2 + length, above)
        r = shm_epoch_find(&h.view, &key, &hit, &epoch)
        if r == SHM_HIT and epoch != 0:
            shm_hit_mark(&hit)
            above = epoch
            at += <uint32_t>2 + length
            continue
        if tries == 0:
            raise _errors.CacheFull(
                f"a namespace of cache {h.name!r} cannot be used: its epoch is evicted as soon "
                "as it is stored; make the cache larger")
        tries -= 1
        h.store_epoch(&key, r)
    return above


cdef object _key_of_record(const Record *r):
    """The key, for messages; what it decodes to, or its content."""
    cdef uint16_t n
    cdef Py_ssize_t head = 0
    cdef bytes content
    if r.key_kind & SHM_K_NAMESPACED:
        memcpy(&n, r.key, 2)
        head = 2 + n
    content = PyBytes_FromStringAndSize(<const char *>r.key + head, r.key_len - head)
    try:
        return _decode_key(r.key_kind, content)
    except _errors.DecodeError:
        return content


def import_records(Handle h, buffer, list counts):
    """Store the records in `buffer`, which check_records has found good; each as `set` does, so
    that it replaces what is there, under the present epoch of its namespace.

    `counts` is [stored, too large for this cache]; both are advanced as it goes, so that they
    are right where this raises: CacheFull (policy keep), LockTimeout, CacheClosed, CacheNotFound,
    ValueError (no records).
    """
    cdef Py_buffer buf
    cdef Record r
    cdef shm_key key
    cdef shm_put p
    cdef uint64_t at = 0, epoch, stored = 0, refused = 0
    cdef uint16_t n
    cdef bytes scratch = PyBytes_FromStringAndSize(NULL, SHM_MAX_KEY)
    cdef uint8_t *room = <uint8_t *>PyBytes_AS_STRING(scratch)
    PyObject_GetBuffer(buffer, &buf, PyBUF_SIMPLE)
    try:
        while at < <uint64_t>buf.len:
            if not _parse_record(<const uint8_t *>buf.buf + at, <size_t>(buf.len - at),
                                 <size_t>(buf.len - at), &r):
                raise ValueError(f"no record at offset {at}")
            at += r.size
            h.ready()
            if _record_units(&r) > h.view.max_entry_units:
                refused += 1
                continue
            key.data = r.key
            key.len = r.key_len
            key.kind = r.key_kind
            if r.key_kind & SHM_K_NAMESPACED:
                memcpy(&n, r.key, 2)
                try:
                    epoch = _epoch_to_store_under(h, r.key + 2, n)
                except _errors.CacheFull:
                    raise _errors.CacheFull(
                        f"no room for the epoch of the namespace of key {_key_of_record(&r)!r:.80} "
                        f"in cache {h.name!r} (delete entries, let them expire, or make the cache "
                        "larger)") from None
                memcpy(room, r.key, <size_t>2 + n)
                memcpy(room + 2 + n, &epoch, 8)
                memcpy(room + 2 + n + 8, r.key + 2 + n, <size_t>r.key_len - 2 - n)
                key.data = room
                key.len = <uint32_t>r.key_len + 8
                h.ready()
            key.hash = shm_key_hash(h.view.seed, key.kind, key.data, key.len)
            memset(&p, 0, sizeof(p))
            p.value = r.value
            p.value_len = r.value_len
            p.value_kind = r.value_kind
            p.mode = SHM_PUT_SET
            p.stale_ms = r.stale_ms
            try:
                h.store(&key, &p, r.ttl_ms, None, h.timeout_s)
            except _errors.CacheFull:
                raise h.full(shm_shard_of(&h.view, key.hash), _key_of_record(&r)) from None
            stored += 1
    finally:
        PyBuffer_Release(&buf)
        counts[0] += stored
        counts[1] += refused


def export_swaps(Handle h):
    """The last complete value of each swap slot that has one: (rows, damaged), each row (name,
    value kind, bytes).  `damaged` are the numbers of slots whose bytes cannot be trusted: left
    out.  Takes no lock."""
    cdef shm_swap_view at
    cdef shm_swap_copy c
    cdef uint64_t offset, stride, wanted
    cdef uint32_t i, count, tries
    cdef int r
    cdef object mapping, geometry
    cdef bytes copy
    cdef list rows = [], damaged = []
    cdef char name[64]
    h.ready()
    mapping = h.mapping
    geometry = h.held().superblock.geometry
    offset = geometry.slots_off
    stride = geometry.slot_stride
    count = geometry.slot_count
    at.capacity = geometry.slot_capacity
    for i in range(count):
        h.ready()
        h.same(mapping)
        at.slot = <shm_swap *>(h.view.base + offset + i * stride)
        if RDA(&at.slot.record.seal) == 0:
            continue
        r = SHM_CORRUPT
        shm_bytes_copy(name, at.slot.record.name, SHM_NAME_SIZE)
        if shm_record_ok(&at.slot.record, &wanted):
            for tries in range(SHM_SWAP_TRIES):
                r = shm_swap_read_begin(&at, &c)
                if r == SHM_BUSY:
                    continue
                if r != SHM_HIT:
                    break
                copy = PyBytes_FromStringAndSize(NULL, c.length)
                h.same(mapping)
                shm_bytes_copy(PyBytes_AS_STRING(copy), c.bytes, c.length)
                if not shm_swap_unchanged(&at, &c):
                    r = SHM_CORRUPT
                    continue
                if not shm_swap_sound(&c, PyBytes_AS_STRING(copy)) \
                        or not _value_sound(c.kind, c.length):
                    r = SHM_CORRUPT
                break
        if r == SHM_HIT:
            rows.append((name[:SHM_NAME_SIZE].rstrip(b"\0").decode(), c.kind, copy))
        elif r != SHM_MISS:
            damaged.append(i)
    return rows, damaged


def swap_names(Handle h):
    """The names that the cache's swap slots have.  Takes no lock."""
    cdef uint64_t offset, stride, wanted
    cdef uint32_t i, count
    cdef shm_record *record
    cdef list names = []
    cdef char name[64]
    cdef object geometry
    h.ready()
    geometry = h.held().superblock.geometry
    offset = geometry.slots_off
    stride = geometry.slot_stride
    count = geometry.slot_count
    for i in range(count):
        h.ready()
        record = &(<shm_swap *>(h.view.base + offset + i * stride)).record
        if RDA(&record.seal) != 0 and shm_record_ok(record, &wanted):
            shm_bytes_copy(name, record.name, SHM_NAME_SIZE)
            names.append(name[:SHM_NAME_SIZE].rstrip(b"\0").decode("utf-8", "replace"))
    return names


def value_sound(uint32_t kind, uint64_t length):
    """Could a value of that kind have so many bytes?"""
    return _value_sound(kind, length)


def import_swap(Swap slot, uint32_t kind, bytes payload):
    """Store a value that is encoded already; as SwapSlot.store.  Returns the new version."""
    cdef CValue v
    if not _value_sound(kind, <uint64_t>PyBytes_GET_SIZE(payload)):
        raise ValueError(f"{PyBytes_GET_SIZE(payload)} bytes are no value of kind {kind}")
    v.kind = <uint8_t>kind
    v.data = PyBytes_AS_STRING(payload)
    v.len = PyBytes_GET_SIZE(payload)
    return slot.store_encoded(&v, SHM_SWAP_ANY)
