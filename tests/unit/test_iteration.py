"""Iteration beside writers: weakly consistent, never torn, each present key exactly once."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from shmcache import Cache


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 20_000])
def test_everything_is_yielded_once(open_cache: Callable[..., Cache], count: int) -> None:
    cache = open_cache(size="8MiB", policy="keep")
    reference = {f"key {number}": number for number in range(count)}
    cache.set_many(reference)
    assert dict(cache.items()) == reference
    assert Counter(cache) == Counter(reference)
    assert sorted(cache.values()) == list(range(count))


def test_an_iterator_holds_no_lock_between_its_steps(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", shards=1)
    cache.update({number: number for number in range(100)})
    other = open_cache(cache_name, lock_timeout=0)
    for iterator in (iter(cache), iter(cache.items()), cache.scan("")):
        next(iterator, None)
        other["written"] = 1
        del other["written"]


@pytest.mark.parametrize("view", ["keys", "items", "scan"])
def test_a_key_present_throughout_is_yielded_exactly_once(
    open_cache: Callable[..., Cache], view: str
) -> None:
    """While every entry is overwritten, and so moved, again and again between the steps."""
    cache = open_cache(size="1MiB", shards=1, policy="keep")
    resident = [f"resident {number}" for number in range(200)]
    cache.set_many(dict.fromkeys(resident, 0))
    churn = itertools.count(1)
    iterator: Any = {
        "keys": lambda: iter(cache.keys()),
        "items": lambda: (key for key, _ in cache.items()),
        "scan": lambda: cache.scan("resident"),
    }[view]()
    seen: Counter[str] = Counter()
    for key in iterator:
        seen[key] += 1
        turn = next(churn)
        for offset in range(20):
            cache[resident[(turn * 20 + offset) % 200]] = bytes(1000)
        cache[f"passing {turn}"] = turn
        cache.pop(f"passing {turn - 1}", None)
    assert {key: seen[key] for key in resident} == dict.fromkeys(resident, 1)


def test_a_deleted_key_is_not_yielded_later(cache: Cache) -> None:
    cache.update({number: number for number in range(500)})
    iterator = iter(cache)
    first = [next(iterator) for _ in range(10)]
    cache.clear()
    cache["new"] = 1
    assert set(iterator) <= {"new"} | set(range(500)) - set(first)
    assert set(cache) == {"new"}


def test_clear_beside_iteration_yields_only_whole_entries(cache: Cache) -> None:
    cache.update({number: bytes([number % 256]) * 50 for number in range(500)})
    iterator = iter(cache.items())
    for _ in range(5):
        next(iterator)
    cache.clear()
    for number, value in iterator:
        assert value == bytes([number % 256]) * 50


def test_iteration_beside_a_writing_thread_is_never_torn(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(size="1MiB")
    resident = {f"resident {number}": b"r" * 100 for number in range(50)}
    cache.set_many(resident)
    stop = threading.Event()

    def churn() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            cache[number % 400] = bytes([number % 256]) * (number * 37 % 2000)
            cache.pop((number + 200) % 400, None)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            seen: Counter[Any] = Counter()
            for key, value in cache.items():
                seen[key] += 1
                assert value == value[:1] * len(value), "a torn value"
            # Of the others, one that was deleted and set again may come twice.
            assert {key: seen[key] for key in resident} == dict.fromkeys(resident, 1)
    finally:
        stop.set()
        thread.join(60)


PREFIXED: list[Any] = ["", "a", "ab", "abc", "b", "ä", "äb", b"", b"a", b"ab", b"\xff\xff", 1, 12]
PREFIXED += [None, True, 1.5, ("a",), ("a", "b"), ("a", "b", 1), ("ab",), (), ("b",)]


@pytest.mark.parametrize("prefix", ["", "a", "ab", "abcd", "ä", b"", b"a", b"\xff"], ids=repr)
def test_scan_gives_keys_of_the_prefixs_type_that_start_with_it(cache: Cache, prefix: Any) -> None:
    cache.update(dict.fromkeys(PREFIXED, 1))
    expected = [k for k in PREFIXED if type(k) is type(prefix) and k.startswith(prefix)]
    found = list(cache.scan(prefix))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("prefix", [(), ("a",), ("a", "b"), ("a", "b", 1), ("c",)], ids=repr)
def test_scan_by_tuple_goes_by_leading_elements(cache: Cache, prefix: Any) -> None:
    cache.update(dict.fromkeys(PREFIXED, 1))
    expected = {k for k in PREFIXED if isinstance(k, tuple) and k[: len(prefix)] == prefix}
    assert set(cache.scan(prefix)) == expected


@pytest.mark.parametrize("prefix", [None, 1, 1.5, object(), []], ids=lambda p: type(p).__name__)
def test_scan_by_what_has_no_beginning_is_an_error(cache: Cache, prefix: Any) -> None:
    with pytest.raises(TypeError, match="prefix"):
        list(cache.scan(prefix))


def test_retain(cache: Cache) -> None:
    cache.update({number: number * 2 for number in range(100)})
    shown: dict[Any, Any] = {}

    def even(key: Any, value: Any) -> bool:
        shown[key] = value
        return key % 2 == 0

    assert cache.retain(even) == 50
    assert shown == {number: number * 2 for number in range(100)}
    assert cache == {number: number * 2 for number in range(0, 100, 2)}
    assert cache.retain(lambda key, value: True) == 0
    assert cache.retain(lambda key, value: False) == 50
    assert not cache


def test_retain_leaves_what_was_overwritten_since_it_looked(cache: Cache) -> None:
    cache.update({"a": 1, "b": 1})

    def overwrite_b(key: str, value: int) -> bool:
        if key == "b":
            cache["b"] = value + 1
        return False

    assert cache.retain(overwrite_b) == 1
    assert cache == {"b": 2}


def test_retain_that_raises_stops_there(cache: Cache) -> None:
    cache.update({number: number for number in range(10)})
    with pytest.raises(ZeroDivisionError):
        cache.retain(lambda key, value: 1 // 0 == 0)
    assert len(cache) == 10


def test_popitem_and_iteration_agree_beside_eviction(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB")
    for number in range(5000):
        cache[number] = bytes(500)
    count = len(cache)
    taken = Counter(key for key, _ in (cache.popitem() for _ in range(count)))
    assert len(taken) == count
    assert not cache
    assert cache.verify() == []
