"""What a get costs in a cache of 1,000 to 10,000,000 entries."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

from bench.adapters import Absent, Peer
from bench.adapters.inside import Dict
from bench.adapters.servers import Redis
from bench.adapters.shared import Shmcache, fitting
from bench.adapters.stores import Lmdb, Sqlite
from bench.harness import Contestant, Options, Result, Table, interleave, require
from bench.peers import SHM, value_of
from bench.report import span

COUNTS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PEERS: tuple[tuple[type[Peer], int], ...] = (
    (Shmcache, 10_000_000),
    (Dict, 1_000_000),
    (Lmdb, 1_000_000),
    (Sqlite, 1_000_000),
    (Redis, 1_000_000),
)
"""Systems, and the most entries that each is given: filling takes minutes beyond."""

SIZE = 100
READ = 100_000
"""Keys, drawn at random from all, that samples take their turns over."""

PER_SAMPLE = 2_000
NEEDS = 4
"""Bytes of free memory for each byte of keys and values, before the largest count is tried."""


def run(options: Options) -> Result:
    """Time gets of random keys; the systems take turns at each count."""
    rounds = 5 if options.quick else 21
    counts = COUNTS[:3] if options.quick else COUNTS
    result = Result(
        "growth",
        "a get, by the number of entries",
        f"Keys of 20 characters, values of {SIZE} B; {READ:,} keys (or all) drawn at random are "
        f"read in turns of {PER_SAMPLE:,}, so that from about 100,000 entries on neither entry nor "
        f"index is in a CPU cache; medians of {rounds} samples; shmcache has `size` of three times "
        "keys and values.  `cold` is what the memory costs, `hot` 1,000 keys over and over among "
        "all the others: what the number of entries itself costs.",
        "Huge pages (the segment has pages of 4 KiB unless the host maps shared memory in larger "
        "ones), more than one memory node.",
    )
    for count in counts:
        needed = NEEDS * count * (SIZE + 20)
        if count == COUNTS[-1] and not options.large and _available() < 2 * needed:
            result.skipped.append(
                f"{count:,} entries: {_available() >> 20:,} MiB of memory and /dev/shm are free, "
                f"{2 * needed >> 20:,} wanted; --large tries all the same"
            )
            continue
        _measure(count, rounds, options.seed, result)
    figures = result.data["nanoseconds"]
    rows = [
        [name] + [span(row.get(str(count))) for count in counts] for name, row in figures.items()
    ]
    columns = ["entries", *(f"{count:,}" for count in counts)]
    result.tables = [Table("A get, by the number of entries", columns, rows)]
    return result


def _measure(count: int, rounds: int, seed: int, result: Result) -> None:
    numbers = random.Random(seed).sample(range(count), min(READ, count))
    keys = [_key(n) for n in numbers]
    cold = [keys[at : at + PER_SAMPLE] for at in range(0, len(keys), PER_SAMPLE)]
    if len(cold) > 1 and len(cold[-1]) < PER_SAMPLE:
        cold.pop()
    hot = [keys[:1_000]]
    peers: list[Peer] = []
    contestants = []
    seconds = result.data.setdefault("fill_seconds", {})
    try:
        for kind, most in PEERS:
            if count > most:
                continue
            peer = fitting(kind, avg_entry_size=SIZE + 20)()
            try:
                peer.open(count * (SIZE + 20) * 3 // 2)
            except Absent as absent:
                reason = f"{kind.name}: {absent}"
                if reason not in result.skipped:
                    result.skipped.append(reason)
                continue
            peers.append(peer)
            began = time.monotonic()
            for pairs in _pairs(count):
                peer.fill(pairs)
            seconds.setdefault(peer.name, {})[str(count)] = round(time.monotonic() - began, 2)
            assert peer.get is not None
            for n, key in list(zip(numbers, keys, strict=True))[:1_000]:
                require(peer.get(key) == value_of(n, SIZE), f"{peer.name} holds every pair")
            for label, batches in (("cold", cold), ("hot", hot)):
                if label == "hot" and peer.name not in {"shmcache", "dict"}:
                    continue
                contestants.append(
                    Contestant(
                        f"{peer.name}, {label}",
                        "get(key)",
                        {"get": peer.get},
                        [batch[:200] for batch in batches] if peer.waits else batches,
                        warm=label == "hot",
                        waits=peer.waits,
                    )
                )
        timed = interleave(contestants, Options(repeats=rounds))
        for contestant in contestants:
            figures = result.data.setdefault("nanoseconds", {}).setdefault(contestant.name, {})
            figures[str(count)] = timed[contestant.name].median_ns
        stats = next(p.cache.stats() for p in peers if p.name == "shmcache")  # type: ignore[attr-defined]
        require(stats.entries == count, "all entries fit")
        require(stats.misses == 0 and stats.evictions == 0, "every get was a hit")
    finally:
        for peer in peers:
            peer.close()


def _key(number: int) -> str:
    return f"user:profile:{number:07d}"


def _pairs(count: int, each: int = 50_000) -> Iterator[dict[str, Any]]:
    for at in range(0, count, each):
        yield {_key(n): value_of(n, SIZE) for n in range(at, min(count, at + each))}


def _available() -> int:
    """Bytes that memory and /dev/shm have both left."""
    free = os.statvfs(SHM)
    with open("/proc/meminfo") as rows:
        memory = next(int(row.split()[1]) for row in rows if row.startswith("MemAvailable"))
    return min(free.f_bavail * free.f_frsize, 1024 * memory)
