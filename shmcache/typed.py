"""Values of one type: what a namespace with `type=` encodes and decodes.

Place: level 3, between the codecs and the namespaces; knows nothing of keys or segments.

Who decodes what:

    type                          with msgspec installed                    without it
    dataclass, TypedDict,         the bytes straight into the type, where    the codec, then built
    NamedTuple, msgspec.Struct,   the cache's codec is msgpack, msgspec or   here (no Struct)
    list[...], dict[...], | ...   json; else the codec, then msgspec.convert
    pydantic model, and           the codec, then pydantic validates         the same
    list[Model], Model | None...
    any other class               the codec, then `isinstance`               the same

Bytes that the straight way refuses (msgpack has extension types for tuples, datetimes and so on,
which another writer may have used) take the longer one. What does not fit is a DecodeError.

Encoding is the reverse: msgspec writes the fields straight into the cache's format, so that
handles without a type read plain dicts and lists; without msgspec, and for pydantic models, the
object is turned into plain containers first.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from shmcache.codec import BoundCodec
from shmcache.errors import DecodeError

__all__ = ["codec_for"]

_PASSED: Final = (
    *(bytes, bytearray, datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    *(uuid.UUID, decimal.Decimal),
)
"""What codecs hand over as it is, and msgspec.convert is to leave alone."""


def codec_for(kind: Any, base: BoundCodec) -> BoundCodec:
    """The codec of a namespace whose values are of type `kind`, in a cache with codec `base`.

    Raises:
        TypeError: values of that type cannot be told (without msgspec: a msgspec.Struct or a
            generic that is not known here).
    """
    if kind is Any or kind is object:
        return base
    return _TypedCodec(kind, base)


class _TypedCodec(BoundCodec):
    """Objects of one type, in the format of the cache's codec."""

    def __init__(self, kind: Any, base: BoundCodec) -> None:
        self.name = base.name
        self._base = base
        self._label = getattr(kind, "__qualname__", None) or str(kind)
        self._convert, self._plain, self._spelled = _converter(kind)
        self.check = self._check
        fast = _fast(kind, base.name)
        self.fast_encode, self.fast_decode = fast or (self._encode, self._decode)

    def _encode(self, value: Any) -> bytes:
        try:
            return self._base.encode_bytes(self._plain(value))
        except TypeError:
            if self._spelled is None:
                raise
            return self._base.encode_bytes(self._spelled(value))

    def _decode(self, payload: bytes) -> Any:
        return self._check(self._base.decode_bytes(payload))

    def _check(self, value: Any) -> Any:
        try:
            return self._convert(value)
        except (MemoryError, DecodeError):
            raise
        except Exception as error:
            raise DecodeError(
                f"a stored value of type {type(value).__name__} does not fit the namespace's type "
                f"{self._label}: {str(error)[:200]}; store it anew, or open the namespace with "
                "the type that it was stored with"
            ) from error

    def decode_bytes(self, payload: bytes) -> Any:
        return self._decode(payload)

    def decode_field(self, payload: bytes, path: Sequence[object]) -> Any:
        return self._base.decode_field(payload, path)


def _msgspec() -> Any:
    try:
        import msgspec
    except ImportError:
        return None
    return msgspec


def _is_pydantic(kind: Any) -> bool:
    """Whether it is a pydantic model, or holds some (`list[Model]`)."""
    if isinstance(kind, type) and hasattr(kind, "__pydantic_validator__"):
        return hasattr(kind, "model_validate")
    return any(map(_is_pydantic, get_args(kind)))


def _is_known_to_msgspec(kind: Any) -> bool:
    """Whether msgspec can build it, not only let it through."""
    if get_origin(kind) is not None or kind in (int, str, bytes, float, bool, None, list, dict):
        return True
    return not isinstance(kind, type) or bool(
        dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or kind in (tuple, set, frozenset, *_PASSED)
        or hasattr(kind, "__members__")
    )


