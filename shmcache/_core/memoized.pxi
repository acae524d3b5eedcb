# Memoized: the wrapper that memoize (memo.py) puts around a function.
#
# The story.  A call makes its key from the arguments, looks it up as Namespace.get does, and
# returns: nothing of a hit runs Python code.  Most calls name all arguments by position or by the
# names that the signature has, so they are put in order here, and a key of several is encoded
# without ever becoming a tuple.  What is left (*args, **kwargs, a key function, a call that does
# not fit the signature) is asked of `make`, and a miss of `miss`, both in Python.

cdef enum:
    ARGUMENTS_MOST = 16  # parameters of a function whose calls are put in order here


@cython.final
@cython.no_gc_clear  # the collector breaks cycles elsewhere (dicts, functions): never half a wrapper
cdef class Memoized:
    """A function whose results live in a namespace of a cache.

    Args:
        function: what is wrapped; not called from here.
        space: the namespace's handle.
        make: called with a call's arguments, makes its key (or raises TypeError).
        refuse: turns a TypeError about the key that was made into the one to raise.
        miss: called with key, arguments and keywords of a call whose result is not there; returns
            the result.
        names: of the parameters, in order; None where only `make` can tell.
        positional, positional_only: how many of them can, and must, be passed by position.
        defaults: of the parameters, `make` itself where there is none.
        single: the key is the only argument itself, no tuple.
    """

    cdef vectorcallfunc vectorcall
    cdef Handle space
    cdef object make, refuse, miss
    cdef tuple names, defaults
    cdef Py_ssize_t count, positional, positional_only
    cdef bint single
    cdef readonly uint64_t hits, misses  # of this process; a forked child goes on from there
    cdef dict __dict__
    cdef object __weakref__

    def __cinit__(self, Handle space not None, make, refuse, miss, tuple names,
                  Py_ssize_t positional, Py_ssize_t positional_only, tuple defaults not None,
                  bint single):
        self.vectorcall = <vectorcallfunc>_call_memoized
        self.space = space
        self.make = make
        self.refuse = refuse
        self.miss = miss
        self.defaults = defaults
        if names is not None and len(names) <= ARGUMENTS_MOST:
            self.names = names
            self.count = len(names)
        else:
            self.count = -1
        self.positional = positional
        self.positional_only = positional_only
        self.single = single

    def __call__(self, *args, **kwargs):
        return PyVectorcall_Call(self, <PyObject *>args, <PyObject *>kwargs)

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)

    def __reduce__(self):
        return self.__qualname__  # as a function: found again by its name

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<memoized {self.__wrapped__!r} in cache {self.space.name!r}>"

    @cython.final
    cdef bint bind(self, PyObject *const *args, Py_ssize_t n, PyObject *names,
                   PyObject **bound) noexcept:
        """Put the arguments of a call in the order of the parameters, all borrowed.  False where
        `make` is to do it: it raises, if the call does not fit."""
        cdef Py_ssize_t i, j, named = 0
        cdef PyObject *name
        if n > self.positional:
            return False
        if names != NULL:
            named = PyTuple_GET_SIZE(<object>names)
        if n == self.count and named == 0:
            memcpy(bound, args, n * sizeof(PyObject *))
            return True
        for i in range(n):
            bound[i] = args[i]
        for i in range(n, self.count):
            bound[i] = NULL
        for j in range(named):
            name = PyTuple_GET_ITEM(<object>names, j)
            for i in range(self.positional_only, self.count):
                # names in code are interned; one that was made up is `make`'s
                if PyTuple_GET_ITEM(self.names, i) == name:
                    break
            else:
                return False
            if bound[i] != NULL:
                return False
            bound[i] = args[n + j]
        for i in range(n, self.count):
            if bound[i] == NULL:
                bound[i] = PyTuple_GET_ITEM(self.defaults, i)
                if bound[i] == <PyObject *>self.make:
                    return False
        return True

    @cython.final
    cdef object recall(self, object key):
        """The result under `key`, or _MISSING."""
        cdef Handle h = self.space
        cdef CKey k
        cdef object keep
        try:
            if h.ready():
                return h.fetch_timed(key)
            if h.local is not None:
                return h.local_get(key)
            keep = _encode_key(h, key, &k)
            return h.fetch(&k.k, NULL, True)
        except _errors.DecodeError:  # data that does not fit counts as missing
            return _MISSING
        except TypeError as error:
            raise self.refuse(error) from None

    @cython.final
    cdef object recall_several(self, PyObject *const *bound):
        """The result under the tuple of the arguments, or _MISSING."""
        cdef Handle h = self.space
        cdef CKey k
        cdef object keep
        try:
            if h.ready():
                return h.fetch_timed(_tuple_of(bound, self.count))
            if h.local is not None:
                return h.local_get(_tuple_of(bound, self.count))
            keep = _encode_arguments(h, bound, self.count, &k)
            return h.fetch(&k.k, NULL, True)
        except _errors.DecodeError:
            return _MISSING
        except TypeError as error:
            raise self.refuse(error) from None

    @cython.final
    cdef object missed(self, object key, PyObject *const *args, Py_ssize_t n, PyObject *names):
        cdef dict keywords = {}
        cdef Py_ssize_t i
        if names != NULL:
            for i in range(PyTuple_GET_SIZE(<object>names)):
                keywords[<object>PyTuple_GET_ITEM(<object>names, i)] = <object>args[n + i]
        self.misses += 1
        return self.miss(key, _tuple_of(args, n), keywords)


cdef object _call_memoized(object callable, PyObject *const *args, size_t nargsf,
                           PyObject *names):
    """A call of a Memoized (PEP 590)."""
    cdef Memoized m = <Memoized>callable
    cdef Py_ssize_t n = PyVectorcall_NARGS(nargsf)
    cdef PyObject *bound[ARGUMENTS_MOST]
    cdef object value, key = None
    if m.count >= 0 and m.bind(args, n, names, bound):
        if m.single:
            key = <object>bound[0]
            value = m.recall(key)
        else:
            value = m.recall_several(bound)
            if value is _MISSING:
                key = _tuple_of(bound, m.count)
    else:
        key = PyObject_VectorcallNamed(m.make, args, nargsf, names)
        value = m.recall(key)
    if value is _MISSING:
        return m.missed(key, args, n, names)
    m.hits += 1
    return value


cdef int _give_vectorcall() except -1:
    """What Cython has no syntax for: the slot of PEP 590, and that calling a method needs no
    bound one (as for functions)."""
    cdef Memoized probe = Memoized.__new__(Memoized, Handle(), None, None, None, None, 0, 0, (), 0)
    cdef PyTypeObject *kind = <PyTypeObject *>Memoized
    kind.tp_vectorcall_offset = <char *>&probe.vectorcall - <char *><PyObject *>probe
    kind.tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR
    PyType_Modified(kind)
    return 0

_give_vectorcall()
