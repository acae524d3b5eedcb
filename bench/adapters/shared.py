"""Peers that share memory, or a process, between the processes of a Python program."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Mapping
from multiprocessing import managers
from pathlib import Path
from typing import Any, ClassVar

from bench.adapters.base import Absent, Adapter, Peer
from bench.peers import warp_open

_numbers = itertools.count()


def _name(of: str) -> str:
    return f"bench-{of}-{os.getpid()}-{next(_numbers)}"


class Shmcache(Adapter):
    """What all this is about."""

    name = "shmcache"
    about = "shmcache.Cache with room for all, otherwise its defaults"
    arguments: ClassVar[Mapping[str, Any]] = {}
    """More arguments of `Cache`: see `fitting`."""
    cache: Any

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        from shmcache import Cache

        size = max(32 << 20, 2 * room)
        self.cache = Cache(_name("cache"), create=True, size=size, **self.arguments)
        self._take()

    def attach(self) -> None:
        """See `Peer`."""
        from shmcache import Cache

        self.cache = Cache(self.cache.name, create=False)
        self._take()

    def footprint(self) -> int:
        """The segment but the bytes of its logs that hold nothing."""
        stats = self.cache.stats()
        return int(self.cache.size - (stats.bytes_total - stats.bytes_used))

    def close(self) -> None:
        """See `Peer`."""
        self.cache.unlink()
        self.cache.close()

    def _take(self) -> None:
        cache = self.cache
        self.get = self.get_miss = cache.get
        self.contains = cache.__contains__
        self.set, self.delete, self.incr = cache.set, cache.delete, cache.incr
        self.get_many, self.set_many = cache.get_many, cache.set_many


def fitting(kind: type[Peer], **arguments: Any) -> type[Peer]:
    """shmcache with more arguments, as its user would give them; other peers as they are."""
    if kind is not Shmcache:
        return kind

    class Fitting(Shmcache):
        pass

    Fitting.arguments = arguments
    return Fitting


class WarpCache(Adapter):
    """warp_cache's shared backend: a decorator, so only calls of the function."""

    name = "warp_cache"
    about = "warp_cache.cache(backend='shared') around a function: a hit is a call of it"

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        self._values: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        # Its table is made of slots of the largest value each: 64 KiB values get fewer of them.
        largest = 80_000 if room > (1 << 20) and not objects else 2_048
        slots = 1 << 14 if largest == 2_048 else 1 << 10
        try:
            self.get = self._stack.enter_context(warp_open(self._load, slots, largest))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise Absent(f"{type(error).__name__}: {error}") from error

    def fill(self, pairs: Mapping[str, Any]) -> None:
        """See `LruCache.fill`."""
        assert self.get is not None
        self._values.update(pairs)
        for key in pairs:
            self.get(key)
        self._values.clear()

    def close(self) -> None:
        """See `Peer`."""
        self._stack.close()

    def _load(self, key: str) -> Any:
        return self._values[key]


class Manager(Adapter):
    """`multiprocessing.Manager().dict()`: a dict in a server process, asked over a socket."""

    name = "Manager().dict"
    about = "multiprocessing.Manager().dict(): one server process, a Unix socket, pickles"
    waits = True

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        self._manager: managers.SyncManager | None = managers.SyncManager(
            ctx=multiprocessing.get_context("fork")
        )
        self._manager.start(_server_signals)
        store = self._manager.dict()
        self.get = self.get_miss = store.get
        self.contains = store.__contains__
        self.set, self.delete = store.__setitem__, store.__delitem__
        self.set_many = store.update

    def close(self) -> None:
        """See `Peer`."""
        if self._manager is not None:
            self._manager.shutdown()
            self._manager = None


def _server_signals() -> None:
    """In the manager's process: the bench's own handler of SIGTERM is not for it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Ultra(Adapter):
    """UltraDict: every process has the whole dict, and a stream of changes in shared memory."""

    name = "UltraDict"
    about = (
        "UltraDict with shared_lock (it needs the package atomics) and a buffer for all changes; "
        "a get reads the process's own copy after looking for changes"
    )

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        try:
            from UltraDict import UltraDict
        except Exception as error:  # its import does work that can fail in many ways
            raise Absent(f"{type(error).__name__}: {error}") from error

        self._room = 4 * room + (4 << 20)
        self._title = _name("ultra")
        try:
            self._store: Any = UltraDict(
                name=self._title,
                create=True,
                buffer_size=self._room,
                full_dump_size=self._room,
                shared_lock=True,
                auto_unlink=False,
            )
        except Exception as error:
            raise Absent(f"{type(error).__name__}: {error}") from error
        self._take()

    def attach(self) -> None:
        """See `Peer`."""
        from UltraDict import UltraDict

        self._store = UltraDict(name=self._title, create=False, shared_lock=True, auto_unlink=False)
        self._take()

    def close(self) -> None:
        """Remove what it left: its own unlink forgets part of it."""
        if self._store is not None:
            with warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                self._store.close(unlink=True)
            self._store = None
        for path in Path("/dev/shm").glob(f"{self._title}*"):
            path.unlink(missing_ok=True)

    def _take(self) -> None:
        store = self._store
        lock = store.lock

        def incr(key: str) -> int:
            with lock:
                store[key] = count = store[key] + 1
            return count

        self.get = self.get_miss = store.get
        self.contains = store.__contains__
        self.set, self.delete = store.__setitem__, store.__delitem__
        self.set_many, self.incr = store.update, incr
