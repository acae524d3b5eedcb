"""Values to bytes and back: every codec, every type, and bytes that nobody encoded."""

from __future__ import annotations

import collections
import contextlib
import enum
import json
import math
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from shmcache.codec import CODEC_NAMES, BoundCodec, Codec, resolve
from shmcache.errors import DecodeError

MSGPACK = resolve("msgpack")
BERLIN = ZoneInfo("Europe/Berlin")

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.just(BERLIN),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
        st.text(min_size=1, max_size=6),
    ),
)
FIXED_ZONES = ZONES.filter(lambda zone: not isinstance(zone, ZoneInfo))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False),
    TEXT,
    st.binary(max_size=12),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.dates(),
    st.times(timezones=FIXED_ZONES),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
    ),
    max_leaves=15,
)


def shape(value: object) -> object:
    """A value with its types spelled out, so that == sees them too, and the zones of times."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return (kind, [(shape(key), shape(member)) for key, member in value.items()])
    if isinstance(value, list | tuple):
        return (kind, [shape(member) for member in value])
    if isinstance(value, set | frozenset):
        return (kind, value, collections.Counter(type(member).__name__ for member in value))
    if isinstance(value, datetime | time):
        return (kind, value, value.isoformat(), value.fold, str(value.tzinfo))
    if isinstance(value, float | Decimal):
        return (kind, repr(value))
    return (kind, value)


def encode_by_hand(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


# --------------------------------------------------------------- msgpack: round trips


@given(VALUES)
def test_msgpack_round_trips_value_and_type(value: object) -> None:
    back = MSGPACK.decode_bytes(MSGPACK.encode_bytes(value))
    assert back == value
    assert shape(back) == shape(value)


@given(VALUES)
def test_msgpack_fast_paths_agree_with_the_others_or_raise(value: object) -> None:
    payload = MSGPACK.encode_bytes(value)
    with contextlib.suppress(UnicodeEncodeError):
        assert MSGPACK.fast_encode(value) == payload
    options = dict(zip(MSGPACK.fast_decode_names, MSGPACK.fast_decode_values, strict=True))
    with contextlib.suppress(UnicodeDecodeError):
        assert shape(MSGPACK.fast_decode(payload, **options)) == shape(value)


@pytest.mark.parametrize(
    "value",
    [
        {"id": 123, "name": "Ada", "tags": ["a", "b"]},
        [1, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, None, True, "é", b"\0"],
    ],
)
def test_plain_values_are_plain_msgpack(value: object) -> None:
    assert MSGPACK.encode_bytes(value) == msgpack.packb(value)


@pytest.mark.parametrize(
    ("value", "code", "data"),
    [
        ((1, "a"), 100, b"\x92\x01\xa1a"),
        ({1}, 101, b"\x91\x01"),
        (frozenset({1}), 102, b"\x91\x01"),
        (2**64, 103, b"\0" * 8 + b"\1"),
        (datetime(2024, 2, 29, 1, 2, 3, 4), 104, b"\x07\xe8\x02\x1d\1\2\3\0\0\0\4"),
        (
            datetime(2024, 2, 29, 1, 2, 3, 4, UTC, fold=1),
            104,
            b"\x07\xe8\x02\x1d\1\2\3\x80\0\0\4\0",
        ),
        (date(2024, 2, 29), 105, b"\x07\xe8\x02\x1d"),
        (
            time(1, 2, 3, 4, timezone(timedelta(microseconds=-1), "x")),
            106,
            b"\1\2\3\0\0\0\4\1" + b"\xff" * 8 + b"x",
        ),
        (timedelta(microseconds=-1), 107, b"\xff\xff\xff\xff\0\1\x51\x7f\0\x0f\x42\x3f"),
        (Decimal("-1.50"), 108, b"-1.50"),
        (UUID(int=1), 109, b"\0" * 15 + b"\1"),
    ],
)
def test_the_stored_form_is_fixed(value: object, code: int, data: bytes) -> None:
    """Written out by hand: caches and snapshots outlive the process that wrote them."""
    assert MSGPACK.encode_bytes(value) == encode_by_hand(code, data)


@pytest.mark.parametrize("text", ["nan", "-nan123", "snan", "inf", "-0", "0E+3", "1e-400"])
def test_decimals_keep_what_equality_does_not_show(text: str) -> None:
    assert repr(MSGPACK.decode(MSGPACK.encode([Decimal(text)]))) == repr([Decimal(text)])


def test_floats_keep_what_equality_does_not_show() -> None:
    assert math.isnan(MSGPACK.decode(MSGPACK.encode([math.nan]))[0])
    assert math.copysign(1, MSGPACK.decode(MSGPACK.encode([-0.0]))[0]) == -1


@pytest.mark.parametrize("fold", [0, 1])
def test_both_sides_of_a_fold(fold: int) -> None:
    value = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
    back = MSGPACK.decode(MSGPACK.encode([value]))[0]
    assert back.tzinfo is BERLIN
    assert back.utcoffset() == value.utcoffset() == timedelta(hours=2 - fold)


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    SEVEN = 7
    HUGE = 1 << 70


class Place(NamedTuple):
    street: str
    number: int


class Quiet(str):
    def __str__(self) -> str:
        return "not this"


class Mine(list):  # type: ignore[type-arg]
    pass


class OwnZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return timedelta(hours=5, minutes=30)

    def tzname(self, when: datetime | None) -> str:
        return "OWN"

    def dst(self, when: datetime | None) -> timedelta | None:
        return None


class NoZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Colour.RED, "red"),
        (Number.SEVEN, 7),
        (Number.HUGE, 1 << 70),
        ({Colour.RED: Number.SEVEN}, {"red": 7}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (Place("a", 1), ("a", 1)),
        (Quiet("a"), "a"),
        (Mine([Mine([1])]), [[1]]),
        (type("Blob", (bytes,), {})(b"a"), b"a"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (type("Real", (float,), {})(1.5), 1.5),
        (type("Bag", (set,), {})({1}), {1}),
        (type("Day", (date,), {})(2024, 1, 2), date(2024, 1, 2)),
        (type("Moment", (datetime,), {})(2024, 1, 2, 3), datetime(2024, 1, 2, 3)),
    ],
)
def test_subclasses_come_back_as_their_base(value: object, base: object) -> None:
    assert shape(MSGPACK.decode(MSGPACK.encode([value]))) == shape([base])


def test_order_of_an_ordered_dict_that_was_reordered() -> None:
    value = collections.OrderedDict(a=1, b=2)
    value.move_to_end("a")
    assert list(MSGPACK.decode(MSGPACK.encode(value))) == ["b", "a"]


def test_zones_of_another_make_become_the_offset_they_had() -> None:
    value = datetime(2024, 1, 2, tzinfo=OwnZone())
    back = MSGPACK.decode(MSGPACK.encode([value]))[0]
    assert back == value
    assert back.tzinfo == timezone(timedelta(hours=5, minutes=30))
    assert back.tzname() == "OWN"
    naive = MSGPACK.decode(MSGPACK.encode([datetime(2024, 1, 2, tzinfo=NoZone())]))[0]
    assert naive == datetime(2024, 1, 2)


def test_foreign_extension_types_pass() -> None:
    value = [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2)]
    assert MSGPACK.decode(MSGPACK.encode(value)) == value


# --------------------------------------------------------------- msgpack: refusals


@pytest.mark.parametrize("value", [object(), 1j, Fraction(1, 2), range(3), object, ..., print])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [{"a": x}], lambda x: ({1: (x,)},)])
def test_msgpack_names_the_type_that_it_cannot_encode(
    value: object, wrap: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError) as caught:
        MSGPACK.encode(wrap(value))
    assert f"holds a value of type {type(value).__name__!r}" in str(caught.value)
    assert f"a value of type {type(wrap(value)).__name__!r}" in str(caught.value)
    assert "'msgpack'" in str(caught.value)


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


def test_msgpack_takes_64_tuples_within_each_other() -> None:
    value = nested(64, lambda inner: (inner,))
    assert MSGPACK.decode(MSGPACK.encode(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        nested(65, lambda inner: (inner,)),
        nested(5000, lambda inner: [inner]),
        nested(5000, lambda inner: (inner,)),
        nested(60, lambda inner: (nested(900, lambda x: [x]), inner)),
        nested(10, lambda inner: ({"a": nested(300, lambda x: {"a": x})}, inner)),
    ],
    ids=["tuples", "lists", "deep tuples", "lists in tuples", "dicts in tuples"],
)
def test_msgpack_refuses_what_is_nested_too_deep(value: object) -> None:
    with pytest.raises(TypeError, match=r"nested|recursion"):
        MSGPACK.encode(value)


def test_msgpack_refuses_what_contains_itself() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="recursion"):
        MSGPACK.encode(loop)
    loop[0] = (loop,)
    with pytest.raises(TypeError, match="nested"):
        MSGPACK.encode(loop)


def test_the_deepest_values_stay_within_a_small_stack() -> None:
    """Just below the limits, in a thread with 4 MiB of stack, half of what Linux gives."""
    script = """
