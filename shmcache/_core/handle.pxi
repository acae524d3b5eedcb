# Handle: the hot methods that Cache inherits.

cdef uint64_t _ttl_ms(object ttl, uint64_t default_ms) except? 0xffffffffffffffff:
    """A ttl in whole milliseconds, 0: never; `default_ms` where there is none."""
    if ttl is None:
        return default_ms
    if type(ttl) is int and 0 < ttl < 1000000:
        return <uint64_t>ttl * 1000
    return _limits.ttl_to_ms(ttl)


cdef int _store_released(shm_view *view, uint32_t shard, shm_key *k, shm_put *p, uint64_t ttl_ms,
                         bint *contended) noexcept nogil:
    """Store and release: the part of a large write that runs without the GIL."""
    cdef shm_op op
    cdef int r
    cdef bint wake
    cdef shm_shard *sh = shm_shard_at(view, shard)
    shm_count(&sh.lock_acquisitions, 1)
    shm_op_begin(&op, view, shard, shm_now_ms())
    p.expiry = shm_expiry_word(op.now_ms + ttl_ms, p.stale_ms) if ttl_ms else 0
    r = shm_store(&op, k, p)
    wake = shm_wake_due(sh)
    contended[0] = shm_lock_release(&sh.holder)
    if wake:
        shm_wake_all(&sh.wake)
    return r


