"""Keys to bytes and back: canonical, prefix-free, and safe with hostile bytes."""

from __future__ import annotations

import contextlib
import enum
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.names import unique_name

from shmcache import Cache, _core, keys
from shmcache.errors import DecodeError, KeyTooLarge
from shmcache.keys import Key, decode, encode, encode_prefix
from shmcache.limits import KEY_DEPTH_MAX, KEY_MAX, KEY_MAX_INT, KEY_MIN_INT

SCALARS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.binary(max_size=20),
    st.integers(KEY_MIN_INT, KEY_MAX_INT),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.uuids(),
)
KEYS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12)
TUPLES = st.lists(KEYS, max_size=4).map(tuple)


def shape(key: object) -> object:
    """A key with its types spelled out, so that == sees them too."""
    if isinstance(key, tuple):
        return ("tuple", tuple(shape(element) for element in key))
    return (type(key).__name__, key)


@given(KEYS)
def test_comes_back_as_it_was(key: Key) -> None:
    assert shape(decode(*encode(key))) == shape(key)


@given(KEYS, KEYS)
@example("1", b"1")
@example(1, 1.0)
@example(1, True)
@example(0, False)
@example(0.0, -0.0)
@example((), "")
@example((1,), (True,))
@example((("a",), "b"), ("a", ("b",)))
@example(("a", "b"), ("ab",))
@example((None,), (None, None))
def test_bytes_are_equal_exactly_where_keys_of_one_type_are(one: Key, other: Key) -> None:
    assert (encode(one) == encode(other)) == (shape(one) == shape(other))


@given(TUPLES, TUPLES)
@example((), (1,))
@example(("ab",), ("a",))
@example((("a",),), (("a", "b"),))
def test_a_tuple_starts_with_another_exactly_where_its_bytes_do(
    one: tuple[Key, ...], other: tuple[Key, ...]
) -> None:
    prefix = shape(one)[1] == shape(other[: len(one)])[1]  # type: ignore[index]
    assert encode(other)[1].startswith(encode_prefix(one)[1]) == prefix


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
@example("\ud83d", "\U0001f600")
def test_a_str_starts_with_another_exactly_where_its_bytes_do(one: str, other: str) -> None:
    assert encode(other)[1].startswith(encode_prefix(one)[1]) == other.startswith(one)


@pytest.mark.parametrize("prefix", [1, None, True, 1.0, UUID(int=0), ["a"]])
def test_prefixes_that_are_none(prefix: object) -> None:
    with pytest.raises(TypeError, match=type(prefix).__name__):
        encode_prefix(prefix)


def test_the_stored_form_is_fixed() -> None:
    """Written out by hand: caches outlive the process that wrote them."""
    assert encode("é") == (1, b"\xc3\xa9")
    assert encode("\ud800") == (1, b"\xed\xa0\x80")
    assert encode(b"\0") == (2, b"\0")
    assert encode(-2) == (3, b"\xfe" + b"\xff" * 7)
    assert encode(1.0) == (4, b"\0\0\0\0\0\0\xf0\x3f")
    assert encode(True) == (5, b"\1")
    assert encode(None) == (6, b"")
    assert encode(UUID(int=1)) == (7, b"\0" * 15 + b"\1")
    assert encode(("a", (None,), 1)) == (
        8,
        b"\x01\x01\0a" + b"\x08\x01\0\x06" + b"\x03\1\0\0\0\0\0\0\0",
    )


def test_the_kinds_are_those_of_the_layout() -> None:
    for name in ("STR", "BYTES", "INT", "FLOAT", "BOOL", "NONE", "UUID", "TUPLE"):
        assert getattr(keys, f"KIND_{name}") == _core.LAYOUT[f"SHM_K_{name}"]


class Colour(enum.StrEnum):
    RED = "red"

    def __str__(self) -> str:
        return "not this"


class Number(enum.IntEnum):
    SEVEN = 7


