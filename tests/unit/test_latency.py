"""Latency rings in one process: figures, bounds, names, timing, damage, and a sequential model."""

from __future__ import annotations

import asyncio
import bisect
import inspect
import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmcache
from shmcache import (
    Cache,
    LatencyRing,
    LatencySummary,
)

MAX_NS = 1 << 53
ERROR = 1 / 1024  # of a kept sample: a step of 2**10 for each power of two
OWN = ("shmcache.get", "shmcache.set")


def near(seconds: float) -> Any:
    return pytest.approx(seconds, rel=ERROR, abs=1e-15)


@pytest.fixture
def ring(cache: Cache) -> LatencyRing:
    return cache.latencies()


# ------------------------------------------------------------------------------ figures


def test_a_new_ring_has_nothing(ring: LatencyRing) -> None:
    assert ring.recent(10) == ring.drain(10) == ring.histogram() == []
    assert ring.average() == ring.average(5) == ring.rate() == ring.percentile(50) == 0.0
    assert ring.summary() == LatencySummary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


def test_recent_is_newest_last(ring: LatencyRing) -> None:
    for ms in range(1, 11):
        ring.record(ms / 1000)
    assert ring.recent(3) == [near(0.008), near(0.009), near(0.010)]
    assert len(ring.recent(1000)) == 10
    assert ring.recent(0) == []


def test_average_is_over_the_last_n_or_all(ring: LatencyRing) -> None:
    for ms in range(1, 11):
        ring.record(ms / 1000)
    assert ring.average() == near(0.0055)
    assert ring.average(2) == near(0.0095)
    assert ring.average(0) == 0.0


def test_percentiles_interpolate_between_samples(ring: LatencyRing) -> None:
    for ns in (400, 100, 300, 200):
        ring.record_ns(ns)
    expected = {0: 100, 25: 175, 50: 250, 100: 400}
    assert {p: ring.percentile(p) * 1e9 for p in expected} == pytest.approx(expected)


