# Ring: a latency ring; LatencyRing (latency.py) inherits the hot methods.

cdef enum:
    DEFAULT_SAMPLING = 256  # one call in so many has its latency recorded


cdef class Ring:
    """A named ring of a handle's segment.  Not for direct use: `LatencyRing` derives from it.

    Where the handle was reopened, the ring is looked up (or named) anew in the new segment.
    """

    cdef Attached handle
    cdef object mapping  # of the segment that `ring` points into
    cdef shm_ring_view ring
    cdef bytes padded
    cdef uint32_t wanted
    cdef readonly str name  # of the ring

    def __init__(self, Attached handle not None, str name, uint32_t capacity):
        self.padded = name.encode().ljust(SHM_NAME_SIZE, b"\0")
        if len(self.padded) != SHM_NAME_SIZE:
            raise ValueError(f"the name {name!r} has more than {SHM_NAME_SIZE} bytes")
        self.handle = handle
        self.name = name
        self.wanted = capacity
        self.bind()

    @cython.final
    cdef int bind(self) except -1:
        """Find the ring in the segment that the handle is attached to now, or give it its name."""
        cdef shm_rings_view rings
        cdef shm_ring_view ring
        cdef object mapping
        cdef Attached h = self.handle
        cdef const char *name = PyBytes_AS_STRING(self.padded)
        cdef uint64_t waited_ns = 0
        cdef int r
        h.ready()
        rings = h.rings
        mapping = h.mapping
        r = shm_ring_lookup(&rings, name, &ring)
        if r == SHM_MISS:
            # who died in there has changed nothing: there is nothing to repair
            h.acquire_word(shm_rings_holder(&rings), h.view.shard_count, h.timeout_s,
                           "the directory of rings", &waited_ns)
            r = shm_ring_lookup(&rings, name, &ring)
            if r == SHM_MISS:
                r = shm_ring_name(&rings, name, self.wanted, &ring)
            if shm_lock_release(shm_rings_holder(&rings)):
                h.held().post(h.view.shard_count)
        if r == SHM_FULL:
            raise _errors.LimitReached(
                f"no latency ring is left for {self.name!r} in cache {h.name!r}: all "
                f"{rings.count} are named, {SHM_OWN_RINGS} of them by the cache itself; reuse a "
                "name, or unlink the cache and let it be made anew")
        if r == SHM_CORRUPT:
            raise _errors.CorruptSegment(
                f"INV-RING-PLACE does not hold for ring {self.name!r} of cache {h.name!r}: its "
                "samples or its histogram lie outside the arena; unlink the cache and let it be "
                "made anew")
        self.ring = ring
        self.mapping = mapping
        return 0

    @cython.final
    cdef inline int check(self) except -1:
        self.handle.ready()
        if self.mapping is not self.handle.mapping:
            self.bind()
        return 0

    def record(self, double seconds):
        """Record a duration of `seconds`; as `record_ns`."""
        if not 0.0 <= seconds <= SHM_MAX_DURATION_NS / 1e9:
            raise _no_duration(seconds, "seconds")
        self.check()
        shm_ring_record(&self.ring, <uint64_t>(seconds * 1e9 + 0.5), shm_now_ms())

    def record_ns(self, int64_t ns):
        """Record a duration of `ns` nanoseconds, 0 to 2**53 (104 days).

        Wait-free: three atomic additions, one store, and where it is the longest so far a
        compare-and-swap.  Raises ValueError (out of range), CacheClosed, CacheNotFound.
        """
        if ns < 0 or ns > <int64_t>SHM_MAX_DURATION_NS:
            raise _no_duration(ns, "ns")
        self.check()
        shm_ring_record(&self.ring, ns, shm_now_ms())

    @cython.final
    cdef int record_or_drop(self, uint64_t ns) except -1:
        try:
            self.check()
        except (_errors.CacheClosed, _errors.CacheNotFound):
            return 0
        shm_ring_record(&self.ring, min(ns, SHM_MAX_DURATION_NS), shm_now_ms())
        return 0

    def time(self):
        """``with ring.time():`` records how long the block takes, also where it raises."""
        cdef Timing timing = Timing.__new__(Timing)
        timing.ring = self
        return timing

    @property
    def capacity(self):
        """Samples that the ring keeps: as the first to name it asked for, or as many as fitted."""
        self.check()
        return self.ring.capacity

    def recent(self, Py_ssize_t n):
        """The newest `n` samples that are kept, as seconds, newest last.

        A sample whose recorder has not stored it yet, or was killed before it did, is left out.
        Takes no lock and never waits.  O(n).
        """
        cdef uint64_t *words
        cdef uint32_t found, i
        cdef list out
        self.check()
        words = self.room(n)
        try:
            found = shm_ring_newest(&self.ring, self.limit(n), False, words)
            out = [None] * found
            for i in range(found):
                out[found - 1 - i] = shm_sample_ns(words[i]) / 1e9
        finally:
            free(words)
        return out

    def drain(self, Py_ssize_t n):
        """Take out the oldest `n` samples and return them as seconds, oldest first.

        Each sample goes to one caller among all processes.  What is being recorded at this moment
        stays for a later call.  Totals and histogram keep what was taken.  No lock, no wait.
        """
        cdef uint64_t *words
        cdef uint32_t found, i
        cdef list out
        self.check()
        words = self.room(n)
        try:
            out = [None] * self.limit(n)
            self.check()  # making the list may have run a finaliser
            found = shm_ring_drain(&self.ring, min(self.limit(n), <uint32_t>len(out)), words)
            for i in range(found):
                out[i] = shm_sample_ns(words[i]) / 1e9
        finally:
            free(words)
        del out[found:]
        return out

    def clear(self):
        """Forget all samples, totals and the histogram.  What is being recorded at this moment may
        be counted in some of them and not in others."""
        self.check()
        shm_ring_clear(&self.ring)

    def _ages_ms(self, Py_ssize_t n):
        """(how many, age of the oldest, age of the newest) of the newest `n` samples that are
        kept, by the clock that they are stamped with."""
        cdef uint64_t *words
        cdef uint64_t age, oldest = 0, newest = SHM_S_TIME_MASK, now
        cdef uint32_t found, i
        self.check()
        words = self.room(n)
        now = shm_now_ms()
        found = shm_ring_newest(&self.ring, self.limit(n), False, words)
        for i in range(found):
            age = shm_sample_age_ms(&self.ring, words[i], now)
            oldest = max(oldest, age)
            newest = min(newest, age)
        free(words)
        return found, oldest, min(newest, oldest)

    def _last_age_ms(self):
        """Age of the newest sample since the last clear, taken or not; None: there is none."""
        cdef uint64_t word
        self.check()
        if shm_ring_newest(&self.ring, 1, True, &word) == 0:
            return None
        return shm_sample_age_ms(&self.ring, word, shm_now_ms())

    def _totals(self):
        """(count, sum of nanoseconds, longest) since the last clear, drained samples included."""
        cdef uint64_t count = 0
        cdef uint32_t b
        self.check()
        for b in range(self.ring.buckets):
            count += RD(&self.ring.histogram[b])
        return count, RD(&self.ring.ring.sum_ns), RD(&self.ring.ring.max_ns)

    def _buckets(self):
        """The buckets that count anything: (from, below, count), in nanoseconds."""
        cdef uint32_t b, bits
        cdef uint64_t count
        cdef list out = []
        self.check()
        bits = self.ring.bucket_bits
        for b in range(self.ring.buckets):
            self.check()  # what was allocated may have run a finaliser
            if b >= self.ring.buckets:
                break
            count = RD(&self.ring.histogram[b])
            if count:
                out.append((shm_step_low(b, bits), shm_step_low(b + 1, bits), count))
        return out

    @cython.final
    cdef inline uint32_t limit(self, Py_ssize_t n) noexcept:
        return <uint32_t>min(<uint64_t>n, <uint64_t>self.ring.capacity)

    @cython.final
    cdef uint64_t *room(self, Py_ssize_t n) except NULL:
        """Room for `n` words, or for all that the ring keeps; to be freed by the caller."""
        cdef uint64_t *words
        if n < 0:
            raise ValueError(f"a number of samples cannot be negative: {n}")
        words = <uint64_t *>malloc((<size_t>self.limit(n) + 1) * sizeof(uint64_t))
        if words == NULL:
            raise MemoryError
        return words


