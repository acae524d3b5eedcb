# Attached: who and where a handle is, and the lock of a shard.

cdef enum:
    LOOK_EVERY = 8  # calls between two looks at the coarse clock, for the check of the name
    LOOK_MS = 250   # milliseconds between two checks that the path still names the segment

cdef uint64_t _NO_WORD = 0  # the slot of what is kept no more: it never holds the word ~0
cdef uint64_t _NOBODY = 0  # what a closed handle's identity pointer points to


cdef enum:
    LEVELS_MOST = 8  # namespaces within namespaces

cdef struct Level:  # of a namespace: its epoch, and the slot and word that it was read from
    uint64_t *slot
    uint64_t word
    uint64_t epoch
    uint32_t end    # bytes of the path up to here

cdef class LocalEntry

cdef class LocalTable


cdef class Attached:
    """A process's way into a segment: what is private to a handle.

    `_connect` binds it to an attachment (segment.py), `_disconnect` lets go of it.
    """

    cdef shm_view view
    cdef const uint64_t *identity  # first word of a page that the kernel wipes in a child
    cdef uint64_t joined           # what that word was when this handle took its identity
    cdef const uint32_t *dead
    cdef uint32_t countdown
    cdef uint64_t look_at_ms
    cdef bint raw
    cdef bint plain_msgpack  # the codec's format is msgpack, and plain types mean themselves
    cdef object mapping, identity_page
    cdef uint64_t connection       # moves on with every segment that this handle is connected to
    cdef dict swap_states          # of this handle's swap slots, by name (swap.pxi)
    cdef object codec, fast_encode, fast_decode, decode_names
    cdef PyObject *decode_args[12]  # [0]: the payload; then the decoder's keyword arguments
    cdef object decode_values       # what owns them
    cdef readonly object _attachment
    cdef readonly object _codec
    cdef readonly str name
    cdef readonly Py_ssize_t max_value_size
    cdef double timeout_s
    cdef shm_rings_view rings
    cdef shm_ring_view own[2]      # the cache's own latencies: gets, sets
    cdef uint32_t sampling         # one call in so many is timed; 0: none
    cdef uint32_t until_sample     # calls until the next one, counted in strides
    cdef uint32_t stride           # what `countdown` was last set to
    cdef uint32_t dice             # state of the generator that draws which call it is
    cdef object check      # of a typed namespace: turns a value that no codec encoded into its type
    cdef uint64_t default_ttl_ms
    cdef int levels        # 0: no namespace
    cdef bytes path        # what its keys begin with: u16 length, and the path (epoch.h)
    cdef Level level[LEVELS_MOST]
    cdef dict local        # key -> LocalEntry, None where nothing is kept (local.pxi)
    cdef LocalTable table  # what bounds it

    def __cinit__(self):
        self.identity = &_NOBODY
        self.joined = 1
        self.dice = <uint32_t>shm_now_ns() | 1
        self.sample_every(DEFAULT_SAMPLING)
        self.swap_states = {}

    def _connect(self, object attachment, object codec, double lock_timeout):
        """Bind this handle to an attachment.  False if another thread was quicker to do so."""
        cdef Py_buffer buf
        cdef Py_ssize_t i
        cdef shm_superblock sb
        cdef uint32_t client = attachment.client, generation = attachment.generation
        cdef object page = attachment.identity, mapping = attachment.mapping
        cdef object encode = codec.fast_encode, decode = codec.fast_decode
        cdef object names = tuple(codec.fast_decode_names) or None
        cdef object values = tuple(codec.fast_decode_values)
        cdef object before = (self.codec, self.check, self.fast_encode, self.fast_decode, self.decode_values)
        cdef str name = attachment.name
        cdef object check = codec.check
        cdef int i_level
        cdef bint raw = codec.name == "raw", plain_msgpack = codec.plain_msgpack
        cdef Py_ssize_t max_value_size = attachment.superblock.geometry.max_value_size

        if len(values) > 11:
            raise ValueError(f"codec {codec.name!r} has more keyword arguments than fit")
        _fill_superblock(&sb, attachment.superblock.fields)
        # from here to the end no Python code runs, so no other thread does (`before` keeps what
        # is replaced, and thereby its destructors)
        if self._attachment is not None:
            return False
        self.codec = codec
        self._codec = codec
        self.check = check
        for i_level in range(self.levels):
            self.level[i_level].slot = &_NO_WORD
        self.fast_encode = encode
        self.fast_decode = decode
        self.decode_names = names
        self.decode_values = values
        for i in range(len(values)):
            self.decode_args[i + 1] = <PyObject *>PyTuple_GET_ITEM(values, i)
        self.raw = raw
        self.plain_msgpack = plain_msgpack
        self.name = name
        self.timeout_s = lock_timeout
        self.max_value_size = max_value_size
        self.mapping = mapping
        self.identity_page = page  # keeps what `identity` points to
        self.adopt(&sb, client, generation)
        PyObject_GetBuffer(page, &buf, PyBUF_SIMPLE)
        self.identity = <const uint64_t *>buf.buf
        PyBuffer_Release(&buf)
        self.joined = self.identity[0]
        self.connection += 1
        self._attachment = attachment
        return True

    @cython.final
    cdef int adopt(self, shm_superblock *sb, uint32_t client, uint32_t generation) except -1:
        """Take an identity: who this process is in the client table of `mapping`."""
        cdef Py_buffer buf
        PyObject_GetBuffer(self.mapping, &buf, PyBUF_WRITABLE)
        shm_view_init(&self.view, <uint8_t *>buf.buf, sb, client, generation)
        shm_rings_init(&self.rings, <uint8_t *>buf.buf, sb)
        shm_ring_open(&self.rings, 0, &self.own[0])
        shm_ring_open(&self.rings, 1, &self.own[1])
        self.dead = &(<shm_superblock *>buf.buf).dead
        PyBuffer_Release(&buf)
        return 0

    def _disconnect(self):
        """Forget the segment: every later call raises CacheClosed.  Idempotent.  Returns the
        attachment, or None if there was none.  A call that another thread has under way keeps
        the memory mapped until it ends."""
        cdef object attachment = self._attachment
        self.identity = &_NOBODY
        self.joined = 1
        self._attachment = None
        self.mapping = None
        if self.levels:
            self._forget_local()
        elif self.table is not None:
            self._keep_local(self.table.limit)
        return attachment

    def _follow(self):
        """Of a namespace: connect to what its cache is connected to.  The attachment, or None."""
        return None

    def _set_namespace(self, bytes path, ends, uint64_t default_ttl_ms, Attached cache):
        """Make this handle a namespace's, before it is connected: `path` as keys have it, `ends`
        the bytes of it up to each level, and `cache`, whose bound on local entries it shares."""
        cdef int i = 0
        if len(ends) > LEVELS_MOST:
            raise ValueError(f"namespaces nest {LEVELS_MOST} deep at most, not {len(ends)}")
        for end in ends:
            self.level[i].end = end
            self.level[i].slot = &_NO_WORD
            self.level[i].word = ~<uint64_t>0
            i += 1
        self.levels = i
        self.name = cache.name
        self.path = path
        self.default_ttl_ms = default_ttl_ms
        self.share_local(cache)

    @cython.final
    cdef int share_local(self, Attached cache) except -1:
        cdef object old = self.local  # until the end: destructors may run any code
        self.table = cache.table
        self.local = None if cache.table is None else {}
        return 0

    def _forget_local(self):
        """Let go of what a namespace keeps."""
        cdef dict local = self.local
        self.local = None
        if local is not None:
            for entry in list(local.values()):
                (<LocalEntry>entry).give_up()
            local.clear()

    def _share_local(self, Attached cache):
        """Keep decoded values within the bound of `cache`; none of those kept before."""
        self.share_local(cache)

    @cython.final
    cdef uint64_t epoch(self) except? 0:
        """The present epoch of a namespace, 0: it has none.  One load for each level."""
        cdef int i
        for i in range(self.levels):
            if not shm_word_current(self.level[i].slot, self.level[i].word):
                return self.find_epoch(i)
        return self.level[self.levels - 1].epoch

    @cython.final
    cdef uint64_t find_epoch(self, int first) except? 0:
        cdef uint8_t room[SHM_MAX_PATH + 10]
        cdef const uint8_t *path = <const uint8_t *>PyBytes_AS_STRING(self.path) + 2
        cdef uint64_t epoch = self.level[first - 1].epoch if first else 0
        cdef shm_key key
        cdef shm_hit hit
        cdef int i, r
        for i in range(first, self.levels):
            self.level[i].slot = &_NO_WORD
            self.level[i].word = ~<uint64_t>0
        for i in range(first, self.levels):
            key = shm_epoch_key(&self.view, room, path, self.level[i].end, epoch)
            r = shm_epoch_find(&self.view, &key, &hit, &epoch)
            if r == SHM_CORRUPT:
                raise _errors.CorruptSegment(
                    f"INV-REUSE does not hold in cache {self.name!r}: the epoch of a namespace "
                    "kept changing under a reader; run verify(), then unlink the cache")
            if r != SHM_HIT or epoch == 0:
                return 0
            shm_hit_mark(&hit)
            self.level[i].slot = hit.slot
            self.level[i].word = hit.word
            self.level[i].epoch = epoch
        return epoch

    def _keep_local(self, Py_ssize_t limit):
        """Keep up to `limit` decoded values from now on, none of those kept before."""
        cdef object kept = self.table
        cdef dict local = self.local  # both live until the end: destructors may run any code
        cdef LocalTable table = LocalTable(limit) if limit > 0 else None
        cdef dict fresh = {} if limit > 0 else None
        self.table = table
        self.local = fresh
        if kept is not None:
            (<LocalTable>kept).empty()
            local.clear()

    @property
    def lock_timeout(self):
        """Seconds that a writing call of this handle waits for a shard; 0: not at all."""
        return self.timeout_s

    @lock_timeout.setter
    def lock_timeout(self, seconds):
        self.timeout_s = _limits.check_timeout("lock_timeout", seconds)

    @property
    def latency_sampling(self):
        """One get and one set in so many, of this handle's, has its latency recorded in the cache's
        own rings (`latencies("shmcache.get")`, `latencies("shmcache.set")`); 0: none.

        Which ones is drawn at random, so that no pattern of calls escapes.  256 unless it is set;
        not shared with other handles.
        """
        return self.sampling

    @latency_sampling.setter
    def latency_sampling(self, every):
        self.sample_every(_limits.check_count("latency_sampling", every, 1 << 30))

    @cython.final
    cdef int sample_every(self, uint32_t calls) noexcept:
        self.sampling = calls
        self.until_sample = self.draw() if calls else 0
        self.stride = self.countdown = min(self.until_sample, LOOK_EVERY) if calls else LOOK_EVERY
        return 0

    @cython.final
    cdef uint32_t draw(self) noexcept:
        """1 to 2 * sampling - 1, each as likely: `sampling` calls on average (xorshift32)."""
        self.dice ^= self.dice << 13
        self.dice ^= self.dice >> 17
        self.dice ^= self.dice << 5
        return 1 + self.dice % (2 * self.sampling - 1)

    @cython.final
    cdef inline int ready(self) except -1:
        """Asked before anything else: may this call go on?  1 where its latency is to be
        recorded, else 0, which costs nothing: the compiler sees that only look() says 1."""
        if self.identity[0] != self.joined or self.dead[0] != 0:
            self.not_ready()
        self.countdown -= 1
        if self.countdown == 0:
            return self.look()
        return 0

    @cython.final
    cdef inline int again(self) except -1:
        """The same question in the middle of a call, after what may have run anything."""
        if self.identity[0] != self.joined or self.dead[0] != 0:
            self.not_ready()
        return 0

    @cython.final
    cdef object held(self):
        """The attachment; CacheClosed if there is none (any more)."""
        cdef object attachment = self._attachment
        if attachment is None and self.levels:
            attachment = self._follow()
        if attachment is None:
            raise _errors.CacheClosed(
                f"this handle on cache {self.name!r} is closed; open the cache again with "
                f"Cache({self.name!r})")
        return attachment

    @cython.final
    cdef int not_ready(self) except -1:
        cdef object attachment = self.held()
        cdef shm_superblock sb
        cdef uint32_t client, generation
        if self.identity[0] != self.joined:
            if self.identity[0] == 0:  # a forked child: an identity of its own first
                attachment.rejoin()
            client = attachment.client
            generation = attachment.generation
            _fill_superblock(&sb, attachment.superblock.fields)
            if self._attachment is not attachment:  # closed or reopened by another thread
                return self.not_ready()
            self.adopt(&sb, client, generation)  # no Python code from the question to here
            self.joined = self.identity[0]
        if self.dead[0] != 0:
            self.gone()
        return 0

    @cython.final
    cdef int look(self) except -1:
        cdef uint64_t now = shm_now_ms()
        cdef object attachment
        cdef bint timed = False
        self.countdown = LOOK_EVERY
        if self.sampling != 0:
            if self.until_sample <= self.stride:
                timed = self.own[0].ring != NULL and self.own[1].ring != NULL
                self.until_sample = self.draw()
            else:
                self.until_sample -= self.stride
            self.countdown = min(self.until_sample, LOOK_EVERY)
        self.stride = self.countdown
        if now >= self.look_at_ms:
            self.look_at_ms = now + LOOK_MS
            attachment = self.held()
            if not attachment.still_named():
                self.gone()
            if self._attachment is not attachment:  # closed or reopened meanwhile
                self.again()
        return timed

    @cython.final
    cdef int same(self, object mapping) except -1:
        """Still the segment that a call began with?  Asked after whatever let other threads run."""
        if self.mapping is not mapping:
            raise _errors.CacheClosed(
                f"this handle on cache {self.name!r} was closed or reopened by another thread "
                "during the call; call again")
        return 0

    @cython.final
    cdef int gone(self) except -1:
        self.countdown = 1  # look again at the next call
        self.look_at_ms = 0
        raise _errors.CacheNotFound(
            f"cache {self.name!r} was unlinked or replaced while this handle was open; "
            "reopen() attaches to what is there now, or creates it")

    # ---------------------------------------------------------------- the lock of a shard

    @cython.final
    cdef int acquire(self, uint32_t shard, double timeout) except -1:
        """Take a shard; GIL held throughout, but for waiting."""
        cdef shm_shard *sh = shm_shard_at(&self.view, shard)
        if not shm_lock_try(&sh.holder, self.view.me):
            self.acquire_slowly(shard, timeout)
        shm_count(&sh.lock_acquisitions, 1)
        return 0

    @cython.final
    cdef int acquire_slowly(self, uint32_t shard, double timeout) except -1:
        cdef shm_shard *sh = shm_shard_at(&self.view, shard)
        cdef uint64_t waited_ns = 0
        if self.acquire_word(&sh.holder, shard, timeout, None, &waited_ns):
            shm_repair(&self.view, sh)
        if waited_ns:
            self.note_wait(sh, waited_ns)
        return 0

    @cython.final
    cdef int acquire_word(self, uint64_t *word, uint32_t semaphore, double timeout, str what,
                          uint64_t *waited_ns) except -1:
        """Take the lock behind a holder word, waiting up to `timeout` seconds on a semaphore of
        the attachment, a slice at a time.  Returns whether it was taken over from the dead: the
        caller then repairs before anything else.  `what` it guards is for messages; None: the
        shard of that number.  `waited_ns` is set where a slice was waited at least."""
        cdef uint64_t began, now, deadline, holder
        cdef double slice_s = 0.0005
        cdef bint waited = False, alive, robbed = False
        cdef object attachment, mapping = self.mapping

        if shm_lock_spin(word, self.view.me):
            return False
        attachment = self.held()
        began = shm_now_ns()
        deadline = began + <uint64_t>(min(timeout, 1e9) * 1e9)
        while True:
            holder = shm_lock_or_contend(word, self.view.me, waited)
            if holder == 0:
                break
            now = shm_now_ns()
            if timeout > 0 and now < deadline:
                attachment.wait(semaphore, min(slice_s, (deadline - now) / 1e9))
                waited = True
                self.ready()  # closed, forked or unlinked while waiting
                self.same(mapping)
                if RD(word) != holder:
                    continue  # it changed hands: somebody is alive
                slice_s = min(slice_s * 2, 0.05)
            elif holder == SHM_L_UNDECIDED and timeout > 0:
                self.refuse_lock(semaphore, timeout, holder, what)
            if holder != SHM_L_UNDECIDED:
                alive = shm_lock_word_ok(holder, self.view.client_count)
                if alive:
                    alive = attachment.is_alive(shm_identity_client(holder), holder & 0xffffffff)
                    self.ready()
                    self.same(mapping)
                if not alive:
                    if shm_lock_take_over(word, holder, self.view.me):
                        robbed = True
                        break
                    continue
            if shm_now_ns() >= deadline:
                self.refuse_lock(semaphore, timeout, holder, what)
        if waited:
            waited_ns[0] = shm_now_ns() - began
        return robbed

    @cython.final
    cdef int note_wait(self, shm_shard *sh, uint64_t waited_ns) noexcept:
        cdef uint64_t us = waited_ns // 1000
        cdef unsigned int bucket = 0
        while us > 0 and bucket + 1 < SHM_WAIT_BUCKETS:
            us >>= 1
            bucket += 1
        shm_count(&sh.lock_contended, 1)
        shm_count(&sh.lock_wait_ns, waited_ns)
        sh.wait_histogram[bucket] += 1
        return 0

    @cython.final
    cdef int refuse_lock(self, uint32_t shard, double timeout, uint64_t holder,
                         str what) except -1:
        cdef shm_client *who
        cdef uint32_t client = shm_identity_client(holder)
        cdef object attachment = self.held()
        cdef object pid = "?"
        what = what or f"shard {shard}"
        if client < self.view.client_count:
            who = <shm_client *>(self.view.base +
                                 <uint64_t>attachment.superblock.geometry.clients_off) + client
            pid = who.pid
        if timeout <= 0:
            raise _errors.WouldBlock(
                f"{what} of cache {self.name!r} is held by client {client} (pid {pid} in "
                "its own namespace), which is alive; try again, or call the waiting variant")
        self.view.client.lock_timeouts += 1
        raise _errors.LockTimeout(
            f"{what} of cache {self.name!r} was held for {timeout:g} s by client {client} "
            f"(pid {pid} in its own namespace), which is alive but stopped or starved; resume or "
            "kill it, or raise lock_timeout")

    @cython.final
    cdef int release(self, uint32_t shard) except -1:
        cdef shm_shard *sh = shm_shard_at(&self.view, shard)
        cdef bint wake = shm_wake_due(sh), contended = shm_lock_release(&sh.holder)
        if wake:  # a lease has gone: whoever waits for it looks again
            shm_wake_all(&sh.wake)
        if contended:
            self.held().post(shard)
        return 0
