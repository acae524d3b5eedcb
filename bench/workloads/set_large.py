"""Sets of 64 KiB values into a full log, beside py-lmdb puts with sync off."""

from __future__ import annotations

import contextlib

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, lmdb_open, raw_keys, shmcache_open
from bench.workloads._sets import PUT, FullCache, check_present

SIZE = 64 << 10
SAMPLE_NS = 4_000_000


def run(options: Options) -> Result:
    """Time sets that sweep the whole log, with a hot set that fits the CPU's caches and not."""
    result = Result(
        "set_large",
        "set, 64 KiB",
        "Values of 64 KiB.  Full: a cache of 64 MiB filled with other keys until it evicts, then "
        "20 or 1,000 keys are overwritten over and over (1,000 of them do not fit).  Wrapping: 20 "
        "keys alone in a cache of 32 MiB, whose log is full of their old versions; and in one of "
        "4 MiB.  lmdb as for 100 B.",
        "Writers on other CPUs; what the writes cost later reads.",
    )
    few = hot_keys(20)
    many = hot_keys(1_000)
    with contextlib.ExitStack() as stack:
        full = FullCache(stack, 64 << 20, SIZE)
        value = full.value
        contestants = [
            *full.contestants("full, 20 keys", few, SAMPLE_NS),
            *full.contestants("full, 1,000 keys", many, SAMPLE_NS),
        ]
        wrapping = {}
        for label, size in (("32 MiB", 32 << 20), ("4 MiB", 4 << 20)):
            cache = stack.enter_context(shmcache_open(size=size, avg_entry_size=SIZE, shards=1))
            written = 0
            while written < 3 * cache.stats().bytes_total:
                for key in few:
                    cache.set(key, value)
                written += len(few) * SIZE
            if label == "32 MiB":
                require(cache.stats().evictions == 0, "overwriting evicts nothing while it fits")
            wrapping[label] = cache
            contestants.append(
                Contestant(
                    f"shmcache set, wrapping {label}, 20 keys",
                    "set_(key, value)",
                    {"set_": cache.set, "value": value},
                    [few],
                    sample_ns=SAMPLE_NS,
                )
            )
        small_lmdb = stack.enter_context(lmdb_open(64 << 20))
        contestants.append(
            Contestant(
                "lmdb, small, 20 keys",
                PUT,
                {"begin": small_lmdb.begin, "value": value},
                [raw_keys(few)],
                sample_ns=SAMPLE_NS,
            )
        )
        contestants.append(
            Contestant(
                "dict set, copied",
                "store[key] = copy(value)",
                {"store": {}, "value": value, "copy": bytearray},
                [few],
                sample_ns=SAMPLE_NS,
            )
        )
        rounds = interleave(contestants, options)
        check_present(full.cache, many, value)
        require(wrapping["32 MiB"].stats().evictions == 0, "the wrapping log evicted nothing")
        require(all(wrapping["32 MiB"].get(key) == value for key in few), "every key is there")
        result.details = {"full": full.details()}
    result.measurements = rounds.measurements
    for label in ("full, 20 keys", "full, 1,000 keys"):
        result.figures.append(
            rounds.ratio(
                f"set 64 KiB / lmdb put ({label})",
                f"shmcache set, {label}",
                f"lmdb, {label}",
                target=1.5,
                prototype=2.4,
            )
        )
    for label in wrapping:
        result.figures.append(
            rounds.ratio(
                f"set 64 KiB / lmdb put (wrapping {label}, 20 keys)",
                f"shmcache set, wrapping {label}, 20 keys",
                "lmdb, small, 20 keys",
                target=1.5 if label == "32 MiB" else None,
                prototype=2.4 if label == "32 MiB" else None,
            )
        )
    return result