class Place(NamedTuple):
    street: str
    number: int


class Odd(str):
    def encode(self, *arguments: object) -> bytes:  # type: ignore[override]
        return b"not this"


class OddBytes(bytes):
    def __bytes__(self) -> bytes:
        return b"not this"


class OddTuple(tuple):  # type: ignore[type-arg]
    def __iter__(self) -> object:  # type: ignore[override]
        return iter(["not this"])


@pytest.mark.parametrize(
    ("key", "base"),
    [
        (Colour.RED, "red"),
        (Number.SEVEN, 7),
        (Place("a", 1), ("a", 1)),
        (Odd("a"), "a"),
        (OddBytes(b"a"), b"a"),
        (OddTuple([Number.SEVEN, Colour.RED]), (7, "red")),
        (type("Real", (float,), {})(1.5), 1.5),
        (type("Id", (UUID,), {})(int=5), UUID(int=5)),
    ],
)
def test_subclasses_count_as_their_base(key: object, base: Key) -> None:
    assert encode(key) == encode(base)
    assert shape(decode(*encode(key))) == shape(base)


def test_floats_that_python_holds_equal_are_one_key() -> None:
    assert encode(-0.0) == encode(0.0)
    nans = [math.nan, -math.nan, struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]]
    assert len({encode(nan) for nan in nans}) == 1
    assert math.isnan(decode(*encode(math.nan)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key", [[], {}, set(), object(), bytearray(b"a"), memoryview(b"a"), 1j, frozenset(), ...]
)
def test_other_types(key: object) -> None:
    name = type(key).__name__
    with pytest.raises(TypeError, match=f"not {name}$"):
        encode(key)
    with pytest.raises(TypeError, match=f"not {name}$"):
        encode(("a", (key,)))


@pytest.mark.parametrize("key", [KEY_MAX_INT + 1, KEY_MIN_INT - 1, 10**400])
def test_ints_past_64_bits(key: int) -> None:
    with pytest.raises(OverflowError, match="bits"):
        encode(key)
    with pytest.raises(OverflowError, match="bits"):
        encode((key,))


@pytest.mark.parametrize(
    "key",
    [
        "a" * KEY_MAX,
        "é" * (KEY_MAX // 2),
        b"a" * KEY_MAX,
        ("a" * (KEY_MAX - 3),),
        (("a" * (KEY_MAX - 6),),),
        (None,) * KEY_MAX,
    ],
)
def test_content_up_to_the_cap(key: Key) -> None:
    kind, content = encode(key)
    assert KEY_MAX - 1 <= len(content) <= KEY_MAX
    assert decode(kind, content) == key


@pytest.mark.parametrize(
    "key",
    [
        "a" * (KEY_MAX + 1),
        "é" * (KEY_MAX // 2 + 1),
        b"a" * (KEY_MAX + 1),
        ("a" * (KEY_MAX - 2),),
        (None,) * (KEY_MAX + 1),
    ],
)
def test_content_past_the_cap(key: Key) -> None:
    with pytest.raises(KeyTooLarge, match="65535"):
        encode(key)


def nested(depth: int) -> tuple[object, ...]:
    key: tuple[object, ...] = ()
    for _ in range(depth - 1):
        key = (key,)
    return key


def test_depth() -> None:
    deepest = nested(KEY_DEPTH_MAX)
    assert decode(*encode(deepest)) == deepest
    with pytest.raises(KeyTooLarge, match="nested"):
        encode(nested(KEY_DEPTH_MAX + 1))


def test_a_tuple_that_shares_its_elements_is_refused_before_it_is_spelled_out() -> None:
    key: tuple[object, ...] = ("x" * 100,)
    for _ in range(50):
        key = (key, key)
    with pytest.raises(KeyTooLarge):
        encode(key)


@given(st.integers(0, 255), st.binary(max_size=40))
def test_hostile_bytes_give_a_key_or_decode_error(kind: int, content: bytes) -> None:
    try:
        key = decode(kind, content)
    except DecodeError as error:
        assert f"{len(content)} bytes" in str(error)
    else:
        assert decode(*encode(key)) == key or key != key or "nan" in repr(key)


@given(TUPLES, st.data())
def test_a_damaged_tuple_gives_a_key_or_decode_error(key: Key, data: st.DataObject) -> None:
    content = bytearray(encode((key, key))[1])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(keys.KIND_TUPLE, bytes(content[:end])), tuple)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (0, b""),
        (9, b""),
        (1, b"\xff"),
        (3, b"1234567"),
        (4, b"123456789"),
        (5, b""),
        (5, b"\2"),
        (6, b"x"),
        (7, b"short"),
        (8, b"\x00"),
        (8, b"\x01"),
        (8, b"\x01\x05\x00abcd"),
        (8, b"\x03abc"),
        (8, b"\x08\x01\x00\x09"),
        (8, b"\x01\x01\x00\xff"),
    ],
)
def test_nonsense(kind: int, content: bytes) -> None:
    with pytest.raises(DecodeError, match="cannot be decoded"):
        decode(kind, content)


