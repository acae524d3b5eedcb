"""The owner daemon as a real process: start, adopt, stop, and what its clients see of that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import names
from support.daemons import SHMCACHE, Daemon, NotifySocket
from support.processes import Channel, Worker, poll_until, wait_stopped

from shmcache import Cache

Serve = Callable[..., Daemon]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> NotifySocket:
    """A service manager's socket, at a path and in the abstract namespace."""
    abstract = f"@shmcache-test/{os.getpid()}/{time.monotonic_ns()}"
    return NotifySocket(str(tmp_path / "notify") if request.param == "path" else abstract)


def test_it_tells_the_service_manager_when_it_is_ready_and_when_it_stops(
    serve: Serve, cache_name: str, manager: NotifySocket
) -> None:
    with manager:
        daemon = serve(cache_name, "--size", "2MiB", environment={"NOTIFY_SOCKET": manager.address})
        said = manager.until("READY")
        assert "0 entries" in said["STATUS"]
        with Cache(cache_name, create=False) as cache:  # it is there as soon as it says so
            assert cache.persist
            assert cache.size == 2 << 20
        daemon.signal(signal.SIGTERM)
        manager.until("STOPPING")
        assert daemon.wait() == 0


def test_the_start_line_says_what_is_served(serve: Serve, cache_name: str) -> None:
    daemon = serve(
        cache_name, *("--size", "2MiB", "--shards", "2", "--policy", "keep", "--codec", "json")
    ).ready()
    assert daemon.out().splitlines() == [
        f"serving cache '{cache_name}' (created): 2.0 MiB in 2 shards, policy keep, codec json, "
        f"pid {daemon.pid}"
    ]
    with Cache(cache_name, create=False) as cache:
        assert (cache.shards, cache.policy, cache.codec) == (2, "keep", "json")
        assert cache.stats().owner_pid == daemon.pid


