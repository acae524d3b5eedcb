"""Latency rings with bytes flipped, samples missing, and against a sequential model."""

from __future__ import annotations

import collections
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.names import unique_name
from support.segments import field, mapped

from shmcache import (
    Cache,
    CorruptSegment,
    LatencyRing,
    LimitReached,
    _core,
)

MAX_NS = 1 << 53


ERROR = 1 / 1024  # of a kept sample: a step of 2**10 for each power of two


def near(seconds: float) -> Any:
    return pytest.approx(seconds, rel=ERROR, abs=1e-15)


@pytest.fixture
def ring(cache: Cache) -> LatencyRing:
    return cache.latencies()


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
