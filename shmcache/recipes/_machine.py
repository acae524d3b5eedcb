"""What this process may use of the machine: CPUs and memory, as limited by affinity and cgroups.

Place: level 6, beneath `pool.py`. Reads /proc and /sys/fs/cgroup; what cannot be read limits
nothing. Both versions of cgroups: of the second one the process's own group and all above it
count, since each of them limits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["capacities"]

_ROOT: Final = Path("/")


def capacities(root: Path = _ROOT) -> dict[str, float]:
    """``{"cpus": ..., "memory": ...}``: CPUs (a fraction where a quota says so) and bytes.

    root: where proc and sys are looked for; for tests.
    """
    return {"cpus": _cpus(root), "memory": _memory(root)}


def _cpus(root: Path) -> float:
    cpus: float = len(os.sched_getaffinity(0))
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split() or [
            _read(group / "cpu.cfs_quota_us"),
            _read(group / "cpu.cfs_period_us"),
        ]
        quota, period = (_number(word) for word in (*words, "", "")[:2])
        if quota and period:
            cpus = min(cpus, quota / period)
    return int(cpus) if cpus == int(cpus) else cpus


def _memory(root: Path) -> int:
    meminfo = dict(
        line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line
    )
    total = _number(meminfo.get("MemTotal", "").removesuffix("kB").strip()) * 1024
    for group in _groups(root, "memory"):
        limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes"))
        if limit:
            total = min(total, limit) if total else limit
    return total


def _groups(root: Path, controller: str) -> list[Path]:
    """The directories of this process's group for `controller`, and of those above it."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int:
    """The positive number in `text`; 0 for "max", -1, nothing..., which are no limit."""
    return int(text) if text.isascii() and text.isdigit() else 0
