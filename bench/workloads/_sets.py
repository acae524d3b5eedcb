"""What the two workloads of writing have in common: caches that are full, and sets into them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import lmdb

from bench.harness import Contestant, require
from bench.peers import fill, hot_keys, lmdb_open, raw_keys, shmcache_open, value_of

PUT = "with begin(write=True) as t: t.put(key, value)"


class FullCache:
    """A shmcache that evicts, and lmdb environments that hold the same number of entries.

    The cache is filled with other keys until it evicts, so that each set has to make room: what
    is at the head of a log is live, and has to be moved or evicted.
    """

    def __init__(self, stack: contextlib.ExitStack, size: int, value_size: int) -> None:
        self.value = value_of(7, value_size)
        self.cache: Any = stack.enter_context(
            shmcache_open(size=size, avg_entry_size=min(value_size + 20, 1 << 20))
        )
        filler = ((f"cold:entry:{n:09d}", value_of(n, value_size)) for n in range(1 << 40))
        self.stored = fill(self.cache, filler)
        self.entries = len(self.cache)
        require(self.cache.stats().evictions > 0, "the cache is full and evicts")
        map_size = 4 * size
        self.environments: dict[str, lmdb.Environment] = {
            "lmdb": stack.enter_context(lmdb_open(map_size)),
            "lmdb writemap": stack.enter_context(lmdb_open(map_size, writemap=True)),
        }
        for environment in self.environments.values():
            with environment.begin(write=True) as transaction:
                for number in range(self.entries):
                    transaction.put(b"cold:entry:%09d" % number, self.value)

    def contestants(self, label: str, keys: Sequence[str], sample_ns: int) -> list[Contestant]:
        """Sets of `keys` over and over: shmcache and both forms of lmdb."""
        batches = [keys]
        raw = [raw_keys(list(keys))]
        return [
            Contestant(
                f"shmcache set, {label}",
                "set_(key, value)",
                {"set_": self.cache.set, "value": self.value},
                batches,
                sample_ns=sample_ns,
            ),
            *(
                Contestant(
                    f"{name}, {label}",
                    PUT,
                    {"begin": environment.begin, "value": self.value},
                    raw,
                    sample_ns=sample_ns,
                )
                for name, environment in self.environments.items()
            ),
        ]

    def details(self) -> dict[str, Any]:
        """Size, entries and counters, for the record."""
        stats = self.cache.stats()
        return {
            "size": self.cache.size,
            "entries": stats.entries,
            "bytes_used": stats.bytes_used,
            "bytes_total": stats.bytes_total,
            "sets": stats.sets,
            "evictions": stats.evictions,
        }


def check_present(cache: Any, keys: Sequence[str], value: bytes) -> None:
    """The last write of each key is there, or was evicted for others; never something else."""
    wrong = [key for key in keys if cache.get(key) not in (value, None)]
    require(not wrong, "a key holds what was written last")


__all__ = ["FullCache", "check_present", "hot_keys"]
