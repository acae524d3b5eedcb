"""Snapshots: what comes back, what does not, and into which caches."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import SHARED
from support.processes import poll_until
from support.values import VALUES, shape

from shmcache import (
    Cache,
    LimitReached,
    SlotTooLarge,
    _core,
    snapshot,
)

KEYS: tuple[Any, ...] = (
    *("", "a", "\u00e4\ud800", b"", b"a", 0, 1, -(1 << 63), True, False, 1.5, None),
    *(UUID(int=7), (), ("a", (1, None)), "k" * 65_535),
)
PLAIN: tuple[Any, ...] = (b"", b"raw", "", "ascii", "\u00e4\ud800", 0, -1, (1 << 63) - 1, 1 << 63)
PLAIN += (-(1 << 900), 0.0, float("inf"), True, False, None, "x" * 20_000, b"\0" * 20_000)


def every_entry(cache: Cache) -> dict[tuple[type, Any], Any]:
    """The entries, told apart by the types of their keys."""
    return {(type(key), key): shape(value) for key, value in cache.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.snapshot"


def test_every_kind_of_key_comes_back(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(size="8MiB"), open_cache(size="8MiB")
    for number, key in enumerate(KEYS):
        cache[key] = number
    report = snapshot.save(cache, file)
    assert (report.entries, report.slots, report.damaged) == (len(KEYS), 0, 0)
    assert report.bytes == file.stat().st_size and report.seconds > 0
    loaded = snapshot.load(other, file)
    assert (loaded.entries, loaded.too_large, loaded.evicted) == (len(KEYS), 0, 0)
    assert every_entry(other) == every_entry(cache)
    assert other.verify() == []


@pytest.mark.parametrize("codec", ["msgpack", "json", "msgspec", "pickle"])
def test_every_kind_of_value_comes_back_with_every_codec(
    codec: str, open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, other = open_cache(codec=codec), open_cache(codec=codec)
    for number, value in enumerate((*PLAIN, {"a": [1, 2.5, None]}, [], "last")):
        cache[number] = value
    snapshot.save(cache, file)
    snapshot.load(other, file)
    assert every_entry(other) == every_entry(cache)


def test_raw_bytes_and_counters_come_back(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(codec="raw"), open_cache(codec="raw")
    cache["bytes"] = bytes(range(256))
    cache.incr("count", -7)
    snapshot.save(cache, file)
    snapshot.load(other, file)
    assert other["bytes"] == bytes(range(256))
    assert other.incr("count") == -6


class Reversing:
    """A codec of the application's."""

    name = "reversing"

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value)[::-1]

    def decode(self, payload: memoryview) -> Any:
        return pickle.loads(bytes(payload)[::-1])


def test_a_codec_of_ones_own(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path
) -> None:
    cache = open_cache(codec=Reversing())
    cache["a"] = {"b": (1, {2})}
    snapshot.save(cache, file)
    name = new_name()
    assert snapshot.restore(name, file, codec=Reversing()).created
    with Cache(name, codec=Reversing()) as other:
        assert other["a"] == {"b": (1, {2})} and other.codec == "reversing"
        other.unlink()
    with pytest.raises(ValueError, match="'reversing'"):
        snapshot.restore(name, file)


@settings(max_examples=25, suppress_health_check=SHARED)
@given(st.lists(VALUES, max_size=8))
def test_any_value_comes_back(
    open_cache: Callable[..., Cache], tmp_path: Path, values: list[Any]
) -> None:
    cache, other = open_cache(size="1MiB"), open_cache(size="1MiB")
    with cache, other:
        for number, value in enumerate(values):
            cache[number] = value
        snapshot.save(cache, tmp_path / "a")
        snapshot.load(other, tmp_path / "a")
        assert every_entry(other) == every_entry(cache)


