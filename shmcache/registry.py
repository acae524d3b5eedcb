"""What caches exist on this host, seen from outside: looking changes nothing.

Place in the flow: level 3, beside `segment.py`.  Reads files in /dev/shm; attaches to nothing,
takes no client slot and no lock, so it never counts as a client, or as the last one out.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass

from shmcache import errors
from shmcache._core import LAYOUT
from shmcache._linux import Mapping
from shmcache.block import DEAD, OWNER, OWNER_PID, Superblock, load_word, segment_path
from shmcache.liveness import GENERATION_BITS, ClientTable, is_locked
from shmcache.semaphores import SHM_DIR

__all__ = ["CacheInfo", "list_caches"]

_FILE_NAME = re.compile(r"shmcache\.([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})", re.ASCII)
_ENTRIES = LAYOUT["shm_shard.counts"] + LAYOUT["shm_counts.entries"]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """A cache as it looks from outside.

    Attributes:
        name: what `Cache(name)` takes.
        size: bytes of shared memory.
        entries: stored entries, expired ones that were not swept yet included; None where
            the segment cannot be read.
        clients: living processes that have it open, observers (`shmcache.observer`) left out;
            None where it cannot be read.
        owner: the user that it belongs to, by name where there is one, else "uid 1234".
        owner_pid: the process id of its owner daemon, as its own namespace sees it; None where
            none is alive, or the segment cannot be read.
        problem: why it cannot be read or used; "" where it can.
    """

    name: str
    size: int
    entries: int | None
    clients: int | None
    owner: str
    owner_pid: int | None = None
    problem: str = ""


def list_caches() -> list[CacheInfo]:
    """The caches on this host, by name; those of other users too.

    A segment that this user may not read, or that no process can use, is listed with what can be
    told from outside and the `problem`.  Costs a look at each file in /dev/shm, and about 0.1 ms
    a cache.
    """
    infos: list[CacheInfo] = []
    try:
        file_names = sorted(os.listdir(SHM_DIR))
    except FileNotFoundError:  # a system without shared memory has no caches
        return infos
    for file_name in file_names:
        match = _FILE_NAME.fullmatch(file_name)
        if match and (info := _look(match[1])) is not None:
            infos.append(info)
    return infos


def _look(name: str) -> CacheInfo | None:
    """What can be told of one cache; None if it is gone."""
    path = segment_path(name)
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    owner = _user_name(status.st_uid)
    try:
        mapping = Mapping.open(path, writable=False)
        superblock = Superblock.read(name, mapping)
        if load_word(mapping, DEAD):
            return None
        clients = ClientTable(mapping, superblock.geometry, path).living()
        owner_pid = _owner_pid(mapping, superblock, path)
    except FileNotFoundError:
        return None
    except (OSError, errors.ShmcacheError) as error:
        return CacheInfo(name, status.st_size, None, None, owner, problem=str(error))
    geometry = superblock.geometry
    entries = sum(
        load_word(mapping, geometry.shards_off + shard * geometry.shard_stride + _ENTRIES)
        for shard in range(geometry.shard_count)
    )
    return CacheInfo(name, geometry.total_size, entries, clients, owner, owner_pid)


def _owner_pid(mapping: Mapping, superblock: Superblock, path: str) -> int | None:
    """The owner daemon's pid, if the kernel says that it is alive."""
    word = memoryview(mapping)[OWNER : OWNER + 8].cast("Q")[0]
    client, generation = (word >> GENERATION_BITS) - 1, word & ((1 << GENERATION_BITS) - 1)
    if not 0 <= client < superblock.geometry.client_count:
        return None
    _, inode, alive = is_locked(path, client, generation)
    return load_word(mapping, OWNER_PID) if alive and inode == superblock.inode else None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
