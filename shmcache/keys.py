"""Keys to bytes and back.

Place: level 1 of the house, `cache -> key -> _core`. The binding makes the same bytes by itself
for plain keys (exact str, bytes, int, float, bool and None, and tuples of them: `_core/keys.pxi`,
`_core/key_tuples.pxi`), and calls `encode` for all others, and for the errors. This module says
what is meant; it knows nothing about segments.

A key is stored as its kind (one of `KIND_*`, the number in an entry's key_kind field) and its
content. Kind and content are equal for two keys exactly if these have the same type and are
equal, so `"1"`, `b"1"`, `1`, `1.0` and `True` are five keys. Subclasses count as their base type
and are handed back as it.

    kind   type    content
    1      str     UTF-8, lone surrogates passed
    2      bytes   themselves
    3      int     8 bytes, signed, little endian
    4      float   8 bytes, IEEE 754, little endian; -0.0 as 0.0, and every NaN as one
    5      bool    1 byte: 0 or 1
    6      None    nothing
    7      UUID    16 bytes, as `UUID.bytes`
    8      tuple   the elements one after the other

An element of a tuple is its kind (1 byte), the length of its content (2 bytes, little endian)
where the kind does not say it (str, bytes and tuple), and its content. So elements are
prefix-free, and a tuple starts with another tuple's elements exactly if its content starts with
that one's: a scan by prefix compares bytes. str (UTF-8 keeps prefixes) and bytes have that
property too.
"""

import struct
from typing import Final, TypeAlias, Union
from uuid import UUID

from shmcache.errors import DecodeError, KeyTooLarge
from shmcache.limits import KEY_DEPTH_MAX, KEY_MAX, KEY_MAX_INT, KEY_MIN_INT

__all__ = [
    "KIND_BOOL",
    "KIND_BYTES",
    "KIND_FLOAT",
    "KIND_INT",
    "KIND_NONE",
    "KIND_STR",
    "KIND_TUPLE",
    "KIND_UUID",
    "Key",
    "decode",
    "encode",
    "encode_prefix",
]

Key: TypeAlias = Union[str, bytes, int, bool, float, UUID, "tuple[Key, ...]", None]
"""What can be a key; tuples hold keys."""

KIND_STR: Final = 1
KIND_BYTES: Final = 2
KIND_INT: Final = 3
KIND_FLOAT: Final = 4
KIND_BOOL: Final = 5
KIND_NONE: Final = 6
KIND_UUID: Final = 7
KIND_TUPLE: Final = 8

_FIXED_SIZE: Final = {KIND_INT: 8, KIND_FLOAT: 8, KIND_BOOL: 1, KIND_NONE: 0, KIND_UUID: 16}
_KINDS: Final = frozenset(range(KIND_STR, KIND_TUPLE + 1))
_FLOAT: Final = struct.Struct("<d")
_LENGTH: Final = struct.Struct("<H")
_NAN: Final = _FLOAT.pack(float("nan"))
_ZERO: Final = _FLOAT.pack(0.0)

# A length can say whatever the cap allows.
assert 1 << 8 * _LENGTH.size > KEY_MAX


def encode(key: object) -> tuple[int, bytes]:
    """Turn a key into its kind and content.

    Args:
        key: str, bytes, int, bool, None, float, UUID, or a tuple of them; instances of their
            subclasses (StrEnum and IntEnum members, named tuples) count as the base type.

    Returns:
        The kind, one of `KIND_*`, and at most 65,535 bytes of content.

    Raises:
        TypeError: the key, or an element of it, is of another type.
        KeyTooLarge: more than 65,535 bytes of content, or tuples nested more than 64 deep.
        OverflowError: an int past 64 bits, signed.

    Cost: some 200 ns; a tuple some 400 ns an element. In the binding 10 ns an element.
    """
    if isinstance(key, tuple):
        content = bytearray()
        _append_elements(content, key, 1)
        return KIND_TUPLE, bytes(content)
    return _encode_scalar(key)


def encode_prefix(prefix: object) -> tuple[int, bytes]:
    """Turn the prefix of a scan into the kind and the first bytes of the keys that it means.

    Args:
        prefix: a str, bytes or tuple; the empty one of each type is a prefix of all keys of that
            type. A tuple means the tuples that begin with its elements.

    Returns:
        The kind, and the bytes with which the content of each such key starts.

    Raises:
        TypeError: the prefix is of a type whose keys have no beginning, or an element is no key.
        KeyTooLarge, OverflowError: as `encode`.
    """
    if not isinstance(prefix, str | bytes | tuple):
        raise TypeError(f"a prefix must be a str, bytes or tuple, not {type(prefix).__name__}")
    return encode(prefix)


def decode(kind: int, content: bytes) -> Key:
    """Turn the kind and content of a stored key back into the key.

    Args:
        kind: one of `KIND_*`, without the flags that share its byte in an entry.
        content: a private copy of the key's bytes; whatever they are, the call ends in a key or
            in the error below, and walks them once for each level of tuples.

    Returns:
        The key, of the exact type that the kind names.

    Raises:
        DecodeError: no key has this kind and content; bytes of the segment were damaged.
    """
    if kind == KIND_TUPLE:
        return _decode_elements(content, 1)
    return _decode_scalar(kind, content)


