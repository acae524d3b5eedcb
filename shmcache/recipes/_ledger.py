"""Entries that are counted: how many there are without a scan, right in spite of kill -9.

Place: level 6, beneath `tracker.py` and `pending.py`.

An id belongs to one of `STRIPES` guards by its hash, and entries are added and removed under it
(`_guard.py` tells how). The guard's data is the number of its entries. A change notes the id and
whether it was there before; the count after it is the count before, plus what has changed in
that respect. So the count is exact whenever no change is under way, and a change whose process
was killed is settled by the next caller who reads or changes the count of that stripe.
"""

from __future__ import annotations

from typing import Any, Final

import xxhash

from shmcache import keys
from shmcache.cache import Cache
from shmcache.keys import Key
from shmcache.recipes._guard import Guard
from shmcache.recipes._state import open_room
from shmcache.recipes._worker import Worker

__all__ = ["ABSENT", "Ledger"]

STRIPES: Final = 8
"""Guards, and parts of a count. A change holds one for some 5 us, so that eight are
seldom in each other's way; a count costs eight gets."""

ABSENT: Final = object()


class Ledger:
    """A counted namespace: `entries` has the values under their ids, and nothing else."""

    def __init__(self, cache: Cache, kind: str, name: str) -> None:
        self.entries = open_room(cache, kind, name, durable=True)
        self._counts = open_room(cache, f"{kind}.count", name, durable=False)
        self.worker = Worker(self.entries)
        self._guards = [Guard(self._counts, str(stripe), self.worker) for stripe in range(STRIPES)]

    def add(self, key: Key, value: Any) -> bool:
        """Store a value under an id that has none; True for one caller among all processes."""
        kind, content, stripe = _place(key)

        def plan(count: int) -> list[Any] | None:
            return None if key in self.entries else [kind, content, 0]

        added = self._guards[stripe].change(self, plan, lambda note: self.entries.add(key, value))
        return bool(added)

    def take(self, key: Key) -> Any:
        """Remove an id; its value for one caller among all processes, else `ABSENT`."""
        kind, content, stripe = _place(key)

        def plan(count: int) -> list[Any] | None:
            return [kind, content, 1] if key in self.entries else None

        def act(note: list[Any]) -> tuple[Any]:
            return (self.entries.pop(key, ABSENT),)  # in a tuple: None is a value too

        taken = self._guards[stripe].change(self, plan, act)
        return ABSENT if taken is None else taken[0]

    def count(self) -> int:
        """How many entries there are: the sum of the stripes."""
        return sum(int(guard.read(self)) for guard in self._guards)

    def recount(self) -> int:
        """Count anew, by walking the cache's index once for each stripe; how many there are."""
        for guard in self._guards:
            guard.rebuild(self)
        return self.count()

    def settle(self, note: list[Any], data: int) -> int:
        """The count after a change: what it was before, and whether the id has come or gone."""
        kind, content, before = note
        now = int(keys.decode(kind, content) in self.entries)
        return max(0, data + now - int(before))

    def build(self, key: str) -> int:
        """The count of a stripe, by a walk over all ids."""
        return sum(1 for id in self.entries if str(_place(id)[2]) == key)


def _place(key: Key) -> tuple[int, bytes, int]:
    """Kind and content of an id, and its stripe: the same in every process."""
    kind, content = keys.encode(key)
    return kind, content, xxhash.xxh3_64_intdigest(content, kind) % STRIPES
