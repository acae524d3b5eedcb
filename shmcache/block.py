"""The shared block of a cache: its file names, its superblock, and how it is destroyed.

Place in the flow: level 3, below `attachment.py`.  Knows files, a mapped segment and what its
superblock says; knows nothing of processes, handles or shards.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NoReturn

from shmcache import errors
from shmcache._core import LAYOUT, parse_superblock
from shmcache._linux import Mapping
from shmcache.geometry import Geometry
from shmcache.liveness import names_inode
from shmcache.semaphores import SHM_DIR, remove_semaphores

__all__ = [
    "DEAD",
    "OWNER",
    "OWNER_PID",
    "PERSIST",
    "POLICIES",
    "Block",
    "Superblock",
    "building_path",
    "destroy",
    "load_word",
    "may_unlink",
    "segment_path",
    "store_word",
]

POLICIES = {"evict": LAYOUT["SHM_POLICY_EVICT"], "keep": LAYOUT["SHM_POLICY_KEEP"]}
_POLICY_NAMES = {number: name for name, number in POLICIES.items()}

DEAD = LAYOUT["shm_superblock.dead"]
"""Where the word lies that is 1 once the segment was unlinked; written under the gate."""

PERSIST = LAYOUT["shm_superblock.persist"]
"""Where the word lies that is 1 while the segment is to stay after its last client."""

OWNER = LAYOUT["shm_superblock.owner"]
"""Where the 64-bit identity word of the owner daemon's client lies; 0: there is none."""

OWNER_PID = LAYOUT["shm_superblock.owner_pid"]
"""Where the owner daemon's pid lies, as its own namespace sees it: for people to read."""


def segment_path(name: str) -> str:
    """The file of the published segment."""
    return f"{SHM_DIR}/shmcache.{name}"


def building_path(name: str) -> str:
    """The file of a segment while it is being built; `~` is in no cache's name."""
    return f"{SHM_DIR}/shmcache.{name}~new"


def load_word(mapping: Mapping, offset: int) -> int:
    """One 32-bit word of the segment, in one load."""
    return memoryview(mapping)[offset : offset + 4].cast("I")[0]


def store_word(mapping: Mapping, offset: int, value: int) -> None:
    """Stores one 32-bit word of the segment, in one store."""
    memoryview(mapping)[offset : offset + 4].cast("I")[0] = value


class Block(SharedMemory):
    """`SharedMemory` over a `Mapping` that exists, without the four faults of the original.

    It never meets the resource tracker, on any version of Python (cpython#82300); attaching does
    not unlink when it fails (cpython#153279), and cannot see a block between creation and sizing
    (cpython#92408), since `segment.py` publishes finished segments only; it does not pickle, so
    that no unpickled copy is tracked again.  It keeps no file descriptor that `os.closerange`
    could close.
    """

    def __init__(self, file_name: str, mapping: Mapping) -> None:
        self._name = "/" + file_name
        self._size = mapping.size
        self._flags = os.O_RDWR
        self._mode = stat.S_IMODE(mapping.mode)
        self._fd = -1
        self._mmap = mapping
        self._buf = memoryview(mapping)
        self._track = False  # 3.13: what unlink() and pickling look at

    def __reduce__(self) -> NoReturn:
        raise TypeError("a segment's block does not pickle: pickle the Cache, which reattaches")

    def unlink(self) -> None:
        """Unlinks the file, if it is there; the gate of the segment must be held."""
        with suppress(FileNotFoundError):
            os.unlink(f"{SHM_DIR}{self._name}")


@dataclass(frozen=True, slots=True)
class Superblock:
    """A private copy of what never changes in a segment, checked when it was taken.

    `fields` is the same again, as the core takes it (and is not to be changed).
    """

    name: str
    codec: str
    policy: str
    geometry: Geometry
    nonce: int
    hash_seed: int
    inode: int
    device: int
    created_wall_ns: int
    created_mono_ns: int
    owner_uid: int
    owner_gid: int
    mode: int
    fields: dict[str, Any]

    @classmethod
    def read(cls, name: str, mapping: Mapping) -> Superblock:
        """Copies and checks the superblock of a mapped file.

        Raises `LayoutMismatch` or `CorruptSegment`, naming the cache.
        """
        head = memoryview(mapping)[: LAYOUT["SHM_SUPERBLOCK_SIZE"]]
        try:
            fields = parse_superblock(head, mapping.size)
            codec = fields["codec"].decode("ascii")
        except (errors.LayoutMismatch, errors.CorruptSegment) as error:
            raise type(error)(f"cache {name!r}: {error}") from None
        except UnicodeDecodeError:
            raise errors.CorruptSegment(
                f"cache {name!r}: the name of its codec is no ASCII; unlink the cache"
            ) from None
        if (fields["inode"], fields["device"]) != (mapping.inode, mapping.device):
            raise errors.CorruptSegment(
                f"cache {name!r}: its superblock names another file as the one that its clients "
                "lock (INV-LIVENESS), so it is a copy; unlink it and let it be made anew"
            )
        return cls(
            name=name,
            codec=codec,
            policy=_POLICY_NAMES[fields["policy"]],
            geometry=Geometry(**{key: fields[key] for key in Geometry.__dataclass_fields__}),
            fields=fields,
            **{
                key: fields[key]
                for key in cls.__dataclass_fields__
                if key in fields and key not in ("codec", "policy")
            },
        )


def may_unlink(uid: int) -> bool:
    """Whether this process may unlink a file of that user in the (sticky) shared directory."""
    if os.geteuid() in (0, uid):
        return True
    return not os.stat(SHM_DIR).st_mode & stat.S_ISVTX


def destroy(name: str, mapping: Mapping) -> None:
    """Marks a segment dead and unlinks all its files; `may_unlink` must hold, and the gate be held.

    The order makes a death in between harmless: dead first, so that nobody goes on using what
    loses its files; the segment last, so that as long as anything is left the next one to open
    the cache finds it marked dead, and ends the work.
    """
    if mapping.size >= DEAD + 4:
        store_word(mapping, DEAD, 1)
    remove_semaphores(name)
    building = building_path(name)
    if names_inode(building, mapping.device, mapping.inode):
        os.unlink(building)  # its creator died between publishing it and unlinking this name
    with suppress(FileNotFoundError):
        os.unlink(segment_path(name))
