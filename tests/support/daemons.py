"""`shmcache serve` as a real process, and the service manager's end of its notify socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support import names
from support.processes import HANG_S, poll_until

SHMCACHE = [sys.executable, "-m", "shmcache"]


class NotifySocket:
    """A datagram socket that a daemon reports to: at a path, or abstract (``@name``)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.received: list[dict[str, str]] = []

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def next(self, seconds: float = HANG_S) -> dict[str, str]:
        """The next datagram's assignments; TimeoutError where none comes within `seconds`."""
        self._socket.settimeout(max(seconds, 0.001))
        lines = self._socket.recv(65_536).decode().split("\n")
        self.received.append(dict(line.split("=", 1) for line in lines))
        return self.received[-1]

    def until(self, key: str, value: str = "1", seconds: float = HANG_S) -> dict[str, str]:
        """The first datagram from now on that has ``key=value`` (or ``key`` with `value` in it)."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.next(deadline - time.monotonic())
            if value == found.get(key) or (key == "STATUS" and value in found.get(key, "")):
                return found

    def drain(self) -> int:
        """Take what has come so far; returns how many datagrams that was."""
        before = len(self.received)
        try:
            while True:
                self.next(0)
        except (TimeoutError, BlockingIOError):
            return len(self.received) - before


class Daemon:
    """One `shmcache serve` process; its output goes to files in `directory`."""

    def __init__(
        self,
        name: str,
        *arguments: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        command: list[str] | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self._stdout = directory / f"{name}.{time.monotonic_ns()}.out"
        self._stderr = self._stdout.with_suffix(".err")
        clean = {key: value for key, value in os.environ.items() if not _ours(key)}
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [*(command or SHMCACHE), "serve", name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**clean, **(environment or {})},
                **options,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def out(self) -> str:
        """What it has written to standard output so far."""
        return self._stdout.read_text()

    def log(self) -> str:
        """What it has written to standard error so far."""
        return self._stderr.read_text()

    def ready(self) -> Daemon:
        """Wait for the line that says that the cache is served."""
        self._poll(lambda: "serving cache" in self.out(), "ready")
        return self

    def logged(self, text: str, count: int = 1) -> None:
        """Wait until `text` was logged `count` times."""
        self._poll(lambda: self.log().count(text) >= count, f"{text!r} in the log")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit status."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        return self.process.wait(HANG_S)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG_S)

    def hang_up(self) -> None:
        """SIGHUP."""
        self.signal(signal.SIGHUP)

    def _poll(self, condition: Callable[[], bool], what: str) -> None:
        def met() -> bool:
            # Looked at before, so that what it wrote last is not missed.
            ended = self.process.poll() is not None
            if condition():
                return True
            assert not ended, f"ended with {self.process.returncode}:\n{self.out()}{self.log()}"
            return False

        try:
            poll_until(met, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.out()}{self.log()}") from None


def _ours(key: str) -> bool:
    """Whether a variable would set something for a daemon, and is none of the suite's own."""
    return key in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM") or (
        key.startswith("SHMCACHE_") and key not in (names.RUN_VARIABLE, "SHMCACHE_CI_RUN")
    )
