"""What lies in shared memory, by cache: segments, files being built, semaphores.

Names only: nothing is opened here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from shmcache.doctor.diagnosis import Places

__all__ = ["Files", "list_files"]

_NAME = r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})"
_SEGMENT = re.compile(rf"shmcache\.{_NAME}(~new)?", re.ASCII)
_SEMAPHORE = re.compile(rf"sem\.shmcache\.{_NAME}~([0-9a-f]{{16}})~([0-9]+)", re.ASCII)


@dataclass(slots=True)
class Files:
    """The files of one cache.

    Attributes:
        name: of the cache.
        segment, building: where the published segment, and one that is being built, would be.
        has_segment, has_building: whether they are there.
        semaphores: numbers of its semaphores, by the nonce of the segment that they belong to.
    """

    name: str
    segment: Path
    building: Path
    has_segment: bool = False
    has_building: bool = False
    semaphores: dict[int, set[int]] = field(default_factory=dict)

    def semaphore(self, nonce: int, index: int) -> Path:
        """The file of one semaphore."""
        return self.segment.parent / f"sem.shmcache.{self.name}~{nonce:016x}~{index}"


def list_files(places: Places, name: str | None) -> dict[str, Files]:
    """The files of all caches, or of the one named, by cache; empty where there are none."""
    found: dict[str, Files] = {}

    def of(cache: str) -> Files:
        segment = places.shm / f"shmcache.{cache}"
        return found.setdefault(
            cache, Files(cache, segment, segment.with_name(f"{segment.name}~new"))
        )

    try:
        listing = sorted(os.listdir(places.shm))
    except OSError:
        return found
    for file_name in listing:
        if match := _SEGMENT.fullmatch(file_name):
            files = of(match[1])
            files.has_building |= match[2] is not None
            files.has_segment |= match[2] is None
        elif match := _SEMAPHORE.fullmatch(file_name):
            of(match[1]).semaphores.setdefault(int(match[2], 16), set()).add(int(match[3]))
    return {cache: files for cache, files in found.items() if name in (None, cache)}
