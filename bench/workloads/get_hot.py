"""Hits of 100-byte values on a hot set, beside dict, lru_cache, py-lmdb and warp_cache."""

from __future__ import annotations

import contextlib
import functools

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, lmdb_open, raw_keys, shmcache_open, value_of, warp_open

SIZE = 100


def run(options: Options) -> Result:
    """Time gets that hit; every contestant holds the same 1,000 pairs."""
    result = Result(
        "get_hot",
        "get, hit, 100 B, hot",
        "1,000 keys (str, 20 characters; bytes for lmdb), values of 100 B as bytes, read in the "
        "order of insertion, over and over; keys are the same objects that were stored, with "
        "their hashes cached.  `get` is a bound method in a local variable, but where it says "
        "`cache.get`.  lmdb: a read transaction for each get.  warp_cache and lru_cache: call of "
        "the decorated function.",
        "Keys made anew for each call (a str then hashes itself first, in dict too); keys "
        "compared by content in dict and lru_cache (theirs are found by identity).",
    )
    keys = hot_keys()
    raw = raw_keys(keys)
    values = {key: value_of(number, SIZE) for number, key in enumerate(keys)}
    by_str, by_bytes = [keys], [raw]
    calls = 0

    def load(key: str) -> bytes:
        nonlocal calls
        calls += 1
        return values[key]

    remembered = functools.lru_cache(maxsize=4 * len(keys))(load)
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(shmcache_open())
        environment = stack.enter_context(lmdb_open(64 << 20))
        for key in keys:
            cache.set(key, values[key])
            remembered(key)
        with environment.begin(write=True) as transaction:
            for key, name in zip(keys, raw, strict=True):
                transaction.put(name, values[key])
        contestants = [
            Contestant("shmcache get", "get(key)", {"get": cache.get}, by_str),
            Contestant("shmcache cache.get", "cache.get(key)", {"cache": cache}, by_str),
            Contestant("shmcache cache[key]", "cache[key]", {"cache": cache}, by_str),
            Contestant("shmcache key in cache", "key in cache", {"cache": cache}, by_str),
            Contestant("dict.get", "get(key)", {"get": values.get}, by_str),
            Contestant("lru_cache", "f(key)", {"f": remembered}, by_str),
            Contestant(
                "lmdb", "with begin() as t: t.get(key)", {"begin": environment.begin}, by_bytes
            ),
            Contestant("lmdb, no with", "begin().get(key)", {"begin": environment.begin}, by_bytes),
        ]
        try:
            warp = stack.enter_context(warp_open(load, 4 * len(keys), 1_024))
        except ImportError as error:
            result.skipped.append(f"warp_cache: {error}")
        else:
            for key in keys:
                require(warp(key) == values[key], "warp_cache returns the value")
            contestants.append(Contestant("warp_cache shared", "f(key)", {"f": warp}, by_str))

        for key, name in zip(keys, raw, strict=True):
            require(cache.get(key) == values[key], "shmcache holds every pair")
            require(remembered(key) == values[key], "lru_cache holds every pair")
            with environment.begin() as transaction:
                require(transaction.get(name) == values[key], "lmdb holds every pair")
        misses, loads = cache.stats().misses, calls
        rounds = interleave(contestants, options)
        require(cache.stats().misses == misses, "every get of shmcache was a hit")
        require(calls == loads, "every call of lru_cache and warp_cache was a hit")

    result.measurements = rounds.measurements
    get = "shmcache get"
    result.figures = [
        rounds.ratio("get 100 B / dict.get", get, "dict.get", target=3.0, prototype=2.4),
        rounds.ratio("get 100 B / lru_cache hit", get, "lru_cache", target=1.25, prototype=1.04),
        rounds.ratio("get 100 B / lmdb get", get, "lmdb", target=0.15, prototype=0.11),
        rounds.ratio("get 100 B / lmdb get, no with", get, "lmdb, no with"),
        rounds.ratio("cache.get(key) / get(key)", "shmcache cache.get", get),
    ]
    if not result.skipped:
        result.figures.insert(
            4, rounds.ratio("get 100 B / warp_cache shared", get, "warp_cache shared", target=0.5)
        )
    return result
