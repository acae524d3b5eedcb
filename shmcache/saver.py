"""Snapshots beside the daemon's loop: one at a time, in a thread, so that the loop goes on.

Place: level 5, under `daemon.py`. A snapshot of gigabytes takes many times the watchdog's
patience, and shards must be swept meanwhile. A thread can do it: saving reads as any client does,
without a lock, and what it writes is written with the GIL released. A child process could as well,
but would be one more client, with memory and a death of its own to look after.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmcache import snapshot
from shmcache.cache import Cache

__all__ = ["Saver"]

logger = logging.getLogger("shmcache")


class _Abandoned(Exception):
    """Raised out of a save that nobody wants any more."""


class Saver:
    """Saves one snapshot in a thread of its own.

    Args:
        cache: what to save; it must stay open until `done`.
        path: the file, replaced when the snapshot is whole.
        on_done: called in the thread when it is over, one way or the other.
    """

    def __init__(self, cache: Cache, path: Path, on_done: Callable[[], None]) -> None:
        self.path = path
        self.error: Exception | None = None
        """Why there is no snapshot, once `done`; None where there is one, or it was abandoned."""
        self._cache = cache
        self._on_done = on_done
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="shmcache-snapshot", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Let it end at its next step, without a snapshot; the file of the last one stays."""
        self._abandoned = True

    def join(self) -> None:
        """Wait until it is over."""
        self._thread.join()

    def _run(self) -> None:
        try:
            report = snapshot.save(self._cache, self.path, on_progress=self._progress)
            logger.info(
                "snapshot %s: %d entries, %d bytes, in %.1f s",
                self.path,
                report.entries,
                report.bytes,
                report.seconds,
            )
        except _Abandoned:
            logger.warning("snapshot %s: abandoned; the one before it stays", self.path)
        except Exception as error:
            self.error = error
            logger.error("snapshot %s: not saved: %s", self.path, error)
        finally:
            self._on_done()

    def _progress(self, *_: Any) -> None:
        if self._abandoned:
            raise _Abandoned
