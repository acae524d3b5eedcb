"""Snapshots between processes: saves while others write, saves that are killed, and the command."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import names
from support.processes import Channel, Worker, poll_until, release

from shmcache import Cache, snapshot
from shmcache.cli import main
from shmcache.snapshot import SnapshotProgress

SHMCACHE = [sys.executable, "-m", "shmcache"]
STEADY = 3000


def value(key: int, version: int) -> bytes:
    """A value that tells by itself whether it is whole."""
    return b"%d:%d;" % (key, version) * (10 + key % 50)


def check_value(key: int, found: bytes) -> int:
    version = int(found.partition(b":")[2].partition(b";")[0])
    assert found == value(key, version), f"key {key} is torn"
    return version


def overwrite(channel: Channel, name: str, keys: range) -> int:
    """Overwrite keys, move them about, and make and drop others, until told to stop."""
    version = 0
    with Cache(name, create=False) as cache:
        space = cache.namespace("moving")
        slot = cache.slot()
        channel.sync()
        while not channel.told():
            version += 1
            for key in keys:
                cache[key] = value(key, version)
                cache.set(("gone", key), b"x" * 300, ttl=0.01)
                space[key] = version
            space.invalidate()
            slot.store([version] * 100)
    return version


def test_a_save_while_others_write_has_each_key_once_and_whole(
    open_cache: Callable[..., Cache],
    new_name: Callable[[], str],
    start: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    cache, file = open_cache(size="32MiB"), tmp_path / "a"
    for key in range(STEADY):
        cache[key] = value(key, 0)
        cache[("still", key)] = key
    cache.slot().store([0] * 100)
    half = STEADY // 2
    workers = [start(overwrite, cache.name, keys) for keys in (range(half), range(half, STEADY))]
    release(workers)
    before: dict[int, int] = {}
    for _ in range(15):
        low = {key: check_value(key, cache[key]) for key in range(0, STEADY, 97)}
        assert snapshot.save(cache, file).damaged == 0
        high = {key: check_value(key, cache[key]) for key in low}
        with Cache(new_name(), size="32MiB") as other:
            report = snapshot.load(other, file)
            assert report.evicted == report.too_large == 0
            for key in range(STEADY):
                version = check_value(key, other[key])
                assert low.get(key, 0) <= version <= high.get(key, 1 << 60)
                assert version >= before.get(key, 0), "a later save has what is as new"
                before[key] = version
                assert other[("still", key)] == key
            slot = other.slot().load()
            assert slot == [slot[0]] * 100
            assert other.verify() == []
    for worker in workers:
        worker.send("stop")
    assert all(worker.result() > 0 for worker in workers)
    assert cache.verify() == [] and cache.stats().evictions == 0


def test_a_load_beside_writers(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], tmp_path: Path
) -> None:
    cache, file = open_cache(size="32MiB"), tmp_path / "a"
    for key in range(STEADY):
        cache[key] = value(key, 0)
    cache.slot().store([0] * 100)
    snapshot.save(cache, file)
    worker = start(overwrite, cache.name, range(STEADY // 2))
    release([worker])
    for _ in range(10):
        assert snapshot.load(cache, file).entries == STEADY
        for key in range(STEADY):
            check_value(key, cache[key])
    worker.send("stop")
    worker.result()
    assert cache.verify() == []


def save_and_say(channel: Channel, name: str, file: Path) -> None:
    """Save for ever; say so when a save is in the middle of it."""
    with Cache(name, create=False) as cache:
        told = False

        def tell(progress: SnapshotProgress) -> None:
            nonlocal told
            if not told and progress.fraction > 0.3:
                told = True
                channel.send("in the middle")
                channel.recv()

        snapshot.save(cache, file, on_progress=tell)


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(".saving"))


@pytest.fixture
def filled(open_cache: Callable[..., Cache]) -> Cache:
    """A cache of several blocks."""
    cache = open_cache(size="16MiB")
    for key in range(20_000):
        cache[key] = value(key, 0)
    return cache


@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "the first one"])
def test_a_save_that_is_killed_leaves_the_old_file(
    old: bool, filled: Cache, start: Callable[..., Worker], tmp_path: Path
) -> None:
    file = tmp_path / "a.snapshot"
    if old:
        snapshot.save(filled, file)
    content = file.read_bytes() if old else None
    filled[0] = b"new"
    worker = start(save_and_say, filled.name, file)
    assert worker.recv() == "in the middle"
    assert len(leftovers(tmp_path)) == 1
    worker.kill()
    assert len(leftovers(tmp_path)) == 1, "what a killed save leaves"
    assert (file.read_bytes() if file.exists() else None) == content
    assert filled.verify() == []
    report = snapshot.save(filled, file)
    assert leftovers(tmp_path) == [], "swept by the next one"
    assert snapshot.verify(file).entries == report.entries == 20_000


def restore_and_say(channel: Channel, name: str, file: Path) -> None:
    """Load into a new cache; say so in the middle of it."""

    def tell(progress: SnapshotProgress) -> None:
        if progress.phase == "loading":
            channel.send(progress.entries)
            channel.recv()

    snapshot.restore(name, file, on_progress=tell)


def test_a_load_that_is_killed_leaves_no_cache_that_passes_for_a_whole_one(
    filled: Cache, new_name: Callable[[], str], start: Callable[..., Worker], tmp_path: Path
) -> None:
    file, name = tmp_path / "a.snapshot", new_name()
    snapshot.save(filled, file)
    worker = start(restore_and_say, name, file)
    stored = worker.recv()
    assert 0 < stored < 20_000
    worker.kill()
    with Cache(name, create=False) as cache:
        assert len(cache) == stored and not cache.persist and cache.verify() == []
    assert names.leftovers(name) == [], "gone with its last client"


def test_two_saves_of_one_file_do_not_sweep_each_other(
    filled: Cache, start: Callable[..., Worker], tmp_path: Path
) -> None:
    file = tmp_path / "a.snapshot"
    (tmp_path / ".b.snapshot.0123456789abcdef.saving").touch()
    worker = start(save_and_say, filled.name, file)
    assert worker.recv() == "in the middle"
    snapshot.save(filled, file)
    assert len(leftovers(tmp_path)) == 2, "a living save's, and another file's"
    worker.send("go on")
    worker.result()
    assert leftovers(tmp_path) == [".b.snapshot.0123456789abcdef.saving"]
    assert snapshot.verify(file).entries == 20_000


def test_a_new_file_that_another_save_took_for_a_leftover(
    filled: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the file and locking it, it looks like one: both orders of the sweeper."""
    real, met = fcntl.flock, []

    def sweeper(fd: int, operation: int) -> None:
        met.append(fd)
        if len(met) == 1:  # it has removed it already
            os.unlink(os.readlink(f"/proc/self/fd/{fd}"))
        elif len(met) == 2:  # it holds the lock, and is about to
            raise BlockingIOError
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", sweeper)
    snapshot.save(filled, tmp_path / "a")
    assert len(met) == 3 and snapshot.verify(tmp_path / "a").entries == 20_000