def test_nobody_who_reads_its_start_line_is_no_reason_to_end(cache_name: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [*SHMCACHE, "serve", cache_name, "--size", "1MiB", "--unlink"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    try:
        with Cache(cache_name, create=False, wait=60) as cache:
            poll_until(lambda: cache.stats().owner_pid == process.pid, what="owned")
            cache.set("soon gone", 1, ttl=0.01)
            poll_until(lambda: cache.stats().entries == 0, what="swept")
        process.terminate()
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "BrokenPipe" not in log


def test_the_segment_stays_for_its_clients_unless_unlink(serve: Serve, cache_name: str) -> None:
    assert serve(cache_name, "--size", "1MiB").ready().stop() == 0
    assert names.segment_path(cache_name).exists()
    assert serve(cache_name, "--unlink").ready().stop() == 0
    assert names.leftovers(cache_name) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_on(number: signal.Signals, serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "1MiB", "--unlink").ready()
    daemon.signal(number)
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.log()


def test_after_a_kill_the_next_one_adopts_every_entry_with_its_ttl(
    serve: Serve, cache_name: str
) -> None:
    first = serve(cache_name, "--size", "4MiB").ready()
    ttls = {"short": 3600, "long": 36_000, "ever": None}
    with Cache(cache_name, create=False) as cache:
        for number in range(1000):
            for kind, ttl in ttls.items():
                cache.set((kind, number), [kind, number], ttl)
    before = time.monotonic()
    first.kill()
    second = serve(cache_name, "--size", "4MiB").ready()
    assert "(adopted)" in second.out()
    with Cache(cache_name, create=False) as cache:
        assert len(cache) == 3000
        for number in range(1000):
            for kind, ttl in ttls.items():
                assert cache[kind, number] == [kind, number]
                left = cache.ttl((kind, number))
                if ttl is None:
                    assert left is None
                else:
                    assert left is not None
                    assert ttl - 0.1 - (time.monotonic() - before) - 60 <= left <= ttl
        assert cache.stats().owner_pid == second.pid
        assert cache.verify() == []


def test_it_adopts_what_workers_made_and_makes_it_persistent(serve: Serve, cache_name: str) -> None:
    with Cache(cache_name, size="2MiB") as cache:
        cache["a"] = 1
        assert not cache.persist
        daemon = serve(cache_name).ready()
        assert "(adopted)" in daemon.out()
        assert cache.persist
    assert daemon.stop() == 0
    with Cache(cache_name, create=False) as cache:
        assert cache["a"] == 1


def test_a_cache_of_another_size_is_adopted_with_a_warning(serve: Serve, cache_name: str) -> None:
    serve(cache_name, "--size", "2MiB").ready().stop()
    daemon = serve(cache_name, "--size", "4MiB").ready()
    assert "2.0 MiB" in daemon.out()
    daemon.logged("WARNING")
    assert "size 4194304" in daemon.log()


def test_a_second_daemon_is_refused_clearly(serve: Serve, cache_name: str) -> None:
    first = serve(cache_name, "--size", "2MiB").ready()
    with Cache(cache_name, create=False) as cache:
        cache["a"] = 1
        second = serve(cache_name)
        assert second.wait() == 1
        assert second.out() == ""
        (line,) = [each for each in second.log().splitlines() if each.startswith("Error: ")]
        assert cache_name in line
        assert f"pid {first.pid}" in line
        assert first.process.poll() is None
        assert cache["a"] == 1
        assert cache.stats().owner_pid == first.pid


def hammer(channel: Channel, name: str) -> int:
    """A client that works until it is told to stop; returns how many times it did."""
    with Cache(name, create=False) as cache:
        done = 0
        channel.send("ready")
        while not channel.told():
            cache[done % 100] = done
            assert cache[done % 100] == done
            done = cache.incr("done")
        return done


def progress(cache: Cache) -> None:
    """Wait until the worker has worked, from now on."""
    before = cache.get("done", 0)
    poll_until(lambda: cache.get("done", 0) > before + 100, what="the worker works")


def test_clients_work_on_while_it_is_stopped_and_while_it_is_gone(
    serve: Serve, cache_name: str, start: Callable[..., Worker]
) -> None:
    daemon = serve(cache_name, "--size", "2MiB", "--sweep-interval", "0.05").ready()
    worker = start(hammer, cache_name)
    assert worker.recv() == "ready"
    with Cache(cache_name, create=False) as cache:
        progress(cache)
        daemon.signal(signal.SIGSTOP)
        wait_stopped(daemon.pid)
        progress(cache)
        daemon.signal(signal.SIGCONT)
        daemon.kill()
        progress(cache)
        again = serve(cache_name, "--size", "2MiB").ready()
        progress(cache)
        assert again.stop() == 0
        progress(cache)
        worker.send("stop")
        assert worker.result() == cache["done"] > 500
        assert len(cache) == 101
        assert cache.verify() == []


def test_it_sweeps_what_has_expired_without_a_write(serve: Serve, cache_name: str) -> None:
    serve(cache_name, "--size", "2MiB", "--sweep-interval", "0.05").ready()
    with Cache(cache_name, create=False) as cache:
        for number in range(1000):
            cache.set(number, "x", ttl=0.01)
        poll_until(lambda: cache.stats().entries == 0, what="swept")
        assert cache.stats().expirations == 1000


def test_it_lets_go_of_clients_that_have_died(
    serve: Serve, cache_name: str, start: Callable[..., Worker]
) -> None:
    serve(cache_name, "--size", "2MiB", "--sweep-interval", "0.05").ready()
    worker = start(hammer, cache_name)
    assert worker.recv() == "ready"
    with Cache(cache_name, create=False) as cache:
        with_worker = cache.stats().clients
        worker.kill()
        poll_until(lambda: cache.stats().clients == with_worker - 1, 10, what="one client less")


def test_a_cache_that_is_unlinked_under_it_is_made_anew(serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "2MiB").ready()
    with Cache(cache_name, create=False) as cache:
        cache["a"] = 1
        cache.unlink()
    daemon.logged("making it anew")
    daemon.logged(": created", 2)
    with Cache(cache_name, create=False) as cache:
        assert cache.size == 2 << 20
        assert cache.persist
        assert "a" not in cache
        assert cache.stats().owner_pid == daemon.pid
    assert daemon.stop() == 0


def test_files_removed_by_hand_are_made_anew(serve: Serve, cache_name: str) -> None:
    """What RemoveIPC= and `rm` do: no mark, the files are just gone."""
    daemon = serve(cache_name, "--size", "2MiB").ready()
    names.remove(names.leftovers(cache_name))
    daemon.logged(": created", 2)
    with Cache(cache_name, create=False) as cache:
        cache["b"] = 2
    assert daemon.stop() == 0


def test_a_cache_that_is_replaced_under_it_is_adopted(serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "2MiB").ready()
    daemon.signal(signal.SIGSTOP)
    wait_stopped(daemon.pid)
    with Cache(cache_name, create=False) as cache:
        cache.unlink()
    with Cache(cache_name, size="2MiB") as cache:
        cache["mine"] = 1
        daemon.signal(signal.SIGCONT)
        daemon.logged(": adopted")
        assert cache.persist
        assert cache.stats().owner_pid == daemon.pid
    assert daemon.stop() == 0


def test_log_lines_carry_priorities_where_stderr_is_the_journal(
    cache_name: str, serve: Serve, tmp_path: Path
) -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    process = subprocess.Popen(
        [*SHMCACHE, "serve", cache_name, "--size", "1MiB", "--unlink"],
        stdout=subprocess.PIPE,
        stderr=write,
        env={**os.environ, **stream},
    )
    os.close(write)
    assert process.stdout is not None
    try:
        assert b"serving" in process.stdout.readline()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    with os.fdopen(read) as log:
        lines = log.read().splitlines()
    assert lines
    assert all(re.match(r"<[3-6]>\S", line) for line in lines), lines
    plain = serve(cache_name, "--size", "1MiB", "--unlink", environment=stream).ready()
    plain.stop()
    assert "<6>" not in plain.log()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--size", "64M"], "64MiB"),
        (["--shards", "3"], "power of two"),
        (["--policy", "kep"], "'keep'"),
        (["--mode", "0999"], "no mode"),
        (["--metrics", "9419"], "HOST:PORT"),
        (["--sweep-interval", "0"], "out of range"),
    ],
)
def test_a_flag_that_makes_no_sense_is_wrong_usage(
    arguments: list[str], word: str, serve: Serve, cache_name: str
) -> None:
    daemon = serve(cache_name, *arguments)
    assert daemon.wait() == 2
    assert word in daemon.log()
    assert names.leftovers(cache_name) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--group", "no-such-group-here"], "no-such-group-here"),
        (["--config", "/nonexistent/app.toml"], "/nonexistent/app.toml"),
        (["--size", "1TiB"], "/dev/shm"),
        (["--snapshot", "/nonexistent/app.snapshot"], "/nonexistent"),
        (["--mode", "0660", "--codec", "pickle"], "pickle"),
    ],
)
def test_what_cannot_be_had_is_a_failure_that_leaves_nothing(
    arguments: list[str], word: str, serve: Serve, cache_name: str
) -> None:
    daemon = serve(cache_name, *arguments)
    assert daemon.wait() == 1
    assert word in daemon.log()
    assert "Traceback" not in daemon.log()
    assert names.leftovers(cache_name) == []
