"""What a cache has counted: frozen pictures of the counters in its segment.

Place: level 4; reads counters through `_core`, knows no other way into the segment. Taking a
picture never waits for a shard: every number is whole, but they are not of one instant.

Counters of processes live in the client table and are never reset: a slot's next client adds on,
so totals outlive their processes. Counters of shards are written by whoever holds the shard.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from shmcache import _core
from shmcache.segment import Attachment

__all__ = ["ShardStats", "Stats", "WaitSummary", "collect"]


@dataclass(frozen=True, slots=True)
class WaitSummary:
    """How long callers waited for shards, of the waits that took a slice of the semaphore at
    least (shorter ones end in the spin, and are not timed).

    `buckets[i]` counts waits of less than 2**i microseconds and at least half of that; the last
    one takes everything longer. The percentiles are upper bounds of their bucket, in seconds;
    0.0 where nobody waited.
    """

    count: int
    mean: float
    p50: float
    p99: float
    max: float
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, buckets: tuple[int, ...], total_seconds: float) -> WaitSummary:
        """Summarise bucket counts and the sum of all waits (seconds)."""
        count = sum(buckets)
        if not count:
            return cls(0, 0.0, 0.0, 0.0, 0.0, buckets)

        def upper(rank: float) -> float:
            seen = 0
            for i, n in enumerate(buckets):
                seen += n
                if seen >= rank:
                    return 2.0**i / 1e6
            return 2.0 ** (len(buckets) - 1) / 1e6

        highest = max(i for i, n in enumerate(buckets) if n)
        return cls(
            count,
            total_seconds / count,
            upper(count * 0.50),
            upper(count * 0.99),
            2.0**highest / 1e6,
            buckets,
        )


@dataclass(frozen=True, slots=True)
class ShardStats:
    """The counters of one shard; bytes count whole entries with their headers."""

    index: int
    entries: int
    leases: int
    bytes_used: int
    bytes_total: int
    sets: int
    deletes: int
    evictions: int
    expirations: int
    recoveries: int
    lock_acquisitions: int
    lock_contended: int
    lock_wait_seconds: float
    lock_wait: WaitSummary
    moved_bytes: int
    """Bytes that were copied to make room; over `written_bytes`: the write amplification."""
    written_bytes: int
    ghost_hits: int
    """Keys stored again soon after their eviction: they enter the main log at once."""
    promotions: int
    worst_write_bytes: int
    """The most that a single write walked over to make room."""
    probe_limit: int
    """Buckets that a miss looks at; 1 until a bucket has overflowed."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A cache's counters over its lifetime, all processes together.

    `entries` counts what is stored, expired entries included until they are swept; `bytes_used`
    is live entries with their headers, `bytes_total` what the logs can hold. `clients` asks the
    kernel, so it follows a death at once; it leaves observers (`shmcache.observer`) out.
    `owner_pid` is the owner daemon's pid in its own namespace, or None. `uptime_seconds` counts
    from creation, suspended time left out.
    """

    entries: int
    bytes_used: int
    bytes_total: int
    hits: int
    misses: int
    hit_ratio: float
    sets: int
    deletes: int
    evictions: int
    expirations: int
    read_retries: int
    lock_acquisitions: int
    lock_contended: int
    lock_wait_seconds: float
    lock_wait: WaitSummary
    lock_timeouts: int
    try_attempts: int
    try_blocked: int
    recoveries: int
    store_failures: int
    clients: int
    owner_pid: int | None
    uptime_seconds: float
    shards: tuple[ShardStats, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)


def collect(handle: _core.Handle, attachment: Attachment) -> Stats:
    """Read every counter of the segment. Takes no lock. Cost: a pass over the client table
    (1,024 slots) and the shards' headers, and one system call a living client."""
    geometry = attachment.superblock.geometry
    per_shard = (geometry.main_units + geometry.probation_units) * _core.LAYOUT["SHM_UNIT"]
    shards = []
    for i in range(geometry.shard_count):
        raw = _core.shard_stats(handle, i)
        histogram: tuple[int, ...] = raw.pop("wait_histogram")
        waited = raw.pop("lock_wait_ns") / 1e9
        shards.append(
            ShardStats(
                index=i,
                bytes_total=per_shard,
                lock_wait_seconds=waited,
                lock_wait=WaitSummary.of(histogram, waited),
                **raw,
            )
        )
    totals = _core.client_totals(handle)
    looked = totals["hits"] + totals["misses"]
    waited = sum(s.lock_wait_seconds for s in shards)
    waits = tuple(
        sum(column) for column in zip(*(s.lock_wait.buckets for s in shards), strict=True)
    )

    def total(field: str) -> int:
        return sum(int(getattr(s, field)) for s in shards)

    return Stats(
        entries=total("entries"),
        bytes_used=total("bytes_used"),
        bytes_total=total("bytes_total"),
        hits=totals["hits"],
        misses=totals["misses"],
        hit_ratio=totals["hits"] / looked if looked else 0.0,
        sets=total("sets"),
        deletes=total("deletes"),
        evictions=total("evictions"),
        expirations=total("expirations"),
        read_retries=totals["read_retries"],
        lock_acquisitions=total("lock_acquisitions"),
        lock_contended=total("lock_contended"),
        lock_wait_seconds=waited,
        lock_wait=WaitSummary.of(waits, waited),
        lock_timeouts=totals["lock_timeouts"],
        try_attempts=totals["try_attempts"],
        try_blocked=totals["try_blocked"],
        recoveries=total("recoveries"),
        store_failures=totals["store_failures"],
        clients=attachment.live_clients(),
        owner_pid=attachment.owner_pid(),
        uptime_seconds=(time.monotonic_ns() - attachment.superblock.created_mono_ns) / 1e9,
        shards=tuple(shards),
    )