cdef class Timing:
    """The ``with`` block of `LatencyRing.time`; `seconds` is how long it took, None until it has
    ended.  Where the ring is gone by then, the block's own outcome stands."""

    cdef Ring ring
    cdef uint64_t began_ns
    cdef readonly object seconds

    def __enter__(self):
        self.began_ns = shm_now_ns()
        return self

    def __exit__(self, kind, error, trace):
        cdef uint64_t took_ns = shm_now_ns() - self.began_ns
        if self.ring is None:
            raise TypeError("a Timing is made by LatencyRing.time()")
        self.seconds = took_ns / 1e9
        self.ring.record_or_drop(took_ns)


cdef object _no_duration(object value, str unit):
    return ValueError(
        f"a duration of {value} {unit} cannot be recorded: pass 0 to "
        f"{SHM_MAX_DURATION_NS if unit == 'ns' else SHM_MAX_DURATION_NS / 1e9} {unit}")


def verify_rings(Attached h not None):
    """Check the directory of rings, beside recorders.  Returns findings: (invariant, what it says,
    number of the ring, expected, found)."""
    cdef shm_rings_view rings
    cdef shm_ring_view ring, other
    cdef object mapping
    cdef list rows = []
    cdef uint64_t claimed, head
    cdef uint32_t i, j
    cdef int got
    h.ready()
    mapping = h.mapping  # kept, whatever other threads do to the handle
    rings = h.rings
    for i in range(rings.count):
        got = shm_ring_open(&rings, i, &ring)
        if got == SHM_CORRUPT:
            rows.append(("INV-RING-PLACE", "a ring lies in the arena", i, 0, 1))
        if got != SHM_HIT:
            continue
        for j in range(i):
            if shm_ring_open(&rings, j, &other) == SHM_HIT and not shm_ring_apart(&ring, &other):
                rows.append(("INV-RING-PLACE", "no two rings overlap", i, i, j))
        claimed = shm_ring_claims(&ring)
        head = RD(&ring.ring.head)
        if claimed > head:
            rows.append(("INV-RING-TOTALS", "what counts had a position", i, head, claimed))
    return rows


def ring_names(Attached h not None):
    """Names of the rings that have one, the cache's own first.  Takes no lock; what is damaged is
    left out (`verify_rings` tells)."""
    cdef shm_rings_view rings
    cdef shm_ring_view ring
    cdef object mapping
    cdef bytes raw
    cdef list names = []
    cdef uint32_t i
    h.ready()
    mapping = h.mapping  # kept, whatever other threads do to the handle
    rings = h.rings
    for i in range(rings.count):
        if shm_ring_open(&rings, i, &ring) == SHM_HIT:
            raw = PyBytes_FromStringAndSize(ring.ring.name, SHM_NAME_SIZE)
            names.append(raw.rstrip(b"\0").decode("utf-8", "replace"))
    return names


RING_OWN_GET = SHM_RING_OWN_GET.decode()
RING_OWN_SET = SHM_RING_OWN_SET.decode()
