# Cursor: iteration over the index, slot by slot, without a lock.

cdef enum:
    WANT_KEYS = 0
    WANT_VALUES = 1
    WANT_ITEMS = 2
    WANT_VERSIONS = 3  # (key, value, version)
    WANT_EXPIRED = 4   # (key, version), of what has expired, and of nothing else


cdef class Cursor:
    """An iterator over entries: weakly consistent, holds no lock between steps.

    Each key that is present throughout is yielded exactly once: a key keeps its slot from
    insertion to removal, and every slot is visited once.  Never yields a torn entry, nor an expired
    one unless it is asked for just these.  `kind` and `prefix` restrict it to keys of one type whose content starts with it;
    `start` is the `position` where another one stopped.
    """

    cdef Handle handle
    cdef object mapping
    cdef uint32_t shard, slot
    cdef int want
    cdef uint32_t kind
    cdef bytes prefix

    def __cinit__(self, Handle handle, int want=WANT_KEYS, uint32_t kind=0, bytes prefix=b"",
                  uint64_t start=0):
        handle.ready()
        self.shard = <uint32_t>(start // handle.view.slot_count)
        self.slot = <uint32_t>(start % handle.view.slot_count)
        self.handle = handle
        self.mapping = handle.mapping
        self.want = want
        self.kind = kind
        self.prefix = prefix

    @property
    def position(self):
        """Where it goes on: `start` of a cursor that continues."""
        return <uint64_t>self.shard * self.handle.view.slot_count + self.slot

    def __iter__(self):
        return self

    def __next__(self):
        cdef shm_hit hit
        cdef Handle h = self.handle
        cdef int r, tries
        cdef object key, value
        cdef Py_ssize_t n, head = 0
        cdef uint64_t version, epoch = 0
        cdef bytes begin = b""
        h.ready()
        if h.levels:
            epoch = h.epoch()
            if epoch == 0:
                raise StopIteration
            begin = h.path + PyBytes_FromStringAndSize(<const char *>&epoch, 8)
            head = PyBytes_GET_SIZE(begin)
            h.ready()
        while self.shard < h.view.shard_count:
            if self.slot >= h.view.slot_count:
                self.slot = 0
                self.shard += 1
                continue
            tries = SHM_READ_TRIES
            while tries > 0:
                tries -= 1
                r = shm_slot_entry(&h.view, self.shard, self.slot, &hit)
                if r != SHM_HIT:
                    break
                if (hit.key_kind & (SHM_K_LEASE | SHM_K_NAMESPACED)
                        != (SHM_K_NAMESPACED if head else 0)
                        or hit.key_kind & SHM_K_TYPE == SHM_K_EPOCH
                        or self.kind and hit.key_kind & SHM_K_TYPE != self.kind):
                    if shm_hit_valid(&h.view, &hit):
                        break
                    continue
                n = hit.key_len
                key = PyBytes_FromStringAndSize(NULL, n)
                shm_bytes_copy(PyBytes_AS_STRING(key), hit.key, n)
                value = None
                if self.want != WANT_KEYS and self.want != WANT_EXPIRED:
                    value = _copy_value(h, &hit)
                    h.same(self.mapping)
                version = hit.version
                if not shm_hit_valid(&h.view, &hit):
                    continue
                if hit.expiry and shm_expiry_at(hit.expiry) <= shm_now_ms():
                    if self.want != WANT_EXPIRED or \
                            shm_expiry_reclaim_at(hit.expiry) > shm_now_ms():
                        break
                elif self.want == WANT_EXPIRED:
                    break
                if head:
                    if not (<bytes>key).startswith(begin):
                        break
                    key = (<bytes>key)[head:]
                if self.prefix and not (<bytes>key).startswith(self.prefix):
                    break
                self.slot += 1
                key = _decode_key(hit.key_kind, key)
                if self.want == WANT_KEYS:
                    return key
                if self.want == WANT_EXPIRED:
                    return key, _told_version(h, version, epoch)
                value = _decode_value(h, hit.value_kind, value)
                if self.want == WANT_VALUES:
                    return value
                if self.want == WANT_ITEMS:
                    return key, value
                return key, value, _told_version(h, version, epoch)
            self.slot += 1
        raise StopIteration
