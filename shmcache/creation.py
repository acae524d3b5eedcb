"""Building a new segment and publishing it, so that among any number of starters one wins.

Place in the flow: level 3, below `segment.py`, which calls `create` where it found no segment.
Knows how a segment is built; knows nothing of what is done with one that exists.

The story

    1. open the file `shmcache.NAME~new` with O_EXCL and lock its gate byte.  That file is the
       right to build: whoever finds it there and locked waits for its holder, so that a segment
       is never reserved twice over (eight workers that start at once in a container whose
       /dev/shm has room for one must not fail for want of memory).
    2. if meanwhile somebody published, drop it, and attach to theirs.
    3. sweep semaphores that a killed process left: none can belong to anybody now.
    4. compare with statvfs, reserve with posix_fallocate, which tells a full /dev/shm now rather
       than by a SIGBUS later; make the semaphores; write shards and superblock; take a client
       slot.
    5. publish with link(2) to `shmcache.NAME`.  EEXIST: another one won.  ENOENT: the file was
       swept away under us.  Either way look again.  (`rename` would replace a living segment.)
    6. unlink the building name and open the gate: the gate byte of the file is that of the
       segment, so nobody attaches before this point, and nobody ever sees half a segment.

Death at any step.  The kernel drops the lock; the next one to create finds the file unlocked,
locks it, and so has the right to unlink it (`_sweep`).  Between 1's open and its lock a sweeper
may be quicker: then the builder's own lock fails, or its path names another file, and it looks
again.  After 5 the file has two names: whoever attaches or destroys removes the other one.

A builder that is stopped is alive.  Others wait for it as long as it makes progress, and then
raise `LockTimeout` (see `segment.open_segment`).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shmcache import errors
from shmcache._core import format_segment
from shmcache._linux import LockHold, Mapping
from shmcache.attachment import Attachment
from shmcache.block import POLICIES, Superblock, building_path, segment_path
from shmcache.liveness import GATE_BYTE, ClientTable, names_inode
from shmcache.semaphores import SHM_DIR, create_semaphores, remove_semaphores

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmcache.geometry import Geometry

__all__ = ["Request", "build_progress", "create"]

_RESERVE_STEP_BYTES = 64 << 20
"""What one posix_fallocate takes: some ten milliseconds, so that a process that gets signals all
the time (a signal undoes an interrupted call) still gets on, and waiters see progress."""

_SEMAPHORE_BYTES = 4096
"""What a semaphore takes of /dev/shm: one page."""

_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller of `open_segment` asked for; checked, with defaults still None."""

    name: str
    create: bool | None
    plan: Callable[[], Geometry]
    policy: str | None
    codec: str | None
    mode: int
    gid: int | None
    persist: bool | None
    hash_seed: int | None = None
    observe: bool = False
    decode: bool = True

    @property
    def path(self) -> str:
        """Where the segment is, or will be, published."""
        return segment_path(self.name)