import threading
from shmcache.codec import resolve
codec = resolve("msgpack")
value = 1
for level in range(64):
    for _ in range(1020 if level >= 61 else 3):
        value = [value]
    value = (value,)
value = nested = [value]
for _ in range(900):
    nested = [nested]
def work():
    payload = codec.encode_bytes(nested)
    print(codec.encode_bytes(codec.decode_bytes(payload)) == payload)
threading.stack_size(4 << 20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


# --------------------------------------------------------------- msgpack: reuse of packers


def test_an_error_leaves_nothing_in_a_packer() -> None:
    codec = resolve("msgpack")
    before = codec.encode_bytes(["good"])
    for bad in ([1, 2, object()], ["a", (1, object())], [1, "\ud800", object()], (3, [4, {5j}])):
        with pytest.raises(TypeError):
            codec.encode_bytes(bad)
        assert codec.encode_bytes(["good"]) == before
        assert codec.encode_bytes((["good"],)) == encode_by_hand(100, b"\x91" + before)


def test_an_error_leaves_nothing_in_an_unpacker() -> None:
    good = MSGPACK.encode_bytes([(1, (2,))])
    for bad in (b"\x92\x01", b"\x01\x02", encode_by_hand(100, b"\x91\xc1"), b"\x91" + good + b"x"):
        with pytest.raises(DecodeError):
            MSGPACK.decode_bytes(bad)
        assert MSGPACK.decode_bytes(good) == [(1, (2,))]


class Nosy(dict):  # type: ignore[type-arg]
    """Uses the codec while the codec is at work on it."""

    def keys(self) -> Any:
        inner = MSGPACK.encode_bytes([("inner",), "x" * 100])
        assert MSGPACK.decode_bytes(inner) == [("inner",), "x" * 100]
        return super().keys()

    def __iter__(self) -> Any:
        return iter(self.keys())


def test_encoding_within_encoding() -> None:
    value = [1, Nosy(a=1), (Nosy(b=2), 3)]
    assert MSGPACK.decode(MSGPACK.encode(value)) == [1, {"a": 1}, ({"b": 2}, 3)]


def test_threads_do_not_share_a_packer() -> None:
    """Tuples make the packer run Python code, which is where threads are switched."""
    problems: list[object] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        value = [(number, [(number,) * 3] * 3, {"n": (number,)})] * 5
        start.wait()
        for _ in range(150):
            back = MSGPACK.decode_bytes(MSGPACK.encode_bytes(value))
            if back != value:
                problems.append(back)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []


def test_a_large_value_leaves_no_large_buffer_behind() -> None:
    from shmcache._msgpack import Level

    level = Level(None)
    level.unpack(level.pack(b"x" * (2 << 20)))
    assert (level._packers, level._unpackers) == ([], [])
    level.unpack(level.pack([1]))
    assert (len(level._packers), len(level._unpackers)) == (1, 1)


# --------------------------------------------------------------- hostile bytes


@given(st.binary(max_size=60))
@example(b"")
@example(b"\xc1")
def test_msgpack_of_any_bytes_is_a_value_or_decode_error(payload: bytes) -> None:
    try:
        MSGPACK.decode_bytes(payload)
    except DecodeError as error:
        assert f"{len(payload)} stored bytes" in str(error)
        assert "'msgpack'" in str(error)


@given(st.integers(95, 112), st.binary(max_size=24))
@example(104, b"\x07\xe8\x0d\x01\0\0\0\0\0\0\0")  # month 13
@example(104, b"\x07\xe8\x01\x01\0\0\0\0\0\0\0\x02../../etc/passwd")
@example(104, b"\x07\xe8\x01\x01\0\0\0\0\0\0\0\x02America")  # a directory
@example(104, b"\x07\xe8\x01\x01\0\0\0\0\0\0\0\x01\x7f\xff\xff\xff\xff\xff\xff\xff")
@example(107, b"\x7f" * 12)
@example(108, b"1_0")
@example(101, b"\x91\x90")  # a set with a list in it
def test_msgpack_of_any_extension_data_is_a_value_or_decode_error(code: int, data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        MSGPACK.decode_bytes(encode_by_hand(code, data))


@given(VALUES, st.data())
def test_msgpack_of_damaged_bytes_is_a_value_or_decode_error(
    value: object, data: st.DataObject
) -> None:
    payload = bytearray(MSGPACK.encode_bytes([value]))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DecodeError):
        MSGPACK.decode_bytes(bytes(payload[: data.draw(st.integers(0, len(payload)))]))


def tuples_by_hand(levels: int) -> bytes:
    payload = b"\x01"
    for _ in range(levels):
        payload = encode_by_hand(100, b"\x91" + payload)
    return payload


def promises_by_hand(levels: int) -> bytes:
    payload = b"\x01"
    for _ in range(levels):
        payload = encode_by_hand(100, b"\xdc\x27\x10" * 1000 + payload)
    return payload


HOSTILE = {
    "arrays of one": b"\x91" * 100_000,
    "maps of one": b"\x81\xa0" * 100_000,
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "bin of 2^32": b"\xc6\xff\xff\xff\xff",
    "ext of 2^32": b"\xc9\xff\xff\xff\xff\x64",
    "arrays that promise much": b"\xdd\x00\x0f\x00\x00" * 200_000,
    "two values": b"\x01\x01",
    "no UTF-8": b"\xa2\xff\xff",
}
HOSTILE_TO_MSGPACK = {
    "65 tuples": tuples_by_hand(65),
    "2000 tuples": tuples_by_hand(2000),
    "60 tuples that promise much": promises_by_hand(60),
    "tuple that promises much": encode_by_hand(100, b"\xdd\x7f\xff\xff\xff"),
    "tuple of a str": encode_by_hand(100, b"\xa3abc"),
    "tuple of two arrays": encode_by_hand(100, b"\x90\x90"),
    "set of lists": encode_by_hand(101, b"\x91\x90"),
    "list as a key": b"\x81\x90\x01",
}


@pytest.mark.parametrize(
    ("codec", "what"),
    [(codec, what) for codec in ("msgpack", "msgspec") for what in HOSTILE]
    + [("msgpack", what) for what in HOSTILE_TO_MSGPACK],
)
def test_hostile_payloads(codec: str, what: str) -> None:
    payload = HOSTILE.get(what) or HOSTILE_TO_MSGPACK[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match=f"{len(payload)} stored bytes.*'{codec}'"):
        resolve(codec).decode_bytes(payload)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 256 * 1024


def test_deep_recursion_of_the_caller_is_decode_error() -> None:
    payload = MSGPACK.encode(nested(60, lambda inner: (inner,)))

    def sink(depth: int) -> object:
        return sink(depth - 1) if depth else MSGPACK.decode(payload)

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]
    with pytest.raises(DecodeError, match="recursion"):
        sink(sys.getrecursionlimit() - used - 30)


