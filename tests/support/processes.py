"""Worker processes for tests: functions run elsewhere, pipes in between, no sleeps.

A worker runs ``fn(channel, *args)`` in a process of its own.  Both sides talk through one duplex
pipe; every wait is for a message or for the kernel's word about the process, and is bounded by
``HANG_S``, which is far above what any step needs: reaching it means a hang, not a slow machine.
Load tests run for ``STRESS_S`` seconds (``SHMCACHE_STRESS_SECONDS``, 5 by default).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

HANG_S = 60.0
STRESS_S = float(os.environ.get("SHMCACHE_STRESS_SECONDS", "5"))
METHODS = ("fork", "spawn", "forkserver")


class WorkerFailed(AssertionError):
    """The worker raised, died or hung; the message holds its traceback or its fate."""


class Channel:
    """The worker's end of its pipe."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe

    def send(self, message: object = None) -> None:
        """Send one message to the test."""
        self._pipe.send(("message", message))

    def recv(self) -> Any:
        """Wait for the test's next message."""
        if not self._pipe.poll(HANG_S):
            raise WorkerFailed(f"no word from the test within {HANG_S} s")
        return self._pipe.recv()

    def told(self) -> bool:
        """Whether the test has said something that was not received yet; never blocks."""
        return self._pipe.poll(0)

    def sync(self) -> None:
        """Say that this worker is ready and wait until the test lets all of them go."""
        self.send("ready")
        self.recv()


class Worker:
    """The test's end: one process that runs ``fn(channel, *args)``."""

    def __init__(self, fn: Callable[..., Any], *args: Any, method: str = "fork") -> None:
        context: Any = multiprocessing.get_context(method)
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, fn, args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        pid = self.process.pid
        assert isinstance(pid, int)
        return pid

    def send(self, message: object = None) -> None:
        """Send one message to the worker; WorkerFailed, with the reason, if it has ended."""
        try:
            self._pipe.send(message)
        except BrokenPipeError:
            while True:  # what it said last is its traceback, if it had time for one
                self._next()

    def recv(self) -> Any:
        """The worker's next message."""
        kind, payload = self._next()
        assert kind == "message", f"expected a message, got the result {payload!r}"
        return payload

    def result(self) -> Any:
        """What ``fn`` returned, after the process has ended."""
        kind, payload = self._next()
        assert kind == "result", f"expected the result, got the message {payload!r}"
        self.join()
        return payload

    def join(self) -> int:
        """Wait for the process to end; its exit code (negative: the signal)."""
        self.process.join(HANG_S)
        code = self.process.exitcode
        if code is None:
            raise WorkerFailed(f"process {self.pid} did not end within {HANG_S} s")
        assert isinstance(code, int)
        return code

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if not self.process.is_alive():
            return
        os.kill(self.pid, signal.SIGKILL)
        try:
            wait_zombie(self.pid)
        except ChildProcessError:  # a forkserver's child
            self.join()
        else:  # without a bound: that would wait for a pipe, which a child of the worker's may hold
            self.process.join()

    def stop(self) -> None:
        """SIGSTOP, and wait until the kernel says that the process has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_stopped(self.pid)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _next(self) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(HANG_S):
                raise WorkerFailed(f"no word from process {self.pid} within {HANG_S} s")
            kind, payload = self._pipe.recv()
        except EOFError:
            raise WorkerFailed(f"process {self.pid} ended early, exit {self.join()}") from None
        if kind == "error":
            raise WorkerFailed(f"process {self.pid} raised:\n{payload}")
        return kind, payload


def _run(pipe: Connection[Any, Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer: tuple[str, Any] = ("result", fn(Channel(pipe), *args))
    except BaseException:
        answer = ("error", traceback.format_exc())
    pipe.send(answer)


def release(workers: Iterable[Worker]) -> None:
    """Wait until every worker has called ``channel.sync()``, then let all of them go at once."""
    waiting = list(workers)
    for worker in waiting:
        assert worker.recv() == "ready"
    for worker in waiting:
        worker.send("go")


def wait_stopped(pid: int) -> None:
    """Wait until the child ``pid`` has stopped (its status stays for whoever reaps it)."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        status = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if status is not None:
            assert status.si_code == os.CLD_STOPPED, f"process {pid} ended: {status}"
            return
    raise WorkerFailed(f"process {pid} did not stop within {HANG_S} s")


def wait_zombie(pid: int) -> int:
    """Wait until the child ``pid`` has died, and leave it a zombie; the signal or exit code."""
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    return status.si_status


def poll_until(condition: Callable[[], bool], seconds: float = HANG_S, *, what: str) -> None:
    """Poll ``condition`` until it holds; AssertionError naming ``what`` after ``seconds``.

    For conditions that only time or another process brings about and that nobody announces.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.001)
