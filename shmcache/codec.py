"""Values to bytes and back.

Place: level 1 of the house, `cache -> codec -> _core` and `_core -> codec -> caller`. The binding
stores bytes-like objects, str, int, float, bool and None by itself (with every codec but `raw`)
and asks the codec for all else. A codec knows nothing of keys, entries or segments, and only ever
sees a private copy of what is stored: never shared memory, which may change under its hands.

The built-in codecs:

    msgpack   the default; safe. Tuples, sets, datetimes, Decimal, UUID and so on come back as
              what they were, through extension types (`_msgpack.py` has the format)
    raw       bytes-like objects only, handed back as bytes
    json      the standard library's; tuples come back as lists, keys of dicts as str
    msgspec   msgspec's msgpack, two to four times as fast; tuples and sets come back as lists,
              ints past 64 bits are refused. Needs the extra `shmcache[msgspec]`
    pickle    whatever pickle takes; opt-in, since unpickling runs what was stored. A checksum is
              verified before that, against damage, not against malice

Errors are the same for all of them, and for a codec that the caller brings: TypeError with the
value's type from encoding, DecodeError with the codec and the length from decoding. A
MemoryError stays what it is.
"""

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NoReturn, Protocol, runtime_checkable

import msgpack
import xxhash

from shmcache._msgpack import Level, find_field
from shmcache.errors import DecodeError
from shmcache.limits import CODEC_NAME_MAX

__all__ = ["CODEC_NAMES", "BoundCodec", "Codec", "resolve"]


@runtime_checkable
class Codec(Protocol):
    """What turns values into bytes and back; pass one as `Cache(codec=...)`.

    All processes that use a cache must bring a codec of the same name that does the same.
    """

    @property
    def name(self) -> str:
        """1 to 31 printable ASCII characters; the segment remembers it. Not a built-in's name."""

    def encode(self, value: Any, /) -> bytes:
        """Turn a value into bytes; whatever it raises becomes a TypeError."""

    def decode(self, payload: memoryview, /) -> Any:
        """Turn a private, read-only copy of those bytes into a value equal to the one encoded.

        The bytes are not trusted: damaged ones must raise (which becomes a DecodeError) or give
        another value, and nothing else.
        """


class BoundCodec(ABC):
    """A codec as the binding calls it: with the errors that shmcache promises.

    Attributes:
        name: what the segment remembers.
        fast_encode: called with a value, returns its bytes or raises whatever it likes; on any
            Exception the caller calls `encode_bytes`, which succeeds in a slower way or says what
            is wrong.
        fast_decode: called with one private bytes object, and the keyword arguments
            `fast_decode_names` and `fast_decode_values`, returns the value or raises whatever it
            likes; on any Exception the caller calls `decode_bytes`. Keywords are apart because a
            C caller can pass them for 3% of the decoding of a small dict, where a
            `functools.partial` costs 48% and a Python function 31%.
        fast_decode_names: as for `fast_decode`.
        fast_decode_values: as for `fast_decode`.
        plain_msgpack: payloads are msgpack, in which everything but extension types means what
            msgpack says: the binding may decode it by itself, and asks the codec for the rest.
        check: called with each value that the binding decoded without the codec (bytes, str, int,
            ...); returns it, or raises DecodeError where it is not of a typed namespace's type.
    """

    name: str
    fast_encode: Callable[[Any], bytes]
    fast_decode: Callable[..., Any]
    fast_decode_names: tuple[str, ...] = ()
    fast_decode_values: tuple[Any, ...] = ()
    plain_msgpack: bool = False
    check: Callable[[Any], Any] | None = None

    def __init__(self) -> None:
        self.fast_encode = self._encode
        self.fast_decode = self._decode

    def encode(self, value: Any) -> bytes:
        """As `encode_bytes`; the name that `Codec` has for it."""
        return self.encode_bytes(value)

    def decode(self, payload: bytes | memoryview) -> Any:
        """As `decode_bytes`, for any buffer; the name that `Codec` has for it."""
        return self.decode_bytes(bytes(payload))

    def encode_bytes(self, value: Any) -> bytes:
        """Turn a value into bytes.

        Raises:
            TypeError: it cannot be encoded; names its type, and what in it is to blame if known.
        """
        try:
            return self._encode(value)
        except MemoryError:
            raise
        except Exception as error:
            raise TypeError(
                f"a value of type {type(value).__name__!r} cannot be encoded by codec "
                f"{self.name!r}: {_reason(error)}"
            ) from error

    def decode_bytes(self, payload: bytes) -> Any:
        """Turn bytes that are private to the caller into a value.

        Raises:
            DecodeError: this codec never made them; names the codec and the length.
        """
        try:
            return self._decode(payload)
        except MemoryError:
            raise
        except Exception as error:
            self._fail(payload, error)

    def decode_field(self, payload: bytes, path: Sequence[object]) -> Any:
        """Decode one field of an encoded mapping or list.

        Args:
            payload: bytes private to the caller.
            path: from the outside in, keys of mappings and indices of lists (and tuples).

        Returns:
            The field's value; the whole value for an empty path.

        Raises:
            LookupError: there is no such field.
            DecodeError: as `decode_bytes`.

        Cost: with msgpack and msgspec the rest is skipped, not built; else as `decode_bytes`.
        """
        value = self.decode_bytes(payload)
        for step in path:
            if isinstance(value, dict):
                try:
                    value = value[step]
                except TypeError:  # unhashable, and so no key
                    raise LookupError(step) from None
            elif (
                isinstance(value, list | tuple)
                and isinstance(step, int)
                and not isinstance(step, bool)
            ):
                value = value[step]
            else:
                raise LookupError(step)
        return value

    @abstractmethod
    def _encode(self, value: Any) -> bytes:
        """Encode, with whatever error."""

    @abstractmethod
    def _decode(self, payload: bytes) -> Any:
        """Decode, with whatever error."""

    def _fail(self, payload: bytes, error: Exception) -> NoReturn:
        raise DecodeError(
            f"{len(payload)} stored bytes cannot be decoded by codec {self.name!r}: "
            f"{_reason(error)}; they were damaged, or are another codec's: store the value anew"
        ) from error


