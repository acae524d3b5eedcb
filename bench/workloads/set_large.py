"""Sets of 64 KiB values into a full log, beside py-lmdb puts with sync off."""

from __future__ import annotations

import contextlib

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import lmdb_open, raw_keys
from bench.workloads._sets import PUT, SAMPLE_NS, SET, FullCache, wrapping

SIZE = 64 << 10
TARGET, PROTOTYPE = 1.5, 2.4


def run(options: Options) -> Result:
    """Time sets of hot sets that fit the CPU's caches and of some that do not."""
    result = Result(
        "set_large",
        "set, 64 KiB",
        "Values of 64 KiB.  Full: a cache filled with other keys until it evicts, then 20 or 1,000 "
        "keys overwritten over and over, timed after they have filled the logs twice (in 64 MiB "
        "1,000 of them do not fit).  Wrapping: 20 keys alone in a cache of 32 MiB, its logs full "
        "of their old versions.  lmdb: as for 100 B, holding as many entries.",
        "Writers on other CPUs; what the writes cost later reads.",
    )
    with contextlib.ExitStack() as stack:
        fulls = [
            FullCache(stack, "20 keys, full 64 MiB", 64 << 20, SIZE, 20),
            FullCache(stack, "1,000 keys, full 64 MiB", 64 << 20, SIZE, 1_000),
            FullCache(stack, "1,000 keys, full 256 MiB", 256 << 20, SIZE, 1_000),
        ]
        value, few = fulls[0].value, fulls[0].keys
        small = wrapping(stack, 32 << 20, value, few)
        require(small.stats().evictions == 0, "overwriting evicts nothing while it all fits")
        small_lmdb = stack.enter_context(lmdb_open(64 << 20))
        contestants = [contestant for full in fulls for contestant in full.contestants()]
        contestants += [
            Contestant(
                "shmcache set, wrapping",
                SET,
                {"set_": small.set, "value": value},
                [few],
                sample_ns=SAMPLE_NS,
            ),
            Contestant(
                "lmdb, small",
                PUT,
                {"begin": small_lmdb.begin, "value": value},
                [raw_keys(few)],
                sample_ns=SAMPLE_NS,
            ),
            Contestant(
                "dict set, copied",
                "store[key] = copy(value)",
                {"store": {}, "value": value, "copy": bytearray},
                [few],
                sample_ns=SAMPLE_NS,
            ),
        ]
        rounds = interleave(contestants, options)
        for full in fulls:
            full.check()
        require(small.stats().evictions == 0, "the wrapping log evicted nothing")
        require(all(small.get(key) == value for key in few), "every key is there")
        result.details = {full.label: full.details() for full in fulls}
    result.measurements = rounds.measurements
    for full in fulls:
        result.figures.append(
            rounds.ratio(
                f"set 64 KiB / lmdb put ({full.label})",
                f"shmcache set, {full.label}",
                f"lmdb, {full.label}",
                target=TARGET,
                prototype=PROTOTYPE,
            )
        )
    result.figures.append(
        rounds.ratio(
            "set 64 KiB / lmdb put (20 keys, wrapping 32 MiB)",
            "shmcache set, wrapping",
            "lmdb, small",
            target=TARGET,
            prototype=PROTOTYPE,
        )
    )
    return result