# --------------------------------------------------------------- the other codecs


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_built_in_codec_round_trips_bytes_or_json(name: str) -> None:
    codec = resolve(name)
    value: object = b"abc" if name == "raw" else {"a": [1, None, "é", 1.5]}
    payload = codec.encode(value)
    assert type(payload) is bytes
    assert codec.decode(memoryview(payload)) == value
    assert codec.decode_bytes(codec.encode_bytes(value)) == value
    options = dict(zip(codec.fast_decode_names, codec.fast_decode_values, strict=True))
    assert codec.fast_decode(codec.fast_encode(value), **options) == value


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_built_in_codec_names_the_type_it_refuses(name: str) -> None:
    with pytest.raises(TypeError, match=f"type 'Lock' .*codec '{name}'|type 'lock' .*'{name}'"):
        resolve(name).encode_bytes(threading.Lock())


@pytest.mark.parametrize("name", [name for name in CODEC_NAMES if name != "raw"])
def test_every_built_in_codec_refuses_damaged_bytes(name: str) -> None:
    with pytest.raises(DecodeError, match=f"4 stored bytes .*codec '{name}'") as caught:
        resolve(name).decode_bytes(b"\xc1\xff\xff\xff")
    assert caught.value.__cause__ is not None


def test_raw_takes_what_is_like_bytes() -> None:
    raw = resolve("raw")
    assert raw.encode(bytearray(b"ab")) == b"ab"
    assert raw.encode(memoryview(b"abcd")[::2]) == b"ac"
    for value in ("a", 1, None, [1]):
        with pytest.raises(TypeError, match=type(value).__name__):
            raw.encode(value)


