"""One Cache in many threads: as safe as a dict."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import payloads

from shmcache import Cache, CacheClosed

THREADS = 4


def in_threads(fn: Callable[[int], object]) -> list[object]:
    """Run ``fn(number)`` in several threads that start at once; their results."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> object:
        barrier.wait(60)
        return fn(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def test_incr_loses_nothing(cache: Cache) -> None:
    in_threads(lambda _: [cache.incr("n") for _ in range(3000)])
    assert cache["n"] == 3000 * THREADS


def test_alter_loses_nothing(cache: Cache) -> None:
    in_threads(lambda me: [cache.alter("k", lambda v: [*v, me], default=[]) for _ in range(50)])
    assert sorted(cache["k"]) == sorted(list(range(THREADS)) * 50)


def test_add_and_pop_have_one_winner(cache: Cache) -> None:
    wins = in_threads(lambda me: sum(cache.add(number, me) for number in range(1000)))
    assert sum(map(int, wins)) == 1000  # type: ignore[call-overload]
    taken = in_threads(lambda _: [n for n in range(1000) if cache.pop(n, None) is not None])
    flat = [number for part in taken for number in part]  # type: ignore[attr-defined]
    assert sorted(flat) == list(range(1000))


def test_popitem_gives_each_entry_to_one_thread(cache: Cache) -> None:
    cache.update({number: number for number in range(2000)})

    def drain(_: int) -> list[object]:
        taken = []
        while True:
            try:
                taken.append(cache.popitem()[0])
            except KeyError:
                return taken

    flat = [number for part in in_threads(drain) for number in part]  # type: ignore[attr-defined]
    assert sorted(flat) == list(range(2000))


@pytest.mark.parametrize("size", [100, 5000, 90_000])
def test_values_are_never_torn(open_cache: Callable[..., Cache], size: int) -> None:
    """Above 64 KiB copies run without the GIL, so threads truly meet in the segment."""
    cache = open_cache(size="1MiB", shards=1)

    def hammer(me: int) -> int:
        hits = 0
        for number in range(20_000_000 // size // 100 + 50):
            key = f"key {number % 5}"
            if (number + me) % 3 == 0:
                cache[key] = payloads.make(key, me << 32 | number, size + number % 50)
            else:
                value = cache.get(key)
                if value is not None:
                    payloads.check(key, value)
                    hits += 1
        return hits

    assert sum(map(int, in_threads(hammer))) > 0  # type: ignore[call-overload]
    assert cache.verify() == []


def test_closing_in_one_thread_ends_the_others_cleanly(open_cache: Callable[..., Cache]) -> None:
    for _ in range(10):
        cache = open_cache(size="2MiB", shards=1)
        cache["k"] = bytes(100_000)

        def use(me: int, cache: Cache = cache) -> str:
            if me == 0:
                while cache.stats().hits < 20:
                    pass
                cache.close()
                return "closed"
            try:
                while True:
                    assert len(cache["k"]) == 100_000
                    cache["k"] = bytes(100_000)
                    for _ in cache.items():
                        pass
            except CacheClosed:
                return "noticed"

        assert in_threads(use) == ["closed"] + ["noticed"] * (THREADS - 1)


def test_a_copy_of_64_kib_or_more_releases_the_gil(open_cache: Callable[..., Cache]) -> None:
    """With forced switches off, another thread runs during a get only if the get lets it."""
    cache = open_cache(size="64MiB", shards=1)
    size = cache.max_value_size
    cache["large"], cache["small"] = bytes(size), bytes(100)
    turns = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)  # gives the GIL away

    def turns_during(call: Callable[[], object]) -> int:
        before = turns[0]
        for _ in range(200):
            call()
        return turns[0] - before

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        small = turns_during(lambda: cache["small"])
        large = turns_during(lambda: cache["large"])
        large_set = turns_during(lambda: cache.set("large", bytes(size)))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join(60)
    assert small == 0
    assert large > 0
    assert large_set > 0
