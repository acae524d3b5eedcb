# Swap slots: what of them must be fast, or atomic (the protocol: src/swap.h).

cdef extern from *:
    """
    #define SHM_RECORD_IN_SWAP offsetof(shm_swap, record)
    #define SHM_RECORD_IN_TOKEN offsetof(shm_token, record)
    """
    const uint64_t _RECORD_IN_SWAP "SHM_RECORD_IN_SWAP"
    const uint64_t _RECORD_IN_TOKEN "SHM_RECORD_IN_TOKEN"


cdef uint32_t _find_record(Attached h, shm_directory *d, uint64_t *lock, uint32_t parent,
                           bytes name, str what) except? 0xffffffff:
    """The number of the record of that name; the first use of a name takes a free one.

    Takes the directory's lock only where the name is new.  Raises LimitReached, LockTimeout,
    CorruptSegment.  May let other threads run."""
    cdef uint32_t at = 0
    cdef uint64_t waited_ns = 0
    cdef bint contended
    cdef int r = shm_record_find(d, parent, PyBytes_AS_STRING(name), &at)
    if r == SHM_MISS:
        r = SHM_FULL
        if d.count > 0:
            if not shm_lock_try(lock, h.view.me):
                h.acquire_word(lock, h.view.shard_count, h.timeout_s,
                               f"the directory of {what}s", &waited_ns)
            # a predecessor that died here has left a free record free: nothing to repair
            r = shm_record_claim_locked(d, parent, PyBytes_AS_STRING(name), &at)
            contended = shm_lock_release(lock)
            if contended and h._attachment is not None:
                h.held().post(h.view.shard_count)
    if r == SHM_FULL:
        raise _errors.LimitReached(
            f"no {what} is left for the name {name.rstrip(b'\0').decode()!r}: cache {h.name!r} has "
            f"{d.count}, all of them named; names are never given back: use those there are, or "
            "make the cache anew" + (" with more slots" if what == "swap slot" else ""))
    if r == SHM_CORRUPT:
        raise _errors.CorruptSegment(
            f"INV-RECORD-SEAL does not hold for {what} {at} of cache {h.name!r}: its name is "
            "damaged, and may have been the one that was asked for; unlink the cache and let it "
            "be made anew")
    return at


cdef class SwapState:
    """What one handle knows of one slot.  Shared by all its SwapSlots of that name, so that
    they return the same object; holds on to no handle and no memory."""

    cdef str label
    cdef bytes name
    cdef uint64_t epoch      # of the handle, when `at` was found; 0: never
    cdef shm_swap_view at    # good while the handle is ready and its epoch is that one
    cdef uint32_t number
    cdef uint64_t seen       # the word that `value` was decoded under; 0: none
    cdef object value

    def __cinit__(self, str label, bytes name):
        self.label = label
        self.name = name