def test_large_values_and_many_blocks(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(size="64MiB"), open_cache(size="64MiB")
    large = os.urandom(cache.max_value_size - 100)
    assert len(large) > 1 << 20, "larger than a block"
    cache["large"] = large
    for number in range(20_000):
        cache[number] = b"%d" % number * 20
    cache["larger"] = large[::-1]
    snapshot.save(cache, file)
    assert snapshot.load(other, file).entries == 20_002
    assert other["large"] == large and other["larger"] == large[::-1]
    assert all(other[number] == b"%d" % number * 20 for number in range(20_000))


def test_what_is_left_of_a_ttl_is_left(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()
    cache.set("short", 1, ttl=0.02)
    cache.set("long", 2, ttl=1000)
    cache.set("ever", 3)
    before = cache.ttl("long")
    poll_until(lambda: "short" not in cache, what="the short ttl is over")
    assert snapshot.save(cache, file).entries == 2
    left = cache.ttl("long")
    assert before is not None and left is not None
    gone = left - 0.2  # time in the file does not count
    poll_until(lambda: (cache.ttl("long") or 0) < gone, what="time goes by")
    began = time.monotonic()
    snapshot.load(other, file)
    loaded = other.ttl("long")
    assert loaded is not None
    assert left - (time.monotonic() - began) - 0.02 < loaded <= before
    assert other.ttl("ever") is None and "short" not in other


def test_an_entry_expires_after_a_load(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()
    cache.set("a", 1, ttl=0.5)
    snapshot.save(cache, file)
    snapshot.load(other, file)
    assert other["a"] == 1
    poll_until(lambda: "a" not in other, what="what was left of the ttl is over")


def test_a_stale_window_is_kept(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()
    cache.get_or_init("a", lambda: "old", ttl=0.2, stale=1000)
    snapshot.save(cache, file)
    snapshot.load(other, file)
    poll_until(lambda: "a" not in other, what="the ttl is over")
    # while one refreshes, another one gets the old value at once
    seen = []

    def refresh() -> str:
        thread = threading.Thread(
            target=lambda: seen.append(other.get_or_init("a", lambda: "other", timeout=30))
        )
        thread.start()
        thread.join()
        return "new"

    assert other.get_or_init("a", refresh) == "new"
    assert seen == ["old"]
    # what has expired, stale or not, is not saved
    poll_until(lambda: "a" not in cache, what="the ttl is over")
    assert snapshot.save(cache, file).entries == 0


def test_leases_tokens_and_rings_are_not_saved(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, other = open_cache(), open_cache()
    cache.token("stop").cancel("because")
    cache.latencies("mine").record(1.0)

    def factory() -> int:
        assert snapshot.save(cache, file).entries == 0
        return 1

    assert cache.get_or_init("a", factory) == 1
    snapshot.load(other, file)
    assert not other.token("stop").cancelled and not other.latencies("mine").recent(9)
    assert other.get_or_init("a", lambda: 2) == 2
    assert len(other) == 1 and other.verify() == []


# -------------------------------------------------------------------------------- swap slots
def test_swap_slots_come_back(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()
    for number, value in enumerate((*PLAIN[:-2], {"a": (1, 2)})):
        if number < 16:
            cache.slot(f"\u00e4 {number}").store(value)
    slot = cache.slot("\u00e4 0")
    slot.store("first")
    slot.store("second")
    report = snapshot.save(cache, file)
    assert (report.entries, report.slots) == (0, 16)
    version = other.slot("\u00e4 0").store("before")
    assert snapshot.load(other, file).slots == 16
    assert other.slot("\u00e4 0").load_versioned() == ("second", version + 1)
    for number in range(1, 16):
        name = f"\u00e4 {number}"
        assert shape(other.slot(name).load()) == shape(cache.slot(name).load())


def test_slots_without_a_value_are_not_saved(open_cache: Callable[..., Cache], file: Path) -> None:
    cache = open_cache()
    cache.slot("empty")
    assert snapshot.save(cache, file).slots == 0


def test_a_slot_that_does_not_fit_is_refused_before_anything_is_stored(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache = open_cache()
    cache["a"] = 1
    cache.slot().store(b"x" * 5000)
    cache.slot("second").store(1)
    snapshot.save(cache, file)
    small, none = open_cache(slot_capacity=64), open_cache(slots=1)
    with pytest.raises(SlotTooLarge, match=r"'config' has 5000 bytes.*64"):
        snapshot.load(small, file)
    with pytest.raises(LimitReached, match="'second'"):
        snapshot.load(none, file)
    for other in (small, none):
        assert len(other) == 0 and _core.swap_names(other) == []


# -------------------------------------------------------------------------------- namespaces
def test_namespaced_entries_land_in_the_namespace_as_it_is_now(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, other = open_cache(), open_cache()
    for level in (
        cache.namespace("users"),
        cache.namespace("users").namespace("\u00e4"),
        cache.namespace("users").namespace("\u00e4").namespace("deep"),
    ):
        for key in KEYS[:-1]:
            level[key] = [str(level), key if key.__class__ is str else 1]
        level.set("ttl", 1, ttl=100)
    there = other.namespace("users")
    there["kept"] = 1
    there["a"] = "replaced"
    assert snapshot.load(other, file_of(cache, file)).entries == 3 * len(KEYS)
    assert there["kept"] == 1 and other.verify() == []
    mine, theirs = cache.namespace("users"), there
    for _ in range(3):
        loaded = {(type(k), k): shape(v) for k, v in theirs.items() if k != "kept"}
        assert loaded == {(type(k), k): shape(v) for k, v in mine.items()} and len(loaded) > 10
        left = theirs.ttl("ttl")
        assert left is not None and 90 < left <= 100
        step = "deep" if mine.prefix == "\u00e4" else "\u00e4"
        mine, theirs = mine.namespace(step), theirs.namespace(step)
    assert list(other) == [], "nothing of it shows outside"
    there.invalidate()
    assert not there and not there.namespace("\u00e4")


def file_of(cache: Cache, file: Path) -> Path:
    snapshot.save(cache, file)
    return file


def test_an_invalidated_namespace_does_not_come_back(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, other = open_cache(), open_cache()
    outer, kept = cache.namespace("outer"), cache.namespace("kept")
    inner = outer.namespace("inner")
    outer["a"] = inner["a"] = kept["a"] = "old"
    outer.invalidate()
    assert len(cache) == 3, "still in memory"
    inner["b"] = "new"
    assert snapshot.save(cache, file).entries == 2
    snapshot.load(other, file)
    assert list(other.namespace("outer").namespace("inner").items()) == [("b", "new")]
    assert not other.namespace("outer") and dict(other.namespace("kept")) == {"a": "old"}
    # loaded where it came from: neither what was dropped before, nor what is dropped now
    outer.invalidate()
    snapshot.load(cache, file)
    assert dict(inner) == {"b": "new"} and not outer


def test_memoized_results_come_back(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()

    def square(n: int) -> int:
        return n * n

    memoized = cache.memoize(square)
    assert memoized(3) == 9
    snapshot.save(cache, file)
    snapshot.load(other, file)
    again = other.memoize(square)
    assert again(3) == 9 and again.cache_info().hits == 1
