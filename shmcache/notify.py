"""Word to the service manager: sd_notify(3)'s datagrams, without libsystemd.

Place: level 5; the daemon says here that it is ready, reloading, stopping and alive. A datagram
of ``KEY=value`` lines to the socket that ``NOTIFY_SOCKET`` names is the whole protocol: a path, or
a name in the abstract namespace (a leading ``@``). vsock addresses, which a guest reports to its
host by, are left alone: they are for init, not for a service.

A service manager that does not listen is no reason for a cache to stop: nothing here raises. The
first failure of a kind is logged.

The facts are those of systemd's sd_notify(3), sd_watchdog_enabled(3) and, for the order of a
reload (RELOADING=1 with MONOTONIC_USEC, then READY=1), systemd.service(5), Type=notify-reload.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["Notifier"]

logger = logging.getLogger("shmcache")

SEND_TIMEOUT_S: Final = 1.0
"""How long a datagram may wait for room in the manager's queue: a daemon that hangs because its
watcher does would be the worse of the two."""


class Notifier:
    """What a daemon tells whoever started it; silent where nobody asked for it.

    Args:
        environment: variables to look at, `os.environ` by default: ``NOTIFY_SOCKET``,
            ``WATCHDOG_USEC``, ``WATCHDOG_PID``. Read once.

    Every call sends one datagram and returns whether it was sent; it blocks for `SEND_TIMEOUT_S`
    at most, and never raises. Not for use from several threads at once.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = _address(variables.get("NOTIFY_SOCKET", ""))
        self._complained: set[str] = set()
        self.watchdog_s: float | None = _watchdog_seconds(variables)
        """Seconds within which a sign of life is expected, None: none is."""

    @property
    def enabled(self) -> bool:
        """Whether anybody is to be told."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is done."""
        return self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> bool:
        """A reload begins; `ready` ends it."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}", *_status(status))

    def stopping(self, status: str = "") -> bool:
        """The daemon is on its way out."""
        return self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for people, as `systemctl status` shows it."""
        return self._send(*_status(text))

    def watchdog(self) -> bool:
        """A sign of life. Does nothing where none is expected."""
        return self.watchdog_s is not None and self._send("WATCHDOG=1")

    def patience(self, seconds: float) -> bool:
        """Ask the watchdog to wait that long from now on, as `WATCHDOG_USEC` did at the start; for
        work that is known to take long. Does nothing where no sign of life is expected."""
        return self.watchdog_s is not None and self._send(
            f"WATCHDOG_USEC={round(seconds * 1_000_000)}"
        )

    def extend_timeout(self, seconds: float) -> bool:
        """Start-up or stop goes on, and will say so again, or be done, within `seconds`."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def _send(self, *lines: str) -> bool:
        if self._address is None or not lines:
            return False
        try:
            # A socket for each datagram: the manager may have been replaced since the last.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            what = f"cannot tell the service manager at {os.fsdecode(self._address)!r}: {error}"
            if what not in self._complained:
                self._complained.add(what)
                logger.warning("%s", what)
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _address(name: str) -> bytes | None:
    """The socket's address: a path, or NUL and a name in the abstract namespace."""
    if not name:
        return None
    if name[0] == "@" and len(name) > 1:
        return b"\0" + os.fsencode(name[1:])
    if name[0] == "/":
        return os.fsencode(name)
    logger.warning("NOTIFY_SOCKET %r is neither a path nor an abstract name: not used", name)
    return None


def _watchdog_seconds(variables: Mapping[str, str]) -> float | None:
    """Seconds that WATCHDOG_USEC grants, where WATCHDOG_PID means this process."""
    text, pid = variables.get("WATCHDOG_USEC", ""), variables.get("WATCHDOG_PID", "")
    if not text or (pid and pid != str(os.getpid())):
        return None
    try:
        usec = int(text)
    except ValueError:
        usec = 0
    if usec <= 0:
        logger.warning("WATCHDOG_USEC %r is no number of microseconds: not used", text)
        return None
    return usec / 1_000_000
