"""Hits of 64 KiB values, beside a dict whose values are copied, and py-lmdb."""

from __future__ import annotations

from bench.harness import Contestant, Figure, Measurement, Options, Result, interleave, require
from bench.peers import hot_keys, lmdb_open, raw_keys, shmcache_open, value_of

SIZE = 64 << 10
SETS = {"20 keys": 20, "500 keys": 500}


def run(options: Options) -> Result:
    """Time 64 KiB gets of a set that stays in the CPU's caches and of one that does not."""
    result = Result(
        "get_large",
        "get, hit, 64 KiB",
        "20 keys (1.3 MB in all) and 500 keys (33 MB) of 20 characters, values of 64 KiB.  The "
        "dict holds bytearrays, and a get of it is `bytes(get(key))`: one copy, as any cache that "
        "hands out bytes has to make.",
        "What the copy does to the caller's other data in the CPU's caches.",
    )
    for label, count in SETS.items():
        measurements, figures = _measure(label, count, options)
        result.measurements += measurements
        result.figures += figures
    return result


def _measure(label: str, count: int, options: Options) -> tuple[list[Measurement], list[Figure]]:
    keys = hot_keys(count)
    raw = raw_keys(keys)
    values = {key: bytearray(value_of(n, SIZE)) for n, key in enumerate(keys)}
    # Room for all of it twice: nothing may be evicted.
    room = max(32 << 20, 2 * count * SIZE)
    with shmcache_open(size=room, avg_entry_size=SIZE) as cache, lmdb_open(room) as environment:
        with environment.begin(write=True) as transaction:
            for key, name in zip(keys, raw, strict=True):
                cache.set(key, bytes(values[key]))
                transaction.put(name, values[key])
        for key in keys:
            require(cache.get(key) == values[key], "shmcache holds every pair")
        misses = cache.stats().misses
        batches = [keys]
        ours, copied, peer = (f"{name}, {label}" for name in ("shmcache get", "dict copy", "lmdb"))
        rounds = interleave(
            [
                Contestant(ours, "get(key)", {"get": cache.get}, batches),
                Contestant(copied, "bytes(get(key))", {"get": values.get, "bytes": bytes}, batches),
                Contestant(
                    peer,
                    "with begin() as t: t.get(key)",
                    {"begin": environment.begin},
                    [raw],
                ),
            ],
            options,
        )
        require(cache.stats().misses == misses, "every get of shmcache was a hit")
    target, prototype = (1.1, 0.92) if count == 20 else (None, None)
    figures = [
        rounds.ratio(
            f"get 64 KiB / dict and copy ({label})",
            ours,
            copied,
            target=target,
            prototype=prototype,
        ),
        rounds.ratio(f"get 64 KiB / lmdb get ({label})", ours, peer),
    ]
    return rounds.measurements, figures
