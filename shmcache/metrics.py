"""What an observer reads of a cache at one moment, and what two such readings say together.

Place: level 5; below the command line and the collector, which only show what is computed here.
`read` takes one picture of a cache: its counters (`Stats`) and its latency rings. `Rates` is what
lies between two of them: events per second, the hit ratio and the latencies of that interval.
`Follower` keeps reading a cache by name, also after it was unlinked and made anew.

Nothing here takes a shard's lock, or waits for anybody: a scrape beside a stopped writer returns
at once. prometheus_client is no business of this module (see `collector.py`).
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shmcache import _core, errors
from shmcache.cache import Cache
from shmcache.latency import HistogramBucket, LatencyRing, LatencySummary
from shmcache.observer import observe
from shmcache.stats import Stats

__all__ = [
    "Follower",
    "IntervalLatency",
    "Rates",
    "Reading",
    "RingReading",
    "by_octaves",
    "fold",
    "fold_durations",
    "look",
    "percentile",
    "read",
    "read_rings",
]


@dataclass(frozen=True, slots=True)
class RingReading:
    """One latency ring: `summary` in figures, `histogram` its lifetime's counts that are not 0
    (seconds, shortest first), `capacity` the samples that it keeps."""

    name: str
    capacity: int
    summary: LatencySummary
    histogram: tuple[HistogramBucket, ...]

    @property
    def total_seconds(self) -> float:
        """The sum of all durations over the ring's lifetime."""
        return self.summary.mean * self.summary.count

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, ready for JSON."""
        return {
            "name": self.name,
            "capacity": self.capacity,
            **self.summary.as_dict(),
            "histogram": [
                {"lower": b.lower, "upper": b.upper, "count": b.count} for b in self.histogram
            ],
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """A cache at one moment. Each number is whole; they are not all of one instant.

    Attributes:
        name: of the cache.
        size: bytes of shared memory in all.
        policy, codec: as it was created.
        persist: whether it stays after its last client.
        user: the user that the segment belongs to, by name where there is one.
        created_at: Unix time of creation; tells a cache from its successor of the same name.
        taken_at: seconds of this process's monotonic clock when it was read.
        stats: its counters.
        latencies: its rings, the cache's own (`shmcache.get`, `shmcache.set`) first.
    """

    name: str
    size: int
    policy: str
    codec: str
    persist: bool
    user: str
    created_at: float
    taken_at: float
    stats: Stats
    latencies: tuple[RingReading, ...]

    def as_dict(self) -> dict[str, Any]:
        """Every field of `Stats` beside the cache's own, as plain dicts, lists and numbers."""
        return {
            "name": self.name,
            "size": self.size,
            "policy": self.policy,
            "codec": self.codec,
            "persist": self.persist,
            "user": self.user,
            "created_at": self.created_at,
            **self.stats.as_dict(),
            "latencies": [ring.as_dict() for ring in self.latencies],
        }


def read(cache: Cache) -> Reading:
    """Read all that a cache tells about itself.

    Returns the reading. Takes no shard's lock and never waits. Raises `CacheNotFound` where the
    cache was unlinked or replaced, `CacheClosed` where the handle was closed. Cost: `stats()`,
    and about 0.3 ms for each ring that keeps 4,096 samples.
    """
    attachment = cache._held
    superblock = attachment.superblock
    return Reading(
        name=cache.name,
        size=superblock.geometry.total_size,
        policy=superblock.policy,
        codec=superblock.codec,
        persist=attachment.persist,
        user=_user_name(attachment.uid),
        created_at=superblock.created_wall_ns / 1e9,
        taken_at=time.monotonic(),
        stats=cache.stats(),
        latencies=read_rings(cache),
    )


def read_rings(cache: Cache) -> tuple[RingReading, ...]:
    """Read every latency ring that has a name, the cache's own first; one that is damaged is left
    out (`verify` finds it). At most as many as the cache has records for: 18. No lock."""
    rings = []
    for name in _core.ring_names(cache):
        with suppress(ValueError, errors.CorruptSegment):
            ring = LatencyRing(cache, name)
            rings.append(RingReading(name, ring.capacity, ring.summary(), tuple(ring.histogram())))
    return tuple(rings)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# ------------------------------------------------------------------- between two readings
