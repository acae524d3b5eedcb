"""Swap slots: one value that is replaced whole, read at the price of a dict look-up.

Place: level 4, beside `cache.py`, which hands slots out. Reading and storing are the core's
(`_core/src/swap.h` tells the protocol); here is what waits: for a version, and on behalf of a
callback.

How waiting works. A store wakes whoever sleeps on the slot's version (a futex: the kernel's own
sleeping room for a word of memory, found by file and offset). So a change is noticed within tens
of microseconds, and nobody spins. A writer that is killed between its store and the wake-up call
wakes nobody; neither do `close` and `unlink`. So nobody sleeps for longer than `SLICE_SECONDS`
without looking: 67 looks a second, which cost about 0.1% of a core (`bench/workloads/swap.py`
measures it).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from shmcache import _core, limits
from shmcache.errors import CacheClosed, CacheNotFound
from shmcache.segment import Attachment

__all__ = ["SLICE_SECONDS", "SwapSlot", "Watcher", "slot_names"]

logger = logging.getLogger("shmcache")

SLICE_SECONDS: Final = 0.015
"""The longest that a waiter sleeps without looking: what is promised is 20 ms."""

_RECORD: Final = _core.LAYOUT["shm_swap.record"]
_SEAL: Final = _core.LAYOUT["shm_record.seal"]
_NAME: Final = _core.LAYOUT["shm_record.name"]
_NAME_SIZE: Final = _core.LAYOUT["sizeof.shm_record"] - _NAME
"""Where a slot's name lies; its seal is 0 while it is free (INV-RECORD-SEAL)."""


class SwapSlot(_core.Swap):
    """A value in a cache that is replaced whole; `Cache.slot` makes it.

    For what is read all the time and seldom changes: configuration, feature flags, routing tables.
    Readers take no lock, never see a torn or half-written value, and go on with the last complete
    one if a writer dies at any point. `load`, `load_versioned`, `name` and `capacity` are
    inherited from the core and documented there.

    Versions count the stores: 0 before the first one, never the same twice, never going back,
    whoever dies. A value is encoded as the cache's values are, and must fit `capacity`.

    A slot belongs to the handle that made it: after `cache.close()` its calls raise `CacheClosed`,
    after `cache.reopen()` it is the slot of that name in the segment that was opened. Safe to use
    from many threads and in forked children; pickles to "the slot of that name".
    """

    __slots__ = ("__weakref__",)

    def store(self, value: Any) -> int:
        """Replace the value; returns the new version.

        Waits for other stores to this slot, up to the handle's `lock_timeout`; wakes whoever waits
        for a change. The old value stays in place where this raises.

        Raises:
            SlotTooLarge: the encoded value takes more than `capacity` bytes.
            TypeError: the codec cannot encode it.
            LockTimeout: a process that is alive but stopped is in the middle of a store.
            CorruptSegment: the slot's version is damaged.
        """
        return self._store(value)

    def compare_and_swap(self, version: int, value: Any) -> bool:
        """Store `value` if `version` (of `load_versioned`; 0: nothing stored yet) is still the
        current one. True if so. Blocks and raises as `store`; ValueError for a negative version.
        """
        if version < 0:
            raise ValueError(f"version must be 0 or more, not {version}")
        return version < 1 << 48 and self._store(value, version) != 0

    def rcu(self, fn: Callable[[Any], Any]) -> Any:
        """Read, copy, update: ``store(fn(load()))``, again until nobody stored in between.

        `fn` runs under no lock, maybe more than once; it must return a new value and leave the one
        that it gets (None before the first store) as it is. Returns what it returned. No update of
        any process is lost. Raises what `store` and `fn` raise.
        """
        while True:
            value, version = self.load_versioned()
            new = fn(value)
            if self._store(new, version):
                return new

    def wait(self, version: int, timeout: float | None = None) -> int | None:
        """Wait until the current version is newer than `version`; returns it.

        At once if it is already. None after `timeout` seconds (None: no limit). A store is noticed
        at once, in any process; 15 ms later at worst. The GIL is released; a signal's handler runs
        at once.

        Raises CacheClosed or CacheNotFound within 15 ms (250 ms where the file was removed by
        hand) of the handle being closed or the cache unlinked.
        """
        if type(version) is not int:
            raise TypeError(f"version must be an int, not {type(version).__name__}")
        deadline = None
        if timeout is not None:
            deadline = time.monotonic() + limits.check_timeout("timeout", timeout)
        while True:
            current = self._version()
            if current > version:
                return current
            nap = SLICE_SECONDS
            if deadline is not None:
                nap = min(nap, deadline - time.monotonic())
                if nap <= 0:
                    return None
            self._sleep(current, nap)

    def watch(self, callback: Callable[[Any, int], object]) -> Watcher:
        """Call ``callback(value, version)`` after each change, in a background thread.

        Not for the value that is there now; and where several stores come before the thread looks
        again, once, for the last of them. An exception of the callback, or a value that cannot be
        decoded, is logged to `shmcache` and watching goes on. It ends with `Watcher.stop`, and
        when the handle is closed or the cache unlinked. A forked child does not inherit it.
        """
        if not callable(callback):
            raise TypeError(f"watch takes a callable, not {type(callback).__name__}")
        return Watcher(self, callback)

    def __reduce__(self) -> tuple[Any, ...]:
        return SwapSlot, (self._cache, self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._cache!r}>"


def slot_names(attachment: Attachment) -> list[str]:
    """Names of the swap slots that are taken, in the order in which they were: without taking one,
    as `Cache.slot` does for a name that is new. For tools that look and change nothing. Takes no
    lock; costs some microseconds a slot."""
    geometry = attachment.superblock.geometry
    memory = memoryview(attachment.mapping)
    names = []
    for number in range(geometry.slot_count):
        start = geometry.slots_off + number * geometry.slot_stride + _RECORD
        if any(memory[start + _SEAL : start + _SEAL + 8]):
            name = bytes(memory[start + _NAME : start + _NAME + _NAME_SIZE]).rstrip(b"\0")
            names.append(name.decode("utf-8", "replace"))
    return names


class Watcher:
    """The background thread of `SwapSlot.watch`; a context manager that stops it."""

    def __init__(self, slot: SwapSlot, callback: Callable[[Any, int], object]) -> None:
        self._slot = slot
        self._callback = callback
        self._stopped = threading.Event()
        self._seen = slot._version()
        self._thread = threading.Thread(
            target=self._run, name=f"shmcache-watch-{slot.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait until a call of the callback that is under way has returned (unless
        this is that call). Takes 15 ms at most besides. May be called twice."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        slot = self._slot
        while not self._stopped.is_set():
            try:
                version = slot.wait(self._seen, SLICE_SECONDS)
                if version is None or self._stopped.is_set():
                    continue
                self._seen = version  # also if what follows fails: a bad value is logged once
                value, self._seen = slot.load_versioned()
                self._callback(value, self._seen)
            except (CacheClosed, CacheNotFound) as gone:
                logger.debug("swap slot %r is not watched any more: %s", slot.name, gone)
                return
            except Exception:
                logger.exception("while watching swap slot %r", slot.name)
                self._stopped.wait(SLICE_SECONDS)  # a slot that is damaged fails at once, always
