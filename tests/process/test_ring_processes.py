"""Latency rings under several processes at once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.forks import FORKS, in_child
from support.processes import STRESS_S, Channel, Worker, poll_until, release

from shmcache import Cache, LatencyRing, _core

WRITERS = 4
EACH = 5000


def duration(writer: int, number: int) -> int:
    """What a writer records as its n-th sample: below 1,024 ns, where samples are exact."""
    return 1 + writer * 200 + number % 200


def ns_of(samples: list[float]) -> list[int]:
    return [round(seconds * 1e9) for seconds in samples]


def recorder(channel: Channel, name: str, writer: int, count: int) -> None:
    with Cache(name, create=False) as cache:
        ring = cache.latencies()
        channel.sync()
        for number in range(count):
            ring.record_ns(duration(writer, number))


def drainer(channel: Channel, name: str, step: int) -> Counter[int]:
    """Drain until the test says that there will be no more; what was had."""
    with Cache(name, create=False) as cache:
        ring = cache.latencies()
        had: Counter[int] = Counter()
        channel.sync()
        while True:
            last = channel.told()
            while part := ring.drain(step):
                had.update(ns_of(part))
            if last:
                return had


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("capacity", [64, 100, 4096])
def test_four_recorders_have_exact_totals(
    open_cache: Callable[..., Cache],
    cache_name: str,
    start: Callable[..., Worker],
    method: str,
    capacity: int,
) -> None:
    cache = open_cache(cache_name)
    ring = cache.latencies(capacity=capacity)
    workers = [start(recorder, cache_name, w, EACH, method=method) for w in range(WRITERS)]
    release(workers)
    known = {duration(w, n) for w in range(WRITERS) for n in range(200)}
    while any(worker.process.is_alive() for worker in workers):
        kept = ns_of(ring.recent(10**6))
        assert len(kept) <= capacity
        assert set(kept) <= known  # nothing that nobody recorded
        assert ring.summary().max * 1e9 < 802
    for worker in workers:
        worker.result()
    everything = [duration(w, n) for w in range(WRITERS) for n in range(EACH)]
    summary = ring.summary()
    assert summary.count == len(everything) == sum(b.count for b in ring.histogram())
    assert summary.mean == pytest.approx(sum(everything) / len(everything) / 1e9, rel=1e-12)
    assert summary.max == pytest.approx(max(everything) / 1e9)
    kept = ns_of(ring.recent(10**6))
    # All have stored theirs. A recorder that was preempted between its two steps for a whole lap
    # has stored over a newer sample: at most one each, and not the one that recorded last.
    assert capacity - (WRITERS - 1) <= len(kept) <= capacity
    newest = {duration(w, n) for w in range(WRITERS) for n in range(EACH - capacity, EACH)}
    assert set(kept) <= newest


def test_drain_hands_each_sample_to_one_process(
    open_cache: Callable[..., Cache], cache_name: str, start: Callable[..., Worker]
) -> None:
    """Recorders and drainers at once, and the ring never full: every sample is had exactly once."""
    cache = open_cache(cache_name)
    cache.latencies(capacity=32768)
    drainers = [start(drainer, cache_name, step) for step in (1, 7, 1000)]
    workers = [start(recorder, cache_name, w, EACH) for w in range(WRITERS)]
    release([*drainers, *workers])
    for worker in workers:
        worker.result()
    for worker in drainers:
        worker.send("no more")
    had: Counter[int] = sum((worker.result() for worker in drainers), Counter())
    assert had == Counter(duration(w, n) for w in range(WRITERS) for n in range(EACH))
    assert cache.latencies().recent(10) == []


def test_drain_of_a_ring_that_is_lapped_hands_nothing_out_twice(
    open_cache: Callable[..., Cache], cache_name: str, start: Callable[..., Worker]
) -> None:
    cache = open_cache(cache_name)
    cache.latencies(capacity=50)
    drainers = [start(drainer, cache_name, step) for step in (3, 50)]
    workers = [start(recorder, cache_name, w, EACH) for w in range(2)]
    release([*drainers, *workers])
    for worker in workers:
        worker.result()
    for worker in drainers:
        worker.send("no more")
    had: Counter[int] = sum((worker.result() for worker in drainers), Counter())
    assert had
    assert had <= Counter(duration(w, n) for w in range(2) for n in range(EACH))


def name_all(channel: Channel, name: str, shift: int) -> list[str]:
    with Cache(name, create=False) as cache:
        channel.sync()
        names = [f"ring {(number + shift) % 16}" for number in range(16)]
        for each in names:
            cache.latencies(each, capacity=64).record_ns(1 + int(each.split()[1]))
        return names


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_name_rings_at_once_share_them(
    open_cache: Callable[..., Cache], cache_name: str, start: Callable[..., Worker], method: str
) -> None:
    cache = open_cache(cache_name, size="1MiB")
    workers = [start(name_all, cache_name, shift, method=method) for shift in (0, 5, 9, 13)]
    release(workers)
    for worker in workers:
        worker.result()
    for number in range(16):
        ring = cache.latencies(f"ring {number}")
        assert ns_of(ring.recent(100)) == [1 + number] * 4


def record_for_ever(channel: Channel, name: str, writer: int) -> None:
    with Cache(name, create=False) as cache:
        ring = cache.latencies()
        channel.send("ready")
        while True:
            for number in range(200):
                ring.record_ns(duration(writer, number))


@pytest.mark.stress
def test_a_storm_of_killed_recorders_leaves_a_sound_ring(
    open_cache: Callable[..., Cache], cache_name: str, start: Callable[..., Worker]
) -> None:
    cache = open_cache(cache_name)
    ring = cache.latencies(capacity=256)
    known = {duration(w, n) for w in range(3) for n in range(200)}
    deadline = time.monotonic() + STRESS_S
    deaths = 0
    while time.monotonic() < deadline:
        workers = [start(record_for_ever, cache_name, w) for w in range(3)]
        for worker in workers:
            assert worker.recv() == "ready"
        enough = ring.summary().count + 1000
        poll_until(lambda n=enough: ring.summary().count > n, what="recorders record")  # type: ignore[misc]
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            assert set(ns_of(ring.recent(1000))) <= known
            worker.kill()
            deaths += 1
        assert set(ns_of(ring.drain(100))) <= known
    summary = ring.summary()
    assert min(known) <= summary.mean * 1e9 <= max(known)
    # each death may have cut one sample between its steps
    head = ring_head(cache)
    assert head - deaths <= summary.count <= head
    ring.clear()
    for ns in range(256):
        ring.record_ns(ns)
    assert ns_of(ring.recent(1000)) == list(range(256))
    assert ring.summary().count == 256


def ring_head(cache: Cache) -> int:
    """Positions that the first ring named by a user has given out."""
    attachment: Any = cache._attachment
    geometry = attachment.superblock.geometry
    at = geometry.rings_off + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    at += _core.LAYOUT["shm_ring.head"]
    return int.from_bytes(memoryview(attachment.mapping)[at : at + 8], "little")


@pytest.mark.parametrize("fork", FORKS)
def test_a_forked_child_records_as_itself(cache: Cache, fork: str) -> None:
    ring = cache.latencies()
    ring.record_ns(1)

    def child() -> bool:
        ring.record_ns(2)
        return ns_of(ring.recent(9)) == [1, 2]

    assert in_child(FORKS[fork], child)
    assert ns_of(ring.recent(9)) == [1, 2]


def use_pickled(channel: Channel, ring: LatencyRing) -> tuple[str, int]:
    ring.record_ns(3)
    return ring.name, ring.capacity


def test_a_ring_is_an_argument_of_a_spawned_process(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    ring = cache.latencies("passed on", capacity=33)
    assert start(use_pickled, ring, method="spawn").result() == ("passed on", 33)
    assert ns_of(ring.recent(9)) == [3]


def test_the_caches_own_latencies_are_of_all_processes(
    open_cache: Callable[..., Cache], cache_name: str, start: Callable[..., Worker]
) -> None:
    cache = open_cache(cache_name)
    cache["k"] = b"v"
    workers = [start(sampled_gets, cache_name) for _ in range(3)]
    for worker in workers:
        worker.result()
    assert cache.latencies("shmcache.get").summary().count == 300


def sampled_gets(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        cache.latency_sampling = 1
        for _ in range(100):
            assert cache.get("k") == b"v"
