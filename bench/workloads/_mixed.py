"""The mixed load that `scaling` and `tail` share: Zipf over 100,000 keys, gets and sets."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from bench.harness import require
from bench.peers import hot_keys, shmcache_open, value_of
from bench.processes import Zipf

KEYS = 100_000
SKEW = 0.99
SIZE = 100
"""Bytes of a value."""

SEQUENCE = 200_000
"""Operations that a worker makes before its window, and then repeats."""

STATEMENT = (
    f"{KEYS:,} keys (str, 20 characters), values of {SIZE} B, Zipf {SKEW} with ranks dealt at "
    "random, all present beforehand and room for all; each process opens the cache by name, has "
    f"a sequence of {SEQUENCE:,} operations of its own, made beforehand, and repeats it; all "
    "start at a barrier and run for the same time, process i on CPU i modulo 2."
)


class Load:
    """The cache, its keys, and sequences of operations for workers."""

    def __init__(self, cache: Any, seed: int) -> None:
        self.cache = cache
        self.keys = hot_keys(KEYS)
        self._seed = seed
        self._zipf = Zipf(KEYS, SKEW, seed)
        for at in range(0, KEYS, 10_000):
            chunk = range(at, at + 10_000)
            cache.set_many({self.keys[n]: value_of(n, SIZE) for n in chunk})
        require(len(cache) == KEYS, "all keys fit")

    def operations(self, worker: int, write_share: float) -> list[tuple[str, bytes | None]]:
        """Pairs of key and what to set, or None to get; different ones for every worker.

        A worker sets one value of its own, so that a mixture of two would be seen."""
        seed = self._seed + 1_000 * (worker + 1)
        uniform = random.Random(seed).random
        own = _value_of_worker(worker)
        return [
            (self.keys[n], own if uniform() < write_share else None)
            for n in self._zipf.draw(SEQUENCE, seed)
        ]

    def check(self) -> None:
        """Nothing was missed or evicted, and every key has a value that was set for it."""
        stats = self.cache.stats()
        require(stats.misses == 0, "every get was a hit")
        require(stats.evictions == 0, "nothing was evicted")
        written = {_value_of_worker(worker) for worker in range(8)}
        for number, key in enumerate(self.keys):
            value = self.cache.get(key)
            require(value in written or value == value_of(number, SIZE), "every value is right")


@contextlib.contextmanager
def loaded(seed: int) -> Iterator[Load]:
    """A cache with all keys in it."""
    with shmcache_open(size=64 << 20, avg_entry_size=SIZE + 20) as cache:
        yield Load(cache, seed)


def _value_of_worker(worker: int) -> bytes:
    return bytes([ord("a") + worker]) * SIZE
