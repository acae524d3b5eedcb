"""msgpack with the types that Python values are made of, round-tripping equal.

Place: level 1 of the house, behind `codec.py`, which turns whatever is raised here into the
errors that callers see. Knows nothing of caches, keys or segments.

What msgpack has no type for goes through its extension types, 100 to 109, so that tuples, sets,
datetimes and the like come back as what they were, at any depth and as keys of dicts too. A plain
value (dicts, lists, str, bytes, numbers, bool, None) is plain msgpack, and costs what msgpack
costs.

    code  type        data
    100   tuple       a msgpack array of the elements
    101   set         a msgpack array of the elements
    102   frozenset   a msgpack array of the elements
    103   int         past 64 bits: two's complement, little endian, shortest
    104   datetime    year (2 bytes), month, day, hour, minute, second (1 each), microsecond with
                      fold as its top bit (4); then the zone
    105   date        year (2), month, day (1 each)
    106   time        hour, minute, second (1 each), microsecond with fold (4); then the zone
    107   timedelta   days (4, signed), seconds (4), microseconds (4)
    108   Decimal     its str, ASCII
    109   UUID        16 bytes

Numbers in this table are big endian, like msgpack's own. The zone is nothing (naive), one byte 0
(UTC), 1 with a fixed offset in microseconds (8 bytes, signed) and the zone's name if it has one,
or 2 with the key of a `zoneinfo.ZoneInfo`. A zone of another make becomes the fixed offset that
it has at that time. Other extension codes are passed through as `msgpack.ExtType`.

The data of a container is msgpack of its own, so what is nested in containers is packed and
unpacked level by level. Each `Level` has packers and unpackers of its own, and hooks that go one
level down; the last one refuses. Nothing that happens in one level can then re-enter a Packer or
Unpacker that is in use, and hostile bytes cannot recurse further than the levels go.
"""

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
from msgpack import ExtType

__all__ = ["LEVELS", "NESTING_MAX", "Level", "find_field"]

LEVELS: Final = 64
"""Containers of extension types (tuples, sets) within each other; `Level` counts them."""

NESTING_MAX: Final = 256
"""Containers of any kind below the level `_CHECKED_LEVEL`. Packing takes some 400 bytes of C stack
for each container, and msgpack alone would allow 1,024 of them in each of 64 levels."""

_CHECKED_LEVEL: Final = 4

_VALIDATED_LEVEL: Final = 2
"""From this level on, arrays are built only once all their elements are known to be there. An
Unpacker reserves 80 kB for an array that promises 10,000 elements, whether they come or not, and
1,024 arrays within each other can promise: 80 MB, times 64 levels. Skipping reserves nothing, and
costs some 100 ns for a small container."""

_BUFFER_KEPT_MAX: Final = 1 << 20  # bytes; a Packer never shrinks, so one that grew is dropped

_TUPLE, _SET, _FROZENSET, _INT, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(
    100, 110
)

_INT_MIN: Final = -(1 << 63)
_INT_END: Final = 1 << 64
_DATETIME_FIELDS: Final = struct.Struct(">HBBBBBI")
_DATE_FIELDS: Final = struct.Struct(">HBB")
_TIME_FIELDS: Final = struct.Struct(">BBBI")
_TIMEDELTA_FIELDS: Final = struct.Struct(">iII")
_OFFSET: Final = struct.Struct(">q")
_FOLD: Final = 1 << 31
_MICROSECOND: Final = timedelta(microseconds=1)
_ZONE_UTC, _ZONE_FIXED, _ZONE_KEY = b"\0", b"\1", b"\2"


