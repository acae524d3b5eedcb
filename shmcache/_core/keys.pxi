# Keys: Python object -> (content, type, hash), and back.

cdef enum:
    KEY_ROOM = 192  # bytes of content that need no object


cdef struct CKey:
    shm_key k
    uint64_t epoch         # of the namespace, 0: it has none yet
    uint8_t own[KEY_ROOM]  # content without an object: numbers, tuples, namespaced keys


include "key_tuples.pxi"


cdef object _encode_arguments(Attached h, PyObject *const *elements, Py_ssize_t n, CKey *out):
    """`_encode_key` of the tuple of these elements, which is not made."""
    cdef object keep = _encode_tuple(elements, n, out)
    h.again()
    if h.levels:
        keep = _add_namespace(h, None, out, keep)
    out.k.hash = shm_key_hash(h.view.seed, out.k.kind, out.k.data, out.k.len)
    return keep


cdef object _encode_key(Attached h, object key, CKey *out):
    """Fill `out`; returns the object that owns the content (keep it while `out` is used).

    The caller has asked ready(); where encoding ran Python code, and so perhaps other threads,
    it is asked again before the segment's seed is used.
    """
    cdef Py_ssize_t n = 0
    cdef long long number
    cdef uint64_t bits
    cdef int overflow = 0
    cdef object kind
    cdef object keep = key

    if type(key) is str:
        out.k.kind = SHM_K_STR
        if PyUnicode_IS_COMPACT_ASCII(key):
            out.k.data = <const uint8_t *>PyUnicode_DATA(key)
            n = PyUnicode_GET_LENGTH(key)
        else:
            kind, keep = _keys.encode(key)
            h.again()
            out.k.data = <const uint8_t *>PyBytes_AS_STRING(keep)
            n = PyBytes_GET_SIZE(keep)
    elif type(key) is bytes:
        out.k.kind = SHM_K_BYTES
        out.k.data = <const uint8_t *>PyBytes_AS_STRING(key)
        n = PyBytes_GET_SIZE(key)
    elif type(key) is int:
        number = PyLong_AsLongLongAndOverflow(key, &overflow)
        if overflow:
            _keys.encode(key)  # raises, with the message that belongs to it
        out.k.kind = SHM_K_INT
        memcpy(out.own, &number, 8)
        out.k.data = out.own
        n = 8
    elif type(key) is tuple:
        keep = _encode_tuple((<PyTupleObject *>key).ob_item, PyTuple_GET_SIZE(key), out)
        h.again()
        n = out.k.len
    elif type(key) is float:
        bits = _float_bits(key)
        memcpy(out.own, &bits, 8)
        out.k.kind = SHM_K_FLOAT
        out.k.data = out.own
        n = 8
    elif key is None or type(key) is bool:
        out.own[0] = key is True
        out.k.kind = SHM_K_NONE if key is None else SHM_K_BOOL
        out.k.data = out.own
        n = 0 if key is None else 1
    else:
        kind, keep = _keys.encode(key)
        h.again()
        out.k.kind = kind
        out.k.data = <const uint8_t *>PyBytes_AS_STRING(keep)
        n = PyBytes_GET_SIZE(keep)
    if n > SHM_MAX_KEY:
        _keys.encode(key)
    out.k.len = <uint32_t>n
    if h.levels:
        keep = _add_namespace(h, key, out, keep)
    out.k.hash = shm_key_hash(h.view.seed, out.k.kind, out.k.data, out.k.len)
    return keep


cdef object _add_namespace(Attached h, object key, CKey *out, object keep):
    """Put the namespace's path and epoch before the content of `out`."""
    cdef Py_ssize_t head = PyBytes_GET_SIZE(h.path), n = out.k.len
    cdef uint8_t *to = out.own
    cdef const uint8_t *content = out.k.data
    cdef object whole = keep
    out.epoch = h.epoch()
    if head + 8 + n > KEY_ROOM:
        if head + 8 + n > SHM_MAX_KEY:
            raise _errors.KeyTooLarge(
                f"a key of {n} bytes does not fit a namespace whose path takes {head + 8} of the "
                f"{SHM_MAX_KEY} bytes of a key; shorten or hash it")
        whole = PyBytes_FromStringAndSize(NULL, head + 8 + n)
        to = <uint8_t *>PyBytes_AS_STRING(whole)
    memmove(to + head + 8, content, n)
    memcpy(to, PyBytes_AS_STRING(h.path), head)
    memcpy(to + head, &out.epoch, 8)
    out.k.data = to
    out.k.len = <uint32_t>(head + 8 + n)
    out.k.kind |= SHM_K_NAMESPACED
    return whole


cdef object _encode_key_for_write(Attached h, object key, CKey *out):
    """`_encode_key` for a call that may store: a namespace without an epoch gets one first."""
    cdef object keep = _encode_key(h, key, out)
    cdef int tries = 100
    while h.levels and out.epoch == 0:
        if tries == 0:
            raise _errors.CacheFull(
                f"a namespace of cache {h.name!r} cannot be used: its epoch is evicted as soon as "
                "it is stored; make the cache larger", keys=(key,))
        tries -= 1
        h._draw_epochs()
        h.ready()
        keep = _encode_key(h, key, out)
    return keep


cdef object _decode_key(uint8_t kind, bytes content):
    cdef int64_t number
    kind = kind & SHM_K_TYPE
    if kind == SHM_K_STR and shm_is_ascii(<const uint8_t *>PyBytes_AS_STRING(content),
                                           PyBytes_GET_SIZE(content)):
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content), NULL)
    if kind == SHM_K_BYTES:
        return content
    if kind == SHM_K_INT and PyBytes_GET_SIZE(content) == 8:
        memcpy(&number, PyBytes_AS_STRING(content), 8)
        return PyLong_FromLongLong(number)
    return _keys.decode(kind, content)


cdef object _content(shm_key *k):
    return PyBytes_FromStringAndSize(<const char *>k.data, k.len)


cdef int _refuse_clash(dict seen, object key, int kind, object content) except -1:
    cdef object before = seen.setdefault(key, (kind, content))
    if before != (kind, content):
        raise ValueError(
            f"two keys of one batch are equal to Python but not to the cache ({key!r} and one of "
            "another type, such as 1, 1.0 and True): a dict cannot hold both; ask for them in "
            "separate batches")
    return 0
