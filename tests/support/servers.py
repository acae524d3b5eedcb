"""Real servers as processes: started on a unix socket, asked over it, and all gone afterwards.

A server runs in a session of its own, so that whatever it has started can be found and ended. What
it prints is kept for the message of a failure.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from support.processes import HANG_S, poll_until

TESTS = Path(__file__).resolve().parents[1]


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=HANG_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, url: str = "/") -> str:
    """The body of one answer of status 200, on a connection of its own."""
    connection = Connection(path)
    try:
        connection.request("GET", url, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, f"{response.status}: {body}"
        return body
    finally:
        connection.close()


REFUSED = (OSError, http.client.HTTPException)
"""What a client sees of a worker that dies while it answers, or of a server that is restarting."""


def ask_bravely(path: Path, url: str = "/") -> str:
    """`ask`, again and again where a worker died under it."""
    found: list[str] = []

    def answered() -> bool:
        with contextlib.suppress(*REFUSED):
            found.append(ask(path, url))
        return bool(found)

    poll_until(answered, what=f"an answer to {url}")
    return found[0]


def members(session: int) -> dict[int, int]:
    """The living processes of a session: pid to parent's pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found[int(entry.name)] = int(fields[1])
    return found


def command_of(pid: int) -> bytes:
    """The command line of a process; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Server:
    """A running server. ``workers()`` are the processes that its first one has started."""

    def __init__(self, command: list[str], path: Path, env: dict[str, str]) -> None:
        self.path = path
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self.log = path.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "PYTHONPATH": paths, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        """Wait for the first answer."""

        def up() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            with contextlib.suppress(*REFUSED, AssertionError):
                ask(self.path, "/pid")
                return True
            return False

        poll_until(up, what="the server is up")

    def workers(self) -> list[int]:
        """Pids of the living children of the first process, but multiprocessing's helpers."""
        mine = self.process.pid
        children = [pid for pid, parent in members(mine).items() if parent == mine]
        return sorted(pid for pid in children if b"resource_tracker" not in command_of(pid))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit code, once every process of it is gone."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(HANG_S)
        finally:
            self.kill()
        return code

    def kill(self) -> None:
        """End whatever is left of it."""
        for pid in members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(HANG_S)
        poll_until(lambda: not members(self.process.pid), what="every process of it is gone")


@contextlib.contextmanager
def served(command: list[str], path: Path, **env: str) -> Iterator[Server]:
    """A server that is up; ended by SIGTERM, or killed where that is not enough."""
    server = Server(command, path, env)
    try:
        server.wait_until_up()
        yield server
    except BaseException:
        sys.stderr.write(server.log.read_text()[-8000:])
        raise
    finally:
        server.stop()


class Load:
    """Clients, each a thread, that ask for keys until they are told to stop.

    ``answers`` are the bodies by url, ``lost`` counts the answers that a death took away.
    """

    def __init__(self, path: Path, urls: list[str], clients: int = 8) -> None:
        self._path = path
        self._urls = urls
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self.answers: dict[str, set[str]] = {url: set() for url in urls}
        self.served = 0
        self.lost = 0
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def _run(self, number: int) -> None:
        try:
            while not self._stop.is_set():
                url = self._urls[number % len(self._urls)]
                number += 1
                try:
                    answer = ask(self._path, url)
                except REFUSED:
                    with self._guard:
                        self.lost += 1
                    continue
                with self._guard:
                    self.served += 1
                    self.answers[url].add(answer)
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_S)
        assert not any(thread.is_alive() for thread in self._threads)
        if self.failures:
            raise self.failures[0]

    def wait_for(self, served: int) -> None:
        """Wait for so many answers more."""
        goal = self.served + served
        poll_until(
            lambda: self.served >= goal or bool(self.failures), what=f"{served} answers more"
        )