@pytest.mark.parametrize("p", [-0.001, 100.1, math.nan, math.inf, -math.inf])
def test_percentiles_go_from_0_to_100(ring: LatencyRing, p: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        ring.percentile(p)


def test_summary_counts_for_life_and_has_percentiles_of_what_is_kept(cache: Cache) -> None:
    ring = cache.latencies(capacity=10)
    ring.record_ns(10_000_000)
    for ns in range(100, 1000, 10):
        ring.record_ns(ns)
    summary = ring.summary()
    assert summary.count == 91
    assert summary.max == 0.01
    assert summary.mean == pytest.approx((10_000_000 + sum(range(100, 1000, 10))) / 91 / 1e9)
    assert summary.p50 == pytest.approx(945e-9)
    assert 945e-9 < summary.p90 < summary.p99 < summary.p999 < 990e-9
    assert summary.as_dict()["count"] == 91


def test_last_at_is_unix_time_and_survives_draining(ring: LatencyRing) -> None:
    before = time.time()
    ring.record(1)
    assert ring.drain(10) == [near(1)]
    last_at = ring.summary().last_at
    assert last_at is not None and before - 0.1 < last_at < time.time() + 0.1


def test_rate_is_events_by_the_time_between_them(ring: LatencyRing) -> None:
    assert ring.rate() == 0.0
    ring.record(1)
    assert ring.rate() == 0.0  # one event has no rate
    began = time.monotonic()
    ring.record(1)
    least = 0.2
    while time.monotonic() - began < least:  # the clock itself is what is tested
        ring.record(1)
        time.sleep(0.001)
    took = time.monotonic() - began
    count = ring.summary().count - 1
    assert ring.rate(count) == pytest.approx((count - 1) / took, rel=0.1)
    assert ring.rate(1) == ring.rate(0) == 0.0


def test_rate_within_one_tick_is_finite(ring: LatencyRing) -> None:
    for _ in range(100):
        ring.record_ns(1)
    assert 0 < ring.rate() < math.inf


@pytest.mark.parametrize("call", ["recent", "drain", "average", "rate"])
def test_a_number_of_samples_is_not_negative(ring: LatencyRing, call: str) -> None:
    with pytest.raises(ValueError, match="-1"):
        getattr(ring, call)(-1)


# --------------------------------------------------------------------- precision and range


def test_durations_of_three_digits_come_back_exactly(cache: Cache) -> None:
    ring = cache.latencies(capacity=1)
    for zeros in range(13):
        for digits in range(1, 1000):
            ring.record_ns(digits * 10**zeros)
            assert ring.recent(1) == [digits * 10**zeros / 1e9]
    for seconds in (0.5, 0.1, 0.0015, 2.0, 0.25):
        ring.record(seconds)
        assert ring.recent(1) == [ring.percentile(50)] == [ring.average(1)] == [seconds]


def test_what_is_kept_is_off_by_a_step_at_most(cache: Cache) -> None:
    ring = cache.latencies(capacity=1)
    random.seed(3)
    edges = [e + d for k in range(53) for e in (1 << k,) for d in (-1, 0, 1)]
    for ns in [*range(2100), *edges, *(int(2 ** random.uniform(0, 53)) for _ in range(3000))]:
        ring.record_ns(ns)
        (kept,) = ring.recent(1)
        assert kept * 1e9 == pytest.approx(ns, rel=ERROR if ns >= 1024 else 1e-12, abs=1e-12), ns


def test_the_longest_duration(ring: LatencyRing) -> None:
    ring.record_ns(MAX_NS)
    ring.record(MAX_NS / 1e9)
    assert ring.recent(2) == [near(MAX_NS / 1e9)] * 2
    assert ring.summary().max == MAX_NS / 1e9


@pytest.mark.parametrize("seconds", [-1e-9, math.nan, math.inf, MAX_NS / 1e9 * 1.01])
def test_durations_out_of_range(ring: LatencyRing, seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        ring.record(seconds)
    assert ring.summary().count == 0


@pytest.mark.parametrize("ns", [-1, MAX_NS + 1])
def test_nanoseconds_out_of_range(ring: LatencyRing, ns: int) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        ring.record_ns(ns)
    assert ring.summary().count == 0


@pytest.mark.parametrize("value", ["1", None, b"1", [1]])
def test_durations_of_the_wrong_type(ring: LatencyRing, value: Any) -> None:
    with pytest.raises(TypeError):
        ring.record(value)
    with pytest.raises(TypeError):
        ring.record_ns(value)


@pytest.mark.parametrize(
    ("size", "buckets_a_power"), [("1MiB", 4), ("2MiB", 8), ("4MiB", 16), ("32MiB", 16)]
)
def test_each_duration_lies_in_its_bucket(
    open_cache: Callable[..., Cache], cache_name: str, size: str, buckets_a_power: int
) -> None:
    ring = open_cache(cache_name, size=size).latencies()
    random.seed(4)
    for ns in [*range(300), MAX_NS, *(int(2 ** random.uniform(0, 53)) for _ in range(500))]:
        ring.clear()
        ring.record_ns(ns)
        (bucket,) = ring.histogram()
        lower, upper = round(bucket.lower * 1e9), round(bucket.upper * 1e9)
        assert lower <= ns < upper
        assert bucket.count == 1
        assert upper - lower <= max(1, lower / buckets_a_power)


def test_histogram_adds_up(cache: Cache) -> None:
    ring = cache.latencies(capacity=16)
    durations = sorted(round(1.1**k) for k in range(1, 150))
    for ns in durations:
        ring.record_ns(ns)
    buckets = ring.histogram()
    assert sum(bucket.count for bucket in buckets) == len(durations) == ring.summary().count
    for lower, upper, count in buckets:
        first, last = (bisect.bisect_left(durations, round(edge * 1e9)) for edge in (lower, upper))
        assert last - first == count
    assert buckets == sorted(buckets)


# ------------------------------------------------------------------------ bounded, drained


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 100, 128])
def test_the_newest_capacity_samples_are_kept(cache: Cache, capacity: int) -> None:
    ring = cache.latencies(capacity=capacity)
    assert ring.capacity == capacity
    for ns in range(1000):
        ring.record_ns(ns)
        kept = [round(s * 1e9) for s in ring.recent(1000)]
        assert kept == list(range(max(0, ns + 1 - capacity), ns + 1))


def test_drain_takes_the_oldest_out(ring: LatencyRing) -> None:
    for ns in range(10):
        ring.record_ns(ns)
    assert [round(s * 1e9) for s in ring.drain(3)] == [0, 1, 2]
    assert [round(s * 1e9) for s in ring.recent(100)] == [3, 4, 5, 6, 7, 8, 9]
    assert len(ring.drain(100)) == 7
    assert ring.drain(100) == []
    ring.record_ns(77)
    assert ring.drain(1) == [pytest.approx(77e-9)]
    assert ring.summary().count == 11  # totals keep what was taken


