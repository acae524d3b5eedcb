# Tuples as keys, put together without a trip through Python; byte for byte what keys.encode makes.
#
# Whatever is rare is left to keys.py: an element of a subclass or a UUID by itself, a tuple that
# is long, nested too deep or no key as a whole, so that the errors are those of keys.py.

cdef enum:
    TUPLE_ROOM = 4096  # bytes of content that are put together here; more: keys.py
    TUPLE_DEPTH = 64   # KEY_DEPTH_MAX of limits.py, which the tests compare

cdef struct KeyRoom:
    uint8_t *at
    uint8_t *end


cdef inline int _put(KeyRoom *room, int kind, const void *content, Py_ssize_t n,
                     bint told) noexcept:
    """Append an element: its kind, the length where it is `told`, and its content.  0: no room."""
    cdef uint8_t *at = room.at
    if n > TUPLE_ROOM or room.end - at < n + (3 if told else 1):
        return 0
    at[0] = <uint8_t>kind
    at += 1
    if told:
        at[0] = <uint8_t>n
        at[1] = <uint8_t>(n >> 8)
        at += 2
    memcpy(at, content, n)
    room.at = at + n
    return 1


cdef inline uint64_t _float_bits(object key) noexcept:
    """A float as a key has it: -0.0 as 0.0, and every NaN as one."""
    cdef double real = PyFloat_AS_DOUBLE(key)
    cdef uint64_t bits = 0x7ff8000000000000
    if real == 0:
        return 0
    if real == real:
        memcpy(&bits, &real, 8)
    return bits


cdef int _put_element(KeyRoom *room, object element, int depth) except -1:
    """Append an element of a tuple.  0: it does not fit, or is nested too deep."""
    cdef int overflow = 0, kind
    cdef long long number
    cdef uint64_t bits
    cdef uint8_t truth
    cdef uint8_t *start
    cdef object body

    if type(element) is str and PyUnicode_IS_COMPACT_ASCII(element):
        return _put(room, SHM_K_STR, PyUnicode_DATA(element), PyUnicode_GET_LENGTH(element), True)
    if type(element) is int:
        number = PyLong_AsLongLongAndOverflow(element, &overflow)
        if not overflow:
            return _put(room, SHM_K_INT, &number, 8, False)
    elif element is None:
        return _put(room, SHM_K_NONE, room.at, 0, False)
    elif type(element) is bool:
        truth = element is True
        return _put(room, SHM_K_BOOL, &truth, 1, False)
    elif type(element) is float:
        bits = _float_bits(element)
        return _put(room, SHM_K_FLOAT, &bits, 8, False)
    elif type(element) is bytes:
        return _put(room, SHM_K_BYTES, PyBytes_AS_STRING(element), PyBytes_GET_SIZE(element), True)
    elif isinstance(element, tuple):
        start = room.at
        if depth >= TUPLE_DEPTH or not _put(room, SHM_K_TUPLE, start, 0, True):
            return 0
        if not _put_elements(room, (<PyTupleObject *>element).ob_item, PyTuple_GET_SIZE(element), depth + 1):
            return 0
        start[1] = <uint8_t>(room.at - start - 3)
        start[2] = <uint8_t>((room.at - start - 3) >> 8)
        return 1
    kind, body = _keys.encode(element)
    return _put(room, kind, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                kind == SHM_K_STR or kind == SHM_K_BYTES)


cdef int _put_elements(KeyRoom *room, PyObject *const *elements, Py_ssize_t n,
                       int depth) except -1:
    """Append elements that the caller keeps alive.  0: as `_put_element`."""
    cdef Py_ssize_t i
    for i in range(n):
        if not _put_element(room, <object>elements[i], depth):
            return 0
    return 1


cdef object _long_tuple(PyObject *const *elements, Py_ssize_t n):
    """The content of a tuple that does not fit a CKey, as bytes; None where keys.py is to do it."""
    cdef uint8_t content[TUPLE_ROOM]
    cdef KeyRoom room = [content, content + TUPLE_ROOM]
    if not _put_elements(&room, elements, n, 1):
        return None
    return PyBytes_FromStringAndSize(<const char *>content, room.at - content)


cdef object _tuple_of(PyObject *const *elements, Py_ssize_t n):
    """The tuple itself."""
    cdef tuple made = PyTuple_New(n)
    cdef Py_ssize_t i
    for i in range(n):
        Py_INCREF(<object>elements[i])
        PyTuple_SET_ITEM(made, i, <object>elements[i])
    return made


cdef object _encode_tuple(PyObject *const *elements, Py_ssize_t n, CKey *out):
    """Fill kind, data and len of `out` for the tuple of these elements; returns what owns the
    content.  May run Python code, that of odd elements."""
    cdef KeyRoom room = [out.own, out.own + KEY_ROOM]
    cdef object keep = None, kind
    out.k.kind = SHM_K_TUPLE
    if _put_elements(&room, elements, n, 1):
        out.k.data = out.own
        out.k.len = <uint32_t>(room.at - out.own)
        return None
    keep = _long_tuple(elements, n)
    if keep is None:
        kind, keep = _keys.encode(_tuple_of(elements, n))
    out.k.data = <const uint8_t *>PyBytes_AS_STRING(keep)
    out.k.len = <uint32_t>PyBytes_GET_SIZE(keep)
    return keep
