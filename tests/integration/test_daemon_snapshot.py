"""Snapshots of the daemon: warm after a reboot, saved every so often and at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import names
from support.daemons import Daemon, NotifySocket
from support.processes import Channel, Worker, poll_until

from shmcache import Cache, saver
from shmcache.daemon import Daemon as InProcess
from shmcache.notify import Notifier
from shmcache.settings import load

Serve = Callable[..., Daemon]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.snapshot"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as each:
        yield each


def fill(name: str, count: int = 500) -> None:
    with Cache(name, create=False) as cache:
        for number in range(count):
            cache.set(number, [number, "x" * 100], ttl=3600 if number % 2 else None)
        cache.slot("flags").store({"on": True})


def check(name: str, count: int = 500) -> None:
    with Cache(name, create=False) as cache:
        assert len(cache) == count
        for number in range(count):
            assert cache[number] == [number, "x" * 100]
            left = cache.ttl(number)
            assert left is None if number % 2 == 0 else left is not None and 3500 < left <= 3600
        assert cache.slot("flags").load() == {"on": True}


def reboot(name: str) -> None:
    """What is in /dev/shm is gone."""
    names.remove(names.leftovers(name))


def test_a_reboot_is_warm(serve: Serve, cache_name: str, file: Path) -> None:
    arguments = ("--size", "4MiB", "--snapshot", str(file))
    first = serve(cache_name, *arguments).ready()
    fill(cache_name)
    assert first.stop() == 0
    assert "500 entries" in first.log()
    reboot(cache_name)
    second = serve(cache_name, *arguments).ready()  # warm as soon as it says that it is there
    assert "(created)" in second.out()
    check(cache_name)
    assert second.stop() == 0


def test_what_is_there_is_newer_than_the_snapshot(
    serve: Serve, cache_name: str, file: Path
) -> None:
    arguments = ("--size", "4MiB", "--snapshot", str(file))
    first = serve(cache_name, *arguments).ready()
    fill(cache_name)
    assert first.stop() == 0
    with Cache(cache_name, create=False) as cache:
        cache[0] = "newer"
    serve(cache_name, *arguments).ready()
    with Cache(cache_name, create=False) as cache:
        assert cache[0] == "newer"


def test_it_saves_every_so_often(serve: Serve, cache_name: str, file: Path) -> None:
    arguments = ("--size", "4MiB", "--snapshot", str(file))
    daemon = serve(cache_name, *arguments, "--snapshot-interval", "1").ready()
    fill(cache_name)
    daemon.logged("500 entries")
    daemon.kill()  # no last save
    reboot(cache_name)
    serve(cache_name, *arguments).ready()
    check(cache_name)


def test_a_damaged_file_is_told_kept_and_not_half_loaded(
    serve: Serve, cache_name: str, file: Path
) -> None:
    arguments = ("--size", "4MiB", "--snapshot", str(file))
    first = serve(cache_name, *arguments).ready()
    fill(cache_name)
    assert first.stop() == 0
    reboot(cache_name)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    second = serve(cache_name, *arguments).ready()
    assert "ERROR" in second.log()
    assert str(file) in second.log()
    with Cache(cache_name, create=False) as cache:
        assert len(cache) == 0
    assert second.stop() == 0
    assert file.with_name("app.snapshot.not-loaded").read_bytes() == damaged


def test_a_reload_says_where_and_how_often(
    serve: Serve, cache_name: str, tmp_path: Path, manager: NotifySocket
) -> None:
    config = tmp_path / "app.toml"
    config.write_text("[cache]\nsize = '1MiB'\n")
    daemon = serve(
        cache_name, "--config", str(config), environment={"NOTIFY_SOCKET": manager.address}
    )
    manager.until("READY")
    config.write_text("[cache]\nsize = '1MiB'\n[daemon]\nsnapshot = 'a'\nsnapshot_interval = 1\n")
    daemon.hang_up()
    manager.until("READY")
    poll_until((tmp_path / "a").exists, what="saved beside the file that says so")


def test_a_last_save_that_fails_is_a_failure(serve: Serve, cache_name: str, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    file = directory / "app.snapshot"
    daemon = serve(cache_name, "--size", "1MiB", "--snapshot", str(file)).ready()
    directory.rmdir()
    assert daemon.stop() == 1
    assert "the last snapshot was not saved" in daemon.log()
    assert names.segment_path(cache_name).exists()  # and it is still there


# ------------------------------------------------------------------ a save that takes its time
PATIENCE_S = 0.3


def serve_slowly(channel: Channel, name: str, address: str, file: str) -> bool:
    """A daemon whose saves take until the test says so."""
    os.environ.update({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(PATIENCE_S * 1e6))})
    save = saver.snapshot.save

    def slow_save(cache: Cache, path: Path, *, on_progress: Callable[..., object]) -> object:
        channel.send("saving")
        while not channel.told():
            on_progress()
            time.sleep(0.001)
        return save(cache, path, on_progress=on_progress)

    saver.snapshot.save = slow_save  # type: ignore[assignment]
    InProcess(
        name,
        lambda: load(None, {}, {"size": "1MiB", "snapshot": file, "snapshot_interval": 1}),
        notifier=Notifier(),
    ).run()
    return True


def test_the_loop_and_the_watchdog_go_on_during_a_save(
    start: Callable[..., Worker], cache_name: str, manager: NotifySocket, file: Path
) -> None:
    worker = start(serve_slowly, cache_name, manager.address, str(file), method="spawn")
    manager.until("READY")
    assert worker.recv() == "saving"
    manager.drain()
    for _ in range(10):
        manager.until("WATCHDOG")
    with Cache(cache_name, create=False) as cache:  # and so do its chores
        cache.set("soon gone", 1, ttl=0.01)
        poll_until(lambda: cache.stats().entries == 0, what="swept")
    worker.process.terminate()  # abandons that one, and saves anew
    manager.until("STOPPING")
    assert worker.recv() == "saving"
    manager.until("STATUS", "saving")
    for _ in range(10):
        manager.until("WATCHDOG")
    assert any("EXTEND_TIMEOUT_USEC" in said for said in manager.received)
    assert not file.exists()
    worker.send("go on")
    assert worker.result() is True
    assert file.exists()
    with Cache(cache_name, create=False) as cache:
        cache.unlink()


def test_a_second_signal_abandons_the_last_save(
    start: Callable[..., Worker], cache_name: str, manager: NotifySocket, file: Path
) -> None:
    file.write_text("")
    worker = start(serve_slowly, cache_name, manager.address, str(file), method="spawn")
    manager.until("READY")
    before = file.with_name("app.snapshot.not-loaded")
    assert before.exists()
    worker.process.terminate()
    assert worker.recv() == "saving"
    manager.until("STATUS", "saving")
    worker.process.terminate()
    assert worker.result() is True
    assert not file.exists()
    with Cache(cache_name, create=False) as cache:
        cache.unlink()


def test_a_signal_ends_a_long_load_and_nothing_is_left(
    serve: Serve, start: Callable[..., Worker], cache_name: str, file: Path
) -> None:
    daemon = serve(cache_name, "--size", "2MiB", "--snapshot", str(file)).ready()
    fill(cache_name)
    assert daemon.stop() == 0
    reboot(cache_name)
    worker = start(serve_and_be_stopped, cache_name, str(file), method="spawn")
    assert worker.result() == "ended"
    assert names.leftovers(cache_name) == []
    assert file.exists()


def serve_and_be_stopped(channel: Channel, name: str, file: str) -> str:
    """A daemon that is told to stop while it loads its snapshot."""
    import shmcache.snapshot

    real = shmcache.snapshot.load

    def load_and_stop(cache: Cache, path: Path, *, on_progress: Callable[..., object]) -> object:
        cache["half"] = 1
        os.kill(os.getpid(), 15)
        return real(cache, path, on_progress=on_progress)

    shmcache.snapshot.load = load_and_stop  # type: ignore[assignment]
    InProcess(name, lambda: load(None, {}, {"size": "2MiB", "snapshot": file})).run()
    return "ended"