def test_clear_forgets_everything(ring: LatencyRing) -> None:
    for ns in range(1000):
        ring.record_ns(ns)
    ring.clear()
    assert ring.summary() == LatencySummary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)
    assert ring.recent(10) == ring.drain(10) == ring.histogram() == []
    ring.record_ns(5)
    assert ring.recent(10) == [pytest.approx(5e-9)]
    assert ring.summary().count == 1


# ------------------------------------------------------------------------------------ timing


def test_time_records_how_long_the_block_took(ring: LatencyRing) -> None:
    with ring.time() as timing:
        assert timing.seconds is None
        time.sleep(0.002)
    assert timing.seconds is not None and timing.seconds >= 0.002
    assert ring.recent(2) == [near(timing.seconds)]


def test_time_records_what_raised(ring: LatencyRing) -> None:
    with pytest.raises(KeyError), ring.time():
        raise KeyError
    assert ring.summary().count == 1


def test_timed_keeps_the_function_what_it_was(ring: LatencyRing) -> None:
    @ring.timed
    def add(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    assert add(1) == 3
    assert add(1, b=5) == 6
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert str(inspect.signature(add)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert not inspect.iscoroutinefunction(add)
    assert ring.summary().count == 2


def test_timed_takes_async_functions_to_their_end(ring: LatencyRing) -> None:
    @ring.timed
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    assert inspect.iscoroutinefunction(wait)
    assert asyncio.run(wait(0.005)) == "done"
    assert ring.recent(9) == [pytest.approx(0.005, abs=0.1)]
    assert ring.recent(9)[0] >= 0.0049


# ------------------------------------------------------------------ the cache's own latencies


def counts(cache: Cache) -> tuple[int, ...]:
    return tuple(cache.latencies(name).summary().count for name in OWN)


def test_every_call_is_recorded_at_1_and_none_at_0(cache: Cache) -> None:
    cache.latency_sampling = 1
    cache["k"] = b"v"
    cache.set("k", b"v")
    cache.add("l", b"v")
    assert cache.get("k") == cache["k"] == b"v"
    assert cache.get("missing") is None
    gets, sets = counts(cache)
    assert (gets, sets) == (3, 3)
    cache.latency_sampling = 0
    cache["k"] = b"w"
    assert cache["k"] == b"w"
    assert counts(cache) == (3, 3)
    assert cache.latency_sampling == 0


def test_one_call_in_256_by_default(cache: Cache) -> None:
    assert cache.latency_sampling == 256
    cache["k"] = b"v"
    calls = 256 * 200
    for _ in range(calls // 2):  # a pattern that a fixed stride would fall into step with
        cache.get("k")
        cache.set("k", b"v")
    gets, sets = counts(cache)
    # half of 200 each on average; six standard deviations of what is drawn
    assert 60 < gets < 140
    assert 60 < sets < 140
    summary = cache.latencies("shmcache.get").summary()
    assert 0 < summary.mean < 0.01


@pytest.mark.parametrize("key", ["str", "nö", ("a", 1), 7])
def test_sampling_draws_one_in_n_whatever_the_key(cache: Cache, key: Any) -> None:
    cache[key] = 1
    cache.latency_sampling = 10
    for _ in range(10_000):
        cache.get(key)
    assert 800 < counts(cache)[0] < 1250


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (1 << 31, ValueError),
        (1.5, TypeError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_bad_samplings(cache: Cache, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="latency_sampling"):
        cache.latency_sampling = value


def test_a_get_that_is_timed_is_a_get_all_the_same(cache: Cache) -> None:
    cache.latency_sampling = 1
    cache["k"] = [1, 2]
    assert cache["k"] == cache.get("k") == [1, 2]
    with pytest.raises(KeyError):
        cache["missing"]
    with pytest.raises(TypeError):
        cache.get([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl"):
        cache.set("k", 1, ttl=-1)
    assert (cache.stats().hits, cache.stats().misses, cache.stats().sets) == (2, 1, 1)


def test_everything_is_exported() -> None:
    assert {"LatencyRing", "LatencySummary", "HistogramBucket"} <= set(shmcache.__all__)