class Level:
    """Packs and unpacks what lies within `depth` containers of extension types.

    Safe to use from several threads, from signal handlers and finalizers, and from its own hooks:
    whoever packs or unpacks takes a Packer or Unpacker out of a list, which is atomic under the
    GIL, and gives it back only once it has done its work and is known to be empty. After an error
    it is dropped, with whatever was left in its buffer.
    """

    __slots__ = ("_deeper", "_depth", "_packers", "_unicode_errors", "_unpackers")

    def __init__(self, unicode_errors: str | None, depth: int = 0) -> None:
        """Make a level; the ones below it are made when first needed.

        Args:
            unicode_errors: `None` refuses lone surrogates with `UnicodeError`, "surrogatepass"
                takes them (and packs any str more slowly: measured 227 against 160 ns for a
                small dict).
            depth: how many levels are above it.
        """
        self._unicode_errors = unicode_errors
        self._depth = depth
        self._deeper: Level | None = None
        self._packers: list[msgpack.Packer] = []
        self._unpackers: list[msgpack.Unpacker] = []

    def pack(self, value: object) -> bytes:
        """Pack one value.

        Raises:
            UnicodeEncodeError: a str has lone surrogates, and the level does not take them.
            Exception: the value, or something in it, cannot be packed.

        Cost: the pool costs some 30 ns over a Packer of one's own.
        """
        if self._depth == _CHECKED_LEVEL:
            _check_nesting(value)
        try:
            packer = self._packers.pop()
        except IndexError:
            packer = msgpack.Packer(
                default=self._replace, strict_types=True, unicode_errors=self._unicode_errors
            )
        payload: bytes = packer.pack(value)
        if len(payload) <= _BUFFER_KEPT_MAX:
            self._packers.append(packer)
        return payload

    def unpack(self, payload: bytes) -> Any:
        """Unpack a payload that is one value and nothing else.

        An Unpacker keeps its stack on the heap, where `unpackb` takes 40 KiB of C stack: that
        matters within hooks that recurse (and costs 28 ns). From `_VALIDATED_LEVEL` on the payload
        is walked once before anything is built from it.

        Raises:
            UnicodeDecodeError: a str is not UTF-8, or has lone surrogates that the level does not
                take.
            Exception: the payload is not one value.
        """
        try:
            unpacker = self._unpackers.pop()
        except IndexError:
            unpacker = msgpack.Unpacker(
                strict_map_key=False,
                ext_hook=self.restore,
                unicode_errors=self._unicode_errors,
                read_size=4096,
                max_buffer_size=0,  # no limit: the payload is in memory already
            )
        if self._depth >= _VALIDATED_LEVEL:
            unpacker.feed(payload)
            unpacker.skip()
        unpacker.feed(payload)
        value = unpacker.unpack()
        if unpacker.read_bytes(1):
            raise ValueError("there are bytes after the value")
        if len(payload) <= _BUFFER_KEPT_MAX:
            self._unpackers.append(unpacker)
        return value

    def options(self) -> dict[str, Any]:
        """Return the options with which `msgpack.unpackb` unpacks as the topmost level does."""
        options: dict[str, Any] = {"strict_map_key": False, "ext_hook": self.restore}
        if self._unicode_errors is not None:
            options["unicode_errors"] = self._unicode_errors
        return options

    def restore(self, code: int, data: bytes) -> Any:
        """Turn the data of an extension type into the object that it stands for.

        This is the `ext_hook` of this level; the elements of a container are one level down.

        Raises:
            Exception: the data are not what the code says.
        """
        if code == _TUPLE:
            return tuple(self._unpack_elements(data))
        unpack = _UNPACK_SCALAR.get(code)
        if unpack is not None:
            return unpack(data)
        if code == _SET:
            return set(self._unpack_elements(data))
        if code == _FROZENSET:
            return frozenset(self._unpack_elements(data))
        return ExtType(code, data)

    def _replace(self, value: object) -> Any:
        """Turn what msgpack does not pack by itself into something that it does.

        This is the `default` hook of this level: `strict_types` sends all subclasses here.
        """
        kind = type(value)
        if kind not in _KNOWN:
            for base in kind.__mro__:
                if base in _KNOWN:
                    kind = base
                    break
            else:
                raise TypeError(f"it holds a value of type {kind.__name__!r}")
        code = _CONTAINERS.get(kind)
        if code is not None:
            return _ext_type(code, self._level_below().pack(list(value)))  # type: ignore[call-overload]
        pack = _PACK_SCALAR.get(kind)
        if pack is not None:
            return _ext_type(*pack(value))
        return _TO_BASE[kind](value)

    def _unpack_elements(self, data: bytes) -> list[Any]:
        """Unpack the data of a container."""
        elements = self._level_below().unpack(data)
        if type(elements) is not list:
            raise ValueError("the data of a container are not an array")
        return elements

    def _level_below(self) -> "Level":
        """Return the level one further down; ValueError where there is none."""
        if self._deeper is None:
            if self._depth == LEVELS:
                raise ValueError(f"tuples or sets are nested more than {LEVELS} deep")
            self._deeper = Level(self._unicode_errors, self._depth + 1)
        return self._deeper


