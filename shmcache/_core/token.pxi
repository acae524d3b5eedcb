# Cancellation tokens: what of them must be atomic (the protocol: src/token.h).

cdef enum:
    CHAIN = 64  # tokens from one up to its root, itself included


cdef class Token:
    """The core of a cancellation token.  Not for direct use: `CancellationToken` derives from it.
    """

    cdef Attached handle
    cdef readonly tuple _names   # from the root to this token
    cdef tuple encoded           # the same, as records hold them
    cdef uint64_t epoch          # of the handle, when `chain` was found; 0: never
    cdef uint32_t depth
    cdef shm_token *chain[64]    # this token, its parent, ..., the root
    cdef shm_token *first        # token 0: it has the bell

    def __init__(self, Attached cache, *names):
        if not 1 <= len(names) <= CHAIN:
            raise _errors.LimitReached(
                f"a token {len(names)} levels deep: a cache has {CHAIN} tokens in all")
        self.handle = cache
        self._names = names
        self.encoded = tuple([_limits.check_label("token", name) for name in names])
        self.bind()

    @cython.final
    cdef int bind(self) except -1:
        """Ready, and `chain` is where the tokens lie in the segment that the handle is on."""
        cdef Attached h = self.handle
        cdef shm_directory d
        cdef object attachment
        cdef uint64_t offset, size = SHM_TOKEN_SIZE
        cdef uint32_t count, number = 0, parent, depth = <uint32_t>len(self.encoded), i
        cdef uint32_t numbers[64]
        while True:
            h.ready()
            if self.epoch == h.connection:
                return 0
            attachment = h.held()
            offset = attachment.superblock.geometry.tokens_off
            count = attachment.superblock.geometry.token_count
            parent = 0
            for i in range(depth):
                h.ready()
                if h._attachment is not attachment:  # closed and reopened by another thread
                    break
                d.first = h.view.base + offset + _RECORD_IN_TOKEN
                d.stride = size
                d.count = count
                number = _find_record(h, &d, &(<shm_token *>(h.view.base + offset)).directory,
                                      parent, self.encoded[i], "token")
                numbers[depth - 1 - i] = number
                parent = number + 1
            else:
                h.ready()
                if h._attachment is not attachment:
                    continue
                for i in range(depth):
                    self.chain[i] = <shm_token *>(h.view.base + offset + numbers[i] * size)
                self.first = <shm_token *>(h.view.base + offset)
                self.depth = depth
                self.epoch = h.connection

    @cython.final
    cdef object corrupt(self, str what):
        return _errors.CorruptSegment(
            f"INV-TOKEN-REASON does not hold in token {'/'.join(self._names)!r} of cache "
            f"{self.handle.name!r}: {what} is damaged; reset() the token and cancel it again")

    @property
    def _cache(self):
        return self.handle

    @property
    def cancelled(self):
        """Whether this token or one of its parents is cancelled.  No lock, no wait: a load for
        each."""
        cdef uint32_t i
        cdef int r
        self.bind()
        for i in range(self.depth):
            r = shm_token_state(self.chain[i])
            if r == SHM_HIT:
                return True
            if r == SHM_CORRUPT:
                raise self.corrupt("its state, or a parent's,")
        return False

    @property
    def reason(self):
        """What the first to cancel gave as the reason, cut to 128 bytes of UTF-8: the token's own,
        else its nearest cancelled parent's.  None if none was given, or nothing is cancelled."""
        cdef char text[128]
        cdef uint32_t i, length = 0
        cdef int r
        self.bind()
        for i in range(self.depth):
            r = shm_token_reason(self.chain[i], text, &length)
            if r == SHM_CORRUPT:
                raise self.corrupt("its state or its reason, or a parent's,")
            if r == SHM_HIT:
                if length == SHM_NO_REASON:
                    return None
                return PyBytes_FromStringAndSize(text, length).decode("utf-8", "replace")
        return None

    @cython.final
    cdef int lock(self) except -1:
        cdef uint64_t waited_ns = 0
        cdef Attached h = self.handle
        if not shm_lock_try(&self.chain[0].holder, h.view.me):
            h.acquire_word(&self.chain[0].holder, h.view.shard_count, h.timeout_s,
                           f"token {'/'.join(self._names)!r}", &waited_ns)
        return 0

    def _cancel(self, reason):
        """Whether this call cancelled it.  `reason`: None, or at most 128 bytes of UTF-8."""
        cdef Attached h = self.handle
        cdef object mapping
        cdef const char *text = b""
        cdef uint32_t length = SHM_NO_REASON, semaphore
        cdef uint64_t offset
        cdef bint contended
        cdef int r
        if reason is not None:
            text = PyBytes_AS_STRING(reason)
            length = <uint32_t>PyBytes_GET_SIZE(reason)
            if length > <uint32_t>SHM_REASON_SIZE:
                raise ValueError(f"a reason of {length} bytes")
        self.bind()
        mapping = h.mapping
        semaphore = h.view.shard_count
        self.lock()
        offset = <uint64_t>(<uint8_t *>&self.first.bell - h.view.base)
        r = shm_token_cancel_locked(self.chain[0], text, length)
        contended = shm_lock_release(&self.chain[0].holder)
        # rung where it was cancelled already, too: whoever did that may have died before it rang
        shm_token_ring(self.first)
        _futex_wake(mapping, offset)
        if contended and h._attachment is not None:
            h.held().post(semaphore)
        if r == SHM_CORRUPT:
            raise self.corrupt("its state")
        return r == SHM_HIT

    def reset(self):
        """Make it a token that nobody has cancelled.  Its parents stay as they are, so a child of
        a cancelled parent stays cancelled.  Waits up to the handle's lock_timeout for somebody
        who is cancelling it (LockTimeout)."""
        cdef Attached h = self.handle
        cdef uint32_t semaphore
        cdef bint contended
        self.bind()
        semaphore = h.view.shard_count
        self.lock()
        shm_token_reset_locked(self.chain[0])
        contended = shm_lock_release(&self.chain[0].holder)
        if contended and h._attachment is not None:
            h.held().post(semaphore)

    def _bell(self):
        """What `_sleep` wants to be told; ask for it before `cancelled`."""
        self.bind()
        return shm_token_bell(self.first)

    def _sleep(self, uint32_t bell, double seconds):
        """Sleep until some token of the cache is cancelled, `seconds` at most, or for no reason."""
        self.bind()
        _futex_wait(self.handle.mapping,
                    <uint64_t>(<uint8_t *>&self.first.bell - self.handle.view.base), bell, seconds)


def verify_tokens(Handle h):
    """Check every cancellation token and its name.  Returns findings as `verify_swaps`."""
    cdef shm_token *t
    cdef char text[128]
    cdef uint64_t offset, wanted
    cdef uint32_t i, count, length = 0
    cdef object mapping
    cdef list rows = []
    h.ready()
    mapping = h.mapping
    geometry = h.held().superblock.geometry
    offset = geometry.tokens_off
    count = geometry.token_count
    for i in range(count):
        h.ready()
        h.same(mapping)
        t = <shm_token *>(h.view.base + offset + <uint64_t>i * SHM_TOKEN_SIZE)
        if not shm_record_ok(&t.record, &wanted):
            rows.append(("INV-RECORD-SEAL", "a name is as it was sealed", i, wanted,
                         RD(&t.record.seal)))
        if shm_token_reason(t, text, &length) == SHM_CORRUPT:
            rows.append(("INV-TOKEN-REASON", "a state is one that was stored, and the reason what "
                         "was stored with it", i, shm_sealed(shm_sealed_count(RD(&t.state))),
                         RD(&t.state)))
    return rows
