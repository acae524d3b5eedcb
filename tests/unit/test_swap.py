"""Swap slots in one process: what each call returns and refuses, threads, damage, a model."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.forks import FORKS, in_child

from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    LimitReached,
    SlotTooLarge,
    SwapSlot,
    _core,
)

LAYOUT = _core.LAYOUT
VALUES = [
    b"",
    b"bytes",
    "",
    "ascii",
    "é\ud800",
    0,
    -1,
    1 << 62,
    1 << 63,
    -(1 << 200),
    1.5,
    None,
    True,
    False,
    (1, {"a": [b"b"]}),
    {"nested": {"list": [1, 2.5, None]}},
]


def test_nothing_before_the_first_store(cache: Cache) -> None:
    slot = cache.slot()
    assert isinstance(slot, SwapSlot)
    assert slot.name == "config"
    assert slot.load() is None
    assert slot.load_versioned() == (None, 0)
    assert slot.wait(0, 0.001) is None


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_what_it_was(cache: Cache, value: Any) -> None:
    slot = cache.slot()
    assert slot.store("before") == 1
    assert slot.store(value) == 2
    assert slot.load() == value
    assert type(slot.load()) is type(value)
    assert slot.load_versioned() == (value, 2)


def test_an_unchanged_value_is_the_very_same_object(cache: Cache) -> None:
    slot = cache.slot()
    slot.store({"a": [1]})
    first = slot.load()
    assert slot.load() is first
    assert cache.slot().load() is first, "slots of one handle share what they decoded"
    assert slot.load_versioned()[0] is first
    slot.store({"a": [1]})
    assert slot.load() is not first


def test_other_handles_see_a_store_at_once(open_cache: Callable[..., Cache]) -> None:
    one = open_cache()
    other = open_cache(one.name)
    one.slot("x").store([1])
    assert other.slot("x").load() == [1]
    other.slot("x").store([2])
    assert one.slot("x").load_versioned() == ([2], 2)


def test_compare_and_swap(cache: Cache) -> None:
    slot = cache.slot()
    assert not slot.compare_and_swap(1, "no")
    assert slot.compare_and_swap(0, "first")
    assert not slot.compare_and_swap(0, "again")
    assert slot.compare_and_swap(1, "second")
    assert not slot.compare_and_swap(1 << 70, "no")
    assert slot.load_versioned() == ("second", 2)
    with pytest.raises(ValueError, match="-1"):
        slot.compare_and_swap(-1, "no")


def test_rcu_returns_the_new_value_and_retries(cache: Cache) -> None:
    slot = cache.slot()
    assert slot.rcu(lambda value: [value]) == [None]
    seen = []

    def add(value: Any) -> Any:
        seen.append(value)
        if len(seen) == 1:
            slot.store(["in between"])
        return [*value, "added"]

    assert slot.rcu(add) == ["in between", "added"]
    assert seen == [[None], ["in between"]]
    with pytest.raises(ZeroDivisionError):
        slot.rcu(lambda value: 1 / 0)
    assert slot.load_versioned() == (["in between", "added"], 3)


def test_a_value_that_is_too_large_leaves_the_old_one(cache: Cache) -> None:
    slot = cache.slot()
    slot.store("old")
    assert slot.store(b"x" * slot.capacity) == 2
    with pytest.raises(SlotTooLarge, match=rf"{slot.capacity + 1} bytes.*'config'.*slot_capacity"):
        slot.store(b"x" * (slot.capacity + 1))
    assert slot.load_versioned() == (b"x" * slot.capacity, 2)
    with pytest.raises(TypeError, match="object"):
        slot.store(object())
    assert slot.load_versioned()[1] == 2


def test_large_values_are_copied_without_the_gil(open_cache: Callable[..., Cache]) -> None:
    slot = open_cache(None, size="16MiB", slots=2, slot_capacity="511KiB").slot()
    assert slot.capacity == 511 << 10
    for value in (b"a" * (500 << 10), "b" * (500 << 10), [b"c" * (400 << 10)]):
        slot.store(value)
        assert slot.load() == value


def test_slots_are_apart_and_run_out(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(slots=3)
    for number, name in enumerate(["a", "b", "é" * 31]):
        cache.slot(name).store(number)
    assert [cache.slot(name).load() for name in ("a", "b", "é" * 31)] == [0, 1, 2]
    with pytest.raises(LimitReached, match=r"'d'.* has 3"):
        cache.slot("d")
    with pytest.raises(LimitReached):
        open_cache(slots=0).slot()
    assert sum(1 for n in range(16) if open_cache(cache.name).slot("a").load() == 0) == 16


def test_a_capacity_that_no_length_could_say(cache_name: str) -> None:
    with pytest.raises(ValueError, match="slot_capacity 4294967296 is too large"):
        Cache(cache_name, slot_capacity="4GiB")


def test_at_least_sixteen_by_default(cache: Cache) -> None:
    for number in range(16):
        cache.slot(f"slot {number}").store(number)
    assert [cache.slot(f"slot {number}").load() for number in range(16)] == list(range(16))


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "a\0b", "\ud800"])
def test_names_that_are_none(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="swap slot"):
        cache.slot(name)


def test_a_name_of_another_type(cache: Cache) -> None:
    with pytest.raises(TypeError, match="int"):
        cache.slot(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["raw", "json", "pickle", "msgpack"])
def test_values_are_encoded_as_the_caches_are(open_cache: Callable[..., Cache], codec: str) -> None:
    slot = open_cache(codec=codec).slot()
    value = b"bytes" if codec == "raw" else {"a": [1, "b"]}
    slot.store(value)
    assert slot.load() == value
    if codec == "raw":
        with pytest.raises(TypeError, match="raw"):
            slot.store("text")


def test_after_close_unlink_and_reopen(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    slot = cache.slot()
    slot.store("old")
    assert slot.load() == "old"
    cache.close()
    calls: list[Callable[[], object]] = [
        slot.load,
        slot.load_versioned,
        lambda: slot.store(1),
        lambda: slot.rcu(lambda v: v),
        lambda: slot.wait(0, 1),
        lambda: slot.capacity,
        lambda: cache.slot("other"),
    ]
    for call in calls:
        with pytest.raises(CacheClosed):
            call()
    cache.reopen()
    assert slot.load() is None, "the slot of that name in the new segment"
    assert slot.store("new") == 1
    cache.unlink()
    with pytest.raises(CacheNotFound):
        slot.load()
    with pytest.raises(CacheNotFound):
        slot.store(1)
    cache.reopen()
    assert slot.load_versioned() == (None, 0)


def test_a_slot_keeps_neither_handle_nor_memory_after_close(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    one = open_cache(cache_name)
    slot = one.slot()
    slot.store([1])
    assert slot.load() == [1]
    one.close()  # and the fixture sees that it was the last one out
    gc.collect()
    with pytest.raises(CacheNotFound):
        Cache(cache_name, create=False)


def test_dropping_the_handle_closes_it(cache_name: str) -> None:
    cache = Cache(cache_name, size="2MiB")
    cache.slot().store(1)
    assert cache.slot().load() == 1
    del cache  # no cycle keeps it
    with pytest.raises(CacheNotFound):
        Cache(cache_name, create=False)


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_in_a_forked_child(cache: Cache, fork: Callable[[], int]) -> None:
    slot = cache.slot()
    slot.store("parent's")
    assert slot.load() == "parent's"
    assert in_child(fork, lambda: slot.load() == "parent's" and slot.store("child's") == 2)
    assert slot.load_versioned() == ("child's", 2)


def test_pickles_to_the_slot_of_that_name(cache: Cache) -> None:
    slot = cache.slot("x")
    slot.store([5])
    copy = pickle.loads(pickle.dumps(slot))
    try:
        assert copy.name == "x"
        assert copy.load() == [5]
        assert repr(cache) in repr(copy)
    finally:
        copy._cache.close()


# ------------------------------------------------------------------------------- waiting


def test_wait_returns_at_once_where_it_is_newer(cache: Cache) -> None:
    slot = cache.slot()
    slot.store(1)
    slot.store(2)
    assert slot.wait(0) == slot.wait(1, 0) == slot.wait(-5) == 2
    for timeout in (0, 0.01):
        assert slot.wait(2, timeout) is None
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            slot.wait(2, bad)


def test_wait_is_woken_by_a_store(cache: Cache) -> None:
    slot = cache.slot()
    found = []
    thread = threading.Thread(target=lambda: found.append(slot.wait(0, 60)))
    thread.start()
    slot.store(1)
    thread.join(30)
    assert found == [1]


@pytest.mark.parametrize("end", ["close", "unlink"])
def test_whoever_waits_notices_the_end(open_cache: Callable[..., Cache], end: str) -> None:
    cache = open_cache()
    other = open_cache(cache.name)
    slot = cache.slot()
    found: list[BaseException] = []
    began = threading.Event()

    def wait() -> None:
        began.set()
        try:
            slot.wait(0)
        except (CacheClosed, CacheNotFound) as gone:
            found.append(gone)

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait(30)
    if end == "close":
        cache.close()
    else:
        other.unlink()
    thread.join(30)
    assert [type(gone) for gone in found] == [CacheClosed if end == "close" else CacheNotFound]


class Calls:
    """A callback that can be waited for."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, int]] = []
        self.more = threading.Condition()

    def __call__(self, value: Any, version: int) -> None:
        with self.more:
            self.all.append((value, version))
            self.more.notify_all()
        if value == "raise":
            raise RuntimeError("the callback's own")

    def until(self, version: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: self.all and self.all[-1][1] >= version, 30)


