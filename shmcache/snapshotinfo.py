"""What a snapshot's header says of the cache that was saved, written and checked here.

Place: level 5, between `snapshotfile.py` (the file) and `snapshot.py` (saving and loading).
docs/snapshots.md has the fields.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Final

from shmcache import limits
from shmcache.cache import Cache
from shmcache.snapshotfile import Reader

__all__ = ["SnapshotInfo", "hash_seed_of", "header_of", "info_of"]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a snapshot's header and trailer say.

    `created_at` is seconds since 1970 by the wall clock of the save; the rest describes the cache
    that was saved.
    """

    name: str
    entries: int
    slots: int
    bytes: int
    created_at: float
    codec: str
    policy: str
    size: int
    shards: int
    avg_entry_size: int
    swap_slots: int
    slot_capacity: int

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a `Cache` like the one that was saved."""
        same = ("size", "shards", "avg_entry_size", "policy", "codec", "slot_capacity")
        return {"slots": self.swap_slots, **{key: getattr(self, key) for key in same}}


def header_of(cache: Cache) -> dict[str, Any]:
    """The header of a snapshot of that cache, saved now."""
    superblock = cache._held.superblock
    geometry = superblock.geometry
    return {
        "name": cache.name,
        "created_at": time.time(),
        "codec": superblock.codec,
        "policy": superblock.policy,
        "size": geometry.total_size,
        "shards": geometry.shard_count,
        "avg_entry_size": geometry.avg_entry_size,
        "swap_slots": geometry.slot_count,
        "slot_capacity": geometry.slot_capacity,
        "hash_seed": f"{superblock.hash_seed:016x}",
    }


_TEXTS: Final = {
    "name": re.compile(rf"[A-Za-z0-9._-]{{1,{limits.NAME_MAX}}}"),
    "codec": re.compile(rf"[ -~]{{1,{limits.CODEC_NAME_MAX}}}"),
    "policy": re.compile("evict|keep"),
    "hash_seed": re.compile("[0-9a-f]{16}"),
}
_NUMBERS: Final = ("size", "shards", "avg_entry_size", "swap_slots", "slot_capacity")


def info_of(reader: Reader) -> SnapshotInfo:
    """What header and trailer say, each field checked: `DecodeError` names one that is none."""
    header, totals = reader.header, reader.totals
    for key, may_be in _TEXTS.items():
        if not isinstance(header.get(key), str) or not may_be.fullmatch(header[key]):
            reader.fail(16, f"the header's {key!r} is none")
    for key in _NUMBERS:
        if type(header.get(key)) is not int or not 0 <= header[key] < 1 << 63:
            reader.fail(16, f"the header's {key!r} is no number of bytes or things")
    if type(header.get("created_at")) is not float or not 0 <= header["created_at"] < 1e11:
        reader.fail(16, "the header's 'created_at' is no time")
    return SnapshotInfo(
        name=header["name"],
        entries=totals.entries,
        slots=totals.slots,
        bytes=totals.bytes,
        created_at=header["created_at"],
        codec=header["codec"],
        policy=header["policy"],
        **{key: header[key] for key in _NUMBERS},
    )


def hash_seed_of(reader: Reader) -> int:
    """The hash seed of the cache that was saved; `info_of` has checked the header."""
    return int(reader.header["hash_seed"], 16)
