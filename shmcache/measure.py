"""A quick measurement of a cache on this machine, beside what every Python process has already.

Place in the flow: level 5; `shmcache bench` prints what `measure` returns.  It needs nothing but
the package: the project's own benchmarks (in its repository) compare with more, at length.

How it measures.  Each statement runs in a `for` loop of its own, compiled as `timeit` does it, over
1,000 keys.  All statements take turns, in an order that changes from round to round, each for a
few milliseconds; the figure is the median of the rounds, with the loop itself subtracted, and a
ratio is that of two medians of the same rounds: what slows the machine down slows both.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from shmcache.cache import Cache

__all__ = ["BLIND_SPOTS", "Figure", "Measured", "measure"]

KEYS: Final = 1_000
VALUE_BYTES: Final = 100
ROUNDS_LEAST: Final = 5
SAMPLE_SECONDS: Final = 0.004

BLIND_SPOTS: Final = (
    "one process and one thread: nobody else writes, so no wait for a shard is in it",
    "1,000 keys of 100 bytes stay in the CPU's caches; a large cache pays for memory as well",
    "bytes and ints need no codec; a dict as value costs its encoding and decoding",
    "the cache is never full: no eviction, no room to be made",
    "a dict and an lru_cache belong to one process: with N of them they hold everything N times",
)
"""What the figures do not say, for whoever reads them."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One statement's cost.

    Attributes:
        operation: "get", "set" or "incr".
        contestant: "shmcache", "dict" or "lru_cache".
        nanoseconds: an operation, the median of the rounds, without the loop around it.
        ratio: how many times that of the dict (of the same operation) it is.
    """

    operation: str
    contestant: str
    nanoseconds: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What `measure` found: the figures, and what they were taken with."""

    figures: tuple[Figure, ...]
    rounds: int
    seconds: float
    cpus: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts and lists, ready for JSON."""
        return {**asdict(self), "figures": [asdict(f) for f in self.figures]}


def measure(
    seconds: float = 3.0, *, on_progress: Callable[[float], None] | None = None
) -> Measured:
    """Measure get, set and incr of a cache against a dict, and get against an lru_cache.

    Args:
        seconds: how long it is to take, about; at least five rounds are made.
        on_progress: called after each round with the share that is done, 0 to 1.

    Makes a cache of 8 MiB under a name of its own, and unlinks it. Raises OutOfSharedMemory where
    /dev/shm has no room for that, RuntimeError where a cache does not hold what was stored.
    """
    with Cache(_own_name(), create=True, size="8MiB", persist=False) as cache:
        return _measure(cache, seconds, on_progress)


def _own_name() -> str:
    return f"bench-{os.getpid()}-{secrets.token_hex(4)}"


def _measure(cache: Cache, seconds: float, on_progress: Callable[[float], None] | None) -> Measured:
    keys = [f"bench:key:{number:010d}" for number in range(KEYS)]
    counters = [f"bench:count:{number:08d}" for number in range(KEYS)]
    value = os.urandom(VALUE_BYTES)
    plain = dict.fromkeys(keys, value)
    plain_counters = dict.fromkeys(counters, 0)
    remembered = functools.lru_cache(maxsize=2 * KEYS)(plain.__getitem__)
    for key in keys:
        cache.set(key, value)
        remembered(key)
    for key in counters:
        cache.set(key, 0)
    statements: list[tuple[str, str, str, dict[str, Any], list[str]]] = [
        ("get", "shmcache", "get(key)", {"get": cache.get}, keys),
        ("get", "dict", "get(key)", {"get": plain.get}, keys),
        ("get", "lru_cache", "f(key)", {"f": remembered}, keys),
        ("set", "shmcache", "set(key, value)", {"set": cache.set, "value": value}, keys),
        ("set", "dict", "plain[key] = value", {"plain": plain, "value": value}, keys),
        ("incr", "shmcache", "incr(key)", {"incr": cache.incr}, counters),
        ("incr", "dict", "plain[key] += 1", {"plain": plain_counters}, counters),
        ("", "loop", "pass", {}, keys),
    ]
    timed = [_timed(statement, names) for _, _, statement, names, _ in statements]
    passes = [
        max(1, round(SAMPLE_SECONDS * 1e9 / max(1, min(run(1, row[4]) for _ in range(3)))))
        for run, row in zip(timed, statements, strict=True)
    ]
    samples: list[list[float]] = [[] for _ in statements]
    started, rounds = time.monotonic(), 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        while rounds < ROUNDS_LEAST or time.monotonic() - started < seconds:
            for i in random.sample(range(len(statements)), len(statements)):
                taken = timed[i](passes[i], statements[i][4])
                samples[i].append(taken / (passes[i] * KEYS))
            rounds += 1
            if on_progress is not None:
                done = (time.monotonic() - started) / seconds if seconds else 1.0
                on_progress(min(1.0, done, rounds / ROUNDS_LEAST))
    finally:
        if collecting:
            gc.enable()
    if any(cache.get(key) != value for key in keys):
        raise RuntimeError("the cache does not hold what was stored: please report this")
    if {cache.get(key) for key in counters} != {cache.get(counters[0])}:
        raise RuntimeError("the cache has not counted right: please report this")
    *medians, loop = [statistics.median(taken) for taken in samples]
    return Measured(
        _figures(statements, [max(m - loop, 0.1) for m in medians]),
        rounds,
        time.monotonic() - started,
        len(os.sched_getaffinity(0)),
    )


def _figures(statements: Sequence[tuple[Any, ...]], costs: list[float]) -> tuple[Figure, ...]:
    """Put the ratios to a dict's cost beside the costs."""
    rows = [(row[0], row[1], cost) for row, cost in zip(statements, costs, strict=False)]
    of_dict = {operation: cost for operation, who, cost in rows if who == "dict"}
    return tuple(Figure(op, who, cost, cost / of_dict[op]) for op, who, cost in rows)


def _timed(statement: str, names: dict[str, Any]) -> Callable[[int, Sequence[str]], int]:
    """Return a function that runs a statement over keys, and the nanoseconds that it took."""
    assigned = "".join(f"    {name} = _{name}\n" for name in names)
    source = (
        f"def run(passes, keys, clock=clock):\n{assigned}    started = clock()\n"
        f"    for _ in range(passes):\n        for key in keys:\n            {statement}\n"
        "    return clock() - started\n"
    )
    scope: dict[str, Any] = {f"_{name}": value for name, value in names.items()}
    scope["clock"] = time.perf_counter_ns
    exec(compile(source, "<measured statement>", "exec"), scope)
    run: Callable[[int, Sequence[str]], int] = scope["run"]
    return run
