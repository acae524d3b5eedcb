"""`shmcache doctor`: each finding is made, found, explained, and gone when it is mended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import names
from support.cli import SHMCACHE, invoke, run
from support.processes import Channel, Worker
from support.segments import field, mapped, shard_offset

from shmcache import Cache, _core
from shmcache.doctor import CHECKS, Diagnosis, Places, examine

QUIET = "0" * 16
"""A nonce that no segment has."""


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


def member(channel: Channel, name: str) -> None:
    """Hold a cache open; say who this is in it."""
    with Cache(name, size="1MiB") as cache:
        cache["a"] = 1
        channel.send(_core.identity(cache))
        channel.recv()


def victim(channel: Channel, name: str) -> None:
    """Open a cache, say who this is in it, and die."""
    cache = Cache(name, size="1MiB")
    cache["a"] = 1
    channel.send(_core.identity(cache))
    os._exit(1)


def die(start: Any, name: str) -> int:
    """Leave a cache behind; the identity of the one that died."""
    worker: Worker = start(victim, name)
    identity: int = worker.recv()
    worker.join()
    return identity


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


@contextmanager
def changed(name: str, place: int, content: bytes) -> Iterator[None]:
    """Other bytes at that place of a segment, while it lasts."""
    with mapped(name) as data:
        before = data[place : place + len(content)]
        data[place : place + len(content)] = content
        try:
            yield
        finally:
            data[place : place + len(content)] = before


def superblock_place(field_name: str) -> int:
    """Where a field of the superblock lies."""
    return _core.LAYOUT[f"shm_superblock.{field_name}"]


# --------------------------------------------------------------------------------- all well
def test_of_a_healthy_cache_it_finds_nothing_and_says_what_it_checked(
    cache: Any, places: Places, start: Any
) -> None:
    assert found(cache.name, places) == []
    worker = start(member, cache.name)  # two clients, and one that did not create it
    worker.recv()
    assert found(cache.name, places) == []
    worker.send("done")
    assert worker.join() == 0


def test_of_a_cache_that_another_process_created_it_finds_nothing(
    cache_name: str, places: Places, start: Any
) -> None:
    worker = start(member, cache_name)  # its mapping is of the building name, which is deleted
    worker.recv()
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert f"shmcache.{cache_name}" in maps
    assert found(cache_name, places) == []
    worker.send("done")
    assert worker.join() == 0


def test_caches_that_come_and_go_are_no_findings(
    new_name: Callable[[], str], places: Places, start: Any
) -> None:
    name = new_name()
    worker = start(coming_and_going, name)
    worker.recv()
    for _ in range(10):
        codes = {d.code for d in examine(name, places=places) if d.cache == name}
        assert codes <= {"no-cache"}
    worker.send("done")
    assert worker.join() == 0


def coming_and_going(channel: Channel, name: str) -> None:
    """Create and unlink a cache over and over."""
    channel.send()
    while not channel.told():
        Cache(name, size="1MiB").close()


# ------------------------------------------------------------------------------------ caches
def test_an_absent_cache(places: Places, cache_name: str) -> None:
    (diagnosis,) = found(cache_name, places, "no-cache")
    assert f"shmcache serve {cache_name}" in diagnosis.remedy


def test_a_leftover_of_the_killed(cache_name: str, places: Places, start: Any) -> None:
    die(start, cache_name)
    (diagnosis,) = found(cache_name, places, "leftover")
    assert "1.0 MiB, 1 entry," in diagnosis.what
    assert "killed" in diagnosis.why
    invoke(*diagnosis.remedy.split(",")[0].split()[1:])
    assert not names.leftovers(cache_name)


def test_a_cache_that_persists_without_anybody(cache_name: str, places: Places) -> None:
    Cache(cache_name, size="1MiB", persist=True).close()
    (diagnosis,) = found(cache_name, places, "leftover")
    assert "persists" in diagnosis.why
    invoke("unlink", cache_name)


def test_an_owner_daemon_that_died(cache_name: str, places: Places, start: Any) -> None:
    with Cache(cache_name, size="1MiB"):
        identity = die(start, cache_name)
        with changed(cache_name, superblock_place("owner"), identity.to_bytes(8, "little")):
            (diagnosis,) = found(cache_name, places, "dead-owner")
    assert f"systemctl restart shmcache@{cache_name}" in diagnosis.remedy


def test_a_shard_that_a_dead_process_holds(cache_name: str, places: Places, start: Any) -> None:
    with Cache(cache_name, size="1MiB") as cache:
        identity = die(start, cache_name)
        with mapped(cache_name) as data:
            place = shard_offset(data, 1) + _core.LAYOUT["shm_shard.holder"]
            data[place : place + 8] = identity.to_bytes(8, "little")
        (diagnosis,) = found(cache_name, places, "dead-holder")
        assert "shard 1 by" in diagnosis.what
        assert f"shmcache verify {cache_name}" in diagnosis.remedy
        invoke("verify", cache_name)
        assert found(cache_name, places) == []
        assert cache.stats().shards[1].recoveries == 1


def test_a_swap_slot_and_a_token_that_a_dead_process_holds(
    cache_name: str, places: Places, start: Any
) -> None:
    with Cache(cache_name, size="1MiB"):
        word = die(start, cache_name).to_bytes(8, "little")
        with mapped(cache_name) as data:
            slot = field(data, "slots_off", "Q") + _core.LAYOUT["shm_swap.holder"]
            token = field(data, "tokens_off", "Q") + _core.LAYOUT["shm_token.holder"]
        with changed(cache_name, slot, word), changed(cache_name, token, word):
            (diagnosis,) = found(cache_name, places, "dead-holder")
        assert "swap slot 0 by" in diagnosis.what
        assert "token 0 by" in diagnosis.what


def test_a_shard_that_a_stopped_process_holds(cache_name: str, places: Places, start: Any) -> None:
    with Cache(cache_name, size="1MiB"):
        worker: Worker = start(member, cache_name)
        word = worker.recv().to_bytes(8, "little")
        with mapped(cache_name) as data:
            place = shard_offset(data, 0) + _core.LAYOUT["shm_shard.holder"]
        with changed(cache_name, place, word):
            assert found(cache_name, places) == []  # it is alive, and may be at work
            worker.stop()
            (diagnosis,) = found(cache_name, places, "stopped-holder")
            worker.resume()
        assert f"kill -CONT {worker.pid}" in diagnosis.remedy
        worker.send("done")
        worker.join()


@pytest.mark.parametrize(
    ("field_name", "content", "code"),
    [
        ("layout_version", b"\xff\xff\0\0", "version-mismatch"),
        ("signature", b"\1\2\3\4", "version-mismatch"),
        ("shard_count", b"\x03\0\0\0", "corrupt"),
        ("magic", b"garbage!", "corrupt"),
    ],
)
def test_a_segment_that_this_version_cannot_use(
    field_name: str, content: bytes, code: str, cache: Any, places: Places
) -> None:
    with changed(cache.name, superblock_place(field_name), content):
        (used,) = found(cache.name, places, code)
    assert used.severity == "error"
    assert "others have it open" in used.why
    assert "fuser" in used.remedy


def test_a_file_that_is_no_segment(cache_name: str, places: Places) -> None:
    for content in (b"", b"x" * 5000):
        names.segment_path(cache_name).write_bytes(content)
        names.segment_path(cache_name).chmod(0o600)
        (diagnosis,) = found(cache_name, places, "corrupt")
        assert "nobody has it open" in diagnosis.why
    invoke(*diagnosis.remedy.split(" (")[0].split()[1:])
    names.segment_path(cache_name).mkdir(mode=0o700)
    found(cache_name, places, "corrupt")
    names.segment_path(cache_name).rmdir()


def test_a_segment_with_holes(cache_name: str, places: Places) -> None:
    with Cache(cache_name, size="1MiB"):
        path = names.segment_path(cache_name)
        content = path.read_bytes()
        os.truncate(path, len(content) // 2)
        os.truncate(path, len(content))
        (diagnosis,) = found(cache_name, places, "corrupt")
        assert "INV-RESERVED" in diagnosis.what
        path.write_bytes(content)


def test_one_that_was_half_unlinked(cache_name: str, places: Places, start: Any) -> None:
    die(start, cache_name)
    with mapped(cache_name) as data:
        data[superblock_place("dead")] = 1
    (diagnosis,) = found(cache_name, places, "half-unlinked")
    invoke(*diagnosis.remedy.split()[1:])
    assert not names.leftovers(cache_name)


def test_semaphores_that_are_missing_or_nobody_s(cache_name: str, places: Places) -> None:
    orphans = [names.SHM / f"sem.shmcache.{cache_name}~{QUIET}~{i}" for i in range(2)]
    with Cache(cache_name, size="1MiB") as cache:
        for path in names.leftovers(cache_name):
            if path.name.endswith("~0"):
                path.unlink()
        for path in orphans:
            path.touch()
        missing, orphaned = sorted(
            found(cache_name, places, "missing-semaphores", "orphaned-semaphores"),
            key=lambda d: d.code,
        )
        assert f"1 of its {cache.shards + 1} semaphores" in missing.what
        assert "2 semaphores" in orphaned.what
        assert orphaned.remedy.startswith("rm ")
        subprocess.run(orphaned.remedy, shell=True, check=True)
        found(cache_name, places, "missing-semaphores")


def test_semaphores_of_a_segment_that_was_removed_by_hand(cache_name: str, places: Places) -> None:
    cache = Cache(cache_name, size="1MiB", persist=True)
    cache.close()
    names.segment_path(cache_name).unlink()
    orphaned, _ = found(cache_name, places, "orphaned-semaphores", "no-cache")[::-1]
    subprocess.run(orphaned.remedy, shell=True, check=True)
    assert not names.leftovers(cache_name)


def test_what_a_dead_builder_left(cache_name: str, places: Places) -> None:
    path = names.SHM / f"shmcache.{cache_name}~new"
    path.write_bytes(b"x" * 5000)
    building, _ = sorted(
        found(cache_name, places, "building-file", "no-cache"), key=lambda d: d.code
    )
    assert str(path) in building.what
    subprocess.run(building.remedy, shell=True, check=True)
    assert not names.leftovers(cache_name)


# ------------------------------------------------------------------------------------ ghosts
def test_a_segment_that_was_removed_or_replaced_under_a_client(
    cache_name: str, places: Places, start: Any
) -> None:
    worker: Worker = start(member, cache_name)
    worker.recv()
    names.remove(names.leftovers(cache_name))
    gone = found(cache_name, places, "vanished-segment", "no-cache")
    vanished = next(d for d in gone if d.code == "vanished-segment")
    assert f"process {worker.pid} was removed" in vanished.what
    with Cache(cache_name, size="1MiB"):
        (replaced,) = found(cache_name, places, "replaced-segment")
        assert f"process {worker.pid} was replaced" in replaced.what
        worker.send("done")
        worker.join()
        assert found(cache_name, places) == []


# ------------------------------------------------------------------------------- permissions
@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_a_cache_of_somebody_else(cache: Any, places: Places) -> None:
    for path in names.leftovers(cache.name):
        os.chown(path, 12345, 0)
    stranger = Places(
        sys=places.sys,
        etc=places.etc,
        run=places.run,
        lib=places.lib,
        state=places.state,
        uid=54321,
    )
    foreign = next(
        d
        for d in found(cache.name, stranger, "changed-mode", "foreign-owner")
        if d.code == "foreign-owner"
    )
    assert "belongs to uid 12345" in foreign.what
    assert "uid 54321" in foreign.what
    found(cache.name, places, "changed-mode")  # root may open what is anybody's


@pytest.mark.parametrize(
    ("mode", "severity", "word"), [(0o666, "warning", "write to"), (0o604, "hint", "read")]
)
def test_a_cache_that_is_open_to_all(
    mode: int, severity: str, word: str, open_cache: Any, places: Places
) -> None:
    cache = open_cache(mode=mode)
    (diagnosis,) = found(cache.name, places, "open-mode")
    assert diagnosis.severity == severity
    assert word in diagnosis.what
    told = invoke("doctor", cache.name, "--json", status=None)
    assert "open-mode" in [f["code"] for f in json.loads(told.stdout)["findings"]]


def test_files_whose_mode_was_changed(cache: Any, places: Places) -> None:
    semaphore = next(p for p in names.leftovers(cache.name) if p.name.startswith("sem."))
    semaphore.chmod(0o640)
    (diagnosis,) = found(cache.name, places, "changed-mode")
    assert str(semaphore) in diagnosis.what
    assert "chmod 0600" in diagnosis.remedy
    semaphore.chmod(0o600)
    names.segment_path(cache.name).chmod(0o640)
    found(cache.name, places, "changed-mode")


# ------------------------------------------------------------------------------ the command
def test_the_command_prints_what_why_and_mend_and_exits_1(cache_name: str, start: Any) -> None:
    die(start, cache_name)
    done = run("doctor", cache_name)
    assert done.returncode == 1
    told = done.stdout.decode()
    assert f"warning [leftover] cache '{cache_name}' is a leftover" in told
    assert "  why: " in told
    assert f"  mend: shmcache unlink {cache_name}" in told
    assert "\x1b" not in told
    report = json.loads(run("doctor", cache_name, "--json").stdout)
    assert report["ok"] is False
    assert report["checked"] == list(CHECKS)
    assert [f["code"] for f in report["findings"] if f["cache"]] == ["leftover"]
    invoke("unlink", cache_name)


def test_the_command_says_what_it_checked_where_it_finds_nothing(
    cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmcache.cli.doctor.examine", lambda name: [])
    told = invoke("doctor", cache.name).stdout
    assert told.startswith(f"nothing found. Checked cache '{cache.name}' and this host: room in")
    assert json.loads(invoke("doctor", "--json").stdout)["ok"] is True


def test_hints_alone_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = Diagnosis("hint", None, "what", "why", "remedy", "some-hint")
    monkeypatch.setattr("shmcache.cli.doctor.examine", lambda name: [hint])
    assert "1 hint" in invoke("doctor").stdout
    assert json.loads(invoke("doctor", "--json").stdout)["ok"] is True


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes a mount namespace"
)
def test_in_a_container_s_64_mb(tmp_path: Path) -> None:
    small = (
        "mount --make-rprivate / && mount -t tmpfs -o size=64m tmpfs /dev/shm && "
        f"{' '.join(SHMCACHE)} doctor --json"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", small], capture_output=True, timeout=60, check=False
    )
    if b"unshare failed" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("no mount namespace can be made here")
    assert done.returncode == 1
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["shm-small"]