class _FieldFinder(BoundCodec):
    """What the codecs with a msgpack format share."""

    def decode_field(self, payload: bytes, path: Sequence[object]) -> Any:
        try:
            field = find_field(payload, path)
        except (LookupError, MemoryError):
            raise
        except Exception as error:
            self._fail(payload, error)
        return self.decode_bytes(field)


class _Msgpack(_FieldFinder):
    """The default codec.

    Strings with lone surrogates are rare, and taking them costs every other string time: a value
    that has one is encoded (or decoded) in a second go.
    """

    name = "msgpack"
    plain_msgpack = True

    def __init__(self) -> None:
        self._level = Level(None)
        self._surrogates_level = Level("surrogatepass")
        options = self._level.options()
        self.fast_encode = self._level.pack
        self.fast_decode = msgpack.unpackb
        self.fast_decode_names = tuple(options)
        self.fast_decode_values = tuple(options.values())

    def _encode(self, value: Any) -> bytes:
        try:
            return self._level.pack(value)
        except UnicodeEncodeError:
            return self._surrogates_level.pack(value)

    def _decode(self, payload: bytes) -> Any:
        try:
            return self._level.unpack(payload)
        except UnicodeDecodeError:
            return self._surrogates_level.unpack(payload)


class _Raw(BoundCodec):
    """Bytes-like objects, as they are."""

    name = "raw"

    def _encode(self, value: Any) -> bytes:
        return memoryview(value).tobytes()

    def _decode(self, payload: bytes) -> bytes:
        return bytes(payload)


class _Json(BoundCodec):
    """The standard library's JSON, compact, in UTF-8 with lone surrogates passed."""

    name = "json"

    def __init__(self) -> None:
        super().__init__()
        self._to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self._from_text = json.JSONDecoder().decode

    def _encode(self, value: Any) -> bytes:
        return self._to_text(value).encode("utf-8", "surrogatepass")

    def _decode(self, payload: bytes) -> Any:
        return self._from_text(payload.decode("utf-8", "surrogatepass"))


class _Msgspec(_FieldFinder):
    """msgspec's msgpack; its encoder and decoder keep no state between calls."""

    name = "msgspec"

    def __init__(self) -> None:
        try:
            import msgspec
        except ImportError as error:
            raise ValueError(
                "codec 'msgspec' needs a package that is not installed: "
                "pip install 'shmcache[msgspec]'"
            ) from error
        self.fast_encode = msgspec.msgpack.Encoder().encode
        self.fast_decode = msgspec.msgpack.Decoder().decode

    def _encode(self, value: Any) -> bytes:
        return self.fast_encode(value)

    def _decode(self, payload: bytes) -> Any:
        return self.fast_decode(payload)


