"""`ResourceTracker`: what is there, and in which state, known to every worker.

Place: level 6; one entry a resource, counted by `_ledger.py`. docs/recipes/tracker.md says when
to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast, overload

from shmcache.cache import Cache
from shmcache.errors import ShmcacheError
from shmcache.keys import Key
from shmcache.recipes._ledger import ABSENT, Ledger
from shmcache.recipes._state import Recipe

__all__ = ["ResourceExists", "ResourceTracker"]

V = TypeVar("V")
D = TypeVar("D")


class ResourceExists(ShmcacheError, KeyError):
    """A resource of that id is registered already."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError's own shows the repr


def _state_is_running(value: Any) -> bool:
    state = value.get("state") if isinstance(value, Mapping) else getattr(value, "state", None)
    return bool(state == "running")


class ResourceTracker(Recipe, Generic[V]):
    """Resources (jobs, sessions, subprocesses) by id, for thousands of them and many processes.

    Args:
        cache: any `Cache`; policy ``"keep"``, so that nothing is ever dropped.
        name: of the tracker; the same name in any process is the same tracker.
        is_running: ``is_running(value)``, which `running` goes by. By default: the value's
            ``state``, as a key or an attribute, is ``"running"``.

    Values are whatever the cache's codec encodes. Every call is atomic, safe to use from many
    threads and processes, and whole in spite of kill -9: a resource is registered or it is not.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-tracker", policy="keep")
        >>> jobs = ResourceTracker(cache, "jobs")
        >>> jobs.register("j1", {"state": "queued"})
        >>> jobs.update("j1", lambda job: {**job, "state": "running"})
        {'state': 'running'}
        >>> jobs.count(), list(jobs.running())
        (1, [('j1', {'state': 'running'})])
        >>> jobs.remove("j1")
        True
        >>> cache.close()

    Calls raise `CacheFull`, `LockTimeout` and `CacheNotFound` as the cache's own do, and
    TypeError for an id that is no key.
    """

    def __init__(
        self, cache: Cache, name: str, *, is_running: Callable[[V], object] | None = None
    ) -> None:
        self.name = name
        self._is_running = _state_is_running if is_running is None else is_running
        self._ledger = Ledger(cache, "tracker", name)

    def register(self, id: Key, value: V) -> None:
        """Add a resource; `ResourceExists` if one of that id is there. One winner among all
        processes. Three writes of the cache, some 6 us."""
        if not self._ledger.add(id, value):
            raise ResourceExists(
                f"resource {id!r:.80} is registered in tracker {self.name!r}: update() changes it, "
                "remove() makes room for another one"
            )

    @overload
    def get(self, id: Key, default: None = None) -> V | None: ...
    @overload
    def get(self, id: Key, default: D) -> V | D: ...
    def get(self, id: Key, default: Any = None) -> Any:
        """The resource's value, or `default`. Takes no lock, never waits."""
        return self._ledger.entries.get(id, default)

    def update(self, id: Key, fn: Callable[[V], V]) -> V:
        """Replace the value by ``fn(value)``, atomically; returns the new value.

        `fn` runs under no lock, and again if somebody else was quicker. KeyError if there is no
        such resource: an update never brings back one that was removed.
        """
        return cast(V, self._ledger.entries.alter(id, fn))

    def remove(self, id: Key) -> bool:
        """Remove a resource; True for the one caller who did. Costs what `register` does."""
        return self._ledger.take(id) is not ABSENT

    def running(self) -> Iterator[tuple[Any, V]]:
        """The (id, value) of those that run, by `is_running`. Walks the cache's index (a
        millisecond for 130,000 slots) without a lock; what changes meanwhile may be seen or not."""
        return ((id, value) for id, value in self.items() if self._is_running(value))

    def items(self) -> Iterator[tuple[Any, V]]:
        """The (id, value) of all, as `running` walks them."""
        return iter(self._ledger.entries.items())

    def count(self) -> int:
        """How many resources are registered, running or not. O(1): eight gets, some 4 us.

        Exact, but for calls that are under way at that very moment: a process that is killed at
        any point of `register` or `remove` leaves no wrong count behind. That holds where nothing
        is evicted (policy ``"keep"``); on a cache that evicts see `recount`.
        """
        return self._ledger.count()

    def recount(self) -> int:
        """Count anew, and return it: for a cache that evicts, which drops entries unasked.
        Walks the index eight times."""
        return self._ledger.recount()

    def __contains__(self, id: object) -> bool:
        return id in self._ledger.entries

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._ledger.entries.name!r}>"
