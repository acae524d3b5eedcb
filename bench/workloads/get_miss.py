"""Misses, beside dict and py-lmdb."""

from __future__ import annotations

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, lmdb_open, raw_keys, shmcache_open, value_of

SIZE = 100


def run(options: Options) -> Result:
    """Time gets of 1,000 absent keys in caches that hold 1,000 others."""
    result = Result(
        "get_miss",
        "get, miss",
        "1,000 absent keys of 20 characters, over and over, where 1,000 others of the same length "
        "are present.",
        "Misses in a full index, where tags collide more often.",
    )
    every = hot_keys(2_000)
    present, absent = every[:1_000], every[1_000:]
    values = {key: value_of(number, SIZE) for number, key in enumerate(present)}
    with shmcache_open() as cache, lmdb_open(64 << 20) as environment:
        for key in present:
            cache.set(key, values[key])
        with environment.begin(write=True) as transaction:
            for key in present:
                transaction.put(key.encode(), values[key])
        for key in absent:
            require(cache.get(key) is None and key not in values, "every key is absent")
        batches = [absent]
        hits = cache.stats().hits
        rounds = interleave(
            [
                Contestant("shmcache get", "get(key)", {"get": cache.get}, batches),
                Contestant("shmcache key in cache", "key in cache", {"cache": cache}, batches),
                Contestant("dict.get", "get(key)", {"get": values.get}, batches),
                Contestant(
                    "lmdb",
                    "with begin() as t: t.get(key)",
                    {"begin": environment.begin},
                    [raw_keys(absent)],
                ),
            ],
            options,
        )
        require(cache.stats().hits == hits, "every get of shmcache was a miss")
    result.measurements = rounds.measurements
    result.figures = [
        rounds.ratio("miss / dict miss", "shmcache get", "dict.get", target=2.0, prototype=1.8),
        rounds.ratio("miss / lmdb miss", "shmcache get", "lmdb"),
    ]
    return result
