"""The default codec: every type comes back as it was, and hostile bytes do no harm."""

from __future__ import annotations

import collections
import contextlib
import enum
import math
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

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.values import BERLIN, VALUES, encode_by_hand, shape

from shmcache.codec import resolve
from shmcache.errors import DecodeError

MSGPACK = resolve("msgpack")


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


def test_the_comparison_sees_what_equality_does_not() -> None:
    """Else the round trips above would show little."""
    assert shape((1,)) != shape([1])
    assert shape({1}) != shape({True})
    assert shape(Number.SEVEN) != shape(7)
    assert shape(Decimal("1.0")) != shape(Decimal("1.00"))
