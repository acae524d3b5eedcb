"""What the figures were measured on, recorded with every run."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "shmcache", "lmdb", "warp_cache", "UltraDict", "diskcache", "redis", "hiredis", "pymemcache",
    "msgpack", "msgspec", "Cython",
)  # fmt: skip
PROGRAMS = {"redis-server": "--version", "memcached": "-V"}
ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Processor, kernel, interpreter, package versions, revision, and the load at present."""
    return {
        "processor": _first(Path("/proc/cpuinfo"), "model name"),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_kib": int(_first(Path("/proc/meminfo"), "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "packages": {name: _version(name) for name in PACKAGES},
        "programs": {name: _program(name, flag) for name, flag in PROGRAMS.items()},
        "sqlite": sqlite3.sqlite_version,
        "revision": _revision(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "load_average": os.getloadavg()[0],
    }


def cpu_ticks() -> tuple[int, int, int]:
    """System-wide (busy, idle, stolen) time of all CPUs in USER_HZ ticks since boot."""
    values = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = values
    return user + nice + system + irq + softirq, idle + iowait, steal


def _first(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _program(name: str, flag: str) -> str | None:
    try:
        done = subprocess.run([name, flag], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found[0] if found else None


def _revision() -> str:
    """The commit measured, with `+` when tracked files differ from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
