"""Sets of 100-byte values into a full log, beside py-lmdb puts with sync off."""

from __future__ import annotations

import contextlib
import itertools

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, lmdb_open, raw_keys, shmcache_open, value_of
from bench.workloads._sets import PUT, FullCache, check_present

SIZE = 100
SAMPLE_NS = 4_000_000
"""Longer than for gets, so that a sample holds its share of the dearer steps of a sweep."""


def run(options: Options) -> Result:
    """Time sets in three states of a cache: full of live entries, of garbage, and filling."""
    result = Result(
        "set_full",
        "set, 100 B",
        "Keys of 20 characters, values of 100 B.  Full: a cache of 64 MiB filled with other keys "
        "until it evicts; then 1,000 or 20 keys are overwritten over and over, or new keys are "
        "inserted.  Wrapping: a cache of 1 MiB that holds nothing but the 1,000 keys, whose log "
        "is full of their old versions.  lmdb: a write transaction for each put, sync off, in "
        "/dev/shm, holding as many entries; `writemap` is lmdb's faster, less guarded form.",
        "Writers on other CPUs; entries that expire; what the writes cost later reads.",
    )
    new_keys = (f"new:entry:{number:010d}" for number in itertools.count())
    with contextlib.ExitStack() as stack:
        full = FullCache(stack, 64 << 20, SIZE)
        hot = hot_keys()
        few = hot[:20]
        small = stack.enter_context(shmcache_open(size=1 << 20, avg_entry_size=SIZE + 20))
        value = full.value
        written = 0
        while written * (SIZE + 40) < 3 * small.stats().bytes_total:
            for key in hot:
                small.set(key, value)
            written += len(hot)
        require(small.stats().evictions == 0, "overwriting evicts nothing while it all fits")
        small_lmdb = stack.enter_context(lmdb_open(16 << 20))
        fresh = [[next(new_keys) for _ in range(4_000)] for _ in range(2 * options.repeats + 60)]
        store: dict[str, bytes] = dict.fromkeys(hot, value)
        contestants = [
            *full.contestants("full, 1,000 keys", hot, SAMPLE_NS),
            *full.contestants("full, 20 keys", few, SAMPLE_NS),
            Contestant(
                "shmcache set, full, new keys",
                "set_(key, value)",
                {"set_": full.cache.set, "value": value},
                fresh,
                warm=False,
            ),
            Contestant(
                "shmcache set, wrapping, 1,000 keys",
                "set_(key, value)",
                {"set_": small.set, "value": value},
                [hot],
                sample_ns=SAMPLE_NS,
            ),
            Contestant(
                "lmdb, small, 1,000 keys",
                PUT,
                {"begin": small_lmdb.begin, "value": value},
                [raw_keys(hot)],
                sample_ns=SAMPLE_NS,
            ),
            Contestant("dict set", "store[key] = value", {"store": store, "value": value}, [hot]),
        ]
        evicted = full.cache.stats().evictions
        rounds = interleave(contestants, options)
        require(full.cache.stats().evictions > evicted, "the full cache went on evicting")
        check_present(full.cache, hot, value)
        require(all(small.get(key) == value for key in hot), "the small cache holds every key")
        require(value_of(7, SIZE) == value, "the value is the one that was written")
        result.details = {"full": full.details(), "wrapping": small.stats().evictions}
    result.measurements = rounds.measurements
    thousand, twenty = "full, 1,000 keys", "full, 20 keys"
    result.figures = [
        rounds.ratio(
            "set 100 B full / lmdb put (1,000 keys)",
            f"shmcache set, {thousand}",
            f"lmdb, {thousand}",
            target=0.25,
            prototype=0.16,
        ),
        rounds.ratio(
            "set 100 B full / lmdb put (20 keys)",
            f"shmcache set, {twenty}",
            f"lmdb, {twenty}",
            target=0.25,
            prototype=0.16,
        ),
        rounds.ratio(
            "set 100 B wrapping / lmdb put (1,000 keys)",
            "shmcache set, wrapping, 1,000 keys",
            "lmdb, small, 1,000 keys",
            target=0.25,
            prototype=0.16,
        ),
        rounds.ratio(
            "set 100 B, new keys / lmdb overwrite",
            "shmcache set, full, new keys",
            f"lmdb, {thousand}",
        ),
        rounds.ratio(
            "set 100 B full / lmdb writemap (1,000 keys)",
            f"shmcache set, {thousand}",
            f"lmdb writemap, {thousand}",
        ),
    ]
    return result
