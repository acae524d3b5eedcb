"""The test build of the core (fault points compiled in), run in subprocesses."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULT_LIB = ROOT / "build" / "fault"
HANG_S = 110.0


@functools.cache
def environment() -> dict[str, str]:
    """What a subprocess needs to run in the test build; skips the test where there is none."""
    if not list(FAULT_LIB.glob("shmcache/_core/*.so")):
        pytest.skip(f"no test build in {FAULT_LIB}; make one with `make fault-build`")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAULT_LIB), str(ROOT / "tests")])}
    code = "import shmcache, shmcache._core as c; assert c.FAULT_POINTS, shmcache.__file__"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True)
    assert done.returncode == 0, f"{FAULT_LIB} is no test build: {done.stderr.decode()}"
    return env


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a script of tests/support in the test build."""
    return [sys.executable, "-P", str(ROOT / "tests" / "support" / f"{module}.py"), *arguments]


def run(module: str, *arguments: str) -> str:
    """Run such a script to its end; its output."""
    done = subprocess.run(
        command(module, *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, f"{module} {arguments} failed:\n{done.stderr[-4000:]}"
    return done.stdout


def fault_points() -> list[str]:
    """The names of all fault points of the test build."""
    code = "import shmcache._core as c; print(*c.FAULT_POINTS)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
