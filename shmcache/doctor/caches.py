"""What is wrong with a cache, seen from outside: nothing is attached to, locked or changed."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from shmcache import errors
from shmcache._core import LAYOUT
from shmcache._linux import Mapping, probe
from shmcache.block import DEAD, OWNER, PERSIST, Superblock, load_word
from shmcache.doctor.diagnosis import Diagnosis, Places
from shmcache.doctor.files import Files
from shmcache.doctor.holders import client_of, examine_holders, load_long
from shmcache.doctor.host import size_text
from shmcache.liveness import GATE_BYTE, ClientTable, somebody_lives

__all__ = ["Looked", "examine_cache"]

_ENTRIES = LAYOUT["shm_shard.counts"] + LAYOUT["shm_counts.entries"]


@dataclass(slots=True)
class Looked:
    """What the checks of the host need to know of a cache; None where it is not known."""

    size: int | None = None
    uid: int | None = None
    inode: int | None = None


def examine_cache(places: Places, files: Files, looked: Looked) -> Iterator[Diagnosis]:
    """Examine the files of one cache; fills in `looked`."""
    nonce: int | None = None
    if files.has_segment:
        try:
            status = os.stat(files.segment, follow_symlinks=False)
        except FileNotFoundError:
            return  # unlinked just now
        looked.uid, looked.inode, looked.size = status.st_uid, status.st_ino, status.st_size
        yield from _examine_permissions(places, files, status)
        try:
            superblock = None
            mapping = Mapping.open(str(files.segment), writable=False)
            superblock = Superblock.read(files.name, mapping)
        except FileNotFoundError:
            return
        except PermissionError:
            return  # said above: it is somebody else's
        except errors.LayoutMismatch as error:
            yield _unusable(files, "version-mismatch", str(error))
        except (OSError, ValueError, errors.CorruptSegment) as error:
            yield _unusable(files, "corrupt", str(error))
        if superblock is None:
            return
        nonce = superblock.nonce
        yield from _examine_segment(places, files, superblock, mapping)
    yield from _examine_building(files)
    yield from _examine_orphans(files, nonce)


# ------------------------------------------------------------------------------ permissions
def _examine_permissions(
    places: Places, files: Files, status: os.stat_result
) -> Iterator[Diagnosis]:
    name, mode = files.name, stat.S_IMODE(status.st_mode)
    owner, group = _user(status.st_uid), _group(status.st_gid)
    if places.user not in (0, status.st_uid) and status.st_uid != 0:
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r} belongs to {owner}, group {group}, with mode {mode:04o}, and you are "
            f"{_user(places.user)}",
            f"Cache({name!r}) raises NotPermitted for you",
            f"run this as {owner}; or, where its group may write (mode 0660), join it "
            f"(usermod -aG {group} {_user(places.user)}) and open it with group={group!r}",
            "foreign-owner",
        )
    if mode & 0o006:
        writes = bool(mode & 0o002)
        yield Diagnosis(
            "warning" if writes else "hint",
            name,
            f"cache {name!r} has mode {mode:04o}: every user of this host may "
            f"{'write to' if writes else 'read'} it",
            "whoever writes to it can change what others read, and destroy it"
            if writes
            else "what is in it is no secret here",
            f"chmod o-rw {files.segment} {files.segment.parent}/sem.{files.segment.name}~*; create "
            "it with mode=0o660 and a group for those who share it",
            "open-mode",
        )


def _examine_changed(files: Files, superblock: Superblock, mapping: Mapping) -> Iterator[Diagnosis]:
    """Compare owner, group and mode with those that it was created with; its semaphores too."""
    created = (superblock.owner_uid, superblock.owner_gid, superblock.mode)
    chown = f"chown {created[0]}:{created[1]}"
    found = (mapping.uid, mapping.gid, stat.S_IMODE(mapping.mode))
    changed = [files.segment] if found != created else []
    others = []
    for index in sorted(files.semaphores.get(superblock.nonce, ())):
        file = files.semaphore(superblock.nonce, index)
        try:
            status = os.stat(file, follow_symlinks=False)
        except OSError:
            continue
        if (status.st_gid, stat.S_IMODE(status.st_mode)) != created[1:]:
            others.append(file)
    if changed or others:
        which = changed + others
        yield Diagnosis(
            "warning",
            files.name,
            f"cache {files.name!r}: {len(which)} of its files have another owner, group or mode "
            f"than at creation (uid {created[0]}, gid {created[1]}, mode {created[2]:04o}), "
            f"first {which[0]}",
            "users that it was shared with are shut out, or wait for shards by looking every "
            "millisecond instead of being woken; or users that it was not shared with are let in",
            f"{chown} FILE && chmod {created[2]:04o} FILE, for {files.segment} and "
            f"{files.segment.parent}/sem.{files.segment.name}~*",
            "changed-mode",
        )


# ------------------------------------------------------------------------------ the segment
def _unusable(files: Files, code: str, message: str) -> Diagnosis:
    """A segment of another version, or a damaged one."""
    try:
        used = somebody_lives(str(files.segment))
    except OSError:
        used = False
    unlink = f"shmcache unlink {files.name}"
    return Diagnosis(
        "error",
        files.name,
        message,
        "no process of this version can open it"
        + (", and others have it open" if used else "; nobody has it open"),
        f"run one version of shmcache for all who share it; to begin anew, stop who has it open "
        f"(fuser -v {files.segment}), then {unlink}"
        if used
        else f"{unlink} (what is in it is lost), or open it with the version that made it",
        code,
    )


def _examine_segment(
    places: Places, files: Files, superblock: Superblock, mapping: Mapping
) -> Iterator[Diagnosis]:
    name, path = files.name, str(files.segment)
    if load_word(mapping, DEAD):
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r} was unlinked by a process that died before its files were gone",
            f"they hold {size_text(mapping.size)} of shared memory that nobody can use",
            f"shmcache unlink {name}",
            "half-unlinked",
            (str(mapping.inode),),
        )
        return
    if 0 < mapping.blocks * 512 < mapping.size:
        yield _unusable(
            files,
            "corrupt",
            f"cache {name!r}: its {mapping.size} bytes are not all reserved (INV-RESERVED): it is "
            "a copy, or was truncated and grown again",
        )
        return
    yield from _examine_changed(files, superblock, mapping)
    expected = superblock.geometry.shard_count + 1
    missing = set(range(expected)) - files.semaphores.get(superblock.nonce, set())
    if missing:
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r}: {len(missing)} of its {expected} semaphores are missing",
            "somebody removed them (rm, or logind's RemoveIPC). It goes on working, but who waits "
            "for a shard looks every millisecond instead of being woken",
            f"restart its users once all have closed it, or shmcache unlink {name}: the next "
            "one to open it makes all of it anew",
            "missing-semaphores",
            (str(mapping.inode),),
        )
    try:
        yield from _examine_users(superblock, mapping, path)
        yield from examine_holders(places, superblock, mapping, path)
    except OSError:
        return  # unlinked just now


def _examine_users(superblock: Superblock, mapping: Mapping, path: str) -> Iterator[Diagnosis]:
    """Find a cache that nobody uses, and one that its owner daemon has left."""
    name, geometry = superblock.name, superblock.geometry
    living = ClientTable(mapping, geometry, path).living()
    owner = client_of(load_long(mapping, OWNER), superblock, mapping, path)
    if living == 0:
        entries = sum(
            load_word(mapping, geometry.shards_off + i * geometry.shard_stride + _ENTRIES)
            for i in range(geometry.shard_count)
        )
        persists = bool(load_word(mapping, PERSIST))
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r} is a leftover: {size_text(mapping.size)}, {entries:,} "
            f"{'entry' if entries == 1 else 'entries'}, "
            f"created {_ago(superblock)}, without an owner daemon and without clients",
            "it holds its memory until somebody opens it (who finds it warm), or unlinks it"
            + (
                "; it persists, as its creator or an owner daemon chose"
                if persists
                else "; its last users were killed, else they would have removed it"
            ),
            f"shmcache unlink {name}, if it is not needed any more; shmcache serve {name} owns it",
            "leftover",
            (str(mapping.inode),),
        )
    elif owner is not None and not owner.alive:
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r} has {living} clients, and its owner daemon ({owner}) is dead",
            "clients go on; but nobody sweeps expired entries ahead of time, reloads "
            "configuration, saves snapshots or serves metrics",
            f"systemctl restart shmcache@{name}, or shmcache serve {name}: it adopts the cache as "
            "it is",
            "dead-owner",
            (str(owner),),
        )


def _ago(superblock: Superblock) -> str:
    seconds = max(0.0, (time.time_ns() - superblock.created_wall_ns) / 1e9)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


# --------------------------------------------------------------------------- what lies about
def _examine_building(files: Files) -> Iterator[Diagnosis]:
    """Find the file of a builder that died: a living one holds its gate byte."""
    if not files.has_building:
        return
    try:
        if probe(str(files.building), [(GATE_BYTE, 1)])[2][0]:
            return
        status = os.stat(files.building)
    except OSError:
        return
    yield Diagnosis(
        "warning",
        files.name,
        f"{files.building} was left by a process that died while it created cache {files.name!r}",
        f"it holds {size_text(status.st_blocks * 512)} of shared memory; the next one "
        "to create the cache removes it",
        f"rm {files.building}",
        "building-file",
        (str(status.st_ino),),
    )


def _examine_orphans(files: Files, nonce: int | None) -> Iterator[Diagnosis]:
    """Find semaphores of a segment that is gone."""
    if files.has_building:
        return  # they may be those of the one that is being built; or go with its leftover
    orphans = [
        files.semaphore(of, index)
        for of, indexes in sorted(files.semaphores.items())
        for index in sorted(indexes)
        if of != nonce
    ]
    if orphans:
        nonces = sorted({of for of in files.semaphores if of != nonce})
        patterns = " ".join(
            f"{files.segment.parent}/sem.shmcache.{files.name}~{of:016x}~*" for of in nonces
        )
        yield Diagnosis(
            "warning",
            files.name,
            f"{len(orphans)} semaphores of cache {files.name!r} belong to a segment that is gone",
            "the segment was removed by hand (rm, RemoveIPC). They hold a page each; the next one "
            "to create the cache removes them",
            f"rm {patterns}",
            "orphaned-semaphores",
            tuple(f"{of:016x}" for of in nonces),
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
