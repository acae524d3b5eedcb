"""The command line for tests: in this process through click's runner, or as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from click.testing import CliRunner, Result

SHMCACHE = [sys.executable, "-m", "shmcache"]


def invoke(
    *arguments: str,
    status: int | None = 0,
    input: str | bytes | None = None,
    env: Mapping[str, str | None] | None = None,
) -> Result:
    """Run a command in this process; it must exit with ``status`` (None: any), without a raise."""
    from shmcache.cli import main

    done = CliRunner().invoke(main, arguments, input=input, env=env, prog_name="shmcache")
    assert not isinstance(done.exception, Exception), done.exception
    assert status is None or done.exit_code == status, (
        f"exit {done.exit_code}: {done.stdout}\n{done.stderr}"
    )
    if status:
        assert done.stderr.strip() or done.stdout.strip()
    return done


def run(
    *arguments: str, env: Mapping[str, str] | None = None, input: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a process, to its end."""
    return subprocess.run(
        [*SHMCACHE, *arguments], capture_output=True, timeout=60, check=False, env=env, input=input
    )
