"""Segments opened one level below `Cache`, for tests of the segment and of liveness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmcache import attachment, geometry, segment
from shmcache._linux import Mapping
from shmcache.block import PERSIST, store_word

MIB = 1 << 20


def plan(size: int = MIB, policy: str = "evict", shards: int | None = None) -> geometry.Geometry:
    """A geometry for a small segment."""
    return geometry.plan(
        size=size,
        shards=shards,
        avg_entry_size=256,
        policy=policy,
        slots=16,
        slot_capacity=65536,
        cpu_count=2,
    )


def attach(name: str, *, size: int = MIB, **changes: Any) -> segment.Attachment:
    """Open the segment of cache ``name``, as `Cache` with default arguments would."""
    arguments: dict[str, Any] = {
        "create": None,
        "wait": 0.0,
        "plan": lambda: plan(size, changes.get("policy") or "evict"),
        "policy": None,
        "codec_name": None,
        "mode": 0o600,
        "group": None,
        "persist": None,
    }
    arguments.update(changes)
    return segment.open_segment(name, **arguments)


def forget() -> None:
    """Make a forked child open caches as a process that was started on its own would."""
    attachment._registry.clear()


def leave(name: str, **changes: Any) -> Path:
    """A segment that no living process has open, as a killed process leaves it."""
    opened = attach(name, persist=True, **changes)
    opened.release()
    store_word(Mapping.open(opened.path), PERSIST, 0)
    return Path(opened.path)
