"""What is wrong with the host: shared memory, memory limits, huge pages, logind.

Reads files, and statvfs of the shared memory; changes nothing.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from shmcache.doctor.diagnosis import Diagnosis, Places
from shmcache.geometry import MIN_SIZE_BYTES

__all__ = [
    "SMALL_BYTES",
    "examine_huge_pages",
    "examine_logind",
    "examine_memory_limit",
    "examine_room",
    "examine_shared_memory",
    "size_text",
]

SMALL_BYTES = 64 << 20
"""What Docker and Kubernetes give a container that does not ask: two default caches."""

_FULL_SHARE = 0.05
"""Free share of /dev/shm below which the next cache, or a neighbour's file, is likely to fail."""

_LARGE_BYTES = 128 << 20
"""From here on pages of 4 KiB cost: 32,768 of them and more, where a TLB holds some 2,000."""

_UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" by a number about as large as an address space."""

_SYSTEM_UID_MAX = 999
"""systemd's own, and that of /etc/login.defs: logind leaves the objects of users up to it."""


def size_text(size_bytes: int) -> str:
    """Return a size for reading."""
    return f"{size_bytes / (1 << 20):,.1f} MiB"


def examine_shared_memory(places: Places) -> Iterator[Diagnosis]:
    """Look whether there is shared memory, may be written, and has room."""
    try:
        room = os.statvfs(places.shm)
    except OSError as error:
        yield Diagnosis(
            "error",
            None,
            f"{places.shm} cannot be looked at: {error.strerror}",
            "every cache lives there; none can be created or opened",
            f"mount -t tmpfs -o mode=1777,nosuid,nodev shm {places.shm}",
            "shm-missing",
        )
        return
    yield from examine_room(places, room)


def examine_room(places: Places, room: os.statvfs_result) -> Iterator[Diagnosis]:
    """Look at what statvfs says of shared memory; a tmpfs without a limit has 0 blocks in all."""
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    larger = (
        "in a container: docker run --shm-size=1g, or a Kubernetes emptyDir with medium: Memory "
        f"mounted there; else mount -o remount,size=1g {places.shm}"
    )
    if room.f_flag & os.ST_RDONLY:
        yield Diagnosis(
            "error",
            None,
            f"{places.shm} is mounted read-only",
            "no cache can be created, and none be attached to",
            f"mount -o remount,rw {places.shm}",
            "shm-read-only",
        )
    if total > 0 and (free < MIN_SIZE_BYTES or free < _FULL_SHARE * total):
        yield Diagnosis(
            "error" if free < MIN_SIZE_BYTES else "warning",
            None,
            f"{places.shm} is full: {size_text(free)} free of {size_text(total)}",
            "creating a cache raises OutOfSharedMemory; caches that exist have their memory "
            "reserved, and go on",
            f"unlink what is not needed (du -h {places.shm}; shmcache unlink NAME), or make it "
            f"larger: {larger}",
            "shm-full",
        )
    elif 0 < total <= SMALL_BYTES:
        yield Diagnosis(
            "warning",
            None,
            f"{places.shm} is small: {size_text(total)} in all, {size_text(free)} free (containers "
            "get 64 MB unless more is asked for)",
            "it holds one cache of the default size (32 MiB) with room to spare, and no larger one",
            larger,
            "shm-small",
        )


def examine_memory_limit(places: Places, sizes: dict[str, int]) -> Iterator[Diagnosis]:
    """Compare the caches with the memory that this process's cgroup may use.

    sizes: bytes of each cache that is looked at.
    """
    total = sum(sizes.values())
    found = _memory_limit(places)
    if found is None or total <= found[0]:
        return
    limit, file = found
    names = ", ".join(sorted(sizes))
    yield Diagnosis(
        "error",
        None,
        f"{names}: {size_text(total)} of shared memory, and this cgroup may use "
        f"{size_text(limit)} ({file})",
        "shared memory counts as memory of the cgroup that touches it first, so as the caches fill "
        "their writers are killed (OOM)",
        "raise the limit (docker run --memory=, resources.limits.memory in Kubernetes, MemoryMax= "
        "in systemd), or make the caches smaller: unlink them and create them with size=",
        "memory-limit",
    )


