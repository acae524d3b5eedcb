"""A mutex among processes, made of a lease: it goes with the process that holds it.

Place: level 6. A lease (design: once per key) names a client of the cache, and whether that client
lives is the kernel's word. So the mutex of a killed process is free at once, and that of a stopped
one is not. Within a process, a lock comes first: a lease knows processes, not threads.

    acquire   the process's lock of that key; then the lease, waiting on the shard's wake word, and
              asking the kernel every 25 ms whether its holder lives
    release   the lease; then the lock

Removing the lease by hand ends the mutual exclusion: `clear` of the cache does, as it does to every
lease.
"""

from __future__ import annotations

import os
import threading
from typing import Final
from weakref import WeakValueDictionary

from shmcache import _core, errors
from shmcache.contrib._connection import Connection
from shmcache.once import SLICE_S

__all__ = ["LeaseMutex"]

_FAR_MS: Final = 1 << 40  # no deadline: who waits, waits as long as the holder lives


class _Lock:
    """A process's lock of one key; those who hold or want it keep it alive."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()


_locks: WeakValueDictionary[tuple[str, str], _Lock] = WeakValueDictionary()
_guard = threading.Lock()
_pid = os.getpid()


def _lock_of(name: str, key: str) -> _Lock:
    """The lock of a key; a forked child has none of its parent's."""
    global _locks, _guard, _pid
    if _pid != os.getpid():
        _locks, _guard, _pid = WeakValueDictionary(), threading.Lock(), os.getpid()
    with _guard:
        lock = _locks.get((name, key))
        if lock is None:
            lock = _locks[name, key] = _Lock()
        return lock


class LeaseMutex:
    """One lock a key, for all handles, threads and processes. Not reentrant; another thread may
    release it.

    Args:
        connection: to the cache that holds the lease.
        key: what is locked, among all mutexes of that cache.

    An outage of the cache leaves the process's own lock: the mutex then holds among its threads.
    """

    def __init__(self, connection: Connection, key: str) -> None:
        self._connection = connection
        self._name = key
        self._key = ("shmcache.mutex", key)
        self._own = _lock_of(connection.name, key)
        self._lease = 0
        self._holder = 0  # pid of the process that has acquired it by this object
        self._content = b""

    def acquire(self, wait: bool = True) -> bool:
        """Take it; without `wait` only if it is free. Whether it is ours."""
        self._own = _lock_of(self._connection.name, self._name)
        if not self._own.lock.acquire(blocking=wait):
            return False
        taken = False
        try:
            unlocked: int | None = 0  # what an outage leaves: the process's own lock
            lease = self._connection.run(lambda cache: self._take(cache, wait), unlocked)
            taken = lease is not None
            if taken:
                self._lease, self._holder = lease or 0, os.getpid()
        finally:
            if not taken:
                self._own.lock.release()
        return taken

    def _take(self, cache: _core.Handle, wait: bool) -> int | None:
        """The version of our lease; 0 where there is no room for one, None where it is taken."""
        _, self._content = _core.key_content(cache, self._key)
        while True:
            word, holder, version = _core.lease_look(cache, self._key)
            if version and self._lives(cache, holder):
                if not wait:
                    return None
                _core.lease_wait(cache, self._key, word, SLICE_S)
                continue
            deadline = _core.now_ms() + _FAR_MS
            outcome, lease = _core.lease_take(
                cache, self._key, self._content, deadline, version, 0, _patience(cache)
            )
            if outcome == "taken":
                return lease
            if outcome == "full":
                return 0

    @staticmethod
    def _lives(cache: _core.Handle, holder: int) -> bool:
        if holder == 0 or holder == _core.identity(cache):
            return False  # flipped bytes; or ours, of a mutex that was dropped: we have the lock
        attachment = cache._attachment
        return bool(attachment.is_alive((holder >> 32) - 1, holder & 0xFFFFFFFF))

    def release(self) -> None:
        """Give it up. RuntimeError where it is not held, or by the process that forked this one."""
        if self._holder != os.getpid() or not self._own.lock.locked():
            raise RuntimeError(f"the mutex of key {self._name!r} is not held by this process")
        lease, self._lease, self._holder = self._lease, 0, 0
        try:
            if lease:
                self._connection.run(lambda cache: self._give_up(cache, lease), False)
        finally:
            self._own.lock.release()

    def _give_up(self, cache: _core.Handle, lease: int) -> bool:
        try:
            return _core.lease_release(cache, self._key, self._content, lease, _patience(cache))
        except errors.LockTimeout:
            return False  # the shard's holder is stopped; our next acquire takes it over

    def locked(self) -> bool:
        """Whether somebody holds it, here or in another process."""
        if self._own.lock.locked():
            return True

        def held(cache: _core.Handle) -> bool:
            _, holder, version = _core.lease_look(cache, self._key)
            return bool(version) and self._lives(cache, holder)

        return self._connection.run(held, False)


def _patience(cache: _core.Handle) -> float:
    """Seconds to wait for the lease's shard, also where the handle's writes wait for none: giving
    up costs the exclusion of other processes."""
    return max(cache.lock_timeout, 1.0)
