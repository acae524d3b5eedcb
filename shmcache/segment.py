"""Opening a cache's segment: attach to what is there, or create it, or replace what is no use.

Place in the flow: level 3; `Cache` calls `open_segment` and gets an `Attachment`.  Nothing above
this level uses SharedMemory, posix_ipc or /dev/shm.

The story.  Any number of processes call `open_segment` for one name at once:

* This process has it open already, and the path names that segment still: one handle more on the
  attachment that is there.
* The path names a file: look at whose it is before anything else, then go through the gate
  (liveness.py).  Behind it nobody else attaches, closes, unlinks or replaces, so what is found
  stays true: a good segment (take a client slot); one that is marked dead (its unlinker died:
  finish the work, look again); one that cannot be used, such as another layout version, garbage,
  or a truncated file (replace it if that harms nobody, else say what it is).
* It names none: build one (creation.py), or wait for who is building it.

Each of these ends in an attachment, an error, or "look again", and whoever looks again does so
because somebody else got on, or waits with a bound.

A segment without a living client is what killed processes left.  Whoever opens it next adopts it,
warm: its entries are sound (a dead holder of a shard is recovered from at the next write), and it
is unlinked by its last client like any other.

An observer (`observe=True`) goes the same way up to the gate and through it, and takes what it
finds or raises: it creates, replaces, adopts and unlinks nothing (INV-OBSERVER).
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import stat
import time
from typing import TYPE_CHECKING, NoReturn

from shmcache import errors
from shmcache._core import LAYOUT
from shmcache._linux import LockHold, Mapping
from shmcache.attachment import Attachment, critical
from shmcache.block import (
    DEAD,
    POLICIES,
    Superblock,
    building_path,
    destroy,
    load_word,
    may_unlink,
    segment_path,
)
from shmcache.creation import Request, build_progress, create, read_only
from shmcache.limits import check_name
from shmcache.liveness import (
    GATE_TIMEOUT_SECONDS,
    MEMBER,
    OBSERVER,
    ClientTable,
    gate_closed,
    names_inode,
    somebody_lives,
)
from shmcache.registry import CacheInfo, list_caches

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmcache.geometry import Geometry

__all__ = [
    "Attachment",
    "CacheInfo",
    "Superblock",
    "list_caches",
    "open_segment",
    "unlink_segment",
]

logger = logging.getLogger("shmcache")

_FIRST_PAUSE_SECONDS = 200e-6  # creating a small cache takes a millisecond
_LONGEST_PAUSE_SECONDS = 20e-3

_POLICY = LAYOUT["shm_superblock.policy"]


def open_segment(
    name: str,
    *,
    create: bool | None,
    wait: float,
    plan: Callable[[], Geometry],
    policy: str | None,
    codec_name: str | None,
    mode: int,
    group: str | int | None,
    persist: bool | None,
    hash_seed: int | None = None,
    observe: bool = False,
    decode: bool = True,
) -> Attachment:
    """Attaches to the segment of that name, or creates it; counts one handle.

    create: None attaches or creates, True only creates, False only attaches.
    wait: with `create=False`, seconds to wait for a segment to appear.
    plan: gives the geometry of a new segment; called only if one is made.
    policy, codec_name: of a new segment ("evict" and "msgpack" if None); an existing one must
        have the same, unless they are None.
    mode, group: permissions of a new segment and its semaphores, whatever the umask; and the
        group, name or number, whose segments are accepted beside this user's and root's.
    persist: whether a new segment stays after its last client (None: no).
    hash_seed: of a new segment, 64 bits (None: drawn at random).
    decode: whether values are to be decoded; without, pickle that others can write is let in.
    observe: attach only, and without counting as a client: see liveness.py.  The attachment is
        this handle's own.  Accepts besides this user's and root's segments those of any group
        that this process is in, and as root everybody's.

    Raises
        CacheNotFound   `create=False`, and none appeared in time
        CacheExists     `create=True`, and there is one
        ValueError      another policy or codec than the segment's; a mode or group that is none
        NotPermitted    the segment is somebody else's; pickle where another user can write
        LayoutMismatch, CorruptSegment   what is there cannot be used, and may not be replaced
        OutOfSharedMemory   /dev/shm has no room, or the address space none for the mapping
        LimitReached    living processes have all client slots
        LockTimeout     a process that is stopped or starved holds the gate, or builds

    Attaching costs about 0.1 ms; creating what the kernel takes to clear the memory.
    """
    request = Request(
        name=check_name(name),
        create=False if observe else create,
        plan=plan,
        policy=policy,
        codec=codec_name,
        mode=_check_mode(mode, codec_name),
        gid=_resolve_group(group),
        persist=persist,
        hash_seed=hash_seed,
        observe=observe,
        decode=decode,
    )
    started = time.monotonic()
    patience_ends = started + GATE_TIMEOUT_SECONDS
    progress = build_progress(name)
    pause = _FIRST_PAUSE_SECONDS
    while True:
        with critical(name) as registry:
            attachment = _open_once(request, registry)
        if attachment is not None:
            return attachment
        now = time.monotonic()
        if request.create is False:
            if now >= started + wait:
                way_out = "" if observe else ", or pass create=None to create it here"
                raise errors.CacheNotFound(
                    f"there is no cache {name!r} ({request.path}): start what creates it, or wait "
                    f"for it{'' if observe else ' with wait=SECONDS'}{way_out}"
                )
            pause = min(pause, started + wait - now)
        elif (latest := build_progress(name)) != progress:
            progress, patience_ends = latest, now + GATE_TIMEOUT_SECONDS
        elif now >= patience_ends:
            raise errors.LockTimeout(
                f"cache {name!r} is being created by a living process that has not got on for "
                f"{GATE_TIMEOUT_SECONDS:g} s; it is stopped or starved: resume or kill it "
                f"(`fuser {building_path(name)}` names it)"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def unlink_segment(name: str) -> bool:
    """Unlinks the segment of that name and its semaphores, whoever uses it, usable or not.

    Returns whether there was one.  Raises `NotPermitted` if it belongs to another user,
    `LockTimeout` if the gate is not to be had.
    """
    path = segment_path(check_name(name))
    try:
        with gate_closed(name, path):
            mapping = Mapping.open(path)
            if not may_unlink(mapping.uid):
                raise errors.NotPermitted(_whose(name, os.stat(path)))
            destroy(name, mapping)
    except FileNotFoundError:
        return False
    except errors.NotPermitted:
        raise
    except PermissionError:
        raise errors.NotPermitted(_whose(name, os.stat(path))) from None
    return True


def _open_once(request: Request, registry: dict[str, Attachment]) -> Attachment | None:
    """One look; None: look again."""
    attachment = None if request.observe else registry.get(request.name)
    if attachment is not None and _share(request, attachment):
        return attachment
    try:
        attachment = _attach(request)
    except FileNotFoundError as error:
        if isinstance(error, errors.CacheNotFound):
            raise
        if request.create is False:
            return None
        attachment = create(request)
    if attachment is not None and not request.observe:
        registry[request.name] = attachment
    return attachment


def _share(request: Request, attachment: Attachment) -> bool:
    """One handle more on an attachment that this process has, if its segment is still the one."""
    if attachment.handles == 0 or not attachment.still_named() or attachment.dead:
        return False
    _check_owner(request, attachment.uid, attachment.gid, attachment.mode)
    _check_wishes(request, attachment.superblock, attachment.others_can_write)
    if not attachment.identity.is_mine:
        try:
            attachment.rejoin()
        except errors.CacheNotFound:
            return False
    attachment.handles += 1
    return True


# ------------------------------------------------------------------------------- attaching
def _attach(request: Request) -> Attachment | None:
    """Attaches to what the path names.

    `FileNotFoundError` if it names nothing; None if what it named is gone: look again.
    """
    name, path = request.name, request.path
    # Before the lock: a stranger's file is not even locked, and a link not followed.
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise errors.CorruptSegment(
            f"cache {name!r}: {path} is no regular file, and so no segment: remove it"
        )
    _check_owner(request, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    try:
        with gate_closed(name, path) as gate:
            return _attach_locked(request, gate)
    except errors.ShmcacheError:
        raise
    except PermissionError as error:
        raise errors.NotPermitted(_whose(name, status)) from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise errors.NotPermitted(read_only(name)) from error
        if error.errno == errno.ENOMEM:
            raise errors.OutOfSharedMemory(
                f"cache {name!r} has {status.st_size} bytes, and this process has no address "
                "space left to map them: raise its limit (ulimit -v), or open a smaller cache"
            ) from error
        raise


def _attach_locked(request: Request, gate: LockHold) -> Attachment | None:
    """Attaches, or clears away what cannot be attached to; gate held."""
    name = request.name
    mapping = Mapping.open(request.path)
    if (mapping.device, mapping.inode) != (gate.device, gate.inode):
        return None
    # Again, of the very file that was locked and mapped.
    _check_owner(request, mapping.uid, mapping.gid, stat.S_IMODE(mapping.mode))
    try:
        superblock = _read_superblock(name, mapping)
    except (errors.LayoutMismatch, errors.CorruptSegment) as error:
        _replace(request, mapping, error)
        return None
    if load_word(mapping, DEAD):
        # Who marked it died before the last file was gone.
        if request.observe:
            raise errors.CacheNotFound(
                f"cache {name!r} was unlinked by a process that died before its files were gone: "
                "the next one to open it clears them away"
            )
        if not may_unlink(mapping.uid):
            raise errors.NotPermitted(
                f"cache {name!r} was unlinked by user {mapping.uid}, who died before its files "
                f"were gone: have that user or root remove {request.path}"
            )
        destroy(name, mapping)
        return None
    if mapping.links > 1 and not request.observe:
        _unlink_building_name(name, mapping)
    if request.create:
        raise errors.CacheExists(
            f"cache {name!r} exists ({request.path}): leave out create=True to attach to it, or "
            "unlink it first"
        )
    others = bool(mapping.mode & 0o022) or mapping.uid not in (0, os.geteuid())
    _check_wishes(request, superblock, others)
    table = ClientTable(mapping, superblock.geometry, request.path)
    adopted = not request.observe and not table.anybody_living()
    kind = OBSERVER if request.observe else MEMBER
    taken = table.take(mapping.device, mapping.inode, kind)
    if adopted:
        logger.info("cache %r: adopted, no living process had it open", name)
    return Attachment(superblock, mapping, table, taken, observer=request.observe)


def _read_superblock(name: str, mapping: Mapping) -> Superblock:
    superblock = Superblock.read(name, mapping)
    # A file with holes is none of ours: writing to it could end in SIGBUS.  (Some kernels'
    # stand-ins for tmpfs count no blocks at all.)
    if 0 < mapping.blocks * 512 < mapping.size:
        raise errors.CorruptSegment(
            f"cache {name!r}: its {mapping.size} bytes are not all reserved (INV-RESERVED), so it "
            "is a copy; unlink it and let it be made anew"
        )
    return superblock


def _unlink_building_name(name: str, mapping: Mapping) -> None:
    """Removes the second name of a segment whose creator died just after publishing it."""
    building = building_path(name)
    if names_inode(building, mapping.device, mapping.inode) and may_unlink(mapping.uid):
        os.unlink(building)


def _replace(request: Request, mapping: Mapping, error: errors.ShmcacheError) -> None:
    """Unlinks a segment that cannot be used, or raises `error` where that is not ours to do."""
    name = request.name
    if request.create is not None:
        raise error
    if somebody_lives(request.path):
        raise type(error)(f"{error} (a living process uses it, so it is not replaced)")
    if _says_keep(mapping):
        raise type(error)(
            f"{error} (its policy is 'keep', so it is not replaced; unlink it if what it holds "
            "is not needed)"
        )
    if not may_unlink(mapping.uid):
        raise type(error)(f"{error} (only user {mapping.uid} and root may unlink it)")
    logger.warning("replacing an unusable leftover that nobody has open: %s", error)
    destroy(name, mapping)


def _says_keep(mapping: Mapping) -> bool:
    """Whether a segment that may be damaged, or another version's, claims the policy "keep".

    The policy has the same place in every layout version. It counts also where the magic is
    damaged: what says "keep" by accident is refused, which unlink mends; what is dropped is gone.
    """
    if mapping.size < LAYOUT["SHM_SUPERBLOCK_SIZE"]:
        return False
    return load_word(mapping, _POLICY) == POLICIES["keep"]


# ----------------------------------------------------------------------- what is asked for
def _check_wishes(request: Request, found: Superblock, others_can_write: bool) -> None:
    """Refuses a segment that is not what was asked for, before a client slot is taken."""
    if request.create:
        raise errors.CacheExists(
            f"cache {request.name!r} exists, and this process has it open: leave out create=True"
        )
    for word, asked, has in (
        ("policy", request.policy, found.policy),
        ("codec", request.codec, found.codec),
    ):
        if asked is not None and asked != has:
            raise ValueError(
                f"cache {request.name!r} was created with {word} {has!r}, not {asked!r}: leave "
                f"{word} out to take the cache's own, or unlink the cache to create it anew"
            )
    if found.codec == "pickle" and others_can_write and request.decode:
        raise errors.NotPermitted(
            f"cache {request.name!r} has codec 'pickle', and another user can write to it: "
            "unpickling what others write runs their code; use 'msgpack', or mode 0600"
        )


def _check_mode(mode: object, codec_name: str | None) -> int:
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode must be an int such as 0o660, not {type(mode).__name__}")
    if not 0 <= mode <= 0o777 or mode & 0o600 != 0o600:
        raise ValueError(
            f"mode {mode:#o} makes no sense: pass permission bits that let the owner read and "
            "write, such as 0o600 or 0o660"
        )
    if codec_name == "pickle" and mode & 0o022:
        raise errors.NotPermitted(
            f"codec 'pickle' with mode {mode:#o}: unpickling what others can write runs their "
            "code; use 'msgpack', or mode 0o600"
        )
    return mode


def _resolve_group(group: object) -> int | None:
    if group is None:
        return None
    if isinstance(group, int) and not isinstance(group, bool):
        if not 0 <= group < 2**32 - 1:
            raise ValueError(f"group {group} is no group id: pass a name, or 0 to 4294967294")
        return group
    if not isinstance(group, str):
        raise TypeError(f"group must be a name or a number, not {type(group).__name__}")
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(
            f"there is no group {group!r} on this system: create it, or pass another"
        ) from None


def _check_owner(request: Request, uid: int, gid: int, mode: int) -> None:
    """Refuses a segment that neither this user nor root nor the named group owns.

    An observer names no group, and answers for what it looks at itself: see `open_segment`.
    """
    if uid in (0, os.geteuid()) or gid == request.gid:
        return
    if request.observe and (os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups())):
        return
    _refuse_owner(request.name, uid, gid, mode)


def _refuse_owner(name: str, uid: int, gid: int, mode: int) -> NoReturn:
    raise errors.NotPermitted(
        f"{_owner_text(name, uid, gid, mode)}: pass group={_group_name(gid)!r} if you trust its "
        "members, run as that user, or choose another name"
    )


def _whose(name: str, status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return (
        f"{_owner_text(name, status.st_uid, status.st_gid, mode)}, which does not let user "
        f"{os.geteuid()} in: run as its owner, or have it created with mode=0o660 and a group "
        "that you are in"
    )


def _owner_text(name: str, uid: int, gid: int, mode: int) -> str:
    try:
        user = f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        user = f"uid {uid}"
    return f"cache {name!r} belongs to {user}, group {_group_name(gid)}, with mode {mode:04o}"


def _group_name(gid: int) -> str | int:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return gid