def test_json_is_compact_and_keeps_surrogates() -> None:
    codec = resolve("json")
    assert codec.encode({"é": [1, "\ud800"]}) == b'{"\xc3\xa9":[1,"\xed\xa0\x80"]}'
    assert codec.decode(codec.encode(["\ud800", 1e300])) == ["\ud800", 1e300]
    with pytest.raises(TypeError, match="bytes"):
        codec.encode([b"a"])


def test_json_recursion_is_decode_error() -> None:
    with pytest.raises(DecodeError, match="recursion"):
        resolve("json").decode_bytes(b"[" * 100_000)


def test_msgspec_makes_lists_of_tuples_and_refuses_large_ints() -> None:
    codec = resolve("msgspec")
    assert codec.decode(codec.encode({"a": (1, 2)})) == {"a": [1, 2]}
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    assert codec.decode(codec.encode(moment)) == moment
    with pytest.raises(TypeError, match="'list'"):
        codec.encode([1 << 64])


def test_msgspec_missing_names_the_extra() -> None:
    script = """
import sys
sys.modules["msgspec"] = None
from shmcache.codec import resolve
try:
    resolve("msgspec")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "shmcache[msgspec]" in done.stdout, done.stderr


def test_msgspec_is_imported_only_when_asked_for() -> None:
    script = (
        "import sys, shmcache.codec as c; c.resolve('msgpack'); print('msgspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


class Landmine:
    """Blows up when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, ())