cdef class Handle(Reads):
    """Every hot operation on a segment.  Not for direct use: `Cache` derives from it."""

    @classmethod
    def __class_getitem__(cls, item):
        """Generic in its values' type, for type checkers only (_binding.pyi)."""
        return cls

    @cython.final
    cdef int put(self, object key, object value, object ttl, int mode, uint64_t version,
                 bint keep_expiry, double timeout) except -100:
        """Encode, take the shard, store, release.  Returns SHM_HIT or the condition that failed
        (SHM_EXISTS, SHM_MISS, SHM_MISMATCH); every other refusal raises."""
        cdef object mapping
        cdef shm_ring_view ring
        cdef uint64_t began
        cdef int r

        if not self.ready():
            return self.put_ready(key, value, ttl, mode, version, keep_expiry, timeout)
        mapping = self.mapping  # another thread may close or reopen the handle
        ring = self.own[1]
        began = shm_now_ns()
        r = self.put_ready(key, value, ttl, mode, version, keep_expiry, timeout)
        shm_ring_record(&ring, min(shm_now_ns() - began, SHM_MAX_DURATION_NS), shm_now_ms())
        return r

    @cython.final
    cdef int put_ready(self, object key, object value, object ttl, int mode, uint64_t version,
                       bint keep_expiry, double timeout) except -100:
        cdef CKey k
        cdef CValue v
        cdef shm_put p
        cdef object keep, keep_value
        cdef uint64_t ttl_ms = _ttl_ms(ttl, self.default_ttl_ms)

        keep = _encode_key_for_write(self, key, &k)
        shm_prefetch_bucket_own(&self.view, k.k.hash)
        keep_value = _encode_value(self, value, &v)
        self.check_size(&k, &v, ttl_ms)
        self.again()  # the codec may have run anything
        p.value = v.data
        p.value_len = <uint32_t>v.len
        p.value_kind = v.kind
        p.mode = <uint8_t>mode
        p.version = _told_version(self, version, k.epoch)
        p.keep_expiry = keep_expiry and ttl is None
        p.stale_ms = 0
        return self.store(&k.k, &p, ttl_ms, key, timeout)

    @cython.final
    cdef int check_size(self, CKey *k, CValue *v, uint64_t ttl_ms) except -1:
        if v.len > <size_t>self.max_value_size or \
                shm_entry_units(k.k.len, v.len, True) > self.view.max_entry_units:
            less = ", less with a key as long as this" if v.len <= <size_t>self.max_value_size else ""
            raise _errors.ValueTooLarge(
                f"a value of {v.len} bytes under a key of {k.k.len} bytes does not fit cache "
                f"{self.name!r}: its limit is {self.max_value_size} bytes{less}; make the cache "
                "larger (the limit is at least a sixty-fourth of its size), or split the value")
        return 0

    @cython.final
    cdef int store(self, shm_key *k, shm_put *p, uint64_t ttl_ms, object key,
                   double timeout) except -100:
        cdef uint32_t shard = shm_shard_of(&self.view, k.hash)
        cdef shm_view view
        cdef shm_op op
        cdef int r = SHM_CORRUPT
        cdef bint contended = False, taken = False
        cdef uint64_t *holder
        cdef object mapping

        if p.value_len < LARGE:
            self.acquire(shard, timeout)
            shm_op_begin(&op, &self.view, shard, shm_now_ms())
            p.expiry = shm_expiry_word(op.now_ms + ttl_ms, p.stale_ms) if ttl_ms else 0
            r = shm_store(&op, k, p)
            self.release(shard)
        else:
            # without the GIL: a view of its own, and the memory kept mapped, whatever other
            # threads do to this handle meanwhile
            mapping = self.mapping
            view = self.view
            holder = &shm_shard_at(&view, shard).holder
            with nogil:
                taken = shm_lock_spin(holder, view.me)
                if taken:
                    r = _store_released(&view, shard, k, p, ttl_ms, &contended)
            if not taken:
                self.ready()
                self.same(mapping)
                self.acquire(shard, timeout)
                with nogil:
                    r = _store_released(&view, shard, k, p, ttl_ms, &contended)
            if contended and self._attachment is not None:
                self.held().post(shard)
        if r == SHM_FULL:
            raise self.full(shard, key)
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked", k)
        return r

    @cython.final
    cdef object full(self, uint32_t shard, object key):
        cdef shm_shard *sh = shm_shard_at(&self.view, shard)
        cdef uint64_t live = (<uint64_t>sh.counts.live_units[0] + sh.counts.live_units[1]) * 16
        return _errors.CacheFull(
            f"no room for key {key!r:.80} in shard {shard} of cache {self.name!r}: "
            f"{sh.counts.entries} entries take {live} of the {self.view.budget_units * 16} bytes "
            "that it keeps; nothing was dropped (delete entries, let them expire, or make the "
            "cache larger)", keys=(key,))

    def set(self, key, value, ttl=None):
        """Store `value` under `key`, for `ttl` seconds (None: for ever).

        Linearizable per key among all processes.  Takes one shard; waits for it up to
        `lock_timeout` seconds.  Raises CacheFull (policy keep), ValueTooLarge, KeyTooLarge,
        LockTimeout, TypeError (no key, or a value that the codec cannot encode), ValueError (no
        ttl); a refused call leaves the old value in place.
        """
        self.put(key, value, ttl, SHM_PUT_SET, 0, False, self.timeout_s)

    def __setitem__(self, key, value):
        self.put(key, value, None, SHM_PUT_SET, 0, False, self.timeout_s)

    def __delitem__(self, key):
        if self.remove(key, 0, self.timeout_s) != SHM_HIT:
            raise KeyError(key)

    def add(self, key, value, ttl=None):
        """Store `value` if `key` is absent (or expired).  True if it was: one winner among all
        processes.  Blocks and raises as `set`."""
        return self.put(key, value, ttl, SHM_PUT_ADD, 0, False, self.timeout_s) == SHM_HIT

    def replace(self, key, value, ttl=None):
        """Store `value` if `key` is present.  True if it was.  Blocks and raises as `set`."""
        return self.put(key, value, ttl, SHM_PUT_REPLACE, 0, False, self.timeout_s) == SHM_HIT

    def cas(self, key, value, version, ttl=None):
        """Store `value` if nobody has written `key` since `gets` returned `version`.  True if it
        was stored.  Blocks and raises as `set`."""
        if type(version) is not int:
            raise TypeError(f"version must be an int from gets(), not {type(version).__name__}")
        if not 0 < version < 1 << 64:
            return False
        return self.put(key, value, ttl, SHM_PUT_CAS, version, False,
                        self.timeout_s) == SHM_HIT

    def _cas_keep(self, key, value, version, ttl):
        """`cas` that keeps the entry's expiry where `ttl` is None."""
        return self.put(key, value, ttl, SHM_PUT_CAS, version, True, self.timeout_s) == SHM_HIT

    def try_set(self, key, value, ttl=None):
        """`set`, but WouldBlock at once where it would have waited."""
        self.tried()
        try:
            self.put(key, value, ttl, SHM_PUT_SET, 0, False, 0)
        except _errors.WouldBlock:
            self.view.client.try_blocked += 1
            raise

    def try_add(self, key, value, ttl=None):
        """`add`, but WouldBlock at once where it would have waited."""
        self.tried()
        try:
            return self.put(key, value, ttl, SHM_PUT_ADD, 0, False, 0) == SHM_HIT
        except _errors.WouldBlock:
            self.view.client.try_blocked += 1
            raise

    @cython.final
    cdef int tried(self) except -1:
        self.ready()
        self.view.client.try_attempts += 1
        return 0

    @cython.final
    cdef int remove(self, object key, uint64_t version, double timeout) except -100:
        cdef CKey k
        cdef object keep
        cdef shm_op op
        cdef uint32_t shard
        cdef int r
        self.ready()
        keep = _encode_key(self, key, &k)
        shard = shm_shard_of(&self.view, k.k.hash)
        self.acquire(shard, timeout)
        shm_op_begin(&op, &self.view, shard, shm_now_ms())
        r = shm_remove(&op, &k.k, _told_version(self, version, k.epoch) if version else 0)
        self.release(shard)
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-SLOT-ENTRY", "a slot names no entry", &k.k)
        return r

    def delete(self, key):
        """Remove `key`.  True if it was present.  Blocks as `set`; raises LockTimeout."""
        return self.remove(key, 0, self.timeout_s) == SHM_HIT

    def try_delete(self, key):
        """`delete`, but WouldBlock at once where it would have waited."""
        self.tried()
        try:
            return self.remove(key, 0, 0) == SHM_HIT
        except _errors.WouldBlock:
            self.view.client.try_blocked += 1
            raise

    def _delete_version(self, key, version, timeout=None):
        """Remove `key` if its version is still `version`.  True if removed, False if it was
        written meanwhile, None if it is absent."""
        cdef int r = self.remove(key, version,
                                 self.timeout_s if timeout is None else <double>timeout)
        return True if r == SHM_HIT else None if r == SHM_MISS else False

    def _tried(self):
        """Count an attempt of a `try_` method that is written in Python."""
        self.tried()

    def _blocked(self):
        """Count that it would have waited."""
        self.view.client.try_blocked += 1

    def incr(self, key, delta=1, *, initial=0, ttl=None):
        """Add `delta` to the int under `key`, atomically; where absent, store initial + delta
        (only then does `ttl` apply).  Returns the new int.

        Keeps the entry's expiry.  OverflowError past signed 64 bits, TypeError if the value is
        no int (a bool is none): the value is untouched in both cases.  Blocks as `set`.
        """
        return self.add_up(key, delta, initial, ttl, self.timeout_s, 1)

    def decr(self, key, delta=1, *, initial=0, ttl=None):
        """Subtract `delta`; otherwise as `incr`."""
        return self.add_up(key, delta, initial, ttl, self.timeout_s, -1)

    def try_incr(self, key, delta=1, *, initial=0, ttl=None):
        """`incr`, but WouldBlock at once where it would have waited."""
        self.tried()
        try:
            return self.add_up(key, delta, initial, ttl, 0, 1)
        except _errors.WouldBlock:
            self.view.client.try_blocked += 1
            raise

    @cython.final
    cdef object add_up(self, object key, object delta, object initial, object ttl, double timeout,
                       int sign):
        cdef CKey k
        cdef object keep
        cdef shm_op op
        cdef shm_put p
        cdef uint32_t shard
        cdef int r
        cdef uint64_t ttl_ms = _ttl_ms(ttl, self.default_ttl_ms), now
        cdef int64_t change, start, result = 0

        if not isinstance(delta, int) or not isinstance(initial, int) \
                or isinstance(delta, bool) or isinstance(initial, bool):
            raise TypeError(
                f"delta and initial must be ints, not {type(delta).__name__} and "
                f"{type(initial).__name__}")
        self.ready()
        keep = _encode_key_for_write(self, key, &k)
        try:
            change = delta
            start = initial
        except OverflowError:
            raise OverflowError(
                f"counters are signed 64-bit: {'adding' if sign > 0 else 'subtracting'} "
                f"{delta} {'to' if sign > 0 else 'from'} {key!r:.80} of cache {self.name!r}, or "
                f"starting at {initial} is past that; it was left as it is") from None
        shard = shm_shard_of(&self.view, k.k.hash)
        shm_prefetch_bucket_own(&self.view, k.k.hash)
        memset(&p, 0, sizeof(p))
        self.acquire(shard, timeout)
        now = shm_now_ms()
        p.expiry = shm_expiry_word(now + ttl_ms, 0) if ttl_ms else 0
        shm_op_begin(&op, &self.view, shard, now)
        r = shm_count_by(&op, &k.k, change, sign < 0, start, &p, &result)
        self.release(shard)
        if r == SHM_HIT:
            return PyLong_FromLongLong(result)
        if r == SHM_OVERFLOW:
            raise OverflowError(
                f"the counter {key!r:.80} of cache {self.name!r} would leave signed 64 bits by "
                f"{'adding' if sign > 0 else 'subtracting'} {delta}; it was left as it is")
        if r == SHM_NOT_INT:
            raise TypeError(
                f"the value of {key!r:.80} in cache {self.name!r} is no int, so it cannot be "
                "counted up or down; it was left as it is")
        if r == SHM_FULL:
            raise self.full(shard, key)
        raise self.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked", &k.k)

    def touch(self, key, ttl=None):
        """Give `key` another `ttl` (None: for ever).  True if it is present.  Copies the entry
        within its shard; blocks and raises as `set`."""
        cdef CKey k
        cdef object keep
        cdef shm_op op
        cdef uint32_t shard
        cdef int r
        cdef uint64_t ttl_ms = _ttl_ms(ttl, self.default_ttl_ms), now
        self.ready()
        keep = _encode_key(self, key, &k)
        shard = shm_shard_of(&self.view, k.k.hash)
        self.acquire(shard, self.timeout_s)
        now = shm_now_ms()
        shm_op_begin(&op, &self.view, shard, now)
        r = shm_touch(&op, &k.k, shm_expiry_word(now + ttl_ms, 0) if ttl_ms else 0)
        self.release(shard)
        if r == SHM_FULL:
            raise self.full(shard, key)
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked", &k.k)
        return r == SHM_HIT

    # ------------------------------------------------- epochs of a namespace (src/epoch.h)

    def _draw_epochs(self):
        """Give each level of the namespace that has no epoch one, at random.  Where processes
        draw at once, one wins.  Blocks and raises as `set`."""
        cdef uint8_t room[SHM_MAX_PATH + 10]
        cdef uint64_t above = 0, epoch = 0
        cdef shm_key key
        cdef shm_hit hit
        cdef object path = self.path
        cdef int i = 0, r
        while i < self.levels:
            self.ready()
            key = shm_epoch_key(&self.view, room, <const uint8_t *>PyBytes_AS_STRING(path) + 2,
                                self.level[i].end, above)
            r = shm_epoch_find(&self.view, &key, &hit, &epoch)
            if r == SHM_HIT and epoch != 0:
                above = epoch
                i += 1
                continue
            self.store_epoch(&key, r)

    @cython.final
    cdef int store_epoch(self, shm_key *key, int found) except -1:
        """Store an epoch drawn at random, unless somebody else was quicker.  `found` is what
        shm_epoch_find said: SHM_HIT of an epoch whose bytes were damaged replaces it."""
        cdef shm_put p
        cdef shm_op op
        cdef uint32_t shard
        cdef uint64_t fresh = int.from_bytes(_os.urandom(8), "little") | 1
        cdef int r
        self.ready()
        key.hash = shm_key_hash(self.view.seed, key.kind, key.data, key.len)
        memset(&p, 0, sizeof(p))
        p.value = &fresh
        p.value_len = 8
        p.value_kind = SHM_V_INT
        p.mode = SHM_PUT_ADD if found == SHM_MISS else SHM_PUT_SET
        shard = shm_shard_of(&self.view, key.hash)
        self.acquire(shard, self.timeout_s)
        shm_op_begin(&op, &self.view, shard, shm_now_ms())
        r = shm_store(&op, key, &p)
        self.release(shard)
        if r == SHM_FULL:
            raise self.full(shard, self.path)
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-LOG-CHAIN", "a log or the index cannot be walked", key)
        return 0

    def _drop_epoch(self):
        """Remove the epoch of the innermost level: whoever writes next draws another, and what
        was stored under this one cannot be named any more.  Takes one shard; needs no room."""
        cdef uint8_t room[SHM_MAX_PATH + 10]
        cdef uint64_t above = 0
        cdef shm_key key
        cdef shm_op op
        cdef uint32_t shard
        cdef object path = self.path
        cdef int last = self.levels - 1, r
        self.ready()
        if self.epoch() == 0:
            return  # no level that is missing leaves anything that could be named
        if last:
            above = self.level[last - 1].epoch
        key = shm_epoch_key(&self.view, room, <const uint8_t *>PyBytes_AS_STRING(path) + 2,
                            self.level[last].end, above)
        shard = shm_shard_of(&self.view, key.hash)
        self.acquire(shard, self.timeout_s)
        shm_op_begin(&op, &self.view, shard, shm_now_ms())
        r = shm_remove(&op, &key, 0)
        self.release(shard)
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-SLOT-ENTRY", "a slot names no entry", &key)

    # -------------------------------------------------- once per key (once.py decides)

    def get_or_init(self, key, factory, ttl=None, *, timeout=20.0, stale=0.0, negative_ttl=None):
        """The value of `key`; where it is missing, that of ``factory()``, called by exactly one
        thread or task among all processes, while the others wait for its value.

        Args:
            key: as for `get`.
            factory: called without arguments, under no lock; it may use the cache, other keys'
                `get_or_init` included.
            ttl: seconds that the value is kept; None: for ever.
            timeout: seconds to wait for somebody else's factory, 0 or more. It bounds waiting, not
                factories: a living initialiser keeps its right.
            stale: for that many seconds after expiry, one caller computes anew and all others
                get the old value at once. `get` misses from expiry on. What counts is the `stale`
                that the value was stored with.
            negative_ttl: the ttl of a None from the factory, instead of `ttl`; 0: it is not stored.

        Returns:
            The value: to the caller whose factory made it the very object, to others a copy
            (the object itself where it could not be stored, for waiters of the same process).

        Raises:
            InitTimeout: `timeout` is over, and whoever initialises is alive.
            ReentrantInit: called for `key` from inside its own factory, in the same context.
            TypeError: the codec cannot encode the value. Nothing is stored, a waiter goes on.
            Whatever the factory raises, to its own caller only; a waiter then calls its own one.
            Arguments are checked where the key is missing.

        If the initialising process dies, a waiter takes over within 50 ms. A `set` or `delete` of
        the key meanwhile wins: the factory's value then goes to its own caller only. A value for
        which there is no room (`CacheFull`, `ValueTooLarge`, `LockTimeout`) is returned all the
        same, and counted in ``stats().store_failures``.

        Cost: a hit is a `get` and some 20 ns.  A miss takes the shard twice.
        """
        cdef CKey k
        cdef object keep, value
        self.ready()
        try:
            if self.local is not None:
                value = self.local_get(key)
            else:
                keep = _encode_key(self, key, &k)
                value = self.fetch(&k.k, NULL, True)
        except _errors.DecodeError:  # data that does not fit counts as missing
            value = _MISSING
        if value is not _MISSING:
            return value
        return self._initialise(key, factory, ttl, timeout, stale, negative_ttl)

    # ------------------------------------------------------- batches (batches.pxi)

    @cython.final
    cdef int moved(self) except -1:
        """A key lies in another shard than when its batch was sorted."""
        if self.levels:
            raise _Moved
        self.same(None)  # reopened on another segment
        return 0

    def get_many(self, keys):
        """A dict of those of `keys` that are present, in their order.

        Takes no lock.  In batches of 64 the buckets, then the entries, are prefetched, so that
        on cold data the cache misses overlap.  ValueError if two keys that Python holds equal
        but the cache does not (1 and True) are asked for at once.
        """
        return _get_many(self, keys)

    def set_many(self, mapping, ttl=None):
        """Store all items of `mapping` for `ttl` seconds; each shard is taken once.

        Every key and value is checked and encoded before any is stored.  Not atomic as a whole:
        a CacheFull or LockTimeout part-way names in `.keys` what was not stored.
        """
        _set_many(self, mapping, ttl)

    def delete_many(self, keys):
        """Remove `keys`; returns how many were present.  Each shard is taken once.  Every key is
        checked before any is removed; a LockTimeout part-way names in `.keys` what is left."""
        return _delete_many(self, keys)
