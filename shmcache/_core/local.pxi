# Local entries: decoded values close at hand, each good for as long as a slot holds its word.
#
# The story.  A get that decoded a value remembers the object, the slot that named its entry, and
# the slot's word (visited bits aside).  The next get of the key loads that slot (RDA): if the word
# is the same, the entry is the same, since an entry is immutable and a word does not come back
# (its position only grows).  So the load of the slot is the read's linearization point, exactly as
# in shm_find, and whatever any process did to the key before it (set, delete, touch, expiry,
# eviction, clear) has changed the word, or the clock tells.  Nothing is ever sent to anybody.
#
# A slot's address means something in one mapping only, so the table is emptied when the handle
# lets go of it.  A forked child keeps its copy: same mapping, same slots, asked anew on each get.
#
# INV-LOCAL: an object is handed out only while its slot holds the word that it was decoded from
# and its expiry lies ahead.
#
# The GIL guards the table; nothing between the look-up and the load of the slot runs Python code.

cdef enum:
    LOCAL_SMALLEST = 1024  # bytes from which on bytes and str, which are not decoded, are worth it


@cython.final
@cython.freelist(64)
cdef class LocalEntry:
    """One decoded value and what it was decoded from."""

    cdef object name       # its key in `home`
    cdef object value
    cdef dict home         # the table of the handle that it belongs to
    cdef uint64_t *slot
    cdef uint64_t word
    cdef uint64_t expires_ms  # 0: never
    cdef uint64_t epoch       # of the namespace that it was read in
    cdef bint used            # since the hand last passed

    @cython.final
    cdef int give_up(self) except -1:
        """Let go of the object; the entry may still be in a table, and matches nothing."""
        cdef object value = self.value, name = self.name, home = self.home
        self.word = ~<uint64_t>0
        self.slot = &_NO_WORD
        self.used = False
        self.name = self.home = self.value = None
        return 0


@cython.final
cdef class LocalTable:
    """The bound on a cache's local entries: a ring that a CLOCK hand goes round.

    Shared by the handles of one cache and its namespaces, each of which has a dict of its own.
    """

    cdef readonly Py_ssize_t limit
    cdef Py_ssize_t hand
    cdef list ring

    def __cinit__(self, Py_ssize_t limit):
        self.limit = limit
        self.ring = []

    def __len__(self):
        return len(self.ring)

    @cython.final
    cdef int empty(self) except -1:
        """Let go of every object, whichever handle it belongs to."""
        cdef list ring = self.ring
        cdef LocalEntry entry
        self.ring = []
        self.hand = 0
        for entry in ring:
            entry.give_up()
        return 0

    @cython.final
    cdef LocalEntry place(self):
        """An entry to fill: a new one, or the one that the hand finds unused."""
        cdef LocalEntry entry
        cdef Py_ssize_t steps
        if len(self.ring) < self.limit:
            entry = LocalEntry()  # may collect garbage, and so run other threads: ask again
            if len(self.ring) < self.limit:
                self.ring.append(entry)
                return entry
        for steps in range(2 * self.limit + 1):
            entry = <LocalEntry>self.ring[self.hand]
            self.hand += 1
            if self.hand >= self.limit:
                self.hand = 0
            if not entry.used:
                break
            entry.used = False
        if entry.home is not None:
            entry.home.pop(entry.name, None)
        return entry


cdef inline object _local_hit(Attached h, LocalEntry entry):
    """The entry's object if it is still what the slot names, else _MISSING.  Counts the hit and
    marks the slot, so that eviction sees the use."""
    if not shm_word_current(entry.slot, entry.word):
        return _MISSING
    if entry.expires_ms != 0 and entry.expires_ms <= shm_now_ms():
        return _MISSING
    entry.used = True
    h.view.client.hits += 1
    return entry.value


cdef int _local_keep(Attached h, object name, object value, const shm_hit *hit,
                     uint64_t epoch) except -1:
    """Remember `value`, which was decoded from what `hit` names."""
    cdef LocalEntry entry
    cdef object old_value = None, old_name = None  # outlive the stores: destructors run any code
    cdef PyObject *found
    if hit.value_kind != SHM_V_CODEC and hit.value_len < LOCAL_SMALLEST:
        return 0
    found = PyDict_GetItemWithError(h.local, name)
    if found != NULL:
        entry = <LocalEntry>found
        old_value = entry.value
    else:
        entry = h.table.place()
        old_value, old_name = entry.value, entry.name
        entry.used = False
        entry.name = name
        entry.home = h.local
        h.local[name] = entry
    entry.value = value
    entry.epoch = epoch
    entry.slot = hit.slot
    entry.word = hit.word
    entry.expires_ms = shm_expiry_at(hit.expiry) if hit.expiry else 0
    return 0


cdef int _local_forget(Attached h, object name) except -1:
    """Let go of the object kept for `name`, which is not in the cache any more."""
    cdef LocalEntry entry
    cdef PyObject *found = PyDict_GetItemWithError(h.local, name)
    if found != NULL:
        entry = <LocalEntry>found
        h.local.pop(name, None)
        entry.give_up()
    return 0


cdef object _local_name(object key):
    """What a key is called in a table: of equal names only one key can be meant."""
    cdef CKey k
    cdef object keep
    if type(key) is bytes:
        return SHM_K_BYTES, key
    if type(key) is tuple:
        keep = _encode_tuple((<PyTupleObject *>key).ob_item, PyTuple_GET_SIZE(key), &k)
        return SHM_K_TUPLE, _content(&k.k)
    return _keys.encode(key)
