"""Operations per second and latencies of 1 to 8 processes on one peer, for every peer."""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.adapters import PEERS, Peer, opened
from bench.harness import Options, Result, Table, percentile, require
from bench.peers import hot_keys, value_of
from bench.processes import Crew, Loop, Prepare, Window, Zipf, chunked
from bench.report import span

PROCESSES = (1, 2, 4, 8)
KEYS = 10_000
SIZE = 100
SKEW = 0.99
SEQUENCE = 20_000
"""Operations that a worker makes beforehand, and then repeats."""

PIECE = 50
"""Operations between two looks at the clock: 1 ms of the slowest peer."""

PERCENTILES = (50.0, 99.0, 99.9, 100.0)


@dataclass(frozen=True)
class Mix:
    """What the processes do."""

    name: str
    writes: float
    keys: str


MIXES = (
    Mix("95/5, Zipf", 0.05, "zipf"),
    Mix("50/50, Zipf", 0.50, "zipf"),
    Mix("95/5, uniform", 0.05, "uniform"),
    Mix("50/50, uniform", 0.50, "uniform"),
    Mix("95/5, one key", 0.05, "one"),
    Mix("50/50, one key", 0.50, "one"),
)
QUICK = (MIXES[0], MIXES[5])


def run(options: Options) -> Result:
    """Processes of all peers take turns, window by window."""
    mixes = QUICK if options.quick else MIXES
    counts = PROCESSES[::2] if options.quick else PROCESSES
    rounds = 1 if options.quick else 3
    seconds = 0.1
    result = Result(
        "peers_scaling",
        "several processes on one system",
        f"{KEYS:,} keys (str, 20 characters), values of {SIZE} B, all present beforehand and room "
        f"for all; 95/5 and 50/50 are the shares of gets and sets; Zipf {SKEW} with ranks dealt at "
        "random, uniform, or one key for all.  Every process has an own connection and an own "
        f"sequence of {SEQUENCE:,} operations, made beforehand; all start at a barrier; process i "
        "runs on CPU i modulo the CPUs there are.  Windows of "
        f"{seconds:g} s: in {rounds} the operations are counted (table: thousands a second, all "
        f"processes together, median), in {rounds} others every call is timed by itself.  Each "
        "process sets a value of its own, and what is found at the end must be one of them.",
        "More CPUs than the machine has: with more processes than CPUs the tails are the "
        "scheduler's.  Servers share these CPUs with their clients, as they do on one host.  "
        "dict: every process has its own, so it is the machine's limit and no shared cache.",
    )
    # Calls of functions alone are not to be had a mix of gets and sets from.
    kinds = [kind for kind in PEERS if kind.name not in {"lru_cache", "warp_cache"}]
    result.skipped.append("lru_cache, warp_cache: they have no set")
    result.data["mixes"] = {}
    for mix in mixes:
        skipped: list[str] = []
        with opened(kinds, KEYS * (SIZE + 20), skipped) as peers:
            _measure(mix, peers, counts, rounds, seconds, options.seed, result)
        result.skipped += [reason for reason in skipped if reason not in result.skipped]
    return result


