"""What a doctor says of one thing that is wrong, and where the doctor looks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shmcache.semaphores import SHM_DIR

__all__ = ["Diagnosis", "Places", "Severity"]

Severity = Literal["error", "warning", "hint"]
"""error: something does not work. warning: something will not, or costs. hint: could be better."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is wrong.

    Attributes:
        severity: "error", "warning" or "hint".
        cache: the cache that it concerns; None: the host.
        what: what was found, in a sentence, with names and numbers.
        why: what it does to whoever uses the cache.
        remedy: the command that mends it, or what to do where there is no single one.
        code: a short name of this kind of finding, the same in every version.
        evidence: what it was seen on (a file's inode, a process on it, a nonce): two findings of
            one code and cache with no evidence in common are of two segments.
    """

    severity: Severity
    cache: str | None
    what: str
    why: str
    remedy: str
    code: str
    evidence: tuple[str, ...] = ()

    def confirms(self, other: Diagnosis) -> bool:
        """Whether this is, seen once more, what `other` was."""
        same = (self.code, self.cache) == (other.code, other.cache)
        return same and (self.evidence == () or not set(self.evidence).isdisjoint(other.evidence))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the host is looked at; a test points it elsewhere.

    Attributes:
        shm: the directory of shared memory.
        proc, sys: the kernel's file systems.
        etc, run, lib, state: where systemd reads its configuration, and keeps what lingers.
        uid: who asks; root may open everything.
    """

    shm: Path = Path(SHM_DIR)
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    etc: Path = Path("/etc")
    run: Path = Path("/run")
    lib: Path = Path("/usr/lib")
    state: Path = Path("/var/lib")
    uid: int = -1

    @property
    def user(self) -> int:
        """The user id that may or may not open a cache."""
        return os.geteuid() if self.uid < 0 else self.uid