@pytest.mark.parametrize("path", ["no room", "gone"])
def test_a_save_that_fails_leaves_the_old_file(path: str, filled: Cache, tmp_path: Path) -> None:
    file = tmp_path / "a.snapshot"
    snapshot.save(filled, file)
    content = file.read_bytes()

    def fail(progress: SnapshotProgress) -> None:
        raise OSError(path)

    with pytest.raises(OSError, match=path):
        snapshot.save(filled, file, on_progress=fail)
    assert file.read_bytes() == content and leftovers(tmp_path) == []


def test_a_full_disk_is_told_by_its_file(filled: Cache, tmp_path: Path) -> None:
    """Limits the size of files, in a process of its own: as a full disk, but for the errno."""
    script = (
        "import resource, signal, sys; from shmcache.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))\n"
        "main(sys.argv[1:])"
    )
    file = tmp_path / "a.snapshot"
    done = subprocess.run(
        [sys.executable, "-c", script, "snapshot", "save", filled.name, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and str(file) in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ the command
@pytest.fixture
def made(new_name: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """Names of caches that commands create: they persist, so they are unlinked at the end."""
    made_names: list[str] = []

    def make() -> str:
        made_names.append(new_name())
        return made_names[-1]

    yield make
    for name in made_names:
        names.remove(names.leftovers(name))


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The command as a process, to its end."""
    done = subprocess.run(
        [*SHMCACHE, "snapshot", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_saves_and_loads_into_a_cache_that_outlives_it(
    cache: Cache, made: Callable[[], str], tmp_path: Path
) -> None:
    file, name = tmp_path / "a.snapshot", made()
    cache.set("a", {"b": (1, 2)}, ttl=1000)
    cache.slot().store("set")
    saved = run("save", cache.name, file)
    assert "saved 1 entry and 1 swap slot" in saved.stdout and saved.stderr == ""
    loaded = run("load", name, file)
    assert "persists" in loaded.stdout and "loaded 1 entry and 1 swap slot" in loaded.stdout
    with Cache(name, create=False) as other:
        assert other["a"] == {"b": (1, 2)} and other.slot().load() == "set" and other.persist
        assert 990 < (other.ttl("a") or 0) <= 1000
        assert (other.size, other.shards) == (cache.size, cache.shards)
        assert other.stats().clients == 1
    again = run("load", name, file)
    assert "persists" not in again.stdout
    for text in (saved.stdout, loaded.stdout):
        assert "\x1b" not in text and max(map(len, text.splitlines())) > 80, "not cut to a width"


def test_the_command_prints_json(cache: Cache, made: Callable[[], str], tmp_path: Path) -> None:
    file = tmp_path / "a.snapshot"
    cache.update({n: n for n in range(10)})
    report = json.loads(run("save", cache.name, file, "--json").stdout)
    assert report["entries"] == 10 and report["bytes"] == file.stat().st_size
    info = json.loads(run("info", file, "--json").stdout)
    assert info["name"] == cache.name and info["entries"] == 10
    loaded = json.loads(run("load", made(), file, "--json", "--size", "1MiB").stdout)
    assert loaded["entries"] == 10 and loaded["created"] is True


def test_the_command_takes_mode_and_group_of_a_new_cache(
    cache: Cache, made: Callable[[], str], tmp_path: Path
) -> None:
    file, name = tmp_path / "a.snapshot", made()
    run("save", cache.name, file)
    run("load", name, file, "--mode", "660", "--group", os.getgid())
    assert names.segment_path(name).stat().st_mode & 0o777 == 0o660
    assert "no octal" in run("load", made(), file, "--mode", "9", status=2).stderr


def test_the_command_changes_nothing_of_a_cache_that_it_saves(
    new_name: Callable[[], str], tmp_path: Path
) -> None:
    """A cache that killed processes have left is still there for the next one to adopt."""
    name = new_name()
    worker = Worker(leave_behind, name)
    assert worker.recv() == "filled"
    worker.kill()
    run("save", name, tmp_path / "a")
    with Cache(name, create=False) as cache:
        assert cache["a"] == 1


def leave_behind(channel: Channel, name: str) -> None:
    cache = Cache(name, size="1MiB")
    cache["a"] = 1
    channel.send("filled")
    channel.recv()


def test_the_command_says_what_is_wrong(
    cache: Cache, made: Callable[[], str], tmp_path: Path
) -> None:
    file, name = tmp_path / "a.snapshot", made()
    cache["a"] = 1
    run("save", cache.name, file)
    assert "there is no cache" in run("save", name, file, status=1).stderr
    file.write_bytes(file.read_bytes()[:-5])
    for arguments in (("load", name, file), ("info", file)):
        error = run(*arguments, status=1).stderr
        assert str(file) in error and "damaged at byte" in error
    assert names.leftovers(name) == [], "a damaged file makes no cache"
    assert "nowhere" in run("load", name, tmp_path / "nowhere", status=1).stderr
    assert run("load", name, status=2).stderr.startswith("Usage:")


@pytest.mark.parametrize("command", [(), ("save",), ("load",), ("info",)], ids=str)
def test_help(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, ["snapshot", *command, "--help"])
    assert done.exit_code == 0
    assert "Example:" in done.output or not command


def test_warnings_of_what_did_not_fit(open_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache, small = open_cache(size="8MiB"), open_cache(size="1MiB")
    for key in range(8000):
        cache[key] = b"x" * 200
    runner = CliRunner()
    runner.invoke(main, ["snapshot", "save", cache.name, str(tmp_path / "a")])
    done = runner.invoke(main, ["snapshot", "load", small.name, str(tmp_path / "a")])
    assert done.exit_code == 0
    evicted = re.search(r"not all fit: ([\d,]+) entries were evicted", done.stderr)
    assert evicted is not None and int(evicted[1].replace(",", "")) == 8000 - len(small)


def test_lines_of_progress_without_a_terminal(
    filled: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["shmcache.cli.progress"], "LINE_SECONDS", 0.0)
    done = CliRunner().invoke(main, ["snapshot", "save", filled.name, str(tmp_path / "a")])
    lines = done.stderr.splitlines()
    assert len(lines) > 1 and "\x1b" not in done.stderr
    assert lines[-1] == "saving: 100%, 20,000 entries"


def test_a_bar_on_a_terminal(filled: Cache, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(parent, 65536))
            except OSError:  # the last one has closed the other end
                return

    process = subprocess.Popen(
        [*SHMCACHE, "snapshot", "save", filled.name, str(tmp_path / "a")],
        stdout=subprocess.PIPE,
        stderr=child,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    reader = threading.Thread(target=read)
    reader.start()
    out, _ = process.communicate(timeout=60)
    reader.join(60)
    os.close(parent)
    assert process.returncode == 0 and b"saved 20,000 entries" in out and b"\x1b" not in out
    assert "saving" in b"".join(shown).decode() and b"\x1b[" in b"".join(shown)


def test_an_interrupted_save_leaves_nothing(filled: Cache, tmp_path: Path) -> None:
    file = tmp_path / "a.snapshot"
    script = (
        "import os, signal, sys; from shmcache import Cache, snapshot\n"
        "def stop(progress): os.kill(os.getpid(), signal.SIGINT)\n"
        "snapshot.save(Cache(sys.argv[1], create=False), sys.argv[2], on_progress=stop)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, filled.name, str(file)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (-signal.SIGINT, 130, 1) and b"KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []
    poll_until(lambda: filled.stats().clients == 1, what="it is gone")
