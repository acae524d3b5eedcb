# Reads: what takes no lock and never waits.

cdef inline uint64_t _told_version(Attached h, uint64_t version, uint64_t epoch) noexcept:
    """What callers are told of an entry's version, and back again.

    Versions count up within a shard, and a namespaced key lies in another one with each epoch:
    mixed with the epoch, which is random, no two writes of a key ever have the same one.
    """
    return version ^ epoch if h.levels else version


cdef class Reads(Attached):
    """The reading half of a cache's hot methods."""

    @cython.final
    cdef inline object fetch(self, shm_key *key, uint64_t *version, bint count):
        """The value of `key`, or _MISSING: a private copy.  Takes no lock and never waits."""
        cdef shm_hit hit
        cdef object value = self.fetch_hit(key, &hit, count)
        if version != NULL and value is not _MISSING:
            version[0] = hit.version
        return value

    @cython.final
    cdef object fetch_hit(self, shm_key *key, shm_hit *hit, bint count):
        """`fetch`; where it finds a value, `hit` says what it was read from."""
        cdef object copy, mapping
        cdef int r, tries = SHM_READ_TRIES
        while tries > 0:
            tries -= 1
            r = shm_find(&self.view, key, hit)
            if r == SHM_MISS:
                if count:
                    self.view.client.misses += 1
                return _MISSING
            if r == SHM_CORRUPT:
                break
            if hit.expiry and shm_expiry_at(hit.expiry) <= shm_now_ms():
                if not shm_hit_valid(&self.view, hit):
                    continue
                if count:
                    self.view.client.misses += 1
                return _MISSING
            if hit.value_kind == SHM_V_BYTES and hit.value_len < LARGE:
                copy = PyBytes_FromStringAndSize(NULL, hit.value_len)
                shm_bytes_copy(PyBytes_AS_STRING(copy), hit.value, hit.value_len)
            elif hit.value_len < LARGE:
                copy = _copy_value(self, hit)
            else:  # without the GIL: keep the memory mapped, and look who is there afterwards
                mapping = self.mapping
                copy = _copy_value(self, hit)
                self.same(mapping)
            if shm_hit_valid(&self.view, hit):
                shm_hit_mark(hit)
                if count:
                    self.view.client.hits += 1
                if hit.value_kind == SHM_V_BYTES and self.check is None:
                    return copy
                return _decode_value(self, hit.value_kind, copy)
            self.view.client.read_retries += 1
        raise self.corrupt("INV-REUSE", "a slot kept changing under a reader", key)

    @cython.final
    cdef object fetch_timed(self, object key):
        """Encode, fetch, and record how long it took: the call that sampling has drawn."""
        cdef CKey k
        cdef object keep, value
        cdef object mapping = self.mapping  # another thread may close or reopen the handle
        cdef shm_ring_view ring = self.own[0]
        cdef uint64_t began = shm_now_ns()
        if self.local is not None:
            value = self.local_get(key)
        else:
            keep = _encode_key(self, key, &k)
            value = self.fetch(&k.k, NULL, True)
        shm_ring_record(&ring, min(shm_now_ns() - began, SHM_MAX_DURATION_NS), shm_now_ms())
        return value

    @cython.final
    cdef object corrupt(self, str invariant, str what, shm_key *key):
        return _errors.CorruptSegment(
            f"{invariant} does not hold in shard {shm_shard_of(&self.view, key.hash)} of cache "
            f"{self.name!r}: {what}; run verify(), then unlink the cache and let it be made anew")

    @cython.final
    cdef inline object local_get(self, object key):
        """The value of `key`, or _MISSING; the object that an earlier get decoded where that is
        still what the cache holds (local.pxi)."""
        cdef object value, name = key
        cdef PyObject *found
        if type(key) is not str and type(key) is not int:
            name = _local_name(key)
            self.ready()  # making it may have run anything
        found = PyDict_GetItemWithError(self.local, name)
        if found != NULL and (self.levels == 0 or (<LocalEntry>found).epoch == self.epoch()):
            value = _local_hit(self, <LocalEntry>found)
            if value is not _MISSING:
                return value
        return self.local_miss(key, name)

    @cython.final
    cdef object local_miss(self, object key, object name):
        """Read `key` from shared memory, and keep what was decoded under `name`."""
        cdef CKey k
        cdef shm_hit hit
        cdef object keep, value, mapping
        k.epoch = 0
        keep = _encode_key(self, key, &k)
        mapping = self.mapping
        value = self.fetch_hit(&k.k, &hit, True)
        if self.mapping is mapping and self.local is not None:  # else closed or reopened
            if value is _MISSING:
                _local_forget(self, name)
            else:
                _local_keep(self, name, value, &hit, k.epoch)
        return value

    def get(self, key, default=None):
        """The value of `key`, or `default`.

        Takes no lock and never waits.  Cost: a hash, one or two cache lines, one copy, and the
        codec where the value is not bytes, str, int, float, bool or None.
        With `local_entries` a decoded object is handed out again while it is current: treat it
        as immutable.
        Raises TypeError, KeyTooLarge, OverflowError (no key), DecodeError, CacheClosed,
        CacheNotFound (unlinked meanwhile).
        """
        cdef CKey k
        cdef object keep, value
        if self.ready():
            value = self.fetch_timed(key)
        elif self.local is not None:
            value = self.local_get(key)
        else:
            keep = _encode_key(self, key, &k)
            value = self.fetch(&k.k, NULL, True)
        return default if value is _MISSING else value

    def __getitem__(self, key):
        cdef CKey k
        cdef object keep, value
        if self.ready():
            value = self.fetch_timed(key)
        elif self.local is not None:
            value = self.local_get(key)
        else:
            keep = _encode_key(self, key, &k)
            value = self.fetch(&k.k, NULL, True)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key):
        cdef CKey k
        cdef object keep
        cdef shm_hit hit
        cdef int r, tries = SHM_READ_TRIES
        self.ready()
        try:
            keep = _encode_key(self, key, &k)
        except (TypeError, ValueError, OverflowError):
            return False  # what cannot be stored is not in there
        while tries > 0:
            tries -= 1
            r = shm_find(&self.view, &k.k, &hit)
            if r == SHM_MISS:
                return False
            if r == SHM_CORRUPT:
                break
            if shm_hit_valid(&self.view, &hit):
                return hit.expiry == 0 or shm_expiry_at(hit.expiry) > shm_now_ms()
        raise self.corrupt("INV-REUSE", "a slot kept changing under a reader", &k.k)

    def _gets(self, key):
        """(value, version), or None.  Counts as a get."""
        cdef CKey k
        cdef object keep, value
        cdef uint64_t version = 0
        self.ready()
        keep = _encode_key(self, key, &k)
        value = self.fetch(&k.k, &version, True)
        return None if value is _MISSING else (value, _told_version(self, version, k.epoch))

    def _peek(self, key):
        """(value, version), or None, without counting."""
        cdef CKey k
        cdef object keep, value
        cdef uint64_t version = 0
        self.ready()
        keep = _encode_key(self, key, &k)
        value = self.fetch(&k.k, &version, False)
        return None if value is _MISSING else (value, _told_version(self, version, k.epoch))

    def _peek_encoded(self, key):
        """(True, the codec's bytes) or (False, the value, where no codec encoded it), or None.
        Without counting."""
        cdef CKey k
        cdef object keep, copy, mapping
        cdef shm_hit hit
        cdef int r, tries = SHM_READ_TRIES
        self.ready()
        keep = _encode_key(self, key, &k)
        while tries > 0:
            tries -= 1
            r = shm_find(&self.view, &k.k, &hit)
            if r == SHM_MISS:
                return None
            if r == SHM_CORRUPT:
                break
            mapping = self.mapping
            copy = _copy_value(self, &hit)
            self.same(mapping)
            if not shm_hit_valid(&self.view, &hit):
                continue
            if hit.expiry and shm_expiry_at(hit.expiry) <= shm_now_ms():
                return None
            shm_hit_mark(&hit)
            if hit.value_kind == SHM_V_CODEC:
                return True, copy
            return False, _decode_value(self, hit.value_kind, copy)
        raise self.corrupt("INV-REUSE", "a slot kept changing under a reader", &k.k)

    def ttl(self, key):
        """Seconds that `key` has left, None if it never expires.  KeyError if it is absent.
        Takes no lock; to a millisecond."""
        cdef CKey k
        cdef object keep
        cdef shm_hit hit
        cdef int r, tries = SHM_READ_TRIES
        cdef uint64_t now
        self.ready()
        keep = _encode_key(self, key, &k)
        while tries > 0:
            tries -= 1
            r = shm_find(&self.view, &k.k, &hit)
            if r == SHM_MISS:
                raise KeyError(key)
            if r == SHM_CORRUPT:
                break
            if not shm_hit_valid(&self.view, &hit):
                continue
            if hit.expiry == 0:
                return None
            now = shm_now_ms()
            if shm_expiry_at(hit.expiry) <= now:
                raise KeyError(key)
            return (shm_expiry_at(hit.expiry) - now) / 1000.0
        raise self.corrupt("INV-REUSE", "a slot kept changing under a reader", &k.k)
