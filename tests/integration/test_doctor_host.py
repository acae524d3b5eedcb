"""What `shmcache doctor` finds out about the host: room, limits, huge pages, logind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmcache.doctor import Diagnosis, Places, examine
from shmcache.doctor import host as hosts


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """This host's shared memory and processes, and nothing else of it."""
    return Places(
        sys=tmp_path / "sys",
        etc=tmp_path / "etc",
        run=tmp_path / "run",
        lib=tmp_path / "lib",
        state=tmp_path / "state",
    )


def found(name: str | None, places: Places, *wanted: str) -> list[Diagnosis]:
    """What is found of a cache (host-wide findings of this very machine left out): these codes."""
    here = [d for d in examine(name, places=places, settle_seconds=0.01) if d.cache is not None]
    assert sorted(d.code for d in here) == sorted(wanted), here
    for diagnosis in here:
        assert diagnosis.cache == name
        assert diagnosis.what
        assert diagnosis.why
        assert diagnosis.remedy
    return here


# -------------------------------------------------------------------------------- the host
def room(total: int, free: int, flags: int = 0) -> os.statvfs_result:
    """A file system with that many bytes in all and free."""
    return os.statvfs_result(
        (4096, 4096, total // 4096, free // 4096, free // 4096, 0, 0, 0, flags, 255)
    )


@pytest.mark.parametrize(
    ("total", "free", "flags", "findings"),
    [
        (1 << 30, 1 << 29, 0, []),
        (0, 0, 0, []),
        (64 << 20, 60 << 20, 0, [("warning", "shm-small")]),
        (1 << 30, 40 << 20, 0, [("warning", "shm-full")]),
        (64 << 20, 4096, 0, [("error", "shm-full")]),
        (1 << 30, 1 << 29, os.ST_RDONLY, [("error", "shm-read-only")]),
    ],
)
def test_room_in_shared_memory(
    total: int, free: int, flags: int, findings: list[tuple[str, str]], places: Places
) -> None:
    seen = list(hosts.examine_room(places, room(total, free, flags)))
    assert [(d.severity, d.code) for d in seen] == findings
    for diagnosis in seen:
        assert "--shm-size" in diagnosis.remedy or "remount,rw" in diagnosis.remedy


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    codes = [d.code for d in examine(places=Places(shm=tmp_path / "none", run=tmp_path))]
    assert codes == ["shm-missing"]


def test_a_memory_limit_below_the_caches(tmp_path: Path) -> None:
    places = Places(proc=tmp_path / "proc", sys=tmp_path / "sys")
    (tmp_path / "proc/self").mkdir(parents=True)
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (group / "memory.max").write_text("max\n")
    sizes = {"one": 40 << 20, "two": 40 << 20}
    assert list(hosts.examine_memory_limit(places, sizes)) == []
    (group.parent / "memory.max").write_text(f"{64 << 20}\n")  # a limit further up counts too
    (diagnosis,) = hosts.examine_memory_limit(places, sizes)
    assert diagnosis.severity == "error"
    assert "80.0 MiB" in diagnosis.what
    assert "64.0 MiB" in diagnosis.what
    assert "one, two" in diagnosis.what
    assert list(hosts.examine_memory_limit(places, {"one": 40 << 20})) == []
    (tmp_path / "proc/self/cgroup").write_text("7:blkio:/\n4:cpu,memory:/m\n")
    (tmp_path / "sys/fs/cgroup/memory/m").mkdir(parents=True)
    file = tmp_path / "sys/fs/cgroup/memory/m/memory.limit_in_bytes"
    file.write_text("9223372036854771712\n")
    assert list(hosts.examine_memory_limit(places, sizes)) == []
    file.write_text("1048576\n")
    assert [d.code for d in hosts.examine_memory_limit(places, sizes)] == ["memory-limit"]


def test_huge_pages_that_a_large_cache_does_not_get(tmp_path: Path) -> None:
    places = Places(proc=tmp_path, sys=tmp_path)
    (tmp_path / "self").mkdir()
    mounts = tmp_path / "self/mountinfo"
    setting = tmp_path / "kernel/mm/transparent_hugepage/shmem_enabled"
    setting.parent.mkdir(parents=True)
    large, small = {"large": 1 << 30}, {"small": 32 << 20}

    def seen(chosen: str, options: str, sizes: dict[str, int] = large) -> list[Diagnosis]:
        setting.write_text(f"always within_size {chosen} deny force".replace(chosen, f"[{chosen}]"))
        mounts.write_text(f"25 20 0:22 / /dev/shm rw,nosuid - tmpfs tmpfs {options}\n")
        return list(hosts.examine_huge_pages(places, sizes))

    (hint,) = seen("never", "rw,size=64000k")
    assert hint.severity == "hint"
    assert "huge=within_size" in hint.remedy
    assert seen("never", "rw", small) == []
    assert seen("never", "rw,huge=within_size") == []
    assert seen("force", "rw") == []
    assert len(seen("never", "rw,huge=never")) == 1
    (denied,) = seen("deny", "rw,huge=always")
    assert "echo never" in denied.remedy


def test_logind_that_removes_the_caches_of_login_users(tmp_path: Path) -> None:
    places = Places(
        etc=tmp_path / "etc", run=tmp_path / "run", lib=tmp_path / "lib", state=tmp_path / "state"
    )
    for folder in ("etc/systemd/logind.conf.d", "run/systemd", "lib/systemd/logind.conf.d"):
        (tmp_path / folder).mkdir(parents=True)
    owners = {"service": 200, "login": 12345, "root": 0}
    main = tmp_path / "etc/systemd/logind.conf"
    ours = tmp_path / "etc/systemd/logind.conf.d/50-x.conf"
    theirs = tmp_path / "lib/systemd/logind.conf.d/50-x.conf"

    def seen() -> list[str | None]:
        return [d.cache for d in hosts.examine_logind(places, owners)]

    assert seen() == []  # no logind runs here
    (tmp_path / "run/systemd/users").mkdir()
    assert seen() == ["login"]  # RemoveIPC is on unless something says otherwise
    main.write_text("[Login]\n#RemoveIPC=no\n")
    assert seen() == ["login"]
    main.write_text("[Login]\nRemoveIPC=no\n")
    assert seen() == []
    theirs.write_text("[Login]\nRemoveIPC = yes\n")  # a drop-in counts after the file
    (diagnosis,) = hosts.examine_logind(places, owners)
    assert str(theirs) in diagnosis.what
    assert "loginctl enable-linger 12345" in diagnosis.remedy
    ours.write_text("[Other]\nRemoveIPC=yes\n[Login]\nRemoveIPC=false\n")  # hides that of /usr/lib
    assert seen() == []
    ours.unlink()
    (tmp_path / "state/systemd/linger").mkdir(parents=True)
    (tmp_path / "state/systemd/linger/12345").touch()
    assert seen() == []  # a user who lingers never logs out
