"""Names of the caches that this run of the suite makes, and what they leave in /dev/shm.

Every name carries the token of the run, so that two runs on one machine never meet and the end of
a run can look for its own leftovers and nobody else's.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from pathlib import Path

SHM = Path("/dev/shm")
RUN_VARIABLE = "SHMCACHE_TEST_RUN"

_counter = itertools.count()


def run_token() -> str:
    """The token of this run: the same in the controller, its xdist workers and their children."""
    return os.environ.setdefault(RUN_VARIABLE, secrets.token_hex(4))


def unique_name(hint: str = "") -> str:
    """A name that no other test of this run uses (the pid tells xdist workers apart)."""
    cleaned = re.sub(r"[^A-Za-z0-9]", "-", hint)[:24]
    return f"t{run_token()}-{os.getpid()}-{next(_counter)}-{cleaned}".rstrip("-")


def leftovers(name: str) -> list[Path]:
    """Every file in /dev/shm that belongs to the cache ``name``, sorted."""
    pattern = re.compile(rf"(sem\.)?shmcache\.{re.escape(name)}(~.*)?")
    return sorted(path for path in SHM.iterdir() if pattern.fullmatch(path.name))


def leftovers_of_run() -> list[Path]:
    """Every file in /dev/shm that any cache of this run has left."""
    mark = f"shmcache.t{run_token()}-"
    return sorted(path for path in SHM.iterdir() if mark in path.name)


def segment_path(name: str) -> Path:
    """The file of the published segment of cache ``name``."""
    return SHM / f"shmcache.{name}"


def remove(paths: list[Path]) -> None:
    """Remove what a failed test left, so that it fails alone."""
    for path in paths:
        path.unlink(missing_ok=True)