cdef class Swap:
    """The hot half of a swap slot.  Not for direct use: `SwapSlot` derives from it."""

    cdef Attached handle
    cdef SwapState state

    def __init__(self, Attached cache, name):
        cdef bytes encoded = _limits.check_label("swap slot", name)
        self.handle = cache
        self.state = cache.swap_states.get(name) or SwapState(name, encoded)
        self.bind()
        self.state = cache.swap_states.setdefault(name, self.state)

    @cython.final
    cdef int bind(self) except -1:
        """Ready, and `state.at` is where the slot lies in the segment that the handle is on."""
        cdef Attached h = self.handle
        cdef SwapState s = self.state
        cdef shm_directory d
        cdef object attachment, before
        cdef uint64_t offset, stride, capacity
        cdef uint32_t number, count
        while True:
            h.ready()
            if s.epoch == h.connection:
                return 0
            attachment = h.held()
            geometry = attachment.superblock.geometry
            offset = geometry.slots_off
            stride = geometry.slot_stride
            capacity = geometry.slot_capacity
            count = geometry.slot_count
            h.ready()
            if h._attachment is not attachment:  # closed and reopened by another thread
                continue
            d.first = h.view.base + offset + _RECORD_IN_SWAP
            d.stride = stride
            d.count = count
            number = _find_record(h, &d, &(<shm_swap *>(h.view.base + offset)).directory, 0,
                                  s.name, "swap slot")
            h.ready()
            if h._attachment is not attachment:
                continue
            before = s.value
            s.at.slot = <shm_swap *>(h.view.base + offset + number * stride)
            s.at.capacity = capacity
            s.number = number
            s.seen = 0
            s.value = None
            s.epoch = h.connection

    @cython.final
    cdef object corrupt(self, str invariant, str what):
        return _errors.CorruptSegment(
            f"{invariant} does not hold in swap slot {self.state.label!r} (number "
            f"{self.state.number}) of cache {self.handle.name!r}: {what}")

    @property
    def _cache(self):
        return self.handle

    @property
    def name(self):
        """The slot's name."""
        return self.state.label

    @property
    def capacity(self):
        """Bytes that an encoded value may take."""
        self.bind()
        return self.state.at.capacity

    def load(self):
        """The current value; None before the first store.

        The very same decoded object while nobody stores: treat it as immutable.  Takes no lock
        and never waits; a stopped or dead writer changes nothing.  Cost: about that of a dict's
        get while the version is unchanged, else a copy, its checksum, and the codec.

        Raises CorruptSegment (flipped bytes: never a wrong value), DecodeError, CacheClosed,
        CacheNotFound (unlinked meanwhile).
        """
        cdef Attached h = self.handle
        cdef SwapState s = self.state
        h.ready()
        if s.epoch == h.connection and RDA(&s.at.slot.word) == s.seen:
            return s.value
        return self.reload(NULL)

    def load_versioned(self):
        """(value, version), of one instant; (None, 0) before the first store.  As `load`."""
        cdef uint64_t version = 0
        cdef object value = self.reload(&version)
        return value, version

    @cython.final
    cdef object reload(self, uint64_t *version):
        cdef Attached h = self.handle
        cdef SwapState s = self.state
        cdef shm_swap_copy c
        cdef uint64_t epoch
        cdef object copy, mapping, value, before
        cdef char *to
        cdef int r, tries = SHM_SWAP_TRIES
        while tries > 0:
            tries -= 1
            self.bind()
            r = shm_swap_read_begin(&s.at, &c)
            if r == SHM_BUSY:
                continue
            if r == SHM_CORRUPT:
                raise self.corrupt("INV-SWAP-VERSION", "its version or the length of its value "
                                   "is damaged; unlink the cache and let it be made anew")
            if version != NULL:
                version[0] = shm_sealed_count(c.word)
            if r == SHM_MISS:
                return None
            if c.word == s.seen:
                return s.value
            epoch = s.epoch
            copy = PyBytes_FromStringAndSize(NULL, c.length)
            to = PyBytes_AS_STRING(copy)
            if c.length < LARGE:
                shm_bytes_copy(to, c.bytes, c.length)
            else:  # without the GIL: keep the memory mapped, and look who is there afterwards
                mapping = h.mapping
                with nogil:
                    shm_bytes_copy(to, c.bytes, c.length)
                h.ready()
                h.same(mapping)
            if not shm_swap_unchanged(&s.at, &c):
                h.view.client.read_retries += 1
                continue
            if not shm_swap_sound(&c, to):
                raise self.corrupt("INV-SWAP-CURRENT", "the checksum of its value does not match "
                                   "its bytes; store the value again")
            value = _decode_swapped(h, c.kind, copy)
            # decoding may have let another thread load, or reopen the handle
            if s.epoch == epoch:
                if c.word == s.seen:
                    return s.value
                if shm_sealed_count(c.word) > shm_sealed_count(s.seen):
                    before = s.value  # dies after both fields are in step
                    s.value = value
                    s.seen = c.word
            return value
        raise self.corrupt("INV-SWAP-REUSE", "it kept changing under a reader; load again, and "
                           "run verify() if that does not help")

    def _store(self, value, expected=-1):
        """The new version; 0 if `expected` (unless it is -1) is not the current one."""
        cdef CValue v
        cdef object keep
        cdef uint64_t wanted = SHM_SWAP_ANY if expected == -1 else expected
        self.handle.ready()
        keep = _encode_value(self.handle, value, &v)
        return self.store_encoded(&v, wanted)

    @cython.final
    cdef object store_encoded(self, CValue *v, uint64_t wanted):
        """`_store` of a value that is encoded; the caller keeps its bytes."""
        cdef Attached h = self.handle
        cdef SwapState s = self.state
        cdef object mapping
        cdef uint64_t digest, version = 0, waited_ns = 0
        cdef uint64_t offset
        cdef uint32_t semaphore
        cdef bint contended
        cdef int r

        self.bind()  # the codec may have run anything
        if v.len > s.at.capacity:
            raise _errors.SlotTooLarge(
                f"a value of {v.len} bytes does not fit swap slot {s.label!r} of cache "
                f"{h.name!r}: its capacity is {s.at.capacity} bytes; store less, or make the cache "
                "anew with a larger slot_capacity (or fewer slots: all of them together get an "
                "eighth of its size at most)")
        mapping = h.mapping
        if v.len < LARGE:
            digest = shm_xxh64(v.data, v.len, 0)
        else:
            with nogil:
                digest = shm_xxh64(v.data, v.len, 0)
            h.ready()
            h.same(mapping)
        if not shm_lock_try(&s.at.slot.holder, h.view.me):
            if h.acquire_word(&s.at.slot.holder, h.view.shard_count, h.timeout_s,
                              f"swap slot {s.label!r}", &waited_ns):
                shm_count(&s.at.slot.recoveries, 1)  # there is nothing to repair
        offset = <uint64_t>(<uint8_t *>&s.at.slot.word - h.view.base)
        semaphore = h.view.shard_count
        r = shm_swap_store_locked(&s.at, v.data, <uint32_t>v.len, v.kind, digest, wanted, &version)
        contended = shm_lock_release(&s.at.slot.holder)
        if r == SHM_HIT:
            _futex_wake(mapping, offset)
        if contended and h._attachment is not None:
            h.held().post(semaphore)
        if r == SHM_MISMATCH:
            return 0
        if r == SHM_CORRUPT:
            raise self.corrupt("INV-SWAP-VERSION", "its version is damaged, and the next one might "
                               "have been there before; unlink the cache and let it be made anew")
        if r == SHM_OVERFLOW:
            raise OverflowError(f"swap slot {s.label!r} was stored to 2**48 times")
        return version

    def _version(self):
        """The current version; 0 before the first store.  No lock."""
        cdef uint64_t word
        self.bind()
        word = RDA(&self.state.at.slot.word)
        if not shm_sealed_ok(word):
            raise self.corrupt("INV-SWAP-VERSION", "its version is damaged; unlink the cache and "
                               "let it be made anew")
        return shm_sealed_count(word)

    def _sleep(self, uint64_t version, double seconds):
        """Sleep until `version` is not the current one, `seconds` at most, or for no reason."""
        self.bind()
        _futex_wait(self.handle.mapping,
                    <uint64_t>(<uint8_t *>&self.state.at.slot.word - self.handle.view.base),
                    version & 0xffffffff, seconds)

    def _recoveries(self):
        """How often the slot's lock was taken over from a process that had died."""
        self.bind()
        return RD(&self.state.at.slot.recoveries)


