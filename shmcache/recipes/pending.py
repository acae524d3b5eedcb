"""`PendingEvents`: what was begun and is not done, and who died over it.

Place: level 6; one entry an event, counted by `_ledger.py`, owned by the process that tracked it
(`_worker.py`). docs/recipes/pending.md says when to use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from shmcache import limits
from shmcache.cache import Cache
from shmcache.keys import Key
from shmcache.recipes._ledger import ABSENT, Ledger
from shmcache.recipes._state import Recipe, damaged
from shmcache.recipes._worker import Token

__all__ = ["Pending", "PendingEvents"]

P = TypeVar("P")

_PARTS: Final = 5  # of an entry: nonce and word of its owner, when, attempts, payload


@dataclass(frozen=True, slots=True)
class Pending(Generic[P]):
    """An event that waits to be completed.

    Attributes:
        id: as it was tracked.
        payload: as it was tracked.
        tracked_at: Unix time.
        age: seconds from then to when this was read.
        attempts: workers that have had it: 1, and one more with each `PendingEvents.reclaim`.
    """

    id: Any
    payload: P
    tracked_at: float
    age: float
    attempts: int


class PendingEvents(Recipe, Generic[P]):
    """Events that some worker is to complete: requests sent, jobs handed out, webhooks awaited.

    Args:
        cache: any `Cache` but one of codec ``"raw"``; policy ``"keep"``.
        name: the same name in any process is the same set of events.
        timeout: seconds after which `expired` lists an event; None: never.
        clock: Unix time in seconds; for tests.

    An event belongs to the process that tracked it, until somebody completes it. If that process
    dies (kill -9, or an exit; the kernel says so, at once), `reclaim` hands the event to one
    caller, whose it is from then on: a caller that dies over it leaves it to the next. So an
    event is lost by no death, and may be worked on twice: make that harmless, or ask `attempts`.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-pending", policy="keep")
        >>> hooks = PendingEvents(cache, "webhooks", timeout=30)
        >>> hooks.track("order-17", {"url": "https://example.org"})
        True
        >>> hooks.pending_count()
        1
        >>> hooks.complete("order-17").payload
        {'url': 'https://example.org'}
        >>> hooks.complete("order-17") is None
        True
        >>> cache.close()

    Calls raise `CacheFull`, `LockTimeout` and `CacheNotFound` as the cache's own do, and
    TypeError for an id that is no key or a payload that the codec cannot encode.
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        *,
        timeout: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.timeout = None if timeout is None else limits.check_timeout("timeout", timeout)
        self._clock = clock
        self._ledger = Ledger(cache, "pending", name)
        if cache.codec == "raw":
            raise ValueError(
                f"cache {cache.name!r} has codec 'raw', which stores bytes only: PendingEvents "
                "needs one that encodes lists, such as 'msgpack'"
            )

    def track(self, id: Key, payload: P | None = None) -> bool:
        """Add an event, this process's own. True; False if one of that id is pending already,
        which stays as it is. One winner among all processes. Some 30 us."""
        return self._ledger.add(id, [*self._ledger.worker.token(), self._clock(), 1, payload])

    def poll(self, id: Key, payload: P | None = None) -> bool:
        """`track`, for what is to be polled until it is done."""
        return self.track(id, payload)

    def complete(self, id: Key) -> Pending[P] | None:
        """Take an event out: what it was, for one caller among all processes, whoever tracked it;
        None for all others. Some 30 us."""
        entry = self._ledger.take(id)
        return None if entry is ABSENT else self._read(id, entry)[1]

    def get(self, id: Key) -> Pending[P] | None:
        """The event if it is pending; takes no lock."""
        entry = self._ledger.entries.get(id)
        return None if entry is None else self._read(id, entry)[1]

    def pending_count(self) -> int:
        """How many events are pending. O(1): eight gets, no scan. Exact, whoever died, but for
        calls under way at that very moment; on a cache that evicts see `recount`."""
        return self._ledger.count()

    def recount(self) -> int:
        """Count anew, and return it: for a cache that evicts, which drops events unasked."""
        return self._ledger.recount()

    def pending(self) -> Iterator[Pending[P]]:
        """The events, in no order. Walks the cache's index without a lock, as `ages`,
        `oldest_age`, `expired` and `reclaim` do: a millisecond for 130,000 slots."""
        for id, entry in self._ledger.entries.items():
            yield self._read(id, entry)[1]

    def ages(self) -> dict[Any, float]:
        """Seconds that each event has been pending, by id."""
        return {event.id: event.age for event in self.pending()}

    def oldest_age(self) -> float | None:
        """Seconds that the oldest event has been pending; None where there is none."""
        return max((event.age for event in self.pending()), default=None)

    def expired(self) -> list[Pending[P]]:
        """The events that are older than `timeout`, oldest first; empty without one.

        They stay pending: `complete` takes them out, and tells one caller so.
        """
        if self.timeout is None:
            return []
        late = [event for event in self.pending() if event.age > self.timeout]
        return sorted(late, key=lambda event: event.tracked_at)

    def reclaim(self, limit: int | None = None) -> list[Pending[P]]:
        """What dead workers left, oldest first, at most `limit` events: each is handed to one
        caller among all processes, and is this process's from then on. It stays pending, with its
        age, until it is completed."""
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")
        room, living = self._ledger.entries, self._ledger.worker.living()
        orphans = []
        for id, entry in room.items():
            owner, event = self._read(id, entry)
            if not living(owner):
                orphans.append((event.tracked_at, id, owner))
        orphans.sort(key=lambda orphan: orphan[0])
        mine: list[Pending[P]] = []
        for _, id, owner in orphans:
            if limit is not None and len(mine) >= limit:
                break
            seen = room.gets(id)
            if seen is None:
                continue
            now_owner, event = self._read(id, seen.value)
            if now_owner != owner:  # another caller was quicker
                continue
            token, attempts = self._ledger.worker.token(), event.attempts + 1
            if room.cas(id, [*token, event.tracked_at, attempts, event.payload], seen.version):
                mine.append(
                    Pending(id, event.payload, event.tracked_at, event.age, event.attempts + 1)
                )
        return mine

    def _read(self, id: Key, entry: Any) -> tuple[Token, Pending[P]]:
        if not isinstance(entry, list | tuple) or len(entry) != _PARTS:
            raise damaged(self._ledger.entries, id)
        nonce, word, tracked_at, attempts, payload = entry
        if not (isinstance(nonce, int) and isinstance(word, int) and isinstance(attempts, int)):
            raise damaged(self._ledger.entries, id)
        if not isinstance(tracked_at, int | float):
            raise damaged(self._ledger.entries, id)
        age = max(0.0, self._clock() - tracked_at)
        return (nonce, word), Pending(id, payload, float(tracked_at), age, attempts)

    def __contains__(self, id: object) -> bool:
        return id in self._ledger.entries

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._ledger.entries.name!r}>"
