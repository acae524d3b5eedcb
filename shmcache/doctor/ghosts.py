"""Processes that still have a segment which is gone, or was replaced, in their memory.

Read from /proc/PID/maps, of those processes that may be looked at: a user's own, and root's all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from shmcache.doctor.diagnosis import Diagnosis, Places

__all__ = ["examine_ghosts"]

_SHOWN = 10


def examine_ghosts(
    places: Places, name: str | None, inodes: Mapping[str, int | None]
) -> Iterator[Diagnosis]:
    """Find processes on a ghost.

    inodes: of the published segment of each cache; a mapping of that very file is sound, also
    under the name that it was built under (which is always deleted: see creation.py).

    What is mapped from another file system is another container's /dev/shm, and none of ours.
    """
    try:
        device = os.stat(places.shm).st_dev
    except OSError:
        return
    mounted = f"{os.major(device):02x}:{os.minor(device):02x}"
    line = re.compile(
        rf"\S+ \S+ \S+ {mounted} (\d+) +{re.escape(str(places.shm))}/shmcache\.([\w.-]+)(?:~new)? "
        r"\(deleted\)",
        re.ASCII,
    )
    ghosts: dict[str, set[int]] = {}
    evidence: dict[str, set[str]] = {}
    for entry in _processes(places):
        try:
            text = (places.proc / entry / "maps").read_text(errors="replace")
        except OSError:
            continue
        for inode, cache in set(line.findall(text)):
            if name in (None, cache) and inodes.get(cache) != int(inode):
                ghosts.setdefault(cache, set()).add(int(entry))
                evidence.setdefault(cache, set()).add(f"{entry} on {inode}")
    for cache, pids in sorted(ghosts.items()):
        replaced = inodes.get(cache) is not None
        shown = ", ".join(str(pid) for pid in sorted(pids)[:_SHOWN])
        more = f" and {len(pids) - _SHOWN} more" if len(pids) > _SHOWN else ""
        yield Diagnosis(
            "warning",
            cache,
            f"cache {cache!r}: the segment of process{'es' if len(pids) > 1 else ''} "
            f"{shown}{more} was {'replaced' if replaced else 'removed'} under them",
            "within a second of use they get CacheNotFound"
            + (", and share nothing with who uses the one that is there now" if replaced else "")
            + "; its memory stays taken until they close or end",
            "restart them, or let them call cache.reopen() (the integrations do); what removed it "
            "was an unlink, an rm, or logind's RemoveIPC",
            "replaced-segment" if replaced else "vanished-segment",
            tuple(sorted(evidence[cache])),
        )


def _processes(places: Places) -> list[str]:
    try:
        return [entry for entry in os.listdir(places.proc) if entry.isdigit()]
    except OSError:
        return []
