"""Latency rings in one process: figures, bounds, names, timing, damage, and a sequential model."""

from __future__ import annotations

import asyncio
import bisect
import collections
import inspect
import math
import pickle
import random
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.names import unique_name
from support.segments import field, mapped

import shmcache
from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    CorruptSegment,
    LatencyRing,
    LatencySummary,
    LimitReached,
    LockTimeout,
    _core,
)

MAX_NS = 1 << 53
ERROR = 1 / 2047  # of a kept sample: half a step of 2**10 for each power of two is 1 / 2048
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


def test_what_is_kept_is_off_by_half_a_step_at_most(cache: Cache) -> None:
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


# ----------------------------------------------------------------------------------- damage


def ring_bytes(name: str) -> tuple[int, int]:
    with mapped(name) as data:
        return field(data, "rings_off", "Q"), field(data, "rings_size", "Q")


def use(cache: Cache) -> None:
    """Everything that reads the region; what is not sound may raise CorruptSegment."""
    try:
        ring = cache.latencies("damaged")
    except (CorruptSegment, LimitReached):
        return
    ring.record_ns(123)
    for _ in range(3):
        ring.recent(1 << 20)
        ring.summary()
        ring.histogram()
        ring.drain(10)
    ring.clear()


def test_flipped_bytes_never_crash(open_cache: Callable[..., Cache], cache_name: str) -> None:
    cache = open_cache(cache_name, size="1MiB")
    cache.lock_timeout = 0.0
    ring = cache.latencies("damaged", capacity=64)
    start, size = ring_bytes(cache_name)
    directory = 64 + 18 * 256
    rng = random.Random(7)
    with mapped(cache_name) as data:
        sound = data[start : start + size]
        for turn in range(600):
            for _ in range(rng.choice((1, 4, 40))):
                at = start + rng.randrange(directory if turn % 3 else size)
                data[at] = rng.choice((0, 0xFF, data[at] ^ 1 << rng.randrange(8)))
            data[start : start + 64] = bytes(64)
            use(cache)
            ring.record_ns(5)  # through places that were checked before
            ring.summary()
            ring.drain(5)
            data[start : start + size] = sound


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("named", 2),
        ("samples_off", 0),
        ("samples_off", 1 << 62),
        ("samples_off", (1 << 64) - 8),
        ("histogram_off", 4),
        ("histogram_off", (1 << 64) - 64),
        ("capacity", 0),
        ("capacity", 0xFFFFFFFF),
        ("word_bits", 200),
        ("word_bits", 31),
        ("bucket_bits", 60),
    ],
)
def test_a_place_that_is_none_is_corrupt(
    open_cache: Callable[..., Cache], cache_name: str, name: str, value: int
) -> None:
    cache = open_cache(cache_name)
    cache.latencies("damaged")
    record = ring_bytes(cache_name)[0] + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    with mapped(cache_name) as data:
        at = record + _core.LAYOUT[f"shm_ring.{name}"]
        size = 4 if name in ("capacity", "word_bits", "bucket_bits") else 8
        data[at : at + size] = value.to_bytes(size, "little")
    with pytest.raises(CorruptSegment, match="INV-RING-PLACE"):
        cache.latencies("damaged")
    (finding,) = cache.verify()
    assert (finding.invariant, finding.ring, finding.shard) == ("INV-RING-PLACE", 2, None)
    assert str(finding).startswith("INV-RING-PLACE does not hold in latency ring 2")


def test_verify_finds_rings_that_overlap(cache: Cache) -> None:
    for name in ("a", "b"):
        cache.latencies(name)
    first = ring_bytes(cache.name)[0] + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    offset = _core.LAYOUT["shm_ring.histogram_off"]
    with mapped(cache.name) as data:
        other = first + _core.LAYOUT["sizeof.shm_ring"] + offset
        data[other : other + 8] = data[first + offset : first + offset + 8]
    assert [finding.invariant for finding in cache.verify()] == ["INV-RING-PLACE"]


@pytest.mark.parametrize("name", ["tail", "cleared", "bucket"])
def test_verify_finds_what_had_no_position(cache: Cache, name: str) -> None:
    cache.latencies().record_ns(5)
    assert cache.verify() == []
    rings_off = ring_bytes(cache.name)[0]
    record = rings_off + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    with mapped(cache.name) as data:
        if name == "bucket":
            field_at = record + _core.LAYOUT["shm_ring.histogram_off"]
            at = rings_off + struct.unpack_from("<Q", data, field_at)[0]
        else:
            at = record + _core.LAYOUT[f"shm_ring.{name}"]
        struct.pack_into("<Q", data, at, 2)
    (finding,) = cache.verify()
    assert (finding.invariant, finding.ring, finding.expected) == ("INV-RING-TOTALS", 2, 1)