def _explode() -> None:
    raise AssertionError("was unpickled")


def test_pickle_has_its_checksum_first() -> None:
    pickled = pickle.dumps({1, 2}, pickle.HIGHEST_PROTOCOL)
    checksum = xxhash.xxh64(pickled, seed=0).intdigest().to_bytes(8, "little")
    assert resolve("pickle").encode({1, 2}) == checksum + pickled


@given(st.data())
def test_pickle_is_never_loaded_once_a_bit_has_flipped(data: st.DataObject) -> None:
    codec = resolve("pickle")
    payload = bytearray(codec.encode(Landmine()))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DecodeError, match="checksum"):
        codec.decode_bytes(bytes(payload))


@pytest.mark.parametrize("length", range(9))
def test_pickle_cut_short(length: int) -> None:
    payload = resolve("pickle").encode([1])
    with pytest.raises(DecodeError, match="checksum"):
        resolve("pickle").decode_bytes(payload[:length])


def test_pickle_that_raises_is_decode_error() -> None:
    codec = resolve("pickle")
    with pytest.raises(DecodeError, match="was unpickled"):
        codec.decode_bytes(codec.encode(Landmine()))


# --------------------------------------------------------------- a codec of one's own


class Upper:
    name = "upper"

    def encode(self, value: Any) -> bytes:
        if value == "fail":
            raise KeyError("fail")
        return value.upper().encode() if value != "text" else value  # type: ignore[no-any-return]

    def decode(self, payload: memoryview) -> Any:
        assert isinstance(payload, memoryview)
        assert payload.readonly
        return bytes(payload).decode()


def test_a_codec_of_ones_own() -> None:
    assert isinstance(Upper(), Codec)
    codec = resolve(Upper())
    assert codec.name == "upper"
    assert codec.encode_bytes("abc") == b"ABC"
    assert codec.decode_bytes(b"ABC") == "ABC"
    assert resolve(codec) is codec
    with pytest.raises(TypeError, match=r"'str' .*codec 'upper': KeyError 'fail'"):
        codec.encode_bytes("fail")
    with pytest.raises(TypeError, match="returned str, not bytes"):
        codec.encode_bytes("text")
    with pytest.raises(DecodeError, match=r"1 stored bytes .*'upper'"):
        codec.decode_bytes(b"\xff")


@pytest.mark.parametrize("name", ["", "n" * 32, "é", "a\0", "a\n", *CODEC_NAMES])
def test_names_that_a_codec_cannot_have(name: str) -> None:
    codec = Upper()
    codec.name = name
    with pytest.raises(ValueError, match="codec"):
        resolve(codec)


@pytest.mark.parametrize("codec", [None, 1, object(), Upper, json])
def test_objects_that_are_no_codec(codec: Any) -> None:
    with pytest.raises(TypeError, match="name, encode and decode"):
        resolve(codec)