def _encode_scalar(key: object) -> tuple[int, bytes]:
    """Encode a key that is no tuple.

    Methods of the base types are called, not the key's own: a subclass may have changed them.
    """
    if isinstance(key, str):
        # UTF-8 is never shorter than the text, so an absurd key is refused before it is copied.
        if len(key) <= KEY_MAX:
            content = str.encode(key, "utf-8", "surrogatepass")
            if len(content) <= KEY_MAX:
                return KIND_STR, content
        raise _too_large(f"a str of {len(key)} characters")
    if isinstance(key, bytes):
        if len(key) > KEY_MAX:
            raise _too_large(f"{len(key)} bytes")
        return KIND_BYTES, bytes.__bytes__(key)
    if isinstance(key, bool):
        return KIND_BOOL, b"\1" if key else b"\0"
    if isinstance(key, int):
        try:
            return KIND_INT, int.to_bytes(key, 8, "little", signed=True)
        except OverflowError:
            raise OverflowError(
                f"an int key must lie between {KEY_MIN_INT} and {KEY_MAX_INT}, and this one has "
                f"{int.bit_length(key)} bits: use its str or bytes as the key"
            ) from None
    if key is None:
        return KIND_NONE, b""
    if isinstance(key, float):
        if key != key:
            return KIND_FLOAT, _NAN
        return KIND_FLOAT, _FLOAT.pack(key) if key else _ZERO
    if isinstance(key, UUID):
        return KIND_UUID, key.bytes
    raise TypeError(
        f"a key must be a str, bytes, int, bool, None, float, UUID or a tuple of them, "
        f"not {type(key).__name__}"
    )


def _append_elements(content: bytearray, key: tuple[object, ...], depth: int) -> None:
    """Append the elements of a tuple to `content`, which ends with what came before them.

    The cap is checked after every element, not at the end: tuples that share their elements can
    stand for far more bytes than they take.
    """
    if depth > KEY_DEPTH_MAX:
        raise KeyTooLarge(f"tuples in a key must not be nested more than {KEY_DEPTH_MAX} deep")
    for element in tuple.__iter__(key):
        if isinstance(element, tuple):
            start = len(content)
            content += b"\x08\0\0"  # KIND_TUPLE, and room for the length that follows
            _append_elements(content, element, depth + 1)
            _LENGTH.pack_into(content, start + 1, len(content) - start - 3)
        else:
            kind, body = _encode_scalar(element)
            content.append(kind)
            if kind not in _FIXED_SIZE:
                content += _LENGTH.pack(len(body))
            content += body
        if len(content) > KEY_MAX:
            raise _too_large("a tuple of more bytes than that")


def _decode_scalar(kind: int, content: bytes) -> Key:
    """Decode a key that is no tuple."""
    if kind == KIND_STR:
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise _damaged(kind, content, "it is not UTF-8") from None
    if kind == KIND_BYTES:
        return bytes(content)
    size = _FIXED_SIZE.get(kind)
    if size is None:
        raise _damaged(kind, content, "there is no such kind")
    if len(content) != size:
        raise _damaged(kind, content, f"it must have {size} bytes")
    if kind == KIND_INT:
        return int.from_bytes(content, "little", signed=True)
    if kind == KIND_FLOAT:
        number: float = _FLOAT.unpack(content)[0]
        return number
    if kind == KIND_UUID:
        return UUID(bytes=bytes(content))
    if kind == KIND_NONE:
        return None
    if content[0] > 1:
        raise _damaged(kind, content, "a bool is 0 or 1")
    return content[0] == 1


def _decode_elements(content: bytes, depth: int) -> tuple[Key, ...]:
    """Decode the elements of a tuple; every step goes forward, and none past the end."""
    if depth > KEY_DEPTH_MAX:
        raise _damaged(KIND_TUPLE, content, f"it is nested more than {KEY_DEPTH_MAX} deep")
    elements: list[Key] = []
    place = 0
    end = len(content)
    while place < end:
        kind = content[place]
        place += 1
        size = _FIXED_SIZE.get(kind)
        if size is None:
            if kind not in _KINDS:
                raise _damaged(KIND_TUPLE, content, f"an element is of kind {kind}")
            if end - place < _LENGTH.size:
                raise _damaged(KIND_TUPLE, content, "it ends within a length")
            size = _LENGTH.unpack_from(content, place)[0]
            place += _LENGTH.size
        if end - place < size:
            raise _damaged(KIND_TUPLE, content, "it ends within an element")
        body = content[place : place + size]
        place += size
        if kind == KIND_TUPLE:
            elements.append(_decode_elements(body, depth + 1))
        else:
            elements.append(_decode_scalar(kind, body))
    return tuple(elements)


def _too_large(what: str) -> KeyTooLarge:
    return KeyTooLarge(
        f"a key must not take more than {KEY_MAX} bytes, and this one is {what}: "
        f"use a digest of it as the key"
    )


def _damaged(kind: int, content: bytes, why: str) -> DecodeError:
    return DecodeError(
        f"a stored key of kind {kind} and {len(content)} bytes cannot be decoded: {why}; "
        f"bytes of the segment were damaged, and `shmcache verify` tells where"
    )