def _fast(kind: Any, name: str) -> tuple[Callable[[Any], bytes], Callable[..., Any]] | None:
    """Encoder and decoder that know the type, where msgspec speaks the codec's format."""
    msgspec = _msgspec()
    if msgspec is None or _is_pydantic(kind) or not _is_known_to_msgspec(kind):
        return None
    if name in ("msgpack", "msgspec"):
        return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(kind).decode
    if name == "json":
        return msgspec.json.Encoder().encode, msgspec.json.Decoder(kind).decode
    return None


def _converter(
    kind: Any,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any] | None]:
    """(what makes the type of plain values, what makes plain values of it, what spells out as JSON
    would what the codec does not take)."""
    if _is_pydantic(kind):
        return _pydantic(kind)
    msgspec = _msgspec()
    if isinstance(kind, type) and not _is_known_to_msgspec(kind):
        return lambda value: _instance(value, kind), lambda value: value, None
    if msgspec is not None:
        return (
            lambda value: _through(msgspec, value, kind),
            lambda value: msgspec.to_builtins(value, builtin_types=_PASSED),
            None,
        )
    if hasattr(kind, "__struct_fields__"):
        raise TypeError(f"{kind.__qualname__} is a msgspec.Struct, and msgspec is not installed")
    return lambda value: build(value, kind), flatten, None


def _pydantic(
    kind: Any,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]:
    """The three of `_converter`. Fields are stored under their names, where pydantic can validate
    by name (2.11), else under their aliases; never what is computed."""
    from pydantic import TypeAdapter

    adapter: Any = TypeAdapter(kind)
    by_name = "by_name" in inspect.signature(adapter.validate_python).parameters
    names = {"by_alias": True, "by_name": True} if by_name else {}
    how = {"by_alias": not by_name, "round_trip": True, "warnings": False}
    return (
        functools.partial(adapter.validate_python, **names),
        functools.partial(adapter.dump_python, **how),
        functools.partial(adapter.dump_python, mode="json", **how),
    )


def _through(msgspec: Any, value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and type(value) is kind:  # pickle, or a codec of the caller's
        return value
    return msgspec.convert(value, kind, builtin_types=_PASSED)


def _instance(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"it is no {kind.__qualname__}")
    return value


def flatten(value: Any) -> Any:
    """Plain containers of an object: dataclasses as dicts of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: flatten(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: flatten(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(flatten, value))
    return value


def build(value: Any, kind: Any) -> Any:
    """An object of type `kind` from plain containers; raises TypeError where it does not fit.

    Knows dataclasses, TypedDicts, unions, Literal, list, dict, tuple, set and plain classes.
    """
    if kind is Any or kind is object:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Required, typing.NotRequired, typing.Annotated, typing.ClassVar):
        return build(value, arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        for choice in arguments:
            try:
                return build(value, choice)
            except TypeError:
                continue
        raise TypeError(f"it is none of {kind}")
    if origin is typing.Literal:
        if value not in arguments:
            raise TypeError(f"it is none of {arguments}")
        return value
    if kind is None or kind is type(None):
        return _instance(value, type(None))
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _build_fields(value, kind)
    if origin is not None:
        return _build_container(value, origin, arguments)
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and isinstance(value, bool):
        raise TypeError("it is a bool, no int")
    return _instance(value, kind)


def _build_fields(value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and not typing.is_typeddict(kind) and isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"it is no mapping with the fields of {kind.__qualname__}")
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        missing = kind.__required_keys__ - value.keys()
        if missing:
            raise TypeError(f"it lacks {', '.join(sorted(missing))}")
        return {name: build(item, hints[name]) for name, item in value.items() if name in hints}
    names = {field.name for field in dataclasses.fields(kind) if field.init}
    return kind(**{name: build(item, hints[name]) for name, item in value.items() if name in names})


def _build_container(value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is dict:
        _instance(value, dict)
        return {build(k, arguments[0]): build(item, arguments[1]) for k, item in value.items()}
    if origin not in (list, set, frozenset, tuple):
        raise TypeError(f"{origin} is not known without msgspec")
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError(f"it is no {origin.__name__}")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise TypeError(f"it has {len(value)} elements, not {len(arguments)}")
        return tuple(build(item, k) for item, k in zip(value, arguments, strict=True))
    return origin(build(item, arguments[0]) for item in value)
