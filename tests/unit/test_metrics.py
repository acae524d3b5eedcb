"""Readings of a cache, what lies between two of them, and the folding of histograms."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes import Channel, Worker

from shmcache import Cache, CacheNotFound, HistogramBucket, NotPermitted, metrics
from shmcache.metrics import Follower, Rates, Reading, by_octaves, fold, fold_durations, percentile


@pytest.fixture
def follower(cache_name: str) -> Iterator[Follower]:
    with Follower(cache_name) as follower:
        yield follower


def used(cache: Cache) -> Cache:
    """A cache with some of everything counted."""
    cache.update({number: bytes(100) for number in range(50)})
    for number in range(60):
        cache.get(number)
    del cache[0]
    return cache


# ---------------------------------------------------------------------------------- reading
def test_a_reading_holds_the_stats_and_the_cache(open_cache: Callable[..., Cache]) -> None:
    cache = used(open_cache(shards=2, policy="keep"))
    reading = metrics.read(cache)
    assert (reading.name, reading.size) == (cache.name, cache.size)
    assert (reading.policy, reading.codec, reading.persist) == ("keep", "msgpack", False)
    stats = dataclasses.replace(cache.stats(), uptime_seconds=reading.stats.uptime_seconds)
    assert reading.stats == stats


def test_as_dict_is_json_with_every_field_of_stats(cache: Cache) -> None:
    cache.latencies("web").record(0.5)
    reading = metrics.read(used(cache))
    shown = json.loads(json.dumps(reading.as_dict()))
    assert cache.stats().as_dict().keys() <= shown.keys()
    assert (shown["name"], shown["entries"], shown["hits"]) == (cache.name, 49, 50)
    web = next(ring for ring in shown["latencies"] if ring["name"] == "web")
    assert (web["count"], web["max"]) == (1, 0.5)
    assert [bucket["count"] for bucket in web["histogram"]] == [1]


def test_every_ring_is_read_the_caches_own_first(cache: Cache) -> None:
    for name in ("web", "größe"):
        cache.latencies(name).record(0.25)
    rings = metrics.read_rings(cache)
    assert [ring.name for ring in rings] == ["shmcache.get", "shmcache.set", "web", "größe"]
    for ring in rings[2:]:
        assert ring.summary.count == sum(bucket.count for bucket in ring.histogram) == 1
        assert ring.total_seconds == 0.25


def test_reading_names_no_ring(cache: Cache) -> None:
    for _ in range(2):
        metrics.read(cache)
    assert [ring.name for ring in metrics.read_rings(cache)] == ["shmcache.get", "shmcache.set"]


def test_a_reading_of_an_unlinked_cache_is_refused(cache: Cache) -> None:
    cache.unlink()
    with pytest.raises(CacheNotFound):
        metrics.read(cache)


class Backwards:
    """A codec that only its application has."""

    name = "backwards"

    def encode(self, value: Any) -> bytes:
        return bytes(reversed(value))

    def decode(self, payload: memoryview) -> Any:
        return bytes(reversed(payload))


def test_a_cache_with_a_codec_that_is_not_here_can_be_read(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(codec=Backwards())
    cache["k"] = [1]
    with metrics.look(cache.name) as seen:
        assert metrics.read(seen).codec == "backwards"
        with pytest.raises(TypeError, match="decode=False"):
            seen["l"] = [2]
    with pytest.raises(ValueError, match="name"):
        metrics.look(".no-name")


# ------------------------------------------------------------------------------ between two
def at(reading: Reading, seconds: float) -> Reading:
    """The reading as if it had been taken at that moment."""
    return dataclasses.replace(reading, taken_at=seconds)


def test_rates_are_events_per_second_of_the_interval(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(shards=4)
    used(cache)
    earlier = at(metrics.read(cache), 100.0)
    for number in range(100, 110):
        cache[number] = 1
    for _ in range(30):
        cache.get(100)
    for _ in range(10):
        cache.get("absent")
    del cache[100]
    rates = Rates.between(earlier, at(metrics.read(cache), 102.0))
    assert rates.seconds == 2.0
    assert not rates.since_creation
    assert (rates.gets, rates.hits, rates.misses) == (20.0, 15.0, 5.0)
    assert (rates.sets, rates.deletes, rates.evictions, rates.expirations) == (5.0, 0.5, 0.0, 0.0)
    assert rates.hit_ratio == 0.75
    assert rates.lock_acquisitions == pytest.approx(sum(rates.shard_writes)) == 5.5
    assert len(rates.shard_writes) == len(rates.shard_waits) == 4
    assert (rates.lock_waits, rates.recoveries) == (0.0, 0)


def test_an_idle_interval_has_no_hit_ratio(cache: Cache) -> None:
    reading = metrics.read(used(cache))
    rates = Rates.between(at(reading, 1.0), at(reading, 2.0))
    assert rates.hit_ratio is None
    assert rates.gets == 0.0


def test_latencies_are_those_of_the_interval(cache: Cache) -> None:
    ring = cache.latencies("web")
    for _ in range(1000):
        ring.record(1.0)
    earlier = at(metrics.read(cache), 0.0)
    for milliseconds in range(1, 101):
        ring.record(milliseconds / 1e3)
    web = Rates.between(earlier, at(metrics.read(cache), 10.0)).latency("web")
    assert web is not None
    assert (web.count, web.rate) == (100, 10.0)
    assert web.p50 == pytest.approx(0.050, rel=0.15)
    assert web.p99 == pytest.approx(0.099, rel=0.15)
    assert 0.1 <= web.max <= 0.115
    assert Rates.between(earlier, earlier).latency("absent") is None


def test_a_cleared_ring_starts_anew(cache: Cache) -> None:
    ring = cache.latencies("web")
    for _ in range(10):
        ring.record(1.0)
    earlier = metrics.read(cache)
    ring.clear()
    ring.record(1.0)
    web = Rates.between(earlier, metrics.read(cache)).latency("web")
    assert web is not None
    assert web.count == 1


def test_without_an_earlier_reading_rates_are_over_the_caches_life(cache: Cache) -> None:
    reading = metrics.read(used(cache))
    rates = Rates.between(None, reading)
    assert rates.since_creation
    assert rates.seconds == reading.stats.uptime_seconds
    assert rates.sets * rates.seconds == pytest.approx(50)


def test_a_successor_of_the_same_name_is_not_compared(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    earlier = metrics.read(used(open_cache(cache_name, size="1MiB", shards=1)))
    open_cache(cache_name).unlink()
    later = metrics.read(used(open_cache(cache_name, size="2MiB", shards=4)))
    rates = Rates.between(earlier, later)
    assert rates.since_creation
    assert len(rates.shard_writes) == 4
    assert rates.sets * rates.seconds == pytest.approx(50)


# -------------------------------------------------------------------------------- following
def test_a_follower_reads_on_after_unlink_and_recreation(
    open_cache: Callable[..., Cache], cache_name: str, follower: Follower
) -> None:
    with pytest.raises(CacheNotFound):
        follower.read()
    open_cache(cache_name, size="1MiB")["k"] = 1
    first = follower.read()
    assert first.stats.entries == 1
    assert follower.read().created_at == first.created_at
    open_cache(cache_name).unlink()
    for _ in range(2):
        with pytest.raises(CacheNotFound):
            follower.read()
    open_cache(cache_name, size="1MiB")
    second = follower.read()
    assert second.stats.entries == 0
    assert second.created_at > first.created_at


def test_a_follower_is_no_client_and_unlinks_nothing(
    open_cache: Callable[..., Cache], cache_name: str, follower: Follower
) -> None:
    cache = open_cache(cache_name, size="1MiB")
    assert follower.read().stats.clients == 1
    assert cache.stats().clients == 1
    cache.close()
    with pytest.raises(CacheNotFound):  # the last client has unlinked it under the observer
        follower.read()


def as_nobody(channel: Channel, name: str) -> str:
    os.setuid(65534)
    try:
        metrics.look(name)
    except NotPermitted as error:
        return str(error)
    return "let in"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, so root")
def test_a_stranger_may_not_look(
    open_cache: Callable[..., Cache], start: Callable[..., Worker]
) -> None:
    cache = open_cache()
    assert cache.name in start(as_nobody, cache.name).result()


# ---------------------------------------------------------------------------------- folding
def some_buckets(seed: int) -> list[HistogramBucket]:
    """Buckets as rings have them: 16 for each power of two of nanoseconds, some empty."""
    dice = random.Random(seed)
    bounds = [
        (low + (low * step) // 16, low + (low * (step + 1)) // 16)
        for low in (1 << power for power in range(4, 40))
        for step in range(16)
    ]
    return [
        HistogramBucket(low / 1e9, high / 1e9, dice.randrange(1, 1000))
        for low, high in bounds
        if dice.random() < 0.3
    ]


@pytest.mark.parametrize("seed", range(5))
def test_folding_at_powers_of_two_is_exact(seed: int) -> None:
    buckets = some_buckets(seed)
    bounds = [2**power / 1e9 for power in range(6, 36)]
    below, count = fold_durations(buckets, bounds)
    assert count == sum(bucket.count for bucket in buckets)
    assert below == sorted(below)
    for bound, found in zip(bounds, below, strict=True):
        assert found == sum(b.count for b in buckets if round(b.upper * 1e9) <= round(bound * 1e9))


@pytest.mark.parametrize("seed", range(5))
def test_octaves_keep_every_count(seed: int) -> None:
    buckets = some_buckets(seed)
    for most in (1, 5, 24, 100):
        rows = by_octaves(buckets, most)
        assert len(rows) <= most
        assert sum(row.count for row in rows) == sum(bucket.count for bucket in buckets)
        assert all(a.upper == b.lower for a, b in itertools.pairwise(rows))
        assert rows[0].count and rows[-1].count


def test_octaves_of_the_shortest_and_of_none() -> None:
    (row,) = by_octaves([HistogramBucket(0.0, 1e-9, 3)])
    assert (row.upper, row.count) == (1e-9, 3)
    assert by_octaves([]) == []


@pytest.mark.parametrize(("count", "most", "left"), [(4, 64, 4), (1024, 64, 64), (10, 4, 4)])
def test_fold_sums_neighbours(count: int, most: int, left: int) -> None:
    values = [float(number) for number in range(count)]
    folded = fold(values, most)
    assert len(folded) == left
    assert sum(folded) == sum(values)


def test_percentile_of_buckets() -> None:
    buckets = [HistogramBucket(0.0, 1.0, 50), HistogramBucket(1.0, 3.0, 50)]
    assert percentile(buckets, 50) == 0.5
    assert percentile(buckets, 51) == 2.0
    assert percentile(buckets, 100) == 2.0
    assert percentile([], 99) == 0.0
