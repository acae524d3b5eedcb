"""Statistics and verify(): every number means what api.md "Statistics" says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable

import pytest
from support.forks import in_child
from support.processes import Channel, Worker, poll_until
from support.segments import field, mapped, shard_offset

from shmcache import Cache, ShardStats, Stats, _core

FIELDS = (
    *("entries", "bytes_used", "bytes_total", "hits", "misses", "hit_ratio", "sets", "deletes"),
    *("evictions", "expirations", "read_retries", "lock_acquisitions", "lock_contended"),
    *("lock_wait_seconds", "lock_wait", "try_attempts", "try_blocked", "recoveries", "clients"),
    *("owner_pid", "uptime_seconds", "shards", "store_failures"),
)


def test_has_every_documented_field_and_is_frozen(cache: Cache) -> None:
    stats = cache.stats()
    assert isinstance(stats, Stats)
    for name in FIELDS:
        assert hasattr(stats, name), name
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.hits = 1  # type: ignore[misc]
    assert set(FIELDS) <= stats.as_dict().keys()
    json.dumps(stats.as_dict())


def test_of_an_empty_cache(cache: Cache) -> None:
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.sets, stats.deletes) == (0,) * 5
    assert (stats.bytes_used, stats.evictions, stats.expirations, stats.recoveries) == (0,) * 4
    assert stats.hit_ratio == 0.0
    assert stats.clients == 1
    assert stats.owner_pid is None
    assert 0 < stats.bytes_total <= cache.size
    assert stats.store_failures == 0


def test_shards_add_up(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(shards=4)
    for number in range(1000):
        cache[number] = bytes(number % 50)
    for number in range(500):
        del cache[number]
    stats = cache.stats()
    assert len(stats.shards) == 4
    assert all(isinstance(shard, ShardStats) for shard in stats.shards)
    for name in ("entries", "bytes_used", "bytes_total", "sets", "deletes", "lock_acquisitions"):
        assert sum(getattr(shard, name) for shard in stats.shards) == getattr(stats, name), name
    assert all(shard.entries > 0 for shard in stats.shards)


def test_hits_and_misses(cache: Cache) -> None:
    cache["k"] = 1
    for _ in range(3):
        cache.get("k")
    cache.get("absent")
    with pytest.raises(KeyError):
        cache["absent"]
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (3, 2)
    assert stats.hit_ratio == pytest.approx(0.6)


def test_sets_deletes_entries_and_bytes(cache: Cache) -> None:
    cache["k"] = bytes(1000)
    one = cache.stats()
    assert (one.sets, one.entries) == (1, 1)
    assert 1000 < one.bytes_used <= 1000 + 48
    cache["k"] = bytes(1000)
    assert cache.stats().bytes_used == one.bytes_used
    assert cache.stats().sets == 2
    cache["l"] = bytes(1000)
    assert cache.stats().bytes_used == 2 * one.bytes_used
    cache.delete("k")
    cache.pop("l")
    cache.delete("absent")
    stats = cache.stats()
    assert (stats.deletes, stats.entries, stats.bytes_used) == (2, 0, 0)


def test_memory_per_entry_is_at_most_48_bytes_over_key_and_value(
    open_cache: Callable[..., Cache],
) -> None:
    """At the intended entry size, index included; garbage and free space apart."""
    cache = open_cache(size="16MiB", avg_entry_size=256, policy="keep")
    for number in range(10_000):
        cache[f"{number:020}"] = bytes(236)
    stats = cache.stats()
    with mapped(cache.name) as data:
        index_bytes = field(data, "bucket_count", "I") * 64 * cache.shards
    entry_bytes = stats.bytes_used / 10_000
    index_bytes_per_entry = index_bytes * entry_bytes / stats.bytes_total
    assert entry_bytes - 256 + index_bytes_per_entry <= 48


def test_try_attempts_count_successes_and_misses(cache: Cache) -> None:
    before = cache.stats()
    cache.try_set("k", 1)
    cache.try_add("k", 1)
    cache.try_delete("absent")
    cache.try_pop("absent", None)
    cache.try_incr("n")
    after = cache.stats()
    assert after.try_attempts - before.try_attempts == 5
    assert after.try_blocked == before.try_blocked


def test_uptime_is_of_the_segment(open_cache: Callable[..., Cache], cache_name: str) -> None:
    before = time.monotonic()
    first = open_cache(cache_name, size="1MiB")
    made = time.monotonic()
    poll_until(lambda: first.stats().uptime_seconds > 0.05, what="time passes")
    second = open_cache(cache_name)
    earliest = time.monotonic() - made
    uptime = second.stats().uptime_seconds
    assert earliest - 0.01 <= uptime <= time.monotonic() - before + 0.01


def use(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        for _ in range(10):
            cache.get("k")
            cache.get("absent")
        channel.sync()


@pytest.mark.parametrize("ending", ["normal", "killed"])
def test_counts_of_ended_processes_stay(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], ending: str
) -> None:
    cache = open_cache()
    cache["k"] = 1
    for round_ in range(1, 4):
        workers = [start(use, cache.name) for _ in range(2)]
        for worker in workers:
            assert worker.recv() == "ready"
        assert cache.stats().clients == 3
        for worker in workers:
            if ending == "killed":
                worker.kill()
            else:
                worker.send("go")
                worker.result()
        poll_until(lambda: cache.stats().clients == 1, 5, what="clients follow a death within 5 s")
        stats = cache.stats()
        assert (stats.hits, stats.misses) == (20 * round_, 20 * round_)


def test_handles_of_one_process_are_one_client(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    open_cache(cache_name, size="1MiB")
    assert open_cache(cache_name).stats().clients == 1


def test_verify_finds_nothing_in_a_sound_cache(open_cache: Callable[..., Cache]) -> None:
    for policy in ("evict", "keep"):
        cache = open_cache(policy=policy)
        assert cache.verify() == []
        cache.update({number: bytes(number) for number in range(1000)})
        assert cache.verify() == []


def test_verify_finds_what_is_wrong(open_cache: Callable[..., Cache]) -> None:
    """A count that is off by one is a finding that names its shard."""
    cache = open_cache(shards=2)
    cache["k"] = 1
    with mapped(cache.name) as data:
        at = shard_offset(data, 1) + _core.LAYOUT["shm_shard.counts"]
        original = data[at]
        data[at] = original + 1
        findings = cache.verify()
        data[at] = original
    assert findings
    assert "1" in str(findings[0])
    assert cache.verify() == []


def test_stats_need_no_descriptor(cache: Cache) -> None:
    def without_descriptors() -> bool:
        soft = max(map(int, os.listdir("/proc/self/fd"))) + 2
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        cache["k"] = 1
        with contextlib.suppress(OSError):
            while True:
                os.open("/dev/null", os.O_RDONLY)
        return cache.stats().clients >= 1 and cache["k"] == 1

    assert in_child(os.fork, without_descriptors)