class _Pickle(BoundCodec):
    """pickle behind a checksum: 8 bytes of XXH64 (seed 0, little endian), then the pickle."""

    name = "pickle"

    def _encode(self, value: Any) -> bytes:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return xxhash.xxh64_intdigest(pickled).to_bytes(_CHECKSUM_SIZE, "little") + pickled

    def _decode(self, payload: bytes) -> Any:
        pickled = memoryview(payload)[_CHECKSUM_SIZE:]
        checksum = xxhash.xxh64_intdigest(pickled).to_bytes(_CHECKSUM_SIZE, "little")
        if payload[:_CHECKSUM_SIZE] != checksum:
            raise ValueError("the checksum does not match")
        return pickle.loads(pickled)


_CHECKSUM_SIZE: Final = 8  # bytes


class _Custom(BoundCodec):
    """A codec that the caller brings."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.name = codec.name
        self._codec = codec

    def _encode(self, value: Any) -> bytes:
        payload = self._codec.encode(value)
        if type(payload) is not bytes:
            raise TypeError(f"its encode() returned {type(payload).__name__}, not bytes")
        return payload

    def _decode(self, payload: bytes) -> Any:
        return self._codec.decode(memoryview(payload))


_BUILT_IN: Final[dict[str, type[BoundCodec]]] = {
    kind.name: kind for kind in (_Msgpack, _Raw, _Json, _Msgspec, _Pickle)
}

CODEC_NAMES: Final = tuple(_BUILT_IN)
"""The names of the built-in codecs, the default first."""


class SealedCodec(BoundCodec):
    """Stands in for a cache's codec where nothing is encoded or decoded: it refuses both.

    For tools that look at counters: the codec may be an object of the application's, or pickle
    that others can write, which this process must not read.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _encode(self, value: Any) -> bytes:
        raise TypeError("this handle was opened with decode=False")

    def _decode(self, payload: bytes) -> Any:
        raise ValueError("this handle was opened with decode=False")


def resolve(codec: str | Codec) -> BoundCodec:
    """Turn the `codec` argument of a cache, or the name in a segment, into a codec to call.

    Args:
        codec: the name of a built-in codec, or an object with `name`, `encode` and `decode`.

    Returns:
        The codec; one instance per process of each built-in one.

    Raises:
        ValueError: there is no built-in codec of that name, the package that it needs is not
            installed, or the object's name is empty, too long, not printable ASCII, or a built-in
            codec's.
        TypeError: the argument is neither a str nor such an object.
    """
    if isinstance(codec, BoundCodec):
        return codec
    if isinstance(codec, str):
        if codec not in _BUILT_IN:
            raise ValueError(
                f"there is no codec {codec!r}: choose one of {', '.join(CODEC_NAMES)}, or pass "
                f"the object with name, encode and decode that the name belongs to"
            )
        return _built_in(codec)
    if (
        isinstance(codec, type)
        or not isinstance(getattr(codec, "name", None), str)
        or not callable(getattr(codec, "encode", None))
        or not callable(getattr(codec, "decode", None))
    ):
        raise TypeError(
            f"codec must be one of {', '.join(CODEC_NAMES)}, or an object with name, encode and "
            f"decode, not {codec!r}"
        )
    if not 1 <= len(codec.name) <= CODEC_NAME_MAX or not (
        codec.name.isascii() and codec.name.isprintable()
    ):
        raise ValueError(
            f"the name of a codec must be 1 to {CODEC_NAME_MAX} printable ASCII characters, "
            f"not {codec.name!r}"
        )
    if codec.name in _BUILT_IN:
        raise ValueError(
            f"codec {codec.name!r} is a built-in one: give the object another name, since other "
            f"processes would take the segment's bytes for the built-in codec's"
        )
    return _Custom(codec)


@cache
def _built_in(name: str) -> BoundCodec:
    """Make a built-in codec, once: its packers are worth keeping. A failure is not kept."""
    return _BUILT_IN[name]()


def _reason(error: Exception) -> str:
    """Say what went wrong, in at most a line: the message, or the error's name without one."""
    text = str(error).partition("\n")[0][:200]
    if not text:
        return type(error).__name__
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text
