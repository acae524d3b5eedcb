"""What ends a wait of the daemon's one thread: signals, word from its threads, a changed file.

Place: level 5, under `daemon.py`. A signal handler may interrupt anything, so ours do nothing: the
interpreter's C handler writes the signal's number to a socket (`signal.set_wakeup_fd`), and the
loop reads it there when it waits for the next thing to do. No work is ever done inside a signal.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["FileWatch", "Wakeup"]

logger = logging.getLogger("shmcache")

_WORD: Final = 0  # no signal has this number


class Wakeup:
    """A wait that signals and `wake` end; a context manager, of the main thread only.

    Args:
        signals: numbers of the signals to wait for. Inside the context they do nothing else; what
            they did before is restored at its end.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        self._signals = tuple(signals)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._handlers: dict[int, Any] = {}
        self._wakeup_fd = -1

    def __enter__(self) -> Self:
        # A full socket has woken the loop already; a second SIGHUP in it would say nothing new.
        fd = self._writer.fileno()
        self._wakeup_fd = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        for number in self._signals:
            self._handlers[number] = signal.signal(number, _nothing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        self._reader.close()
        self._writer.close()

    def wake(self) -> None:
        """End the wait that is under way, or the next one. From any thread; never blocks."""
        with contextlib.suppress(OSError):  # full: it wakes already; closed: nobody waits any more
            self._writer.send(bytes([_WORD]))

    def wait(self, seconds: float) -> list[int]:
        """Wait for a signal or `wake`, `seconds` at most (0: look, and do not wait).

        Returns the numbers of the signals that came, in order; none after `wake` or the time.
        """
        ready, _, _ = select.select([self._reader], [], [], max(0.0, seconds))
        if not ready:
            return []
        return [number for number in self._reader.recv(4096) if number != _WORD]


def _nothing(number: int, frame: object) -> None:
    """For signals that are taken from the wakeup socket; without it they would end the process."""


class FileWatch:
    """Tells when a file was changed: rewritten, replaced by another (as editors do), or its link
    turned to another (as Kubernetes does).

    A file that is just being written is let be: a change counts at the first look that finds the
    file as the look before it did. One that has vanished is no change, until it is back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._last = self._stamp()
        self._missed = False

    def changed(self) -> bool:
        """Look at the file; true once for each change. Costs a stat(2)."""
        stamp, last = self._stamp(), self._last
        self._last = stamp
        if stamp is None:
            if last is None and not self._missed:
                self._missed = True
                logger.warning("%s is gone: the configuration stays as it is", self.path)
            return False
        self._missed = False
        if stamp != last or stamp == self._known:
            return False
        self._known = stamp
        return True

    def taken(self) -> None:
        """What is there now was read: only what comes later is a change."""
        self._known = self._last = self._stamp()

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,  # a file that was put back with its old times has another one
        )
