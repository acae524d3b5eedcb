# Leases: what get_or_init needs of a shard (the protocol: src/lease.h; who waits how: once.py).

cdef enum:
    LOOK_FRESH = 0
    LOOK_STALE = 1
    LOOK_UNFIT = 2


def key_content(Handle h, key):
    """(kind, content): what tells `key` from every other key of the segment."""
    cdef CKey k
    cdef object keep
    h.ready()
    keep = _encode_key_for_write(h, key, &k)
    return k.k.kind, _content(&k.k)


cdef bint _is_content(shm_key *k, bytes content):
    """Is the key still the one that key_content told?  A namespace may have been invalidated."""
    return k.len == <size_t>PyBytes_GET_SIZE(content) and \
        memcmp(k.data, PyBytes_AS_STRING(content), k.len) == 0


def look_up(Handle h, key):
    """(value, version, LOOK_*), or None.  Takes no lock and counts nothing.

    Stale is what has expired less than the `stale` seconds ago that it was stored with: `get`
    misses it.  Unfit is what cannot be decoded: the value is then None.
    """
    cdef CKey k
    cdef object keep, copy, mapping
    cdef shm_hit hit
    cdef uint64_t now
    cdef bint stale
    cdef int r, tries = SHM_READ_TRIES
    h.ready()
    keep = _encode_key(h, key, &k)
    while tries > 0:
        tries -= 1
        r = shm_find(&h.view, &k.k, &hit)
        if r == SHM_MISS:
            return None
        if r == SHM_CORRUPT:
            break
        now = shm_now_ms()
        stale = hit.expiry != 0 and shm_expiry_at(hit.expiry) <= now
        if stale and shm_expiry_reclaim_at(hit.expiry) <= now:
            if shm_hit_valid(&h.view, &hit):
                return None
            continue
        mapping = h.mapping
        copy = _copy_value(h, &hit)
        h.same(mapping)
        if not shm_hit_valid(&h.view, &hit):
            continue
        shm_hit_mark(&hit)
        try:
            return (_decode_value(h, hit.value_kind, copy), hit.version,
                    LOOK_STALE if stale else LOOK_FRESH)
        except _errors.DecodeError:
            return None, hit.version, LOOK_UNFIT
    raise h.corrupt("INV-REUSE", "a slot kept changing under a reader", &k.k)


def lease_look(Handle h, key):
    """(wake word, holder, version) of the key's lease; holder and version 0 where there is none.

    Takes no lock.  The wake word is loaded before the lease is looked for, so that waiting for it
    to change (lease_wait) misses nothing that happens afterwards.  A lease whose bytes name no
    possible client has holder 0 and a version.
    """
    cdef CKey k
    cdef object keep
    cdef uint64_t holder = 0, version = 0
    cdef uint32_t word
    cdef int r
    h.ready()
    keep = _encode_key(h, key, &k)
    word = shm_load_wake(&shm_shard_at(&h.view, shm_shard_of(&h.view, k.k.hash)).wake)
    r = shm_lease_find(&h.view, &k.k, &holder, &version)
    if r == SHM_CORRUPT:
        raise h.corrupt("INV-REUSE", "a slot kept changing under a reader", &k.k)
    if r == SHM_HIT and not shm_lock_word_ok(holder, h.view.client_count):
        holder = 0
    return word, holder, version


def lease_wait(Handle h, key, uint32_t word, double seconds):
    """Sleep until a lease of the key's shard goes, but no longer than `seconds`; at once if the
    wake word is not `word` any more.  Releases the GIL; a hint to look again, nothing more."""
    cdef CKey k
    cdef object keep, mapping
    cdef shm_shard *sh
    cdef uint64_t ns = <uint64_t>(max(0.0, min(seconds, 1.0)) * 1e9)
    h.ready()
    keep = _encode_key(h, key, &k)
    mapping = h.mapping  # stays mapped, whatever other threads do to the handle
    sh = shm_shard_at(&h.view, shm_shard_of(&h.view, k.k.hash))
    with nogil:
        shm_wake_wait(&sh.wake, word, ns)


