"""Changes of two entries that belong together, whole in spite of kill -9.

Place: level 6, beneath the recipes that count (`_ledger.py`) or link (`ports.py`).

The story. A `Guard` is a record: who is changing something, a note of what, and data that sums up
other entries (how many there are, where a list begins). One caller at a time changes entries of
its own, and the data with them:

    take      compare-and-swap of the record: from nobody to (me, my note, data as before)
    act       the entry is written or removed
    settle    the new data follow from the note and from what the entry is now
    leave     compare-and-swap: nobody, no note, the new data

Settling looks at the entry, not at what the caller believes to have done; so it is the same for
a change that went through, one that raised, and one whose process was killed. Whoever next wants
the record and finds the holder dead (the kernel's word) puts itself in its place with the note
left as it is, settles, and leaves. It may be killed there too: the note stays until the data are
right (INV-RECIPE-NOTE). Nobody looks at more than the noted entry: repair is O(1).

Readers take the data as they are before the change, unless its holder is dead.

Where the record is gone (evicted, cleared) it is built anew from the entries, under the guard.
So it is where it was written in another segment: a snapshot is not of one instant, and may have
the record from before a change and the entry from after it.

A living holder is waited for, up to the cache's `lock_timeout`. It holds the record for some tens
of microseconds and runs no user code, so one that does not go on is stopped.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from shmcache.errors import CacheFull, LockTimeout, WouldBlock
from shmcache.namespace import Namespace
from shmcache.recipes._state import damaged, logger, pack, step_back, unpack
from shmcache.recipes._worker import Token, Worker

__all__ = ["Guard", "Keeper"]

R = TypeVar("R")

BUILD: Final = "build"  # the note of whoever builds the data from the entries

_NOBODY: Final = [0, 0, 0]  # a holder that is dead: word 0 names no client

_FIRST_PAUSE_S: Final = 20e-6  # about as long as the record is held
_LONGEST_PAUSE_S: Final = 1e-3

_RECORD_BYTES: Final = 160
"""Records are padded to this, so that a note needs no room that the record has not got already:
what frees room (remove, complete, give) is not to fail because there is none."""

_serials = itertools.count(1)
_under_way: set[int] = set()  # of this process's own changes; a child's token is another one


def _pack(nonce: int, holder: list[int] | None, note: Any, data: Any) -> bytes:
    record = [nonce, holder, note, data, b""]
    packed = pack(record)
    if len(packed) < _RECORD_BYTES:
        record[4] = bytes(_RECORD_BYTES - len(packed))
        packed = pack(record)
    return packed


class Keeper(Protocol):
    """Whose entries a guard's record sums up. Passed to each call, and not kept: a recipe that
    nobody uses any more lets go of its cache at once."""

    def build(self, key: str) -> Any:
        """The data of the record `key`, from the entries alone. Called under the guard."""

    def settle(self, note: Any, data: Any) -> Any:
        """The data after the noted change, from what the entry is now. Runs under the guard, maybe
        more than once for one note, maybe in another process than the one that made the note."""


class Guard:
    """One record and the entries that it sums up.

    Args:
        room: where the record is.
        key: of the record.
        worker: this process.
    """

    __slots__ = ("key", "room", "worker")

    def __init__(self, room: Namespace[Any], key: str, worker: Worker) -> None:
        self.room = room
        self.key = key
        self.worker = worker

    def read(self, keeper: Keeper) -> Any:
        """The data. Takes no lock, unless there is something to repair or to build."""
        while True:
            packed = self.room.get(self.key)
            if packed is not None:
                holder, _, data = self._parse(packed)
                if holder is None or self._is_alive(holder):
                    return data
            self.change(keeper, lambda data: None, lambda note: None)

    def rebuild(self, keeper: Keeper) -> None:
        """Build the data anew from the entries."""
        self.change(keeper, lambda data: BUILD, lambda note: None)

    def change(
        self, keeper: Keeper, plan: Callable[[Any], Any], act: Callable[[Any], R]
    ) -> R | None:
        """Change an entry, and the data with it.

        Args:
            keeper: whose record it is.
            plan: ``plan(data)`` returns the note, or None if there is nothing to do; what it
                reads of the entries is still so when `act` runs. May run more than once.
            act: ``act(note)`` changes the entry; runs once, while nobody else can.

        Returns what `act` returned, None where `plan` did. Raises what they raise; `WouldBlock`
        or `LockTimeout` where a living process does not let go of the record.
        """
        serial = next(_serials)
        _under_way.add(serial)
        try:
            mine = [*self.worker.token(), serial]
            note = self._take(keeper, mine, plan)
            if note is None:
                return None
            try:
                return act(note)
            finally:
                self._leave(keeper, mine)
        finally:
            _under_way.discard(serial)

    def _take(self, keeper: Keeper, mine: list[int], plan: Callable[[Any], Any]) -> Any:
        room, key = self.room, self.key
        lost, pause, deadline = 0, _FIRST_PAUSE_S, None
        while True:
            seen = room.gets(key)
            if seen is None:
                if room.add(key, _pack(mine[0], mine, BUILD, None)):
                    self._leave(keeper, mine)
                continue
            holder, note, data = self._parse(seen.value)
            if holder is None:
                note = plan(data)
                if note is None or room.cas(key, _pack(mine[0], mine, note, data), seen.version):
                    return note
                lost += 1
                step_back(lost)
            elif not self._is_alive(holder):
                if room.cas(key, _pack(mine[0], mine, note, data), seen.version):
                    self._leave(keeper, mine)
            else:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + room.lock_timeout
                if now >= deadline:
                    raise self._held_too_long()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _leave(self, keeper: Keeper, mine: list[int]) -> None:
        """Settle what was noted, and let go of the record."""
        try:
            while True:
                seen = self.room.gets(self.key)
                if seen is None:
                    return  # evicted or cleared: whoever comes next builds it
                holder, note, data = self._parse(seen.value)
                if holder != mine:
                    return
                after = keeper.build(self.key) if note == BUILD else keeper.settle(note, data)
                if self.room.cas(self.key, _pack(mine[0], None, None, after), seen.version):
                    return
        except (LockTimeout, CacheFull) as error:
            # The change itself went through; this process's next one here settles it.
            logger.warning("%r in cache %r: %s", self.room.prefix, self.room.name, error)

    def _parse(self, packed: Any) -> tuple[list[int] | None, Any, Any]:
        record = unpack(self.room, self.key, packed)
        if isinstance(record, list) and len(record) == 5:
            nonce, holder, note, data, _ = record
            if nonce != self.worker.token()[0]:
                return _NOBODY, BUILD, None
            if holder is None:
                return None, note, data
            if isinstance(holder, list) and [type(part) for part in holder] == [int] * 3:
                return holder, note, data
        raise damaged(self.room, self.key)

    def _is_alive(self, holder: list[int]) -> bool:
        """Whether that change is under way: its process lives, and is still about it."""
        token: Token = (holder[0], holder[1])
        if token == self.worker.token():
            return holder[2] in _under_way
        return self.worker.is_alive(token)

    def _held_too_long(self) -> LockTimeout:
        kind = WouldBlock if self.room.lock_timeout == 0 else LockTimeout
        return kind(
            f"a living process has held record {self.key!r} of {self.room.prefix!r} in cache "
            f"{self.room.name!r} for {self.room.lock_timeout:g} s, where it stays for "
            "microseconds; it is stopped or starved: resume or kill it"
        )
