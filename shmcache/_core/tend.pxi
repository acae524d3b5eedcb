# What an owner daemon does to a shard: sweep it, free it of a dead holder, drop the leases of the
# dead.  Each call is a bounded slice, waits for nobody, and asks the kernel only while it holds
# nothing.

cdef enum:
    LEASES_AT_ONCE = 64  # that one call asks the kernel about, and drops


cdef shm_shard *_tended(Handle h, uint32_t i) except NULL:
    h.ready()
    if i >= h.view.shard_count:
        raise IndexError(f"shard {i} of {h.view.shard_count}")
    return shm_shard_at(&h.view, i)


def sweep_shard(Handle h, uint32_t i):
    """Remove what has expired, or is in a namespace that was invalidated, among the next slots of
    shard `i`: a slice of about 100 us under its lock.  Where it goes on, the shard remembers.

    Returns (removed, done); done: there is nothing more worth looking for now.  After a whole
    round of the shard that is so for a second, whatever expires meanwhile.  Takes no lock where
    nothing is due.  WouldBlock where somebody alive holds the shard.
    """
    cdef shm_op op
    cdef uint32_t removed
    cdef cbool done
    _tended(h, i)
    shm_op_begin(&op, &h.view, i, shm_now_ms())
    if not shm_sweep_worth(&op):
        return 0, True
    h.acquire(i, 0)
    shm_op_begin(&op, &h.view, i, shm_now_ms())
    removed = shm_sweep_slice(&op, CLEAR_STEP, &done)
    h.release(i)
    return removed, done


def shard_holder(Handle h, uint32_t i):
    """Who holds shard `i`: (client, generation, its pid in its own namespace, lock acquisitions of
    the shard so far); None where it is free.  Says not whether that client is alive.

    The same answer twice, some time apart, means that nobody has got on in between.
    """
    cdef shm_shard *sh = _tended(h, i)
    cdef uint64_t taken = sh.lock_acquisitions, word = RD(&sh.holder)
    cdef uint32_t client = shm_identity_client(word), pid = 0
    cdef object mapping = h.mapping, clients_off
    if word == 0:
        return None
    clients_off = h.held().superblock.geometry.clients_off
    h.ready()
    h.same(mapping)
    if client < h.view.client_count:
        pid = (<shm_client *>(h.view.base + <uint64_t>clients_off) + client).pid
    return client, word & 0xffffffff, pid, taken


def recover_shard(Handle h, uint32_t i):
    """Free shard `i` of a holder that has died in it, as whoever waited for it would: take over,
    repair, count a recovery, release.

    Returns whether there was one.  False where it is free, or its holder is alive.  Never waits.
    """
    cdef shm_shard *sh = _tended(h, i)
    cdef uint64_t word = RD(&sh.holder)
    cdef object attachment, mapping
    if word == 0:
        return False
    if shm_lock_word_ok(word, h.view.client_count):
        mapping = h.mapping
        attachment = h.held()
        if attachment.is_alive(shm_identity_client(word), word & 0xffffffff):
            return False
        h.ready()
        h.same(mapping)
    # from exactly that word: if a waiter was quicker, or has set the contended bit, it is theirs
    if not shm_lock_take_over(&sh.holder, word, h.view.me):
        return False
    shm_repair(&h.view, sh)
    shm_count(&sh.lock_acquisitions, 1)
    h.release(i)
    return True


def reap_leases(Handle h, uint32_t i, uint32_t start=0):
    """Drop the leases whose holders have died, among the next slots of shard `i` from `start` on;
    whoever waits for one of them looks again.

    Returns (dropped, where to go on: 0 after the last slot).  Takes the shard only where there is
    something to drop; WouldBlock where somebody alive holds it then.
    """
    cdef shm_lease_seen seen[LEASES_AT_ONCE]
    cdef shm_op op
    cdef shm_shard *sh = _tended(h, i)
    cdef uint32_t at = start, n, k, dead = 0, dropped = 0
    cdef object attachment, mapping
    cdef dict alive = {}
    if sh.counts.leases & SHM_C_LEASES == 0:
        return 0, 0
    n = shm_leases_see(&h.view, i, &at, CLEAR_STEP, seen, LEASES_AT_ONCE)
    if n:
        mapping = h.mapping
        attachment = h.held()
        for k in range(n):
            holder = seen[k].holder
            if holder not in alive:
                alive[holder] = shm_lock_word_ok(holder, h.view.client_count) and \
                    attachment.is_alive(shm_identity_client(holder), holder & 0xffffffff)
            if not alive[holder]:
                seen[dead] = seen[k]
                dead += 1
        h.ready()
        h.same(mapping)
    if dead:
        h.acquire(i, 0)
        shm_op_begin(&op, &h.view, i, shm_now_ms())
        for k in range(dead):
            dropped += shm_lease_drop(&op, &seen[k])
        h.release(i)
    return dropped, 0 if at >= h.view.slot_count else at