def _check_nesting(value: object) -> None:
    """Refuse a value with more than `NESTING_MAX` containers within each other.

    Done once for a value that is nested this deep, depth first, so that one that contains itself
    ends soon too. A dict's keys count as well as its values.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > NESTING_MAX:
            raise ValueError(
                f"containers are nested more than {NESTING_MAX} deep within tuples or sets"
            )
        if isinstance(item, dict):
            waiting.extend((key, depth + 1) for key in item if isinstance(key, tuple | frozenset))
            waiting.extend((member, depth + 1) for member in item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            waiting.extend((member, depth + 1) for member in item)


def _ext_type(code: int, data: bytes) -> ExtType:
    """Make an `ExtType` without its checks, in 110 instead of 250 ns."""
    return tuple.__new__(ExtType, (code, data))


def _pack_int(value: int) -> tuple[int, bytes]:
    return _INT, value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)


def _unpack_int(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _int_base(value: int) -> Any:
    """Reduce an instance of a subclass (an IntEnum member, say) to an int, if need be packed."""
    number = int.__int__(value)
    return number if _INT_MIN <= number < _INT_END else _ext_type(*_pack_int(number))


def _pack_zone(value: datetime | time) -> bytes:
    zone = value.tzinfo
    if zone is None:
        return b""
    if zone is UTC:
        return _ZONE_UTC
    if isinstance(zone, ZoneInfo) and zone.key is not None:
        return _ZONE_KEY + zone.key.encode()
    offset = value.utcoffset()
    if offset is None:  # Python compares such a time as a naive one
        return b""
    name = value.tzname()
    if name is None or name == timezone(offset).tzname(None):
        name = ""
    return (
        _ZONE_FIXED + _OFFSET.pack(offset // _MICROSECOND) + name.encode("utf-8", "surrogatepass")
    )


def _unpack_zone(data: bytes) -> tzinfo | None:
    if not data:
        return None
    kind = data[:1]
    if kind == _ZONE_KEY:
        return ZoneInfo(data[1:].decode())
    if data == _ZONE_UTC:
        return UTC
    if kind != _ZONE_FIXED:
        raise ValueError("there is no such kind of time zone")
    offset = timedelta(microseconds=_OFFSET.unpack_from(data, 1)[0])
    name = data[1 + _OFFSET.size :]
    return timezone(offset, name.decode("utf-8", "surrogatepass")) if name else timezone(offset)


def _pack_datetime(value: datetime) -> tuple[int, bytes]:
    fields = _DATETIME_FIELDS.pack(
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond | (_FOLD if value.fold else 0),
    )
    return _DATETIME, fields + _pack_zone(value)


def _unpack_datetime(data: bytes) -> datetime:
    year, month, day, hour, minute, second, tail = _DATETIME_FIELDS.unpack_from(data)
    return datetime(
        year,
        month,
        day,
        hour,
        minute,
        second,
        tail & ~_FOLD,
        _unpack_zone(data[_DATETIME_FIELDS.size :]),
        fold=tail >> 31,
    )


def _pack_date(value: date) -> tuple[int, bytes]:
    return _DATE, _DATE_FIELDS.pack(value.year, value.month, value.day)


def _unpack_date(data: bytes) -> date:
    return date(*_DATE_FIELDS.unpack(data))


def _pack_time(value: time) -> tuple[int, bytes]:
    fields = _TIME_FIELDS.pack(
        value.hour,
        value.minute,
        value.second,
        value.microsecond | (_FOLD if value.fold else 0),
    )
    return _TIME, fields + _pack_zone(value)


def _unpack_time(data: bytes) -> time:
    hour, minute, second, tail = _TIME_FIELDS.unpack_from(data)
    zone = _unpack_zone(data[_TIME_FIELDS.size :])
    return time(hour, minute, second, tail & ~_FOLD, zone, fold=tail >> 31)


def _pack_timedelta(value: timedelta) -> tuple[int, bytes]:
    return _TIMEDELTA, _TIMEDELTA_FIELDS.pack(value.days, value.seconds, value.microseconds)


def _unpack_timedelta(data: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA_FIELDS.unpack(data))


def _pack_decimal(value: Decimal) -> tuple[int, bytes]:
    return _DECIMAL, Decimal.__str__(value).encode("ascii")


def _unpack_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"))


def _pack_uuid(value: UUID) -> tuple[int, bytes]:
    return _UUID, value.bytes


def _unpack_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)


_CONTAINERS: Final[dict[type, int]] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}

_PACK_SCALAR: Final[dict[type, Callable[[Any], tuple[int, bytes]]]] = {
    datetime: _pack_datetime,
    date: _pack_date,
    time: _pack_time,
    timedelta: _pack_timedelta,
    Decimal: _pack_decimal,
    UUID: _pack_uuid,
}

_UNPACK_SCALAR: Final[dict[int, Callable[[bytes], Any]]] = {
    _INT: _unpack_int,
    _DATETIME: _unpack_datetime,
    _DATE: _unpack_date,
    _TIME: _unpack_time,
    _TIMEDELTA: _unpack_timedelta,
    _DECIMAL: _unpack_decimal,
    _UUID: _unpack_uuid,
}

# Methods of the base types, since a subclass may have changed its own; but dict's constructor
# keeps the order of an OrderedDict, which its C-level copy does not.
_TO_BASE: Final[dict[type, Callable[[Any], Any]]] = {
    dict: dict,
    list: list.copy,
    str: str.__str__,
    int: _int_base,
    float: float.__float__,
    bytes: bytes.__bytes__,
    bytearray: bytearray.copy,
}

_KNOWN: Final = _CONTAINERS.keys() | _PACK_SCALAR.keys() | _TO_BASE.keys()


def find_field(payload: bytes, path: Sequence[object]) -> bytes:
    """Find one field of a packed value without building the rest.

    Args:
        payload: msgpack, as `Level.pack` or another packer of the format made it.
        path: from the outside in, a key of a dict, or an index of a list or tuple (negative ones
            count from the end); a key is compared as Python compares.

    Returns:
        The field's own bytes, to be unpacked by whoever knows how. The whole payload for an
        empty path.

    Raises:
        LookupError: there is no such field, or what the path goes through has none.
        Exception: the payload is not msgpack. What lies behind the field is not looked at.

    Cost: linear in the bytes that lie before the field; a copy of the payload.
    """
    level = Level("surrogatepass")
    for step in path:
        payload = _elements_of(payload)
        unpacker = msgpack.Unpacker(max_buffer_size=0, read_size=4096, **level.options())
        unpacker.feed(payload)
        first = payload[0] if payload else 0xC1
        if first & 0xF0 == 0x80 or first in (0xDE, 0xDF):
            for _ in range(unpacker.read_map_header()):
                if unpacker.unpack() == step:
                    break
                unpacker.skip()
            else:
                raise LookupError(step)
        elif first & 0xF0 == 0x90 or first in (0xDC, 0xDD):
            length = unpacker.read_array_header()
            if not isinstance(step, int) or isinstance(step, bool):
                raise LookupError(step)
            index = step + length if step < 0 else step
            if not 0 <= index < length:
                raise LookupError(step)
            for _ in range(index):
                unpacker.skip()
        else:
            raise LookupError(step)
        start = unpacker.tell()
        unpacker.skip()
        payload = payload[start : unpacker.tell()]
    return payload


def _elements_of(payload: bytes) -> bytes:
    """Return the array within a packed tuple; any other payload as it is."""
    if payload[:1] in _EXT_FORMATS:
        packed = msgpack.unpackb(payload, ext_hook=ExtType)
        if type(packed) is ExtType and packed.code == _TUPLE:
            data: bytes = packed.data
            return data
    return payload


_EXT_FORMATS: Final = frozenset(bytes((first,)) for first in b"\xc7\xc8\xc9\xd4\xd5\xd6\xd7\xd8")
