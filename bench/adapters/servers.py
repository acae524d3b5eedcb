"""Peers that are servers, started by the bench on a private Unix socket and stopped by it.

No TCP port, no persistence, a temporary directory.  A server ends with the process that started
it, also when that is killed (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from bench.adapters.base import Absent, Adapter, encode_objects

START_S = 10.0
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Server(Adapter):
    """One server process and a client of it."""

    waits = True
    program: ClassVar[str]

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        self._objects = objects
        found = shutil.which(self.program)
        if found is None:
            raise Absent(f"no {self.program} here (Debian: apt install {self.program})")
        self._folder = tempfile.mkdtemp(prefix=f"shmcache-bench-{self.program}-")
        self._socket = f"{self._folder}/socket"
        self._log = Path(self._folder, "log")
        megabytes = max(64, 4 * room >> 20)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(found, megabytes),
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_end_with_parent,
                )
            self._await()
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """A connection of this process's own."""
        self._client = None
        self._connect()

    def footprint(self) -> int:
        """The server's private memory, by the kernel's word."""
        assert self._process is not None
        rows = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        fields = (row.split() for row in rows)
        return sum(1024 * int(f[1]) for f in fields if f[0] in {"Private_Dirty:", "Private_Clean:"})

    def close(self) -> None:
        """See `Peer`."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                raise Absent(f"{self.program} ended at once: {self._last_words()}")
            try:
                self._connect()
                return
            except ImportError as error:
                raise Absent(str(error)) from error
            except Exception as error:  # whatever its client raises while nobody listens
                if time.monotonic() > deadline:
                    raise Absent(f"{self.program} did not answer: {error}") from error
                time.sleep(0.02)

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-300:]

    def _command(self, program: str, megabytes: int) -> list[str]:
        raise NotImplementedError

    def _connect(self) -> None:
        raise NotImplementedError


class Redis(_Server):
    """Redis."""

    name = "Redis"
    about = "redis-server on a Unix socket, no persistence; redis-py with hiredis where installed"
    program = "redis-server"

    def _command(self, program: str, megabytes: int) -> list[str]:
        return [
            program, "--port", "0", "--unixsocket", self._socket, "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--dir", self._folder,
            "--maxmemory", f"{megabytes}mb",
        ]  # fmt: skip

    def _connect(self) -> None:
        import redis

        client = redis.Redis(unix_socket_path=self._socket)
        client.ping()
        self._client = client
        self.get = self.get_miss = client.get
        self.contains = client.exists
        self.set, self.delete, self.incr = client.set, client.delete, client.incr
        self.get_many, self.set_many = client.mget, client.mset
        if self._objects:
            encode_objects(self)

    def start_counter(self, key: str) -> None:
        """See `Peer`."""
        self._client.set(key, b"0")


class Memcached(_Server):
    """memcached."""

    name = "memcached"
    about = "memcached on a Unix socket; pymemcache, every command waits for its answer"
    program = "memcached"

    def _command(self, program: str, megabytes: int) -> list[str]:
        command = [program, "-s", self._socket, "-m", str(megabytes), "-I", "4m"]
        return [*command, "-u", "root"] if os.geteuid() == 0 else command

    def _connect(self) -> None:
        from pymemcache.client.base import Client

        client = Client(f"unix:{self._socket}", default_noreply=False, timeout=10.0)
        client.version()
        self._client = client

        def incr(key: str) -> int | None:
            return client.incr(key, 1)

        self.get = self.get_miss = client.get
        self.set, self.delete, self.incr = client.set, client.delete, incr
        self.get_many, self.set_many = client.get_many, client.set_many
        if self._objects:
            encode_objects(self)

    def start_counter(self, key: str) -> None:
        """See `Peer`."""
        self._client.set(key, b"0")
