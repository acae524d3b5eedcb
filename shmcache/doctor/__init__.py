"""What is wrong with the caches of this host, why it matters, and the command that mends it.

Place in the flow: level 5, beside `owner.py`.  A pure look: it attaches to nothing, takes no lock
and no client slot, changes no byte and no file.  What it knows it has from files in /dev/shm,
mapped for reading, from the kernel's word about who lives, and from /proc, /sys and /etc.

    diagnosis.py   what a finding is, and where to look (a test looks elsewhere)
    files.py       what lies in /dev/shm, by cache
    caches.py      segments, permissions, leftovers     holders.py   locks of the dead
    host.py        room, memory limits, logind, pages   ghosts.py    processes on what is gone

Caches come and go while it looks, and for some microseconds a healthy one looks like a broken one
(semaphores whose segment is not published yet).  So what it finds it looks for once more, a little
later, and tells only what is still there.
"""

from __future__ import annotations

import time

from shmcache.doctor.caches import Looked, examine_cache
from shmcache.doctor.diagnosis import Diagnosis, Places, Severity
from shmcache.doctor.files import list_files
from shmcache.doctor.ghosts import examine_ghosts
from shmcache.doctor.host import (
    examine_huge_pages,
    examine_logind,
    examine_memory_limit,
    examine_shared_memory,
)
from shmcache.limits import check_name

__all__ = ["CHECKS", "Diagnosis", "Places", "Severity", "examine"]

CHECKS = (
    "room in shared memory",
    "memory limit of the cgroup",
    "huge pages",
    "logind's RemoveIPC",
    "versions and superblocks",
    "owners and modes",
    "semaphores",
    "leftovers",
    "locks of dead and stopped processes",
    "processes on removed segments",
)
"""What `examine` looks for."""

_ORDER = {"error": 0, "warning": 1, "hint": 2}


def examine(
    name: str | None = None, *, places: Places | None = None, settle_seconds: float = 0.05
) -> list[Diagnosis]:
    """Look for what is wrong with all caches of this host, or with one of them, and with the host.

    Args:
        name: of the cache; None: all.
        places: where to look; None: this host.
        settle_seconds: how long to wait before what was found is looked for once more.

    Returns:
        What was found, the worst first; empty where all is well.

    Raises ValueError for a name that is none. Costs about a millisecond a cache, and a look at each
    process's memory map.
    """
    places = Places() if places is None else places
    if name is not None:
        check_name(name)
    found = _look(places, name)
    if found:
        time.sleep(settle_seconds)
        before, found = found, _look(places, name)
        found = [d for d in found if any(d.confirms(earlier) for earlier in before)]
    return sorted(found, key=lambda d: (_ORDER[d.severity], d.cache or "", d.code))


def _look(places: Places, name: str | None) -> list[Diagnosis]:
    found = list(examine_shared_memory(places))
    caches = list_files(places, name)
    looked = {cache: Looked() for cache in caches}
    for cache, files in caches.items():
        found += examine_cache(places, files, looked[cache])
    found += examine_ghosts(places, name, {cache: seen.inode for cache, seen in looked.items()})
    sizes = {cache: seen.size for cache, seen in looked.items() if seen.size is not None}
    found += examine_memory_limit(places, sizes)
    found += examine_huge_pages(places, sizes)
    owners = {cache: seen.uid for cache, seen in looked.items() if seen.uid is not None}
    found += examine_logind(places, owners)
    if name is not None and not any(files.has_segment for files in caches.values()):
        found.append(
            Diagnosis(
                "error",
                name,
                f"there is no cache {name!r} on this host",
                "who opens it with create=False gets CacheNotFound",
                f"shmcache serve {name}, or start what creates it; shmcache ls lists what is there",
                "no-cache",
            )
        )
    return found