def test_an_unknown_codec() -> None:
    with pytest.raises(ValueError, match="no codec 'yaml': choose one of msgpack, raw, json"):
        resolve("yaml")


def test_memory_errors_stay_what_they_are() -> None:
    class Starved(Upper):
        def encode(self, value: Any) -> bytes:
            raise MemoryError

        def decode(self, payload: memoryview) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        resolve(Starved()).encode_bytes(1)
    with pytest.raises(MemoryError):
        resolve(Starved()).decode_bytes(b"")


# --------------------------------------------------------------- one field of a value

RECORD = {
    "user": {"name": "Ada", "tags": ["a", "b", ("c", {"d": 1})]},
    1: [10, 20, 30],
    (2, "x"): {"\ud800": None},
    "zero": 0,
}


def pick(codec: BoundCodec, value: object, *path: object) -> Any:
    return codec.decode_field(codec.encode_bytes(value), path)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), RECORD),
        (("user", "name"), "Ada"),
        (("user", "tags", 1), "b"),
        (("user", "tags", -1), ("c", {"d": 1})),
        (("user", "tags", 2, 1, "d"), 1),
        ((1, -3), 10),
        ((1.0, 2), 30),
        (((2, "x"), "\ud800"), None),
        (("zero",), 0),
    ],
)
@pytest.mark.parametrize("name", ["msgpack", "pickle"])
def test_a_field(name: str, path: tuple[object, ...], field: object) -> None:
    assert shape(pick(resolve(name), RECORD, *path)) == shape(field)


@pytest.mark.parametrize(
    "path",
    [
        ("absent",),
        ("user", "tags", 3),
        ("user", "tags", -4),
        ("user", "tags", "0"),
        ("user", "tags", True),
        ("user", "name", 0),
        ("zero", "x"),
        ([],),
    ],
)
@pytest.mark.parametrize("name", ["msgpack", "pickle"])
def test_a_field_that_is_not_there(name: str, path: tuple[object, ...]) -> None:
    with pytest.raises(LookupError):
        pick(resolve(name), RECORD, *path)


@pytest.mark.parametrize("name", ["msgpack", "json", "msgspec", "pickle"])
def test_a_field_with_every_codec(name: str) -> None:
    value = {"a": [1, {"b": "x" * 100_000, "c": [2.5] * 70_000}]}
    assert pick(resolve(name), value, "a", 1, "c", 69_999) == 2.5


@given(VALUES, st.lists(HASHABLE, max_size=2), st.data())
def test_fields_agree_with_python(value: object, path: list[object], data: st.DataObject) -> None:
    holder = {"v": value, "l": [value, value]}
    steps: list[object] = data.draw(st.sampled_from([["v", *path], ["l", 1, *path]]))
    expected: object = holder
    try:
        for step in steps:
            if isinstance(expected, dict) or (
                isinstance(expected, list | tuple) and type(step) is int
            ):
                expected = expected[step]  # type: ignore[index]
            else:
                raise LookupError(step)
    except LookupError:
        with pytest.raises(LookupError):
            pick(MSGPACK, holder, *steps)
    else:
        assert shape(pick(MSGPACK, holder, *steps)) == shape(expected)


@given(st.binary(min_size=1, max_size=30))
@example(b"\x81")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x64")
def test_a_field_of_any_bytes(payload: bytes) -> None:
    with contextlib.suppress(DecodeError, LookupError):
        MSGPACK.decode_field(payload, ("a", 0))


def test_a_field_is_found_without_building_the_rest() -> None:
    """What cannot be built, but can be skipped, is in nobody's way."""
    broken_date = encode_by_hand(105, b"\0\0\0\0")
    payload = b"\x82\xa1a" + broken_date + b"\xa1b\x07"
    with pytest.raises(DecodeError):
        MSGPACK.decode_bytes(payload)
    assert MSGPACK.decode_field(payload, ("b",)) == 7
    with pytest.raises(DecodeError):
        MSGPACK.decode_field(payload, ("a",))


def test_assumptions_about_equality() -> None:
    """`shape` must tell apart what == does not, or the round trips above show little."""
    assert shape((1,)) != shape([1])
    assert shape({1}) != shape({True})
    assert shape(Number.SEVEN) != shape(7)
    assert shape(Decimal("1.0")) != shape(Decimal("1.00"))