def _measure(
    mix: Mix,
    peers: list[Peer],
    counts: Sequence[int],
    rounds: int,
    seconds: float,
    seed: int,
    result: Result,
) -> None:
    keys = hot_keys(KEYS)
    pairs = {key: value_of(n, SIZE) for n, key in enumerate(keys)}
    for peer in peers:
        peer.fill(pairs)
    sequences = [_sequence(mix, keys, seed + worker) for worker in range(max(counts))]
    counted: dict[tuple[str, int], list[Window]] = {}
    timed: dict[tuple[str, int], list[Window]] = {}
    locks: dict[int, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        crews = {
            (peer, count): stack.enter_context(Crew(_prepare(peer, sequences), count))
            for peer in peers
            for count in counts
        }
        for _ in range(rounds):
            for into in (counted, timed):
                for (peer, count), crew in crews.items():
                    before = _lock_figures(peer)
                    window = crew.window(seconds, limit=1)
                    into.setdefault((peer.name, count), []).append(window)
                    if before is not None and into is counted:
                        after = _lock_figures(peer)
                        assert after is not None
                        total = locks.setdefault(count, dict.fromkeys(before, 0.0))
                        for name, value in after.items():
                            total[name] += value - before[name]
    own = [value_of_worker(worker) for worker in range(max(counts))]
    for peer in peers:
        if peer.shared:
            peer.attach()
            assert peer.get is not None
            for key in keys[:1_000]:
                require(
                    peer.get(key) in [pairs[key], *own], f"{peer.name}: every value was set for it"
                )
    figures: dict[str, dict[str, Any]] = {}
    for (name, count), windows in counted.items():
        spans: dict[str, list[int]] = {"get": [], "set": []}
        for window in timed[name, count]:
            for work in window.works:
                for call, some in work.result.items():
                    spans[call] += some
        figures.setdefault(name, {})[str(count)] = {
            "operations_per_second": statistics.median(window.rate for window in windows),
            "least": min(window.rate for window in windows),
            "most": max(window.rate for window in windows),
            **{call: _percentiles(some) for call, some in spans.items()},
        }
    result.data["mixes"][mix.name] = {
        "peers": figures,
        "locks": {str(count): figure for count, figure in locks.items()},
    }
    result.tables += _tables(mix, figures, counts, locks)


def value_of_worker(worker: int) -> bytes:
    """What worker number `worker` sets, whatever the key."""
    return bytes([ord("a") + worker]) * SIZE


def _sequence(mix: Mix, keys: Sequence[str], seed: int) -> list[tuple[str, bool]]:
    uniform = random.Random(seed)
    if mix.keys == "zipf":
        numbers = Zipf(len(keys), SKEW, 1).draw(SEQUENCE, seed)
    elif mix.keys == "uniform":
        numbers = [uniform.randrange(len(keys)) for _ in range(SEQUENCE)]
    else:
        numbers = [0] * SEQUENCE
    return [(keys[n], uniform.random() < mix.writes) for n in numbers]


def _prepare(peer: Peer, sequences: Sequence[Sequence[tuple[str, bool]]]) -> Prepare:
    def prepare(worker: int) -> Loop:
        peer.attach()
        get, put = peer.get, peer.set
        assert get is not None and put is not None
        value = value_of_worker(worker)
        pieces = itertools.cycle(chunked(sequences[worker], PIECE))
        every_other = itertools.cycle((False, True))

        def loop(deadline: int) -> tuple[int, Any]:
            now = time.perf_counter_ns
            done = 0
            if next(every_other):
                spans = {"get": array("Q"), "set": array("Q")}
                got, stored = spans["get"].append, spans["set"].append
                for piece in pieces:
                    for key, write in piece:
                        start = now()
                        if write:
                            put(key, value)
                            stored(now() - start)
                        else:
                            get(key)
                            got(now() - start)
                    done += PIECE
                    if now() >= deadline:
                        break
                return done, spans
            for piece in pieces:
                for key, write in piece:
                    if write:
                        put(key, value)
                    else:
                        get(key)
                done += PIECE
                if now() >= deadline:
                    break
            return done, {}

        return loop

    return prepare


def _lock_figures(peer: Peer) -> dict[str, float] | None:
    """What shmcache says of its locks, as running totals; None of other peers."""
    if peer.name != "shmcache":
        return None
    stats = peer.cache.stats()  # type: ignore[attr-defined]
    return {
        "acquisitions": stats.lock_acquisitions,
        "contended": stats.lock_contended,
        "wait_seconds": stats.lock_wait_seconds,
        "read_retries": stats.read_retries,
    }


def _percentiles(spans: list[int]) -> dict[str, Any]:
    ordered = sorted(spans)
    found: dict[str, Any] = {"calls": len(ordered)}
    for p in PERCENTILES:
        enough = ordered and (p in {50.0, 100.0} or len(ordered) * (100 - p) / 100 >= 10)
        found["max" if p == 100 else f"p{p:g}"] = percentile(ordered, p) if enough else None
    return found


def _tables(
    mix: Mix,
    figures: dict[str, dict[str, Any]],
    counts: Sequence[int],
    locks: dict[int, dict[str, float]],
) -> list[Table]:
    rates = [
        [name] + [f"{row[str(c)]['operations_per_second'] / 1e3:,.0f}" for c in counts]
        for name, row in figures.items()
    ]
    tails = [
        [name]
        + [" / ".join(span(row[str(c)][call]["p99"]) for call in ("get", "set")) for c in counts]
        for name, row in figures.items()
    ]
    waits = [
        [
            str(count),
            f"{figure['acquisitions']:,.0f}",
            f"{figure['contended'] / max(1.0, figure['acquisitions']):.2%}",
            span(1e9 * figure["wait_seconds"] / max(1.0, figure["contended"])),
            f"{figure['read_retries']:,.0f}",
        ]
        for count, figure in locks.items()
    ]
    head = ["processes", *map(str, counts)]
    return [
        Table(f"{mix.name}: thousands of operations a second", head, rates),
        Table(f"{mix.name}: p99 of get / set", head, tails),
        Table(
            f"{mix.name}: shmcache's shard locks",
            ["processes", "taken", "contended", "mean wait of these", "reads looked again"],
            waits,
        ),
    ]
