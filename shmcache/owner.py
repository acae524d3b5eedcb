"""The owner of a cache: creates it or adopts it, keeps it, and tidies up behind its clients.

Place: level 5, above `cache.py`; the daemon (level 6) runs an `Owner` in its loop.  It starts no
thread, handles no signal, and has no clock but the budget of a call.

The story.  A cache needs no owner: clients create it, recover from one another's deaths, reclaim
what has expired when they need room, and the last one out unlinks it.  An owner is one client more
that stays.  It makes the cache persist, and does before anybody waits for it what clients would do
when they trip over it:

    expired entries, and those of invalidated namespaces    swept, a slice of a shard at a time
    a shard whose holder died in it                          taken over and repaired
    leases of initialisers that died                         dropped, who waits looks again
    client slots of processes that died                      freed

While it is stopped or dead nothing of that is lost, only later.  Its name in the superblock (an
identity word, as in a shard's lock) decides one thing: who may become the next owner (INV-OWNER).
That word dies with its process, whatever ends it; the next owner adopts the segment as it is, warm.

`tend` never waits for a client.  A shard that somebody alive holds is passed by; one that the same
acquisition holds at two calls is named in `Tended.blocked`: its holder is stopped or starved.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmcache import _core, limits
from shmcache.cache import Cache
from shmcache.errors import (
    CacheExists,
    CacheNotFound,
    CorruptSegment,
    DecodeError,
    ShmcacheError,
    WouldBlock,
)

__all__ = ["Blocked", "Owner", "Tended"]

_CLIENTS_A_ROUND = 64  # client slots that are asked about: about 50 us

_CHOSEN_HERE = ("create", "wait", "persist")


@dataclass(frozen=True, slots=True)
class Blocked:
    """A shard that has been held for long: its holder lives, and does not get on.

    Attributes:
        shard: its number.
        client: the holder's slot in the client table.
        pid: the holder's, as its own pid namespace sees it.
    """

    shard: int
    client: int
    pid: int


@dataclass(frozen=True, slots=True)
class Tended:
    """What one call of `Owner.tend` has done.

    Attributes:
        shard: where the next call goes on.
        expired: entries removed because they had expired, or their namespace was invalidated.
        leases: leases dropped because their initialisers had died.
        clients: slots of the client table freed because their processes had died.
        recovered: shards taken over from holders that had died in them.
        round_complete: whether the last shard of a round was visited in this call, and so each
            shard since the round began, the blocked ones included.
        blocked: the shards that are held by somebody who does not get on, by number.
    """

    shard: int
    expired: int
    leases: int
    clients: int
    recovered: int
    round_complete: bool
    blocked: tuple[Blocked, ...] = ()


class Owner:
    """The owner of one cache: made by `Owner.open`, one at a time among all processes.

    Not safe to use from several threads; its `cache` is.

    Attributes:
        cache: a handle as any client has it.
        adopted: whether the cache was there already when it was opened (or reopened) last.
        loaded: what `snapshot.load` reported; None where nothing was loaded.
        load_error: why the snapshot was not loaded, or not all of it; None where it was, or there
            was no such file, or none was asked for.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache = cache
        self.adopted = False
        self.loaded: Any = None
        self.load_error: Exception | None = None
        self._name = name
        self._begin()

    def __repr__(self) -> str:
        how = "closed" if self.cache.closed else "adopted" if self.adopted else "created"
        return f"<Owner of cache {self._name!r}, {how}>"

    @classmethod
    def open(
        cls,
        name: str,
        *,
        group: str | int | None = None,
        snapshot: Path | None = None,
        on_progress: Callable[..., object] | None = None,
        **cache_arguments: Any,
    ) -> Self:
        """Creates the cache, or adopts the one that is there, and becomes its owner.

        Args:
            name: of the cache.
            group: as for `Cache`.
            snapshot: a file that is loaded where the cache had to be created; none there is no
                error.  What is wrong with a damaged one is in `load_error`: an empty cache
                serves better than none.  So is what stopped a load part-way (a full cache).
            on_progress: as for `snapshot.load`.  What it raises ends the load and comes out of
                here (unless it is what a bad snapshot raises: a ShmcacheError, OSError or
                ValueError), and the cache that was just made is unlinked again.
            cache_arguments: as for `Cache`, but create, wait and persist.  A cache that is
                adopted keeps its geometry (`GeometryWarning` where another is asked for).

        The cache persists from then on, also when this owner is gone.

        Raises:
            CacheExists: a living process is the cache's owner already; the message has its pid.
            ValueError: the cache has another policy or codec; arguments that make no sense.
            LockTimeout: a stopped process holds the cache's gate, or builds the cache.
            Whatever else opening a `Cache` raises.  Nothing that was made is left behind then.
        """
        for argument in _CHOSEN_HERE:
            if argument in cache_arguments:
                raise TypeError(
                    f"Owner.open() takes no {argument!r}: that is what an owner decides"
                )
        seed = cls._seed(snapshot)
        owner = cls(Cache._seeded(seed, name, persist=True, group=group, **cache_arguments), name)
        owner._own(snapshot, on_progress)
        return owner

    def reopen(
        self,
        *,
        snapshot: Path | None = None,
        on_progress: Callable[..., object] | None = None,
    ) -> None:
        """After `CacheNotFound`: creates the cache anew, or adopts what took its place.

        Arguments and errors are as for `open`.  May be called again after it has raised.
        """
        self.cache._hash_seed = self._seed(snapshot)
        self.cache.reopen()
        self._begin()
        self._own(snapshot, on_progress)

    def _begin(self) -> None:
        """Nothing is known of the shards."""
        self._next = 0
        self._turn = 0
        self._more = False
        self._lease_at: dict[int, int] = {}
        # shard -> (its holder as last seen, the turn of tend in which it was first seen like that)
        self._held: dict[int, tuple[tuple[int, int, int, int], int]] = {}
        self._blocked: dict[int, Blocked] = {}

    def _own(self, snapshot: Path | None, on_progress: Callable[..., object] | None) -> None:
        cache = self.cache
        attachment = cache._held
        # the only handle of this process on a segment that this process has made
        fresh = attachment.created and attachment.handles == 1
        self.adopted = not fresh
        self.loaded = self.load_error = None
        try:
            attachment.mark_owner()
            attachment.set_persist(True)
            if fresh and snapshot is not None:
                self._load(snapshot, on_progress)
        except CacheExists:
            cache.close()
            raise
        except BaseException:
            if fresh:
                cache.unlink()
            cache.close()
            raise

    @staticmethod
    def _seed(path: Path | None) -> int | None:
        """The hash seed that a cache created for that snapshot is to have."""
        if path is None:
            return None
        seed: int | None = importlib.import_module("shmcache.snapshot").saved_seed(path)
        return seed

    def _load(self, path: Path, on_progress: Callable[..., object] | None) -> None:
        load = importlib.import_module("shmcache.snapshot").load
        try:
            self.loaded = load(self.cache, path, on_progress=on_progress)
        except CacheNotFound:  # it was unlinked meanwhile
            raise
        except FileNotFoundError:
            pass
        except (ShmcacheError, OSError, ValueError) as error:  # ValueError: of another codec
            self.load_error = error

    # ------------------------------------------------------------------------------ tending

    def tend(self, budget_s: float = 0.005) -> Tended:
        """Tidies up for about `budget_s` seconds, going on where the last call stopped.

        Visits the shards round robin, at least one, and stops early after a round in which nothing
        was left to do.  Call it every so often; what is there to sweep is looked for once a second
        in each shard.  Never waits: a call overruns its budget by one visit at most, which takes
        a shard for about 100 us and a few hundred system calls.

        Raises `CacheNotFound` where the segment was unlinked or replaced (then `reopen`),
        `CacheClosed` after `close`.
        """
        deadline = time.monotonic() + limits.check_timeout("budget_s", budget_s)
        attachment = self.cache._held
        if not attachment.still_named():
            raise CacheNotFound(
                f"cache {self._name!r} was unlinked or replaced under its owner: reopen() creates "
                "it anew, or adopts what is there now"
            )
        self._turn += 1
        expired = leases = clients = recovered = 0
        complete = False
        while True:
            swept, dropped, taken_over = self._visit(self._next)
            expired += swept
            leases += dropped
            recovered += taken_over
            self._next = (self._next + 1) % self.cache.shards
            if self._next == 0:
                complete = True
                clients += attachment.reap_clients(_CLIENTS_A_ROUND)
                if not self._more:
                    break
                self._more = False
            if time.monotonic() >= deadline:
                break
        blocked = tuple(self._blocked[shard] for shard in sorted(self._blocked))
        return Tended(self._next, expired, leases, clients, recovered, complete, blocked)

    def _visit(self, shard: int) -> tuple[int, int, bool]:
        """Does one slice of everything in a shard: entries swept, leases dropped, taken over."""
        cache = self.cache
        holder = _core.shard_holder(cache, shard)
        recovered = holder is not None and _core.recover_shard(cache, shard)
        if holder is None or recovered:
            self._held.pop(shard, None)
            self._blocked.pop(shard, None)
        elif self._is_stuck(shard, holder):
            return 0, 0, False
        swept = dropped = 0
        try:
            swept, done = _core.sweep_shard(cache, shard)
            self._more = self._more or not done
            dropped, at = _core.reap_leases(cache, shard, self._lease_at.get(shard, 0))
            self._lease_at[shard] = at
        except WouldBlock:  # somebody is in there: next time
            pass
        return swept, dropped, recovered

    def _is_stuck(self, shard: int, holder: tuple[int, int, int, int]) -> bool:
        """Whether the same acquisition held the shard in an earlier call."""
        before, since = self._held.get(shard, (None, 0))
        if before != holder:
            self._held[shard] = (holder, self._turn)
            self._blocked.pop(shard, None)
            return False
        if since == self._turn:
            return False
        client, _, pid, _ = holder
        self._blocked[shard] = Blocked(shard, client, pid)
        return True

    # ---------------------------------------------------------------------------- the rest

    def store_config(self, config: Mapping[str, Any]) -> int | None:
        """Swaps `config` into the slot ``config``, where it differs from what is there.

        Returns the new version, or None where nothing was stored: whoever watches the slot sees
        changes only.  1, 1.0 and True differ.

        Raises `SlotTooLarge`, `TypeError` where the cache's codec cannot encode it, `LimitReached`
        where every slot has another name; and as `SwapSlot.store`.
        """
        slot = self.cache.slot("config")
        wanted = dict(config)
        try:
            if _same(slot.load(), wanted):
                return None
        except (DecodeError, CorruptSegment):  # what is there is no use: replace it
            pass
        return slot.store(wanted)

    def close(self, unlink: bool = False) -> None:
        """Stops being the owner and closes the handle.  May be called twice.

        The segment stays, with everything in it, for its clients and the next owner; with
        `unlink` it is removed for everybody.  `NotPermitted` where only another user may do that.
        """
        try:
            if unlink:
                self.cache.unlink()
        finally:
            attachment = self.cache._attachment
            if attachment is not None:  # other handles of this process may keep it
                attachment.disown()
            self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _same(one: Any, other: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, within mappings and lists as well."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
