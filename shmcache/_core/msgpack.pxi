# What most values are made of, decoded here: dict, list, str, int, float, bool, None and bytes.
#
# The `msgpack` package takes nine tenths of the get of a small dict.  This reads the same format
# (msgpack specification, 2013-08 revision) from a private copy, for the types above, and gives up
# on everything else: extension types, depths past MSGPACK_DEPTH, strings that are not UTF-8, keys
# that cannot be hashed, bytes that are cut short or left over.  What it gives up on goes to the
# package, which decodes it or says what is wrong; so it can only be faster, never different
# (tests/unit/test_unpack.py holds the two against each other on random and on damaged bytes).

cdef enum:
    MSGPACK_DEPTH = 32


cdef struct Unpacking:
    const uint8_t *at
    const uint8_t *end


cdef inline uint64_t _big_endian(const uint8_t *p, int n) noexcept:
    cdef uint64_t x = 0
    cdef int i
    for i in range(n):
        x = x << 8 | p[i]
    return x


cdef object _unpack_list(Unpacking *u, Py_ssize_t n, int depth):
    cdef Py_ssize_t i
    cdef list result
    if n > u.end - u.at or depth == 0:
        return _MISSING  # every element takes a byte: nothing is reserved for hostile lengths
    result = PyList_New(n)
    for i in range(n):
        item = _unpack(u, depth - 1)
        if item is _MISSING:
            # CPython itself tolerates a list whose last items are NULL while it is freed
            return _MISSING
        Py_INCREF(item)
        PyList_SET_ITEM(result, i, item)
    return result


cdef object _unpack_dict(Unpacking *u, Py_ssize_t n, int depth):
    cdef Py_ssize_t i
    cdef dict result = {}
    cdef object key, value
    if n * 2 > u.end - u.at or depth == 0:
        return _MISSING
    for i in range(n):
        key = _unpack_key(u, depth - 1)
        if key is _MISSING or type(key) is list or type(key) is dict:
            return _MISSING
        value = _unpack(u, depth - 1)
        if value is _MISSING:
            return _MISSING
        result[key] = value
    return result


cdef enum:
    KEY_CACHE = 512  # places, direct mapped

cdef PyObject *_key_cache[KEY_CACHE]


cdef object _unpack_key(Unpacking *u, int depth):
    """The next value as a key of a dict.  The keys of many dicts are the same few strings: the
    last ones are kept, their hashes computed, and compared instead of made again."""
    cdef const uint8_t *p = u.at
    cdef uint64_t n, first = 0
    cdef uint32_t place
    cdef PyObject *known
    cdef object key
    if p < u.end and (p[0] & 0xe0) == 0xa0 and 0 < (p[0] & 0x1f) <= u.end - p - 1:
        n = p[0] & 0x1f
        p += 1
        memcpy(&first, p, n if n < 8 else 8)
        place = <uint32_t>(((first ^ n << 56 ^ <uint64_t>p[n - 1] << 48)
                            * <uint64_t>0x9E3779B185EBCA87) >> 55)
        known = _key_cache[place]
        if known != NULL and <uint64_t>PyUnicode_GET_LENGTH(<object>known) == n \
                and memcmp(PyUnicode_DATA(<object>known), p, n) == 0:
            u.at = p + n
            return <object>known
        if shm_is_ascii(p, n):
            u.at = p + n
            key = PyUnicode_New(n, 127)
            memcpy(PyUnicode_DATA(key), p, n)
            hash(key)
            Py_INCREF(key)
            known = _key_cache[place]
            _key_cache[place] = <PyObject *>key
            Py_XDECREF(known)
            return key
    return _unpack(u, depth)


cdef object _unpack_str(Unpacking *u, uint64_t n):
    cdef const uint8_t *p = u.at
    cdef object text
    if n > <uint64_t>(u.end - u.at):
        return _MISSING
    u.at += n
    if shm_is_ascii(p, n):
        text = PyUnicode_New(n, 127)
        if n:
            memcpy(PyUnicode_DATA(text), p, n)
        return text
    try:
        return PyUnicode_DecodeUTF8(<const char *>p, n, NULL)
    except UnicodeDecodeError:
        return _MISSING


cdef object _unpack_bytes(Unpacking *u, uint64_t n):
    cdef const uint8_t *p = u.at
    if n > <uint64_t>(u.end - u.at):
        return _MISSING
    u.at += n
    return PyBytes_FromStringAndSize(<const char *>p, n)


cdef object _unpack(Unpacking *u, int depth):
    """The next value, or _MISSING."""
    cdef uint8_t tag
    cdef int width
    cdef uint64_t x
    cdef uint32_t bits
    cdef float single
    cdef double real
    if u.at >= u.end:
        return _MISSING
    tag = u.at[0]
    u.at += 1
    if tag < 0x80:
        return PyLong_FromLongLong(tag)
    if tag >= 0xe0:
        return PyLong_FromLongLong(<int64_t>tag - 256)
    if tag < 0x90:
        return _unpack_dict(u, tag & 0x0f, depth)
    if tag < 0xa0:
        return _unpack_list(u, tag & 0x0f, depth)
    if tag < 0xc0:
        return _unpack_str(u, tag & 0x1f)
    if tag == 0xc0:
        return None
    if tag == 0xc2:
        return False
    if tag == 0xc3:
        return True
    # everything else carries 1, 2, 4 or 8 big-endian bytes of length or number
    if tag in (0xc4, 0xcc, 0xd0, 0xd9):
        width = 1
    elif tag in (0xc5, 0xcd, 0xd1, 0xda, 0xdc, 0xde):
        width = 2
    elif tag in (0xc6, 0xca, 0xce, 0xd2, 0xdb, 0xdd, 0xdf):
        width = 4
    elif tag in (0xcb, 0xcf, 0xd3):
        width = 8
    else:
        return _MISSING  # an extension type, or 0xc1, which is never used
    if u.end - u.at < width:
        return _MISSING
    x = _big_endian(u.at, width)
    u.at += width
    if tag in (0xcc, 0xcd, 0xce, 0xcf):
        return PyLong_FromUnsignedLongLong(x)
    if tag == 0xd0:
        return PyLong_FromLongLong(<int8_t>x)
    if tag == 0xd1:
        return PyLong_FromLongLong(<int16_t>x)
    if tag == 0xd2:
        return PyLong_FromLongLong(<int32_t>x)
    if tag == 0xd3:
        return PyLong_FromLongLong(<int64_t>x)
    if tag == 0xcb:
        memcpy(&real, &x, 8)
        return PyFloat_FromDouble(real)
    if tag == 0xca:
        bits = <uint32_t>x
        memcpy(&single, &bits, 4)
        return PyFloat_FromDouble(single)
    if tag in (0xd9, 0xda, 0xdb):
        return _unpack_str(u, x)
    if tag in (0xc4, 0xc5, 0xc6):
        return _unpack_bytes(u, x)
    if tag in (0xdc, 0xdd):
        return _unpack_list(u, x, depth)
    return _unpack_dict(u, x, depth)


cdef object _unpack_whole(bytes payload):
    """The value of a whole payload, or _MISSING where the package is to be asked."""
    cdef Unpacking u
    cdef object value
    u.at = <const uint8_t *>PyBytes_AS_STRING(payload)
    u.end = u.at + PyBytes_GET_SIZE(payload)
    value = _unpack(&u, MSGPACK_DEPTH)
    return value if u.at == u.end else _MISSING


def unpack_plain(bytes payload, default=None):
    """Decode msgpack of plain types; `default` where the package is to be asked.  For tests."""
    value = _unpack_whole(payload)
    return default if value is _MISSING else value
