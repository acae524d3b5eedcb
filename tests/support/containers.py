"""Containers as far as they matter here: namespaces of their own, made with unshare(1).

A container gets a mount namespace and a PID namespace, as root of the machine or, without that, of
a user namespace. Its command has PID 2 there, under a shell that is the namespace's init: SIGKILL
from inside does nothing to an init.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

_UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
_AS_ROOT_OF_ITS_OWN = ["--user", "--map-root-user"]


@functools.cache
def _refusal() -> str:
    """Why there are no containers here; empty where they can be made."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(
        container("mount -t tmpfs -o size=1m tmpfs /dev/shm", "true"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return f"unshare is refused: {done.stderr.strip()}" if done.returncode else ""


def skip_where_refused() -> None:
    """Skip the test, with a word, where namespaces cannot be made."""
    if refusal := _refusal():
        pytest.skip(refusal)


def container(setup: str, *command: str) -> list[str]:
    """The command line that runs `command` in a container of its own, after `setup` (shell)."""
    user = [] if os.geteuid() == 0 else _AS_ROOT_OF_ITS_OWN
    return [*_UNSHARE, *user, "sh", "-ec", f'{setup or ":"}\n"$@"\nexit $?', "sh", *command]


def shm(size: str) -> str:
    """The setup of a container with a /dev/shm of its own, of that size, as Docker makes it."""
    return f"mount -t tmpfs -o size={size},mode=1777 tmpfs /dev/shm"


READ_ONLY_ROOT = "mount -o remount,bind,ro /"
"""Makes everything on the root file system read-only."""
