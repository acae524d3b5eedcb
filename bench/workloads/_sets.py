"""What the two workloads of writing have in common: caches that are full, and sets into them."""

from __future__ import annotations

import contextlib
from typing import Any

import lmdb

from bench.harness import Contestant, require
from bench.peers import fill, hot_keys, lmdb_open, raw_keys, shmcache_open, value_of

PUT = "with begin(write=True) as t: t.put(key, value)"
SET = "set_(key, value)"
SAMPLE_NS = 4_000_000
"""Longer than for gets, so that a sample holds its share of the dearer steps of a sweep."""

LAPS = 2
"""Times that the hot keys fill the logs before anything is timed: a steady state by then."""


class FullCache:
    """A shmcache that evicts, and lmdb environments that hold the same number of entries.

    The cache is filled with other keys until it evicts; then `count` hot keys are overwritten
    until they have filled the logs `LAPS` times.  What was full of cold live entries at first has
    by then come to the balance of live entries and garbage that overwriting leads to, which is
    what is timed.
    """

    def __init__(
        self, stack: contextlib.ExitStack, label: str, size: int, value_size: int, count: int
    ) -> None:
        self.label = label
        self.value = value_of(7, value_size)
        self.keys = hot_keys(count)
        cache = self.cache = stack.enter_context(
            shmcache_open(size=size, avg_entry_size=value_size + 20)
        )
        filler = ((f"cold:entry:{n:09d}", self.value) for n in range(1 << 40))
        fill(cache, filler)
        require(cache.stats().evictions > 0, f"{label}: the cache is full and evicts")
        for _ in range(LAPS * cache.stats().bytes_total // (value_size * count) + 1):
            for key in self.keys:
                cache.set(key, self.value)
        self.before = cache.stats()
        self.environments: dict[str, lmdb.Environment] = {
            name: stack.enter_context(lmdb_open(4 * size, writemap=name == "lmdb writemap"))
            for name in ("lmdb", "lmdb writemap")
        }
        for environment in self.environments.values():
            with environment.begin(write=True) as transaction:
                for number in range(self.before.entries):
                    transaction.put(b"cold:entry:%09d" % number, self.value)

    def contestants(self) -> list[Contestant]:
        """Sets of the hot keys over and over: shmcache and both forms of lmdb."""
        batches = [self.keys]
        raw = [raw_keys(self.keys)]
        ours = {"set_": self.cache.set, "value": self.value}
        contestants = [
            Contestant(f"shmcache set, {self.label}", SET, ours, batches, sample_ns=SAMPLE_NS)
        ]
        for name, environment in self.environments.items():
            peer = {"begin": environment.begin, "value": self.value}
            contestants.append(
                Contestant(f"{name}, {self.label}", PUT, peer, raw, sample_ns=SAMPLE_NS)
            )
        return contestants

    def check(self) -> None:
        """A hot key holds what was written last, or was evicted for others; nothing else."""
        wrong = [key for key in self.keys if self.cache.get(key) not in (self.value, None)]
        require(not wrong, f"{self.label}: a key holds what was written last")

    def details(self) -> dict[str, Any]:
        """Size, what is live, and what happened while it was timed, for the record."""
        stats = self.cache.stats()
        return {
            "size": self.cache.size,
            "shards": self.cache.shards,
            "entries": stats.entries,
            "live_share": round(stats.bytes_used / stats.bytes_total, 3),
            "timed_sets": stats.sets - self.before.sets,
            "evictions_meanwhile": stats.evictions - self.before.evictions,
        }


def wrapping(
    stack: contextlib.ExitStack, size: int, value: bytes, keys: list[str], **arguments: Any
) -> Any:
    """A cache that holds nothing but `keys`, its logs full of their old versions."""
    cache = stack.enter_context(
        shmcache_open(size=size, avg_entry_size=len(value) + 20, **arguments)
    )
    for _ in range(3 * cache.stats().bytes_total // (len(value) * len(keys)) + 1):
        for key in keys:
            cache.set(key, value)
    return cache
