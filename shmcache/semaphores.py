"""The named POSIX semaphores of a cache: one for each shard, and one for its swap slots.

Place in the flow: level 3, the only user of posix_ipc.  Knows file names and semaphores; knows
nothing of holder words.  A token is a hint to look at a holder word again, never ownership, so
nothing here need be exact: a lost token costs a waiter one bounded slice, a spare one costs it a
look.

Names carry the segment's nonce, so that a semaphore of an earlier segment of the same name is
never picked up; `~` is outside the alphabet of caches' names, so that no two caches' files meet.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

import posix_ipc

from shmcache._linux import SignalsHeld

__all__ = ["SHM_DIR", "Semaphores", "create_semaphores", "remove_semaphores"]

SHM_DIR = "/dev/shm"
"""Where Linux keeps POSIX shared memory and named semaphores (glibc and musl alike)."""

_SLICE_SECONDS = 0.05
"""The longest single wait, and so the longest that a signal waits for its handler."""

_DEGRADED_SLICE_SECONDS = 0.001
"""What a waiter sleeps where its semaphore is gone (logind's RemoveIPC, or a hand): it finds the
shard free at most a millisecond late."""


def _semaphore_name(name: str, nonce: int, index: int) -> str:
    return f"/shmcache.{name}~{nonce:016x}~{index}"


def create_semaphores(name: str, nonce: int, count: int, mode: int, gid: int | None) -> None:
    """Makes semaphores 0 to `count` - 1 of a segment, without a token.

    mode: permission bits, set whatever the umask says; gid: their group, None for our own.

    Raises `FileExistsError` if one exists (the nonce was drawn twice: draw another), `OSError`
    ENOSPC where /dev/shm is full.  What was made until then stays, for `remove_semaphores`.
    """
    for index in range(count):
        full_name = _semaphore_name(name, nonce, index)
        try:
            posix_ipc.Semaphore(full_name, posix_ipc.O_CREX, mode, 0).close()
        except posix_ipc.ExistentialError as error:
            raise FileExistsError(f"semaphore {full_name} exists") from error
        path = f"{SHM_DIR}/sem.{full_name[1:]}"
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)  # after chown, and because sem_open masks the mode with the umask


def remove_semaphores(name: str, nonce: int | None = None) -> None:
    """Unlinks the semaphores of a cache: of the segment with that nonce, or all of them.

    All: for who holds the gate of the published segment, or has the right to build while none is
    published; at such a time no semaphore of this cache belongs to anybody else.  Those of other
    users stay.  Costs a look at each file in /dev/shm.
    """
    of_nonce = "[0-9a-f]{16}" if nonce is None else f"{nonce:016x}"
    ours = re.compile(rf"sem\.(shmcache\.{re.escape(name)}~{of_nonce}~[0-9]+)")
    for file_name in os.listdir(SHM_DIR):
        if match := ours.fullmatch(file_name):
            with suppress(posix_ipc.ExistentialError, posix_ipc.PermissionsError):
                posix_ipc.unlink_semaphore("/" + match[1])


class Semaphores:
    """The semaphores of one segment, each opened when it is first needed.

    Safe to use from many threads; a forked child goes on using what its parent had opened.
    """

    def __init__(self, name: str, nonce: int) -> None:
        self._name = name
        self._nonce = nonce
        self._opened: dict[int, posix_ipc.Semaphore] = {}

    def __del__(self) -> None:
        # posix_ipc does not close what it drops.  Nobody waits in one any more: a waiter is in a
        # method of this object.
        for semaphore in self._opened.values():
            with suppress(posix_ipc.Error, OSError):
                semaphore.close()

    def wait(self, index: int, seconds: float) -> None:
        """Waits for a token, `seconds` at most; releases the GIL.

        Returns after a token, after the time, or after `_SLICE_SECONDS`, and says not which: the
        caller looks at its holder word and its own clock.  Raises what a signal handler raises,
        when the slice is over: posix_ipc would run the handler in the middle, and lose all that
        it raises but KeyboardInterrupt (a SIGTERM's SystemExit, a task's time limit).

        Where the semaphore is missing it sleeps for `_DEGRADED_SLICE_SECONDS` or less.
        (sem_timedwait knows the wall clock only: a clock that is set back while somebody waits
        makes that one slice longer.)
        """
        semaphore = self._open(index)
        if semaphore is None:
            time.sleep(min(seconds, _DEGRADED_SLICE_SECONDS))
            return
        with SignalsHeld(), suppress(posix_ipc.BusyError, posix_ipc.SignalError):
            semaphore.acquire(max(min(seconds, _SLICE_SECONDS), 0.0))

    def post(self, index: int) -> None:
        """Adds a token where there is none: one is enough to make somebody look."""
        semaphore = self._open(index)
        if semaphore is not None and semaphore.value == 0:
            semaphore.release()

    def _open(self, index: int) -> posix_ipc.Semaphore | None:
        semaphore = self._opened.get(index)
        if semaphore is None:
            try:
                semaphore = posix_ipc.Semaphore(_semaphore_name(self._name, self._nonce, index))
            except (posix_ipc.Error, OSError):
                # Gone, forbidden, or no descriptor left to open it with: all of them are
                # survived by looking again a little later.
                return None
            # Two threads may get here: both objects are one semaphore, the first one stays.
            semaphore = self._opened.setdefault(index, semaphore)
        return semaphore
