"""Reloading: what changes at once, what needs a new cache, and files that are no good."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemons import Daemon, NotifySocket
from support.processes import poll_until

from shmcache import Cache

Serve = Callable[..., Daemon]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as each:
        yield each


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "app.toml"
    path.write_text('[cache]\nsize = "2MiB"\n[config]\nlimit = 1\n')
    return path


@pytest.fixture
def started(serve: Serve, cache_name: str, config: Path, manager: NotifySocket) -> Daemon:
    """A daemon with a file, ready; its words go to `manager`."""
    environment = {"NOTIFY_SOCKET": manager.address}
    daemon = serve(cache_name, "--config", str(config), environment=environment)
    manager.until("READY")
    return daemon.ready()


def slot(name: str) -> object:
    with Cache(name, create=False) as cache:
        return cache.slot("config").load()


def reloaded(daemon: Daemon, manager: NotifySocket) -> str:
    """SIGHUP, and the status once the reload is over."""
    manager.drain()
    daemon.hang_up()
    said = manager.until("RELOADING")
    assert int(said["MONOTONIC_USEC"]) > 0
    return manager.until("READY")["STATUS"]


def test_the_applications_table_goes_to_the_slot_whole(
    started: Daemon, cache_name: str, config: Path, manager: NotifySocket
) -> None:
    assert slot(cache_name) == {"limit": 1}
    config.write_text("[config]\nlimit = 2\n[config.deep.er]\nlist = [1, 'a', 1979-05-27]\n")
    reloaded(started, manager)
    found = slot(cache_name)
    assert isinstance(found, dict)
    assert found["limit"] == 2
    assert str(found["deep"]["er"]["list"][2]) == "1979-05-27"


def test_a_table_that_is_the_same_is_not_stored_again(
    started: Daemon, cache_name: str, config: Path, manager: NotifySocket
) -> None:
    with Cache(cache_name, create=False) as cache:
        before = cache.slot("config").load_versioned()
        reloaded(started, manager)
        assert cache.slot("config").load_versioned() == before
    config.write_text("")  # no table: the slot stays what it is
    reloaded(started, manager)
    assert slot(cache_name) == {"limit": 1}


def edit_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def edit_by_renaming(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


@pytest.mark.parametrize("edit", [edit_in_place, edit_by_renaming])
def test_a_change_of_the_file_reloads_it(
    started: Daemon, cache_name: str, config: Path, edit: Callable[[Path, str], None]
) -> None:
    with Cache(cache_name, create=False) as cache:
        config_slot = cache.slot("config")
        for number in (22, 333):
            edit(config, f"[config]\nlimit = {number}\n")
            version = config_slot.load_versioned()[1]
            if config_slot.load() != {"limit": number}:
                config_slot.wait(version, 60)
            poll_until(lambda n=number: config_slot.load() == {"limit": n}, what="reloaded")
    assert started.process.poll() is None


BAD = {
    "does not parse": ("[config]\nlimit = \n", ":2: 'limit ='"),
    "unknown key": ("[config]\nlimit = 3\n[daemon]\nsweep_intervall = 1\n", ":4: daemon.sweep"),
    "wrong value": ("[config]\nlimit = 3\n[cache]\nshards = 3\n", ":4: cache.shards"),
    "too large for the slot": (f"[config]\nlimit = '{'x' * 200_000}'\n", "config"),
    "nowhere to save to": ("[config]\nlimit = 3\n[daemon]\nsnapshot = 'no/such/x'\n", "no/such/x"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_told_and_leaves_the_old_one_in_force(
    bad: str, started: Daemon, cache_name: str, config: Path, manager: NotifySocket
) -> None:
    text, word = BAD[bad]
    config.write_text(text)
    status = reloaded(started, manager)
    assert "not reloaded" in status
    assert word in started.log()
    assert slot(cache_name) == {"limit": 1}
    config.write_text("[config]\nlimit = 4\n")
    assert "not reloaded" not in reloaded(started, manager)
    assert slot(cache_name) == {"limit": 4}
    assert started.stop() == 0


def test_a_bad_file_at_the_start_is_a_failure(serve: Serve, cache_name: str, config: Path) -> None:
    config.write_text("[cache]\nsise = 1\n")
    daemon = serve(cache_name, "--config", str(config))
    assert daemon.wait() == 1
    assert f"{config}:2: cache.sise: " in daemon.log()
    assert "'size'" in daemon.log()


def test_what_needs_a_new_cache_is_a_warning_in_log_and_status(
    started: Daemon, cache_name: str, config: Path, manager: NotifySocket
) -> None:
    config.write_text("[cache]\nsize = '4MiB'\npolicy = 'keep'\n[config]\nlimit = 9\n")
    status = reloaded(started, manager)
    assert "needs a new cache: size: 2097152 -> 4194304, policy: default -> keep" in status
    assert "WARNING size: 2097152 -> 4194304 needs a new cache" in started.log()
    with Cache(cache_name, create=False) as cache:
        assert (cache.size, cache.policy) == (2 << 20, "evict")
        assert cache.slot("config").load() == {"limit": 9}  # the rest counts
        cache.unlink()
    started.logged(": created", 2)
    with Cache(cache_name, create=False) as cache:  # made anew: now it counts
        assert (cache.size, cache.policy) == (4 << 20, "keep")
        assert cache.slot("config").load() == {"limit": 9}


def test_flags_and_variables_stay_stronger_at_a_reload(
    serve: Serve, cache_name: str, config: Path, manager: NotifySocket
) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "SHMCACHE_SIZE": "1MiB"}
    daemon = serve(cache_name, "--config", str(config), environment=environment)
    manager.until("READY")
    config.write_text("[cache]\nsize = '8MiB'\n[daemon]\nunlink = true\n")
    assert "new cache" not in reloaded(daemon, manager)
    with Cache(cache_name, create=False) as cache:
        assert cache.size == 1 << 20
    assert daemon.stop() == 0
    with pytest.raises(FileNotFoundError):
        Cache(cache_name, create=False)


def test_without_a_file_a_reload_changes_nothing(
    serve: Serve, cache_name: str, manager: NotifySocket
) -> None:
    daemon = serve(cache_name, "--size", "1MiB", environment={"NOTIFY_SOCKET": manager.address})
    manager.until("READY")
    reloaded(daemon, manager)
    assert daemon.stop() == 0


def get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert isinstance(text, str)
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def served_at(daemon: Daemon, count: int) -> str:
    """Where metrics are served, after that was said `count` times."""
    daemon.logged("metrics: http://", count)
    line = [each for each in daemon.log().splitlines() if "metrics: http://" in each][-1]
    return line.split("http://")[1].removesuffix("/metrics")


def test_metrics_begin_move_and_end_at_a_reload(
    started: Daemon, config: Path, manager: NotifySocket
) -> None:
    port = free_port()
    config.write_text(f"[metrics]\nlisten = '127.0.0.1:{port}'\n")
    reloaded(started, manager)
    first = served_at(started, 1)
    assert first == f"127.0.0.1:{port}"
    assert "shmcache_entries" in get(first)
    config.write_text(f"[metrics]\nlisten = '127.0.0.2:{port}'\n")  # the same port, elsewhere
    reloaded(started, manager)
    second = served_at(started, 2)
    assert "shmcache_entries" in get(second)
    with pytest.raises(OSError):
        get(first)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host, busy = taken.getsockname()
        config.write_text(f"[metrics]\nlisten = '{host}:{busy}'\n[config]\nlimit = 5\n")
        assert "not reloaded" in reloaded(started, manager)
    assert "shmcache_entries" in get(second)
    config.write_text("[config]\nlimit = 6\n")
    reloaded(started, manager)
    with pytest.raises(OSError):
        get(second)
