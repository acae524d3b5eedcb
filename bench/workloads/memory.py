"""Bytes that an entry costs over its key and value, everything counted."""

from __future__ import annotations

import statistics
from typing import Any

from bench.harness import Figure, Options, Result, require
from bench.peers import fill, shmcache_open, value_of

KEY_BYTES = 20
AVERAGE = 256
"""The default of avg_entry_size: bytes of key and value together."""

SIZES = {"32 MiB": 32 << 20, "64 MiB": 64 << 20, "512 MiB": 512 << 20}


def run(options: Options) -> Result:
    """Fill caches with entries of the intended size and count what they take."""
    result = Result(
        "memory",
        "bytes per entry over key and value",
        f"Keys of {KEY_BYTES} characters and values that bring the entry to avg_entry_size "
        f"({AVERAGE} bytes, the default; spread evenly over 192 to 320), stored until the cache "
        "evicts.  Counted: the whole segment (superblock, client table, swap slots, rings, shard "
        "headers, index, entry headers, padding) but the bytes of the logs that hold no live "
        "entry, less keys and values, for each entry.  `marginal` leaves out what does not grow "
        "with the cache: all regions before the shards.",
        "The semaphores' files (4 KiB each) and the page tables of each process.",
    )
    sizes = {"32 MiB": SIZES["32 MiB"]} if options.quick else SIZES
    for label, size in sizes.items():
        with shmcache_open(size=size) as cache:
            result.figures += _overhead(cache, label, result.details)
    return result


def _overhead(cache: Any, label: str, details: dict[str, Any]) -> list[Figure]:
    lengths = [size - KEY_BYTES for size in range(192, 321)]
    require(statistics.mean(lengths) + KEY_BYTES == AVERAGE, "entries have the intended size")
    values = [value_of(length, length) for length in lengths]
    pairs = ((f"{n:0{KEY_BYTES}d}", values[n % len(values)]) for n in range(1 << 40))
    fill(cache, pairs)
    payload = entries = 0
    for key, value in cache.items():
        require(value == values[int(key) % len(values)], "every value is right")
        payload += len(key) + len(value)
        entries += 1
    stats = cache.stats()
    require(stats.entries == entries, "no entry is hidden")
    logs_free = stats.bytes_total - stats.bytes_used
    counted = cache.size - logs_free - payload
    in_log = stats.bytes_used - payload
    fixed = _before_shards(cache)
    details[label] = {
        "entries": entries,
        "payload_bytes": payload,
        "bytes_used": stats.bytes_used,
        "bytes_total": stats.bytes_total,
        "live_share_of_logs": round(stats.bytes_used / stats.bytes_total, 3),
        "header_and_padding_per_entry": round(in_log / entries, 1),
        "fixed_regions_bytes": fixed,
        "outside_logs_per_entry": round((cache.size - stats.bytes_total) / entries, 1),
    }
    figures = [
        Figure(
            f"bytes per entry over key and value, {label}",
            counted / entries,
            48.0,
            unit="B",
        )
    ]
    if fixed is not None:
        figures.append(Figure(f"marginal, {label}", (counted - fixed) / entries, unit="B"))
    return figures


def _before_shards(cache: Any) -> int | None:
    """Bytes of the regions that do not grow with the number of entries, where it can be told."""
    from shmcache import geometry

    defaults = {
        "policy": "evict", "slots": 16, "slot_capacity": 64 << 10, "cpu_count": 1,
        "avg_entry_size": AVERAGE,
    }  # fmt: skip
    try:
        planned = geometry.plan(size=cache.size, shards=cache.shards, **defaults)  # type: ignore[arg-type]
    except TypeError:
        return None
    return planned.shards_off