@pytest.mark.parametrize("name", ["head", "tail", "cleared"])
@pytest.mark.parametrize("value", [0, 1, 1000, 1 << 40, 1 << 63])
def test_positions_that_make_no_sense_lose_samples_and_heal(
    cache: Cache, name: str, value: int
) -> None:
    ring = cache.latencies(capacity=16)
    for ns in range(100):
        ring.record_ns(ns)
    record = ring_bytes(cache.name)[0] + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    with mapped(cache.name) as data:
        struct.pack_into("<Q", data, record + _core.LAYOUT[f"shm_ring.{name}"], value)
    for call in (ring.recent, ring.drain):
        assert {round(s * 1e9) for s in call(100)} <= set(range(100))
    ring.clear()
    for ns in range(200, 216):
        ring.record_ns(ns)
    assert [round(s * 1e9) for s in ring.recent(100)] == list(range(200, 216))
    assert [round(s * 1e9) for s in ring.drain(100)] == list(range(200, 216))


def test_a_missing_sample_is_left_out_and_may_come_later(cache: Cache) -> None:
    """The state between a recorder's two steps, made by hand: a position without its word."""
    ring = cache.latencies(capacity=16)
    rings_off = ring_bytes(cache.name)[0]
    record = rings_off + 64 + 2 * _core.LAYOUT["sizeof.shm_ring"]
    with mapped(cache.name) as data:
        offset = struct.unpack_from("<Q", data, record + _core.LAYOUT["shm_ring.samples_off"])[0]
        last = bytes(8)
        for lap in range(3):  # the word that is there instead: none, or the last lap's
            for ns in range(lap * 16, lap * 16 + 16):
                ring.record_ns(ns)
            word_at = rings_off + offset + 5 * 8
            word = data[word_at : word_at + 8]
            data[word_at : word_at + 8] = last
            expected = [n for n in range(lap * 16, lap * 16 + 16) if n % 16 != 5]
            assert [round(s * 1e9) for s in ring.recent(100)] == expected
            assert [round(s * 1e9) for s in ring.drain(4)] == expected[:4]
            assert [round(s * 1e9) for s in ring.drain(4)] == expected[4:8]
            data[word_at : word_at + 8] = word  # now it is stored
            assert [round(s * 1e9) for s in ring.drain(3)] == [lap * 16 + 5, *expected[8:10]]
            last = word


# ------------------------------------------------------------------- against a sequential model


class RingModel(RuleBasedStateMachine):
    """A deque of bounded length, and totals that nothing is taken from."""

    @initialize(capacity=st.integers(1, 40))
    def begin(self, capacity: int) -> None:
        self.cache = Cache(unique_name("ring-model"), size="1MiB")
        self.ring = self.cache.latencies(capacity=capacity)
        self.kept: collections.deque[int] = collections.deque(maxlen=capacity)
        self.all: list[int] = []

    @rule(ns=st.integers(0, 1023) | st.integers(0, MAX_NS // 4096))
    def record(self, ns: int) -> None:
        self.ring.record_ns(ns)
        self.kept.append(ns)
        self.all.append(ns)

    @rule(n=st.integers(0, 100), first=st.integers(0, 900))
    def record_many(self, n: int, first: int) -> None:
        for ns in range(first, first + n):
            self.record(ns)

    @rule(n=st.integers(0, 50))
    def drain(self, n: int) -> None:
        expected = [self.kept.popleft() for _ in range(min(n, len(self.kept)))]
        assert self.ring.drain(n) == [near(ns / 1e9) for ns in expected]

    @rule()
    def clear(self) -> None:
        self.ring.clear()
        self.kept.clear()
        self.all.clear()

    @rule(n=st.integers(0, 60))
    def recent(self, n: int) -> None:
        expected = list(self.kept)[max(0, len(self.kept) - n) :] if n else []
        assert self.ring.recent(n) == [near(ns / 1e9) for ns in expected]

    @rule(n=st.none() | st.integers(0, 60))
    def average(self, n: int | None) -> None:
        kept = list(self.kept)
        part = kept if n is None else kept[max(0, len(kept) - n) :] if n else []
        assert self.ring.average(n) == near(sum(part) / len(part) / 1e9 if part else 0.0)

    @rule(p=st.floats(0, 100))
    def percentile(self, p: float) -> None:
        ordered = sorted(self.kept)
        if ordered:
            at = (len(ordered) - 1) * p / 100
            low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
            assert low / 1e9 * (1 - ERROR) <= self.ring.percentile(p) <= high / 1e9 * (1 + ERROR)
        else:
            assert self.ring.percentile(p) == 0.0

    @invariant()
    def totals(self) -> None:
        summary = self.ring.summary()
        assert summary.count == len(self.all)
        assert summary.max == max(self.all, default=0) / 1e9
        mean = sum(self.all) / len(self.all) / 1e9 if self.all else 0.0
        assert summary.mean == pytest.approx(mean, rel=1e-12)
        assert sum(bucket.count for bucket in self.ring.histogram()) == len(self.all)
        assert (summary.last_at is None) == (not self.all)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()


RingModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRingModel = RingModel.TestCase


def test_everything_is_exported() -> None:
    assert {"LatencyRing", "LatencySummary", "HistogramBucket"} <= set(shmcache.__all__)
