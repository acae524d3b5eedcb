"""Gets and sets of 200,000 keys that no CPU cache holds, for every peer."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from bench.adapters import PEERS, Peer, opened
from bench.adapters.shared import fitting
from bench.harness import (
    Contestant,
    Options,
    Result,
    Table,
    interleave,
    percentile,
    quiet,
    require,
    single_calls,
)
from bench.peers import hot_keys, value_of
from bench.report import span

KEYS = 200_000
QUICK_KEYS = 20_000
SIZE = 100
"""Bytes of a value."""

SAMPLE_NS = 1_000_000
CHECKED = 500
"""Pairs that are compared before anything is timed."""

BLOCK = 10_000
BLOCK_NS = 200_000_000
PERCENTILES = (50.0, 99.0, 99.9)
TOO_SMALL = {"warp_cache"}
"""Peers whose table does not hold so many entries as we open it."""


def run(options: Options) -> Result:
    """Time all peers in turns over keys in random order."""
    count = QUICK_KEYS if options.quick else KEYS
    rounds = 5 if options.quick else 21
    result = Result(
        "peers_cold",
        f"{count:,} cold keys, beside peers",
        f"{count:,} keys (str, 20 characters), values of {SIZE} B as bytes, in random order; one "
        f"process.  Medians of {rounds} samples of about 1 ms, all peers in turns; every sample "
        "takes the next keys, and all keys pass before one comes again, so that keys, index and "
        "values are cold to the CPU's caches.  Percentiles: single calls, clock included.",
        "A last-level cache that holds it all"
        + ("; --quick has too few keys to be cold." if options.quick else "."),
    )
    keys = hot_keys(count)
    values = {key: value_of(n, SIZE) for n, key in enumerate(keys)}
    shuffled = random.Random(options.seed).sample(keys, count)
    kinds = [
        fitting(kind, avg_entry_size=SIZE + 20) for kind in PEERS if kind.name not in TOO_SMALL
    ]
    result.skipped += [f"{name}: its table is opened with fewer slots" for name in TOO_SMALL]
    with opened(kinds, count * (SIZE + 20), result.skipped) as peers:
        seconds = {}
        for peer in peers:
            began = time.monotonic()
            peer.fill(values)
            seconds[peer.name] = round(time.monotonic() - began, 2)
            assert peer.get is not None
            found = [peer.get(key) for key in shuffled[:CHECKED]]
            require(
                found == [values[key] for key in shuffled[:CHECKED]], f"{peer.name} holds all pairs"
            )
        contestants = []
        for peer in peers:
            for operation in ("get", "set"):
                if getattr(peer, operation) is not None:
                    contestants.append(_contestant(peer, operation, shuffled))
        timed = interleave(contestants, Options(repeats=rounds))
        spans: dict[str, list[int]] = {contestant.name: [] for contestant in contestants}
        with quiet():
            for start in (0, count // 2):
                for contestant in contestants:
                    spans[contestant.name] += single_calls(
                        contestant.statement,
                        contestant.names,
                        shuffled[start : start + BLOCK],
                        BLOCK_NS,
                    )
        for peer in peers:
            if peer.name == "shmcache":
                stats = peer.cache.stats()  # type: ignore[attr-defined]
                require(stats.misses == 0, "every get of shmcache was a hit")
                require(stats.evictions == 0, "nothing was evicted")
    figures: dict[str, Any] = {"get": {}, "set": {}}
    for contestant in contestants:
        peer_name, _, operation = contestant.name.partition(": ")
        ordered = sorted(spans[contestant.name])
        figures[operation][peer_name] = {
            "median_ns": timed[contestant.name].median_ns,
            "low_ns": timed[contestant.name].low_ns,
            "high_ns": timed[contestant.name].high_ns,
            "single_calls": len(ordered),
            **{
                f"p{p:g}": percentile(ordered, p)
                for p in PERCENTILES
                if p == 50 or len(ordered) * (100 - p) / 100 >= 10
            },
            "max": ordered[-1],
        }
    result.data = {"operations": figures, "fill_seconds": seconds, "keys": count}
    columns = ["", "get", "p99", "p99.9", "max", "set", "p99", "p99.9", "max"]
    rows = []
    for peer in peers:
        row = [peer.name]
        for operation in ("get", "set"):
            figure = figures[operation].get(peer.name, {})
            row += [span(figure.get(name)) for name in ("median_ns", "p99", "p99.9", "max")]
        rows.append(row)
    result.tables = [Table(f"{count:,} cold keys, 100 B", columns, rows)]
    return result


def _contestant(peer: Peer, operation: str, keys: Sequence[str]) -> Contestant:
    call = getattr(peer, operation)
    statement = "call(key)" if operation == "get" else "call(key, value)"
    names = {"call": call, "value": value_of(7, SIZE)}
    probe = sorted(single_calls(statement, names, keys[-50:], SAMPLE_NS))
    each = max(10, min(2_000, SAMPLE_NS // max(1, probe[len(probe) // 2])))
    whole = len(keys) - len(keys) % each
    batches = [keys[at : at + each] for at in range(0, whole, each)]
    name = f"{peer.name}: {operation}"
    return Contestant(name, statement, names, batches, warm=False, waits=peer.waits)
