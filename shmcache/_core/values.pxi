# Values: Python object -> (bytes, how they are encoded), and back.

cdef enum:
    LARGE = 65536  # bytes from which on a copy releases the GIL


cdef struct CValue:
    const void *data
    size_t len
    uint8_t kind
    uint8_t own[8]


cdef object _encode_value(Attached h, object value, CValue *out):
    """Fill `out`; returns the object that owns the bytes.  May run the codec's code."""
    cdef long long number
    cdef double real
    cdef int overflow = 0
    cdef object keep = value

    if type(value) is bytes:
        out.kind = SHM_V_BYTES
        out.data = PyBytes_AS_STRING(value)
        out.len = PyBytes_GET_SIZE(value)
        return keep
    if h.raw:
        if not PyObject_CheckBuffer(value):
            raise TypeError(
                f"cache {h.name!r} has codec 'raw' and stores bytes-like values only, not "
                f"{type(value).__name__}; encode it first, or create the cache with another codec")
        keep = bytes(memoryview(value))
        out.kind = SHM_V_BYTES
        out.data = PyBytes_AS_STRING(keep)
        out.len = PyBytes_GET_SIZE(keep)
        return keep
    if type(value) is str:
        if PyUnicode_IS_COMPACT_ASCII(value):
            out.kind = SHM_V_ASCII
            out.data = PyUnicode_DATA(value)
            out.len = PyUnicode_GET_LENGTH(value)
            return keep
        keep = value.encode("utf-8", "surrogatepass")
        out.kind = SHM_V_STR
    elif type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            out.kind = SHM_V_INT
            memcpy(out.own, &number, 8)
            out.data = out.own
            out.len = 8
            return keep
        keep = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        out.kind = SHM_V_BIGINT
    elif value is None or type(value) is bool:
        out.kind = SHM_V_NONE if value is None else SHM_V_TRUE if value else SHM_V_FALSE
        out.data = out.own
        out.len = 0
        return keep
    elif type(value) is float:
        real = PyFloat_AS_DOUBLE(value)
        out.kind = SHM_V_FLOAT
        memcpy(out.own, &real, 8)
        out.data = out.own
        out.len = 8
        return keep
    elif type(value) is bytearray or type(value) is memoryview:
        keep = bytes(value)
        out.kind = SHM_V_BYTES
    else:
        try:
            keep = PyObject_CallOneArg(h.fast_encode, value)
        except Exception:
            keep = h.codec.encode_bytes(value)  # a slower way, or says what is wrong
        out.kind = SHM_V_CODEC
    out.data = PyBytes_AS_STRING(keep)
    out.len = PyBytes_GET_SIZE(keep)
    return keep


cdef object _copy_value(Attached h, const shm_hit *hit):
    """A private copy of the value behind `hit`: the value itself where that is decoding enough
    (bytes, int, float, None, bool), else its bytes.  Not to be trusted before shm_hit_valid."""
    cdef uint8_t kind = hit.value_kind
    cdef Py_ssize_t n = hit.value_len
    cdef int64_t number
    cdef double real
    cdef object copy
    cdef char *to
    cdef const uint8_t *value = hit.value

    if kind == SHM_V_INT:
        if n != 8:
            return _MISSING
        shm_bytes_copy(&number, value, 8)
        return PyLong_FromLongLong(number)
    if kind == SHM_V_NONE:
        return None
    if kind == SHM_V_TRUE:
        return True
    if kind == SHM_V_FALSE:
        return False
    if kind == SHM_V_FLOAT:
        if n != 8:
            return _MISSING
        shm_bytes_copy(&real, value, 8)
        return PyFloat_FromDouble(real)
    if kind == SHM_V_ASCII:
        copy = PyUnicode_New(n, 127)
        if n == 0:
            return copy
        to = <char *>PyUnicode_DATA(copy)
    else:
        copy = PyBytes_FromStringAndSize(NULL, n)
        to = PyBytes_AS_STRING(copy)
    if n < LARGE:
        shm_bytes_copy(to, value, n)
    else:
        with nogil:  # the caller holds h.mapping: another thread may close meanwhile
            shm_bytes_copy(to, value, n)
    if kind == SHM_V_ASCII and not shm_is_ascii(<const uint8_t *>to, n):
        return _MISSING  # torn or flipped: not a str that may exist
    return copy


cdef object _call_decoder(Attached h, object payload):
    """The codec on a private copy.  Keyword arguments go straight into a vectorcall: a partial
    would cost half as much as decoding a small dict does."""
    cdef PyObject *args[12]
    cdef object value
    if h.plain_msgpack:
        value = _unpack_whole(payload)
        if value is not _MISSING:
            return value
    memcpy(args, h.decode_args, sizeof(args))
    args[0] = <PyObject *>payload
    try:
        if h.decode_names is None:
            return PyObject_CallOneArg(h.fast_decode, payload)
        return PyObject_Vectorcall(h.fast_decode, args, 1, h.decode_names)
    except Exception:
        return h.codec.decode_bytes(payload)  # a slower way, or says what is wrong


cdef object _decode_value(Attached h, uint8_t kind, object copy):
    """What `_copy_value` left to do, on a copy that has been found valid."""
    if copy is _MISSING:
        raise _errors.DecodeError(
            f"a value of cache {h.name!r} does not have the size or the characters that its type "
            f"({kind}) says: its bytes were damaged; set the key again")
    if kind == SHM_V_CODEC:
        return _call_decoder(h, copy)
    if h.check is not None:
        return h.check(_decode_plain(h, kind, copy))
    return _decode_plain(h, kind, copy)


cdef inline object _decode_plain(Attached h, uint8_t kind, object copy):
    """A value that the binding itself encoded."""
    if kind == SHM_V_STR:
        try:
            return copy.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _errors.DecodeError(
                f"a str of cache {h.name!r} is not UTF-8 any more ({error}): its bytes were "
                "damaged; set the key again") from None
    if kind == SHM_V_BIGINT:
        return int.from_bytes(copy, "little", signed=True)
    if kind == 0 or kind > SHM_V_ASCII or kind == SHM_V_LEASE:
        raise _errors.DecodeError(
            f"a value of cache {h.name!r} has the unknown type {kind}: its bytes were damaged; "
            "set the key again")
    return copy