def test_bytes_cannot_ask_for_any_depth() -> None:
    content = b""
    while len(content) < KEY_MAX - 3:
        content = b"\x08" + struct.pack("<H", len(content)) + content
    with pytest.raises(DecodeError, match="nested"):
        decode(keys.KIND_TUPLE, content)


class OddNumber(int):
    pass


ODD = st.one_of(
    st.sampled_from([Colour.RED, Number.SEVEN, Place("a", 1), OddTuple([1, "a"]), OddNumber(5)]),
    st.sampled_from([math.nan, -math.nan, -0.0, math.inf, "\ud800", "", b"", UUID(int=1 << 127)]),
    st.sampled_from(["x" * 180, "x" * 300, "\u00e9" * 100, b"y" * 4_090, "z" * 5_000]),
    SCALARS,
)
ODD_KEYS = st.recursive(ODD, lambda inner: st.lists(inner, max_size=5).map(tuple), max_leaves=20)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cache]:
    """One cache for many examples."""
    with Cache(unique_name(), size="1MiB", create=True) as cache:
        yield cache


@given(ODD_KEYS)
@example((nested(KEY_DEPTH_MAX - 1),))
@example(("x" * 186,))
@example(("x" * 189,))
@example(("x" * 190,))
@example(("x" * 4_093,))
@example(("x" * 4_094,))
@example(("x" * 65_532,))
@example((True, 1, 1.0, "1", b"1", None, (None,)))
def test_the_binding_makes_the_same_bytes(shared: Cache, key: Key) -> None:
    """What it puts together by itself is what `encode` makes, in a namespace and out of one."""
    wanted = encode(key)
    assert _core.key_content(shared, key) == wanted
    if len(wanted[1]) <= KEY_MAX - 13:  # the path takes 5 bytes, the epoch 8
        kind, content = _core.key_content(shared.namespace("n"), key)
        assert (kind & 0x0F, content[13:]) == wanted


@pytest.mark.parametrize(
    "key",
    [
        (KEY_MAX_INT + 1,),
        ("a", [1]),
        ("a", ({},)),
        (object(),),
        ("a" * KEY_MAX,),
        ("\u00e9" * KEY_MAX,),
        (None,) * (KEY_MAX + 1),
        nested(KEY_DEPTH_MAX + 1),
        (1, nested(KEY_DEPTH_MAX)),
    ],
    ids=lambda key: repr(key)[:20],
)
def test_the_binding_refuses_what_encode_refuses(shared: Cache, key: Any) -> None:
    with pytest.raises((TypeError, OverflowError, KeyTooLarge)) as wanted:
        encode(key)
    with pytest.raises(wanted.type) as caught:
        shared.get(key)
    assert str(caught.value) == str(wanted.value)
    assert key not in shared
