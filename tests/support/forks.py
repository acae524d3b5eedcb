"""Forks, by Python and behind its back, and a child that checks one thing."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable


def c_fork() -> int:
    """Fork behind Python's back: no hook runs."""
    return int(ctypes.PyDLL(None).fork())


FORKS: dict[str, Callable[[], int]] = {"os.fork": os.fork, "libc.fork": c_fork}


def in_child(fork: Callable[[], int], check: Callable[[], object]) -> bool:
    """Whether ``check`` holds in a forked child."""
    pid = fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if check() else 2
        os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