@dataclass(frozen=True, slots=True)
class IntervalLatency:
    """What a ring recorded within an interval: percentiles from histogram buckets, so off by a
    bucket's width at most (6%), in seconds; 0.0 without a sample."""

    name: str
    count: int
    rate: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two readings: per second where not said otherwise.

    Attributes:
        seconds: length of the interval.
        since_creation: there was no earlier reading of this cache, so the interval is its life.
        gets, hits, misses, sets, deletes, evictions, expirations: events per second.
        lock_acquisitions, lock_contended, lock_waits: the same of the shards' locks.
        recoveries: how many in the interval, not per second: each is worth a look.
        hit_ratio: hits by gets in the interval; None where there was no get.
        shard_writes: lock acquisitions per second for each shard.
        shard_waits: seconds waited for each shard, by second.
        latencies: the rings in the interval.
    """

    seconds: float
    since_creation: bool
    gets: float
    hits: float
    misses: float
    sets: float
    deletes: float
    evictions: float
    expirations: float
    lock_acquisitions: float
    lock_contended: float
    lock_waits: float
    recoveries: int
    hit_ratio: float | None
    shard_writes: tuple[float, ...]
    shard_waits: tuple[float, ...]
    latencies: tuple[IntervalLatency, ...]

    @classmethod
    def between(cls, earlier: Reading | None, later: Reading) -> Rates:
        """Compare two readings of one name.

        Args:
            earlier: None, or a reading of a cache that was replaced since: the rates are those
                over the later one's whole life.
            later: of the same name.

        Returns rates of 0 or more, whatever was cleared meanwhile.
        """
        if earlier is not None and not _same_cache(earlier, later):
            earlier = None
        now = later.stats
        before = earlier.stats if earlier else None
        seconds = now.uptime_seconds if earlier is None else later.taken_at - earlier.taken_at
        seconds = max(seconds, 1e-9)

        def change(field: str) -> int:
            was = int(getattr(before, field)) if before else 0
            return max(0, int(getattr(now, field)) - was)

        hits, misses = change("hits"), change("misses")
        shards_before = before.shards if before else (None,) * len(now.shards)
        pairs = list(zip(shards_before, now.shards, strict=True))
        rings_before = {ring.name: ring for ring in earlier.latencies} if earlier else {}
        return cls(
            seconds=seconds,
            since_creation=earlier is None,
            gets=(hits + misses) / seconds,
            hits=hits / seconds,
            misses=misses / seconds,
            **{
                field: change(field) / seconds
                for field in ("sets", "deletes", "evictions", "expirations")
            },
            lock_acquisitions=change("lock_acquisitions") / seconds,
            lock_contended=change("lock_contended") / seconds,
            lock_waits=max(0, now.lock_wait.count - (before.lock_wait.count if before else 0))
            / seconds,
            recoveries=change("recoveries"),
            hit_ratio=hits / (hits + misses) if hits + misses else None,
            shard_writes=tuple(
                (new.lock_acquisitions - (old.lock_acquisitions if old else 0)) / seconds
                for old, new in pairs
            ),
            shard_waits=tuple(
                max(0.0, new.lock_wait_seconds - (old.lock_wait_seconds if old else 0.0)) / seconds
                for old, new in pairs
            ),
            latencies=tuple(
                _interval_latency(rings_before.get(ring.name), ring, seconds)
                for ring in later.latencies
            ),
        )

    def latency(self, ring: str) -> IntervalLatency | None:
        """The ring of that name in the interval; None where there is none."""
        return next((found for found in self.latencies if found.name == ring), None)


def _same_cache(earlier: Reading, later: Reading) -> bool:
    return (earlier.name, earlier.created_at) == (later.name, later.created_at) and len(
        earlier.stats.shards
    ) == len(later.stats.shards)


def _interval_latency(
    earlier: RingReading | None, later: RingReading, seconds: float
) -> IntervalLatency:
    old = {bucket.upper: bucket.count for bucket in earlier.histogram} if earlier else {}
    grown = [
        bucket._replace(count=bucket.count - old.get(bucket.upper, 0)) for bucket in later.histogram
    ]
    if any(bucket.count < 0 for bucket in grown):  # cleared meanwhile
        grown = list(later.histogram)
    grown = [bucket for bucket in grown if bucket.count]
    count = sum(bucket.count for bucket in grown)
    return IntervalLatency(
        later.name,
        count,
        count / seconds,
        percentile(grown, 50),
        percentile(grown, 99),
        min(grown[-1].upper, later.summary.max) if grown else 0.0,
    )


def percentile(buckets: Sequence[HistogramBucket], p: float) -> float:
    """The duration that `p` percent (0 to 100) of what the buckets count stay below, in seconds:
    the middle of the bucket that it falls into; 0.0 of none."""
    rank = sum(bucket.count for bucket in buckets) * p / 100
    seen = 0
    for bucket in buckets:
        seen += bucket.count
        if bucket.count and seen >= rank:
            return (bucket.lower + bucket.upper) / 2
    return 0.0


def fold(values: Sequence[float], most: int) -> list[float]:
    """Sum neighbours so that at most `most` numbers are left, each of equally many but the last:
    1,024 shards on a strip of 80 columns."""
    each = -(-len(values) // most)
    return [sum(values[start : start + each]) for start in range(0, len(values), each)]


def fold_durations(
    buckets: Iterable[HistogramBucket], bounds: Sequence[float]
) -> tuple[list[int], int]:
    """Count durations by coarser bounds (seconds, rising).

    A bucket counts where its upper end lies; where each bound is an end of a bucket the result is
    exact. Returns how many are below each bound (cumulative, as Prometheus counts), and the count
    of all.
    """
    counts = [0] * (len(bounds) + 1)
    for bucket in buckets:
        at = 0
        while at < len(bounds) and bucket.upper > bounds[at] * (1 + 1e-12):
            at += 1
        counts[at] += bucket.count
    below, running = [], 0
    for count in counts[:-1]:
        running += count
        below.append(running)
    return below, running + counts[-1]


def by_octaves(buckets: Sequence[HistogramBucket], most: int = 24) -> list[HistogramBucket]:
    """The same counts in ranges that each double (or, to be `most` at most, quadruple...), from
    the shortest to the longest that is counted, empty ones between them included: for a chart."""
    counted = [bucket for bucket in buckets if bucket.count]
    if not counted:
        return []
    # Bounds are whole nanoseconds: 2**first is at most the lowest, 2**last at least the highest.
    first = round(counted[0].lower * 1e9).bit_length() - 1
    last = (round(counted[-1].upper * 1e9) - 1).bit_length()
    step = -(-max(1, last - first) // most)
    bounds = [2.0**power / 1e9 for power in range(first, last + step, step)]
    below, _ = fold_durations(counted, bounds)
    return [
        HistogramBucket(bounds[i - 1], bounds[i], below[i] - below[i - 1])
        for i in range(1, len(bounds))
    ]


# ------------------------------------------------------------------------ reading on and on
def look(name: str) -> Cache:
    """An observer's handle for reading figures: as `observe`, but the codec of the cache may be an
    object of the application's, which this process does not have. Raises as `observe`."""
    return observe(name, decode=False)


class Follower:
    """Reads a cache by name again and again, whatever becomes of it.

    Holds an observer's handle (`look`), which counts as no client and unlinks
    nothing. Where the cache was unlinked, closed or replaced, the next reading attaches anew.
    Not safe to use from several threads at once.
    """

    def __init__(self, name: str, opener: Callable[[str], Cache] = look) -> None:
        self.name = name
        self._opener = opener
        self._cache: Cache | None = None

    def read(self) -> Reading:
        """The next reading.

        Raises `CacheNotFound` where there is no such cache now (the next call looks again), and
        what opening it raises otherwise.
        """
        if self._cache is not None:
            try:
                return read(self._cache)
            except (errors.CacheNotFound, errors.CacheClosed):
                self.close()
        self._cache = self._opener(self.name)
        try:
            return read(self._cache)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the cache. Idempotent; a later `read` attaches again."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
