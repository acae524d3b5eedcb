"""Gets of 200,000 keys in random order: batched against single, beside dict."""

from __future__ import annotations

import random

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open, value_of

KEYS = 200_000
BATCH = 100
PER_SAMPLE = 20
SIZE = 100
"""Bytes of a value."""


def run(options: Options) -> Result:
    """Time single gets and get_many(100) of keys that no CPU cache holds."""
    result = Result(
        "cold",
        "get_many, 200,000 cold keys",
        f"{KEYS:,} keys of 20 characters, values of {SIZE} B, in random order; get_many in lists "
        f"of {BATCH}; a sample takes {BATCH * PER_SAMPLE:,} keys, and all keys pass before one "
        "comes again.  Key objects are as cold as the cache.  `dict of gets` makes by single gets "
        "the dict that get_many returns.",
        "A last-level cache that holds it all: 200,000 entries take about 45 MB with their keys.",
    )
    keys = hot_keys(KEYS)
    order = random.Random(options.seed)
    # A get loads the object of its key too: cold ones lie in memory in another order than read.
    shuffled = order.sample(keys, KEYS)
    per_sample = BATCH * PER_SAMPLE
    singles = [shuffled[at : at + per_sample] for at in range(0, KEYS, per_sample)]
    batched = [[chunk[at : at + BATCH] for at in range(0, per_sample, BATCH)] for chunk in singles]
    values = {key: value_of(number, SIZE) for number, key in enumerate(keys)}
    with shmcache_open(size=128 << 20, avg_entry_size=SIZE + 20) as cache:
        for at in range(0, KEYS, 10_000):
            cache.set_many({key: values[key] for key in keys[at : at + 10_000]})
        require(len(cache) == KEYS, "all keys fit")
        for batch in batched[0]:
            found = cache.get_many(batch)
            require(found == {key: values[key] for key in batch}, "get_many returns all of them")
        misses = cache.stats().misses
        rounds = interleave(
            [
                Contestant("shmcache get", "get(key)", {"get": cache.get}, singles, warm=False),
                Contestant(
                    "shmcache dict of gets",
                    "{k: get(k) for k in key}",
                    {"get": cache.get},
                    batched,
                    operations=BATCH,
                    warm=False,
                ),
                Contestant(
                    "shmcache get_many(100)",
                    "get_many(key)",
                    {"get_many": cache.get_many},
                    batched,
                    operations=BATCH,
                    warm=False,
                ),
                Contestant("shmcache key in", "key in c", {"c": cache}, singles, warm=False),
                Contestant("dict.get", "get(key)", {"get": values.get}, singles, warm=False),
            ],
            options,
        )
        require(cache.stats().misses == misses, "every get was a hit")
    result.measurements = rounds.measurements
    result.figures = [
        rounds.ratio(
            "get_many(100), cold / single gets",
            "shmcache get_many(100)",
            "shmcache get",
            target=0.6,
            prototype=0.51,
        ),
        rounds.ratio(
            "get_many(100), cold / dict of gets",
            "shmcache get_many(100)",
            "shmcache dict of gets",
        ),
        rounds.ratio("get, cold / dict.get, cold", "shmcache get", "dict.get", prototype=3.3),
    ]
    return result