def test_arguments_of_another_type_are_refused_at_once(cache: Cache) -> None:
    slot = cache.slot()
    with pytest.raises(TypeError, match="watch takes a callable, not int"):
        slot.watch(5)  # type: ignore[arg-type]
    for version in ("1", 1.5, None, True):
        with pytest.raises(TypeError, match="version must be an int"):
            slot.wait(version, 0)  # type: ignore[arg-type]


def test_watch_calls_back_after_changes_only(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    slot = cache.slot()
    slot.store("there at the start")
    calls = Calls()
    with slot.watch(calls) as watcher:
        slot.store("raise")
        calls.until(2)
        slot.store("goes on")
        calls.until(3)
    assert calls.all == [("raise", 2), ("goes on", 3)]
    assert "the callback's own" in caplog.text
    slot.store("after the end")
    watcher.stop()
    assert len(calls.all) == 2


def test_watch_sees_versions_in_order_and_the_last_one(cache: Cache) -> None:
    slot = cache.slot()
    calls = Calls()
    with slot.watch(calls):
        for number in range(1, 301):
            slot.store(number)
        calls.until(300)
    versions = [version for _, version in calls.all]
    assert versions == sorted(set(versions))
    assert all(value == version for value, version in calls.all)


def test_a_watcher_may_stop_itself_and_ends_with_the_handle(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache()
    slot = cache.slot()
    stopped = threading.Event()

    def once(value: Any, version: int) -> None:
        watcher.stop()
        stopped.set()

    watcher = slot.watch(once)
    slot.store(1)
    assert stopped.wait(30)
    watcher.stop()
    other = slot.watch(lambda value, version: None)
    cache.close()
    other._thread.join(30)
    assert not other._thread.is_alive()


def test_waiting_costs_next_to_nothing(cache: Cache) -> None:
    """0.1% of a core as measured; 2% is far above that, and far below spinning."""
    slot = cache.slot()
    before = time.thread_time()
    assert slot.wait(0, 1.0) is None
    assert time.thread_time() - before < 0.02


# ------------------------------------------------------------------------------- threads


def test_threads_share_a_slot(cache: Cache) -> None:
    slot = cache.slot()
    slot.store({"n": 0})
    failures: list[object] = []

    def count() -> None:
        for _ in range(200):
            slot.rcu(lambda value: {"n": value["n"] + 1})

    def read() -> None:
        last = 0
        while writer.is_alive():
            value, version = slot.load_versioned()
            if value["n"] != version - 1 or version < last:
                failures.append((value, version, last))
            last = version

    writer = threading.Thread(target=count)
    threads = [writer, threading.Thread(target=count), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert slot.load_versioned() == ({"n": 400}, 401)
