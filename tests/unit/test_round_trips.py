"""Keys and values come back as what they were, with every codec."""

from __future__ import annotations

import datetime as dt
import enum
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from support.values import same

from shmcache import Cache


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


KEYS: list[Any] = [
    *("", "a", "ключ", "k" * 65535, "nul\0inside", "\ud800 lone surrogate", b"", b"a", b"\xff\0"),
    *(0, 1, -1, 2**63 - 1, -(2**63), True, False, None, 0.0, 1.5, math.inf, -math.inf),
    *(uuid.UUID(int=7), (), ("a",), ("a", 1), ("a", ("b", None, 2.5)), (1,), (True,), ("", "")),
]


# For every codec but raw these come back exactly as they were.
PLAIN_VALUES: list[Any] = [
    *(b"", b"x", bytes(range(256)), "", "text", "ünï", "\ud800", 0, 1, -1, 2**63 - 1, -(2**63)),
    *(2**63, -(2**63) - 1, 2**64, 10**50, -(10**50), 0.0, -0.0, 1.5, math.inf, True, False, None),
]


CODEC_VALUES: list[Any] = [
    *([], [1, "a", None], {}, {"a": 1, "b": [2.5, {"c": b"d"}]}, [2**63], {"big": 2**64 - 1}),
]


MSGPACK_VALUES: list[Any] = [
    *((), (1, 2), (1, (2, [3, (4,)])), {1, 2}, frozenset({"a"}), {"t": (1, 2)}, [{1}]),
    *(dt.datetime(2024, 2, 29, 12, 30, 15, 123456), dt.date(2024, 2, 29), dt.time(1, 2, 3, 4)),
    dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC),
    dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    *(dt.timedelta(days=-1, microseconds=7), Decimal("1.10"), Decimal("-1E+40"), uuid.UUID(int=9)),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:20])
def test_keys_come_back_as_they_were_stored(open_cache: Callable[..., Cache], key: Any) -> None:
    cache = open_cache(size="8MiB")
    cache[key] = "value"
    assert cache[key] == "value"
    assert key in cache
    (stored,) = cache
    assert same(stored, key)
    assert cache.pop(key) == "value"
    assert key not in cache


def test_keys_of_different_types_never_meet(cache: Cache) -> None:
    different: list[Any] = ["1", b"1", 1, 1.0, True, ("1",), (1,), (True,), ((1,),), "", b"", ()]
    different += [None, 0, 0.0, False, uuid.UUID(bytes=b"1" * 16), b"1" * 16, "1" * 16]
    for number, key in enumerate(different):
        cache[key] = f"value {number}"
    assert [cache[key] for key in different] == [f"value {n}" for n in range(len(different))]
    assert len(cache) == len(different)


def test_tuples_are_not_their_concatenation(cache: Cache) -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (("a", "b"), "c")]
    for pair in pairs:
        cache[pair] = pair
    assert {pair: cache[pair] for pair in pairs} == {pair: pair for pair in pairs}


def test_subclasses_are_stored_as_their_base_type(cache: Cache) -> None:
    cache[Colour.RED] = 1
    cache[Size.LARGE] = 2
    assert cache["red"] == 1
    assert cache[3] == 2
    assert {type(key) for key in cache} == {str, int}


def test_zeros_of_either_sign_are_one_key(cache: Cache) -> None:
    """A dict's user expects 0.0 and -0.0, which are equal, to be one key."""
    cache[0.0] = "zero"
    assert cache.get(-0.0) == "zero"


def test_a_nan_key_can_be_found_again(cache: Cache) -> None:
    cache[math.nan] = 1
    assert cache.get(math.nan) == 1


@pytest.mark.parametrize("codec", ["msgpack", "json", "msgspec", "pickle"])
def test_plain_values_round_trip_exactly_with_every_codec(
    open_cache: Callable[..., Cache], codec: str
) -> None:
    cache = open_cache(codec=codec)
    for value in PLAIN_VALUES:
        cache["k"] = value
        assert same(cache["k"], value), value
    cache["k"] = math.nan
    assert math.isnan(cache["k"])


@pytest.mark.parametrize("codec", ["msgpack", "msgspec", "pickle"])
@pytest.mark.parametrize("value", CODEC_VALUES, ids=repr)
def test_structures_round_trip(open_cache: Callable[..., Cache], codec: str, value: Any) -> None:
    cache = open_cache(codec=codec)
    cache["k"] = value
    assert same(cache["k"], value)


@pytest.mark.parametrize("codec", ["msgpack", "pickle"])
@pytest.mark.parametrize("value", MSGPACK_VALUES, ids=repr)
def test_richer_types_come_back_as_what_they_were(
    open_cache: Callable[..., Cache], codec: str, value: Any
) -> None:
    cache = open_cache(codec=codec)
    cache["k"] = value
    assert same(cache["k"], value)


def test_bytes_like_values_come_back_as_bytes(cache: Cache) -> None:
    for value in (bytearray(b"abc"), memoryview(b"abc")):
        cache["k"] = value
        assert same(cache["k"], b"abc")


def test_raw_takes_bytes_and_counters_only(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(codec="raw")
    for value in (b"", b"abc", bytearray(b"abc"), memoryview(b"abc")):
        cache["k"] = value
        assert same(cache["k"], bytes(value))
    for wrong in ("text", 1, 1.5, None, True, [b"abc"]):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            cache["k"] = wrong
        assert cache["k"] == b"abc"
    assert cache.incr("n", 5) == 5
    assert cache["n"] == 5


def test_values_of_every_size_around_the_edges(cache: Cache) -> None:
    """Units of 16 bytes, the 64 KiB at which the GIL is released, and the limit."""
    limit = cache.max_value_size
    sizes = [*range(70), 255, 256, 4095, 4096, *range(65520, 65550), limit - 1, limit]
    for size in (size for size in sizes if size <= limit):
        value = bytes([size % 251]) * size
        cache["k"] = value
        assert cache["k"] == value, size
