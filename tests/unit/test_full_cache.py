"""A cache that is full, under either policy: who has to go, who is refused, and what stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shmcache import Cache, CacheFull


def test_keep_refuses_when_full_and_keeps_everything(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB", policy="keep")
    stored: dict[str, bytes] = {}
    with pytest.raises(CacheFull, match=cache.name):
        for number in range(1_000_000):
            cache[f"key {number}"] = value = bytes([number % 251]) * 500
            stored[f"key {number}"] = value
    assert dict(cache) == stored
    stats = cache.stats()
    assert stats.evictions == 0
    first = next(iter(stored))
    with pytest.raises(CacheFull):
        cache[first] = b"x" * min(cache.max_value_size, 100_000)
    assert cache[first] == stored[first]
    for key in list(stored)[::2]:
        del cache[key]
        del stored[key]
    for number in range(len(stored) // 2):
        cache[f"new {number}"] = value = bytes([number % 251]) * 500
        stored[f"new {number}"] = value
    assert dict(cache) == stored
    assert cache.verify() == []


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("entry_size", [100, 1000, 3000])
def test_keep_takes_four_fifths_of_its_bytes(
    open_cache: Callable[..., Cache], shards: int, entry_size: int
) -> None:
    cache = open_cache(size="4MiB", policy="keep", shards=shards, avg_entry_size=entry_size)
    refused = number = 0
    while refused < 20 * shards:  # the keys of one shard may be full before those of another
        number += 1
        try:
            cache[number] = bytes(entry_size)
        except CacheFull:
            refused += 1
    stats = cache.stats()
    assert stats.bytes_used >= 0.8 * stats.bytes_total
    assert cache.verify() == []


def test_keep_serves_writes_forever_just_below_its_limit(
    open_cache: Callable[..., Cache],
) -> None:
    """Overwriting and deleting must be able to go on at 79% live without ever being refused."""
    cache = open_cache(size="1MiB", policy="keep", shards=1)
    total = cache.stats().bytes_total
    number = 0
    while cache.stats().bytes_used < 0.79 * total:
        cache[number] = bytes(1000)
        number += 1
    for turn in range(5 * number):
        cache[turn * 7919 % number] = bytes([turn % 256]) * 1000
    assert len(cache) == number
    assert cache.verify() == []


@pytest.mark.parametrize("policy", ["evict", "keep"])
def test_a_hot_key_washes_nothing_out(open_cache: Callable[..., Cache], policy: str) -> None:
    """Overwriting one key for many laps of the log evicts nobody while the live bytes fit."""
    cache = open_cache(size="2MiB", shards=1, policy=policy)
    total = cache.stats().bytes_total
    stored: dict[str, bytes] = {}
    while cache.stats().bytes_used < 0.6 * total:
        key = f"cold {len(stored)}"
        stored[key] = cache[key] = key.encode() * 50
    for turn in range(10 * total // 1000):
        cache["hot"] = bytes([turn % 256]) * 1000
    for turn in range(3000):
        cache[f"short-lived {turn}"] = b"x" * 1000
        del cache[f"short-lived {turn}"]
    missing = [key for key, value in stored.items() if cache.get(key) != value]
    assert missing == []
    assert cache.stats().evictions == 0
    assert cache.verify() == []


def test_evict_makes_room_and_stays_right(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB")
    for number in range(20_000):
        cache[number] = number.to_bytes(4, "little") * 50
        assert cache[number] == number.to_bytes(4, "little") * 50
    stats = cache.stats()
    assert stats.evictions > 10_000
    assert stats.bytes_used > 0.5 * stats.bytes_total
    for number, value in cache.items():
        assert value == number.to_bytes(4, "little") * 50
    assert len(cache) == stats.entries == len(list(cache))
    assert cache.verify() == []


@pytest.mark.parametrize("size", [100, 3000, 20_000])
def test_what_fitted_fits_again_after_clear(open_cache: Callable[..., Cache], size: int) -> None:
    cache = open_cache(size="4MiB", shards=1, avg_entry_size=size)
    stored = 0
    while cache.stats().evictions == 0:
        cache[stored] = bytes(size)
        stored += 1
    for _ in range(3):
        for number in range(3 * stored):  # full several times over
            cache[-number] = bytes(size)
        cache.clear()
        evictions = cache.stats().evictions
        for number in range(stored - 1):
            cache[number] = bytes(size)
        assert cache.stats().evictions == evictions and len(cache) == stored - 1
    assert cache.verify() == []


def test_the_index_may_fill_up_before_the_log(open_cache: Callable[..., Cache]) -> None:
    """Entries much smaller than avg_entry_size: evict makes room, keep says that it is full."""
    keep = open_cache(size="1MiB", policy="keep", avg_entry_size=4096)
    stored = 0
    with pytest.raises(CacheFull):
        for stored in range(1_000_000):
            keep[stored] = b""
    assert sorted(keep) == list(range(stored))
    evict = open_cache(size="1MiB", avg_entry_size=4096)
    for number in range(20_000):
        evict[number] = b""
        assert number in evict
    assert evict.stats().evictions > 0
    assert keep.verify() == evict.verify() == []


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("policy", ["evict", "keep"])
def test_sizes_and_policies_hold_what_was_stored(
    open_cache: Callable[..., Cache], shards: int, policy: str
) -> None:
    cache = open_cache(size="4MiB", shards=shards, policy=policy)
    assert cache.shards == shards
    reference = {f"key-{number}": [number, str(number)] for number in range(2000)}
    cache.update(reference)
    assert cache == reference
    assert cache.verify() == []
