"""Latency rings: their names, their life, and those in which a cache records its own calls."""

from __future__ import annotations

import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.segments import field, mapped

from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    LatencyRing,
    LimitReached,
    LockTimeout,
    _core,
)

OWN = ("shmcache.get", "shmcache.set")


@pytest.fixture
def ring(cache: Cache) -> LatencyRing:
    return cache.latencies()


# ----------------------------------------------------------------------------------- names


def test_handles_and_names_share_a_ring(open_cache: Callable[..., Cache], cache_name: str) -> None:
    first, second = open_cache(cache_name), open_cache(cache_name)
    first.latencies("db").record_ns(1)
    assert second.latencies("db").summary().count == 1
    assert second.latencies("api").summary().count == 0
    assert second.latencies().name == "default"


def test_the_first_to_name_a_ring_sets_its_capacity(cache: Cache) -> None:
    assert cache.latencies("a", capacity=100).capacity == 100
    assert cache.latencies("a", capacity=7).capacity == 100
    assert cache.latencies("a").capacity == 100


@pytest.mark.parametrize("size", ["1MiB", "2MiB", "32MiB", "64MiB"])
@pytest.mark.parametrize("capacity", [1, 100, 4096, 1 << 30])
def test_sixteen_names_always_fit_and_none_overlap(
    open_cache: Callable[..., Cache], cache_name: str, size: str, capacity: int
) -> None:
    cache = open_cache(cache_name, size=size)
    cache.latency_sampling = 0
    rings = [cache.latencies(f"ring {n}", capacity=capacity) for n in range(16)]
    rings += [cache.latencies(name) for name in OWN]
    for ring in rings:
        assert ring.capacity >= min(capacity, 32)
    for number, ring in enumerate(rings):
        for _ in range(min(ring.capacity, 5000)):
            ring.record_ns(number)
    for number, ring in enumerate(rings):
        assert {round(s * 1e9) for s in ring.recent(1 << 30)} == {number}
        assert ring.summary().count == min(ring.capacity, 5000)
    with pytest.raises(LimitReached, match="no latency ring is left"):
        cache.latencies("one more")
    assert cache.latencies("ring 15").summary().count > 0
    assert cache.verify() == []


def test_sixteen_rings_of_the_default_cache_keep_what_they_promise(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name)
    assert {cache.latencies(str(n)).capacity for n in range(16)} == {4096}


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "\udc80", "shmcache.", "shmcache.other"])
def test_bad_names(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        cache.latencies(name)


@pytest.mark.parametrize("name", ["x" * 63, "GET /users/{id}", "größe", "."])
def test_good_names(cache: Cache, name: str) -> None:
    cache.latencies(name).record_ns(1)
    assert cache.latencies(name).summary().count == 1
    assert cache.latencies(name).name == name


@pytest.mark.parametrize("capacity", [0, -1, 1 << 31])
def test_bad_capacities(cache: Cache, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        cache.latencies(capacity=capacity)


@pytest.mark.parametrize(("name", "capacity"), [(1, 1), (b"x", 1), ("x", 1.5), ("x", True)])
def test_arguments_of_the_wrong_type(cache: Cache, name: Any, capacity: Any) -> None:
    with pytest.raises(TypeError):
        cache.latencies(name, capacity=capacity)


def test_naming_waits_for_a_living_holder_and_no_longer(cache: Cache) -> None:
    cache.lock_timeout = 0.05
    known = cache.latencies("known")
    with mapped(cache.name) as data:
        holder_at = field(data, "rings_off", "Q") + _core.LAYOUT["shm_rings.holder"]
        attachment: Any = cache._attachment
        word = (attachment.client + 1) << 32 | attachment.generation
        struct.pack_into("<Q", data, holder_at, word)  # somebody alive, and standing still
        with pytest.raises(LockTimeout, match="directory of rings"):
            cache.latencies("new")
        known.record_ns(1)  # nothing but naming takes the lock
        assert cache.latencies("known").summary().count == 1
        struct.pack_into("<Q", data, holder_at, (attachment.client + 1) << 32 | 0xFFFFFFFF)
        cache.latencies("new").record_ns(1)  # the holder is dead
    assert cache.latencies("new").summary().count == 1


# ------------------------------------------------------------------------- life and identity


def test_use_after_close(open_cache: Callable[..., Cache], cache_name: str) -> None:
    cache = open_cache(cache_name)
    ring = cache.latencies()
    cache.close()
    for call in (ring.summary, ring.histogram, ring.clear, ring.average, ring.rate):
        with pytest.raises(CacheClosed):
            call()
    for counted in (ring.record, ring.record_ns, ring.recent, ring.drain, ring.percentile):
        with pytest.raises(CacheClosed):
            counted(1)
    with pytest.raises(CacheClosed):
        cache.latencies()
    with ring.time() as timing:  # what is timed does not fail for it
        pass
    assert timing.seconds is not None


def test_a_ring_follows_its_cache_into_a_new_segment(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name)
    ring = cache.latencies("follows", capacity=50)
    ring.record_ns(1)
    cache.unlink()
    with pytest.raises(CacheNotFound):
        ring.record_ns(1)
    cache.reopen()
    assert ring.summary().count == 0
    ring.record_ns(2)
    assert ring.capacity == 50
    assert cache.latencies("follows").recent(9) == [pytest.approx(2e-9)]


def test_rings_outlive_processes_and_pickle(cache: Cache) -> None:
    ring = cache.latencies("p", capacity=9)
    ring.record_ns(5)
    copy = pickle.loads(pickle.dumps(ring))
    try:
        assert (copy.name, copy.capacity, copy.recent(9)) == ("p", 9, ring.recent(9))
    finally:
        copy._cache.close()


def test_threads_lose_nothing(ring: LatencyRing) -> None:
    def work() -> None:
        for ns in range(5000):
            ring.record_ns(ns)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = ring.summary()
    assert summary.count == 20_000
    assert summary.mean == pytest.approx(sum(range(5000)) / 5000 / 1e9)