def build_progress(name: str) -> tuple[int, int, int] | None:
    """How far the one that builds this cache has got; None where nobody does.

    While two results differ, somebody gets on.
    """
    try:
        status = os.stat(building_path(name), follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_blocks, status.st_ctime_ns


def create(request: Request) -> Attachment | None:
    """Builds and publishes the segment, and attaches to it.

    Returns None where somebody else builds it or has published it: look again.
    Raises `OutOfSharedMemory` where /dev/shm has no room, `NotPermitted` where it, the group or a
    file in the way is out of bounds.  Leaves nothing behind when it fails.
    Costs about a millisecond, and what the kernel takes to clear the memory (0.1 to 0.3 s a GiB).
    """
    path = building_path(request.name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        _sweep(request)
        return None
    except PermissionError as error:
        raise errors.NotPermitted(
            f"cannot create cache {request.name!r}: {SHM_DIR} may not be written by user "
            f"{os.geteuid()}: mount it read-write, with mode 1777"
        ) from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room(request.name, request.plan(), error) from error
        if error.errno == errno.ENOENT:
            raise errors.OutOfSharedMemory(
                f"cannot create cache {request.name!r}: this system has no {SHM_DIR}; mount a "
                f"tmpfs there (mount -t tmpfs -o mode=1777 tmpfs {SHM_DIR})"
            ) from error
        if error.errno == errno.EROFS:
            raise errors.NotPermitted(read_only(request.name)) from error
        raise
    try:
        return _build(request, path, fd)
    finally:
        os.close(fd)


def _build(request: Request, path: str, fd: int) -> Attachment | None:
    """Steps 1 (the lock) to 6; cleans up whatever happens."""
    status = os.fstat(fd)
    try:
        gate = LockHold(path, GATE_BYTE)
    except (BlockingIOError, FileNotFoundError):
        return None  # a sweeper was quicker: the file is its to unlink
    except OSError:  # no descriptor is left, say
        if names_inode(path, status.st_dev, status.st_ino):
            os.unlink(path)  # should it hit another builder's file after all, that one tries again
        raise
    try:
        if (gate.device, gate.inode) != (status.st_dev, status.st_ino):
            return None  # ours was swept, and this is somebody else's, who will find it locked
        if not names_inode(path, gate.device, gate.inode):
            return None
        try:
            return _build_locked(request, path, fd)
        finally:
            if names_inode(path, gate.device, gate.inode):
                os.unlink(path)
    finally:
        gate.release()


def _build_locked(request: Request, path: str, fd: int) -> Attachment | None:
    """Steps 2 to 5, with the right to build held."""
    if os.path.lexists(request.path):
        return None
    remove_semaphores(request.name)
    geometry = request.plan()
    _give_permissions(request, fd)
    nonce = secrets.randbits(64)
    published = False
    try:
        _reserve(request.name, fd, geometry)
        create_semaphores(request.name, nonce, geometry.shard_count + 1, request.mode, request.gid)
        mapping, superblock = _format(request, fd, geometry, nonce)
        taken = ClientTable(mapping, geometry, path).take(mapping.device, mapping.inode)
        table = ClientTable(mapping, geometry, request.path)
        try:
            os.link(path, request.path, follow_symlinks=False)
        except (FileExistsError, FileNotFoundError):
            return None
        published = True
        return Attachment(superblock, mapping, table, taken, created=True)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # Give it back before saying how much is free.
        with suppress(OSError):
            os.ftruncate(fd, 0)
        remove_semaphores(request.name, nonce)
        raise _no_room(request.name, geometry, error) from error
    finally:
        if not published:
            remove_semaphores(request.name, nonce)


def _give_permissions(request: Request, fd: int) -> None:
    if request.gid is not None:
        try:
            os.fchown(fd, -1, request.gid)
        except PermissionError as error:
            raise errors.NotPermitted(
                f"cannot give cache {request.name!r} to group {request.gid}: user "
                f"{os.geteuid()} is no member of it; join it, or leave `group` out"
            ) from error
    os.fchmod(fd, request.mode)  # after chown, and because open masks the mode with the umask


def _format(
    request: Request, fd: int, geometry: Geometry, nonce: int
) -> tuple[Mapping, Superblock]:
    """Maps the reserved file and makes it a segment."""
    mapping = Mapping(fd, geometry.total_size)
    fields: dict[str, int | bytes] = {
        **asdict(geometry),
        "nonce": nonce,
        "hash_seed": secrets.randbits(64) if request.hash_seed is None else request.hash_seed,
        "inode": mapping.inode,
        "device": mapping.device,
        "created_wall_ns": time.time_ns(),
        "created_mono_ns": time.monotonic_ns(),
        "owner_uid": mapping.uid,
        "owner_gid": mapping.gid,
        "mode": request.mode,
        "policy": POLICIES[request.policy or "evict"],
        "codec": (request.codec or "msgpack").encode("ascii"),
        "persist": int(bool(request.persist)),
    }
    format_segment(mapping, fields)
    return mapping, Superblock.read(request.name, mapping)


def _reserve(name: str, fd: int, geometry: Geometry) -> None:
    """Makes the file as long as the segment, with memory behind every byte of it."""
    size = geometry.total_size
    room = os.statvfs(SHM_DIR)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks == 0:  # a tmpfs without a limit: the machine has one all the same
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size + (geometry.shard_count + 1) * _SEMAPHORE_BYTES > free:
        raise _no_room(name, geometry)
    for start in range(0, size, _RESERVE_STEP_BYTES):
        os.posix_fallocate(fd, start, min(_RESERVE_STEP_BYTES, size - start))


def read_only(name: str) -> str:
    """The message for a /dev/shm that cannot be written."""
    return (
        f"cannot open cache {name!r}: {SHM_DIR} is mounted read-only, and whoever uses a cache "
        f"writes to it: mount -o remount,rw {SHM_DIR} (a container with a read-only root needs a "
        "tmpfs of its own there)"
    )


def _no_room(
    name: str, geometry: Geometry, error: OSError | None = None
) -> errors.OutOfSharedMemory:
    """`error`: what the system said, where there should have been room."""
    room = os.statvfs(SHM_DIR)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    files = geometry.shard_count + 3  # the segment under two names, the gate's semaphore
    few_files = room.f_files > 0 and room.f_ffree < files
    by_limit = error is not None and error.errno != errno.ENOSPC
    if error is not None and free > geometry.total_size and (by_limit or few_files):
        inodes = f" and {room.f_ffree} of the {files} files that it takes" if few_files else ""
        return errors.OutOfSharedMemory(
            f"cache {name!r} asks for {_amount(geometry.total_size)} of shared memory, which the "
            f"system refuses ({error.strerror}) although {SHM_DIR} has {_amount(free)}{inodes} "
            "free: look at this process's limits (ulimit -f, -v), the cgroup's memory limit and "
            f"the files that {SHM_DIR} may hold (mount option nr_inodes), or pass a smaller size"
        )
    return errors.OutOfSharedMemory(
        f"cache {name!r} asks for {_amount(geometry.total_size)} of shared memory, and {SHM_DIR} "
        f"has {_amount(free)} free of {_amount(total)}: pass a smaller size, unlink caches that "
        "are not needed, or make it larger (docker run --shm-size=1g; Kubernetes: an emptyDir "
        f"with medium: Memory mounted at {SHM_DIR}; else mount -o remount,size=1g {SHM_DIR})"
    )


def _amount(size_bytes: int) -> str:
    return f"{size_bytes} bytes ({size_bytes / (1 << 20):.1f} MiB)"


def _sweep(request: Request) -> None:
    """Unlinks what a builder that died has left at the building name; leaves a living one's.

    Raises `NotPermitted` for a file that is none of ours and stands in the way for good.
    """
    path = building_path(request.name)
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    ours = status.st_uid in (0, os.geteuid()) or status.st_gid == request.gid
    if not stat.S_ISREG(status.st_mode) or not (ours or os.geteuid() == 0):
        raise errors.NotPermitted(
            f"{path} stands in the way of creating cache {request.name!r}; it belongs to user "
            f"{status.st_uid} (mode {stat.S_IMODE(status.st_mode):04o}): have it removed, or "
            "choose another name"
        )
    try:
        hold = LockHold(path, GATE_BYTE)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return  # its builder lives, has just ended, or has not set its mode yet
    try:
        # Locked, and still named: nobody else may unlink it, and its builder is dead.
        if names_inode(path, hold.device, hold.inode):
            if not os.path.lexists(request.path):
                remove_semaphores(request.name)
            os.unlink(path)
    except PermissionError as error:
        raise errors.NotPermitted(
            f"{path} was left by user {status.st_uid}, who died while building cache "
            f"{request.name!r}; only that user and root may unlink it"
        ) from error
    finally:
        hold.release()
