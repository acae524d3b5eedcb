"""Sets of 100-byte values into a full log, beside py-lmdb puts with sync off."""

from __future__ import annotations

import contextlib
import itertools

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import fill, lmdb_open, raw_keys, shmcache_open
from bench.workloads._sets import PUT, SAMPLE_NS, SET, FullCache, wrapping

SIZE = 100
TARGET, PROTOTYPE = 0.25, 0.16


def run(options: Options) -> Result:
    """Time sets in three states of a cache: full of live entries, of garbage, and evicting."""
    result = Result(
        "set_full",
        "set, 100 B",
        "Keys of 20 characters, values of 100 B.  Full: a cache of 64 MiB, filled with other keys "
        "until it evicts, then 1,000 or 20 keys overwritten over and over, timed after they have "
        "filled the logs twice.  New keys: each set inserts one and something else is evicted.  "
        "Wrapping: a cache of 1 MiB that holds nothing but the 1,000 keys, its logs full of their "
        "old versions.  lmdb: a write transaction for each put, sync off, in /dev/shm, holding "
        "as many entries; `writemap` is lmdb's faster, less guarded form.",
        "Writers on other CPUs; entries that expire; what the writes cost later reads.",
    )
    with contextlib.ExitStack() as stack:
        thousand = FullCache(stack, "full, 1,000 keys", 64 << 20, SIZE, 1_000)
        twenty = FullCache(stack, "full, 20 keys", 64 << 20, SIZE, 20)
        value, hot = thousand.value, thousand.keys
        small = wrapping(stack, 1 << 20, value, hot)
        require(small.stats().evictions == 0, "overwriting evicts nothing while it all fits")
        small_lmdb = stack.enter_context(lmdb_open(16 << 20))
        evicting = stack.enter_context(shmcache_open(size=64 << 20, avg_entry_size=SIZE + 20))
        new_keys = (f"new:entry:{number:010d}" for number in itertools.count())
        fill(evicting, ((key, value) for key in new_keys))
        fresh = [[next(new_keys) for _ in range(4_000)] for _ in range(2 * options.repeats + 60)]
        evicted = evicting.stats().evictions
        contestants = [
            *thousand.contestants(),
            *twenty.contestants(),
            Contestant(
                "shmcache set, new keys",
                SET,
                {"set_": evicting.set, "value": value},
                fresh,
                warm=False,
            ),
            Contestant(
                "shmcache set, wrapping",
                SET,
                {"set_": small.set, "value": value},
                [hot],
                sample_ns=SAMPLE_NS,
            ),
            Contestant(
                "lmdb, small",
                PUT,
                {"begin": small_lmdb.begin, "value": value},
                [raw_keys(hot)],
                sample_ns=SAMPLE_NS,
            ),
            Contestant(
                "dict set",
                "store[key] = value",
                {"store": dict.fromkeys(hot), "value": value},
                [hot],
            ),
        ]
        rounds = interleave(contestants, options)
        thousand.check()
        twenty.check()
        require(evicting.stats().evictions > evicted, "new keys evict others")
        require(small.stats().evictions == 0, "overwriting went on evicting nothing")
        require(all(small.get(key) == value for key in hot), "the small cache holds every key")
        result.details = {full.label: full.details() for full in (thousand, twenty)}
    result.measurements = rounds.measurements
    for full in (thousand, twenty):
        for peer in ("lmdb", "lmdb writemap"):
            targeted = peer == "lmdb"
            result.figures.append(
                rounds.ratio(
                    f"set 100 B / {peer} put ({full.label})",
                    f"shmcache set, {full.label}",
                    f"{peer}, {full.label}",
                    target=TARGET if targeted else None,
                    prototype=PROTOTYPE if targeted else None,
                )
            )
    result.figures += [
        rounds.ratio(
            "set 100 B / lmdb put (wrapping, 1,000 keys)",
            "shmcache set, wrapping",
            "lmdb, small",
            target=TARGET,
            prototype=PROTOTYPE,
        ),
        rounds.ratio(
            "set 100 B, new keys, evicting / lmdb put (overwriting)",
            "shmcache set, new keys",
            f"lmdb, {thousand.label}",
        ),
    ]
    return result
