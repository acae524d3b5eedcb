"""A reading of a cache with the longest names and the largest numbers, for tests of layouts."""

from __future__ import annotations

import dataclasses

from shmcache import HistogramBucket, LatencySummary, WaitSummary
from shmcache.metrics import Reading, RingReading

HUGE = 987_654_321_987


def crowded(reading: Reading, *, shards: int = 1024, rings: int = 18) -> Reading:
    """The reading as a cache would give it that fills every column: a name of 64 characters,
    counts past 10**11, `shards` shards and `rings` latency rings with names of 63."""
    counts = {
        field.name: HUGE
        for field in dataclasses.fields(reading.stats)
        if field.type in ("int", int)
    }
    waits = WaitSummary.of((7,) * 16, 12_345.678)
    one = reading.stats.shards[0]
    shard_counts = {
        field.name: HUGE // 1024 for field in dataclasses.fields(one) if field.type in ("int", int)
    }
    all_shards = tuple(
        dataclasses.replace(one, **{**shard_counts, "index": index, "lock_wait_seconds": 123.4})
        for index in range(shards)
    )
    stats = dataclasses.replace(
        reading.stats,
        **{**counts, "clients": 1024, "bytes_used": HUGE, "bytes_total": HUGE + 1},
        owner_pid=4_194_303,
        hit_ratio=0.99999,
        uptime_seconds=1e8,
        lock_wait=waits,
        lock_wait_seconds=12_345.678,
        shards=all_shards,
    )
    summary = LatencySummary(HUGE, 1_234_567.8, 0.987, 0.111, 0.222, 0.333, 0.444, 123.456, 1.0)
    histogram = tuple(
        HistogramBucket(2**power / 1e9, 2 ** (power + 1) / 1e9, HUGE // (power + 1))
        for power in range(40)
    )
    names = ("shmcache.get", "shmcache.set", *(f"ring-{n}-".ljust(63, "x") for n in range(rings)))
    return dataclasses.replace(
        reading,
        name="n" * 64,
        user="a-user-with-a-long-name",
        stats=stats,
        latencies=tuple(RingReading(name, 4096, summary, histogram) for name in names[:rings]),
    )