def lease_take(Handle h, key, bytes content, uint64_t deadline_ms, uint64_t dead, uint64_t unfit,
               double lock_timeout):
    """Take the lease of a missing key, whose content is `content`; with `dead`, the version of a
    lease whose holder is dead, also from that one; with `unfit`, the version of a value that counts
    as missing, also beside it.

    Returns (outcome, version of the lease): "taken", "value" (the key has one), "held" (by
    somebody else), "full" (no room for a lease: initialise without), "moved" (its content is
    another one by now).  Takes the shard; raises
    LockTimeout, or WouldBlock where `lock_timeout` is 0.
    """
    cdef CKey k
    cdef object keep
    cdef shm_op op
    cdef shm_claim claim
    cdef uint32_t shard
    cdef int r
    h.ready()
    keep = _encode_key_for_write(h, key, &k)
    if not _is_content(&k.k, content):
        return "moved", 0
    shard = shm_shard_of(&h.view, k.k.hash)
    claim.deadline = deadline_ms
    claim.dead = dead
    claim.unfit = unfit
    claim.version = 0
    h.acquire(shard, lock_timeout)
    claim.me = h.view.me
    shm_op_begin(&op, &h.view, shard, shm_now_ms())
    r = shm_lease_take(&op, &k.k, &claim)
    h.release(shard)
    if r == SHM_CORRUPT:
        raise h.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked", &k.k)
    return ("taken" if r == SHM_MISS else "value" if r == SHM_HIT else
            "held" if r == SHM_EXISTS else "full"), claim.version


def lease_publish(Handle h, key, bytes content, value, ttl, uint64_t stale_ms, uint64_t version,
                  double lock_timeout):
    """Store an initialiser's value and give its lease up, in one step.  False, and nothing stored,
    if the lease with that version is gone: somebody has set or deleted the key, or its content is
    another one by now.

    Blocks and raises as `set`; the lease stays where it raises.
    """
    cdef CKey k
    cdef CValue v
    cdef shm_put p
    cdef object keep, keep_value
    cdef uint64_t ttl_ms = _ttl_ms(ttl, h.default_ttl_ms)
    h.ready()
    keep = _encode_key_for_write(h, key, &k)
    keep_value = _encode_value(h, value, &v)
    h.check_size(&k, &v, ttl_ms)
    keep = _encode_key_for_write(h, key, &k)  # the codec may have run anything
    if not _is_content(&k.k, content):
        _release_content(h, &k, content, version, lock_timeout)
        return False
    h.ready()
    p.value = v.data
    p.value_len = <uint32_t>v.len
    p.value_kind = v.kind
    p.mode = SHM_PUT_PUBLISH
    p.version = version
    p.keep_expiry = False
    p.stale_ms = stale_ms
    return h.store(&k.k, &p, ttl_ms, key, lock_timeout) == SHM_HIT


cdef int _release_content(Handle h, CKey *k, bytes content, uint64_t version,
                          double lock_timeout) except -100:
    """Give up a lease under the content that it was taken with, whatever the key's is by now: one
    that stayed under an epoch that has gone would count among those that a shard has room for."""
    cdef shm_op op
    cdef uint32_t shard
    cdef int r
    k.k.data = <const uint8_t *>PyBytes_AS_STRING(content)
    k.k.len = <uint32_t>PyBytes_GET_SIZE(content)
    k.k.hash = shm_key_hash(h.view.seed, k.k.kind, k.k.data, k.k.len)
    shard = shm_shard_of(&h.view, k.k.hash)
    h.acquire(shard, lock_timeout)
    shm_op_begin(&op, &h.view, shard, shm_now_ms())
    r = shm_lease_release(&op, &k.k, version)
    h.release(shard)
    return r


def lease_release(Handle h, key, bytes content, uint64_t version, double lock_timeout):
    """Give up the lease with that version, which was taken with that content.  False if it was
    gone.  Takes the shard."""
    cdef CKey k
    cdef object keep
    h.ready()
    keep = _encode_key(h, key, &k)
    return _release_content(h, &k, content, version, lock_timeout) == SHM_HIT


def count_store_failure(Handle h):
    """Count a value that get_or_init could not store."""
    h.ready()
    h.view.client.store_failures += 1


def identity(Handle h):
    """This process's holder word in the segment: (client + 1) << 32 | generation."""
    h.ready()
    return h.view.me