def _memory_limit(places: Places) -> tuple[int, Path] | None:
    """The lowest memory limit above this process, and the file that says so."""
    lowest: tuple[int, Path] | None = None
    for line in _lines(places.proc / "self" / "cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, file_name = places.sys / "fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, file_name = places.sys / "fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = root / path.lstrip("/")
        for directory in (inner, *inner.parents):
            text = "".join(_lines(directory / file_name)).strip()
            limit = int(text) if text.isdigit() else _UNLIMITED
            if limit < (_UNLIMITED if lowest is None else lowest[0]):
                lowest = limit, directory / file_name
            if directory == root:
                break
    return lowest


def examine_huge_pages(places: Places, sizes: dict[str, int]) -> Iterator[Diagnosis]:
    """Look whether large caches get huge pages."""
    large = sorted(name for name, size in sizes.items() if size >= _LARGE_BYTES)
    if not large:
        return
    file = places.sys / "kernel/mm/transparent_hugepage/shmem_enabled"
    text = "".join(_lines(file))
    chosen = re.search(r"\[(\w+)\]", text)
    if chosen is None or chosen[1] == "force":
        return
    if chosen[1] == "deny":
        remedy = f"echo never > {file} (deny overrides every mount), and then: "
    elif _mount_option(places, "huge") not in (None, "never"):
        return
    else:
        remedy = ""
    yield Diagnosis(
        "hint",
        None,
        f"{', '.join(large)}: {_LARGE_BYTES >> 20} MiB and more in pages of 4 KiB "
        f"(shmem_enabled is {chosen[1]}, and {places.shm} is not mounted with huge=)",
        "random reads of a large cache miss the TLB nearly every time",
        f"{remedy}mount -o remount,huge=within_size {places.shm}, before the cache is created",
        "huge-pages",
    )


def _mount_option(places: Places, option: str) -> str | None:
    """The value of an option of the mount that the shared memory is on; None: it is not said."""
    found = None
    for line in _lines(places.proc / "self" / "mountinfo"):
        fields = line.split()
        if len(fields) > 6 and fields[4] == str(places.shm):
            match = re.search(rf"(?:^|,){option}=(\w+)", fields[-1])
            found = match[1] if match else None
    return found


def examine_logind(places: Places, owners: dict[str, int]) -> Iterator[Diagnosis]:
    """Look whether logind removes the caches of login users when they log out.

    owners: the user id of each cache that is looked at.
    """
    if not (places.run / "systemd/users").is_dir():  # logind is not running
        return
    setting, file = _remove_ipc(places)
    if not setting:
        return
    for cache, uid in sorted(owners.items()):
        if uid <= _SYSTEM_UID_MAX or uid == 65534:
            continue
        user = _user_name(uid)
        if (places.state / "systemd/linger" / user).exists():
            continue
        yield Diagnosis(
            "warning",
            cache,
            f"cache {cache!r} belongs to the login user {user} (uid {uid}), and logind removes "
            f"what a user has in {places.shm} when the last session ends (RemoveIPC=yes, {file})",
            "it vanishes under its clients, who get CacheNotFound, when that user logs out",
            f"loginctl enable-linger {user}; or run the service as a system user "
            "(shmcache@.service does); or RemoveIPC=no in /etc/systemd/logind.conf, and "
            "systemctl restart systemd-logind",
            "remove-ipc",
        )


def _remove_ipc(places: Places) -> tuple[bool, str]:
    """Whether logind's RemoveIPC is on, and what says so: systemd's own order of files."""
    folders = (places.etc / "systemd", places.run / "systemd", places.lib / "systemd")
    files = [next((f for f in (d / "logind.conf" for d in folders) if f.is_file()), None)]
    drop_ins: dict[str, Path] = {}
    for folder in folders:
        for file in sorted((folder / "logind.conf.d").glob("*.conf")):
            drop_ins.setdefault(file.name, file)
    files += [drop_ins[name] for name in sorted(drop_ins)]
    setting, source = True, "the default"
    for read in files:
        for value in _settings(() if read is None else _lines(read), "Login", "RemoveIPC"):
            if value == "":
                setting, source = True, "the default"
            else:
                setting, source = value.lower() in ("1", "yes", "y", "true", "t", "on"), str(read)
    return setting, source


def _settings(lines: Iterable[str], section: str, key: str) -> Iterator[str]:
    """The values of a key in a section of a systemd file, in the order in which they count."""
    current = ""
    for line in lines:
        line = line.strip()
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and not line.startswith(("#", ";")):
            name, equals, value = line.partition("=")
            if equals and name.strip() == key:
                yield value.strip()


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _lines(file: Path) -> list[str]:
    """The lines of a file; none where it cannot be read."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