cdef object _decode_swapped(Attached h, uint32_t kind, object copy):
    """The value of a private copy whose checksum was verified."""
    cdef shm_hit hit
    if kind == SHM_V_BYTES:
        return copy
    if kind == SHM_V_CODEC or kind == SHM_V_STR or kind == SHM_V_BIGINT:
        return _decode_value(h, <uint8_t>kind, copy)
    hit.value = <const uint8_t *>PyBytes_AS_STRING(copy)
    hit.value_len = <uint32_t>PyBytes_GET_SIZE(copy)
    hit.value_kind = <uint8_t>kind
    return _decode_value(h, <uint8_t>kind, _copy_value(h, &hit))


def verify_swaps(Handle h):
    """Check every swap slot and its name, beside writers too.  Returns findings: each (invariant,
    what it says, number of the slot, expected, found)."""
    cdef shm_swap_view at
    cdef shm_swap_copy c
    cdef uint64_t offset, stride, wanted
    cdef uint32_t i, count
    cdef int r, tries
    cdef object mapping, copy
    cdef list rows = []
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
        if not shm_record_ok(&at.slot.record, &wanted):
            rows.append(("INV-RECORD-SEAL", "a name is as it was sealed", i, wanted,
                         RD(&at.slot.record.seal)))
        for tries in range(SHM_SWAP_TRIES):
            r = shm_swap_read_begin(&at, &c)
            if r == SHM_MISS:
                break
            if r == SHM_CORRUPT:
                rows.append(("INV-SWAP-VERSION", "a version is one that was stored, and its value "
                             "fits a buffer", i, shm_sealed(shm_sealed_count(c.word)), c.word))
                break
            if r == SHM_BUSY:
                continue
            copy = PyBytes_FromStringAndSize(NULL, c.length)
            h.same(mapping)
            shm_bytes_copy(PyBytes_AS_STRING(copy), c.bytes, c.length)
            if not shm_swap_unchanged(&at, &c):
                continue
            if not shm_swap_sound(&c, PyBytes_AS_STRING(copy)):
                rows.append(("INV-SWAP-CURRENT", "a value is what was stored under its version", i,
                             c.check, shm_xxh64(PyBytes_AS_STRING(copy), c.length, 0)))
            break
    return rows
