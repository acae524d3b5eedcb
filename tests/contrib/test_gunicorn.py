"""The real gunicorn: its workers share a cache, come and go, and are killed while they serve."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import poll_until
from support.servers import Load, Server, ask, ask_bravely, served

from shmcache import Cache

config = pytest.importorskip("gunicorn.config")

KEYS = [f"key{number}" for number in range(6)]
URLS = [f"/value/{key}" for key in KEYS]


@pytest.fixture
def cache(cache_name: str) -> Iterator[Cache]:
    """The cache, held open by the test as an owner would."""
    with Cache(cache_name, size="4MiB") as cache:
        yield cache


def gunicorn(path: Path, name: str, *options: str) -> tuple[list[str], Path, dict[str, str]]:
    command = ["-m", "gunicorn", "--bind", f"unix:{path}", *options]
    if hasattr(config, "ControlSocketDisable"):  # a file in the user's home, from version 25.1 on
        command.append("--no-control-socket")
    return [*command, "support.served_app:wsgi"], path, {"SHMCACHE_APP": name}


@pytest.fixture
def run(tmp_path: Path, cache: Cache) -> Callable[..., object]:
    def start(*options: str) -> object:
        command, path, env = gunicorn(tmp_path / "socket", cache.name, *options)
        return served(command, path, **env)

    return start


def once_each(cache: Cache, generation: int) -> None:
    """Every key that was computed in this generation was computed once."""
    counts = {key: cache.get(f"computed {generation} {key}") for key in KEYS}
    assert counts == dict.fromkeys(KEYS, 1)


def serve_generations(server: Server, cache: Cache, count: int) -> None:
    """Under load: the value of each key is computed once in each generation, by all workers."""
    for generation in range(count):
        cache["generation"] = generation
        with Load(server.path, URLS) as load:
            load.wait_for(60)
        assert load.lost == 0
        once_each(cache, generation)
        for key, url in zip(KEYS, URLS, strict=True):
            assert f"value of {key}, generation {generation}" in load.answers[url]


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize(
    "workers", [["--workers=4"], ["--workers=4", "--worker-class=gthread", "--threads=2"]], ids=str
)
def test_four_workers_compute_each_value_once(
    run: Callable[..., object], cache: Cache, workers: list[str], preload: bool
) -> None:
    with run(*workers, *(["--preload"] if preload else [])) as server:  # type: ignore[attr-defined]
        serve_generations(server, cache, 2)
        poll_until(lambda: len(server.workers()) == 4, what="four workers")
        assert cache.verify() == []
    poll_until(lambda: cache.stats().clients == 1, what="every worker has left")


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_killed_workers_harm_nobody(
    run: Callable[..., object], cache: Cache, preload: bool
) -> None:
    """kill -9 of workers under load: the cache is sound, and nothing is computed twice, but what
    died with its worker before it was counted."""
    options = ["--workers=4", "--worker-class=gthread", "--threads=2"]
    with run(*options, *(["--preload"] if preload else [])) as server:  # type: ignore[attr-defined]
        for generation in range(4):
            cache["generation"] = generation
            with Load(server.path, URLS) as load:
                load.wait_for(10)
                for pid in server.workers()[:2]:
                    os.kill(pid, signal.SIGKILL)
                load.wait_for(60)
            assert cache.verify() == []
            for key, url in zip(KEYS, URLS, strict=True):
                # counted and killed before it was stored: once more, as often as it was killed
                assert 1 <= cache[f"computed {generation} {key}"] <= 3
                assert f"value of {key}, generation {generation}" in load.answers[url]
        cache["generation"] = 9
        with Load(server.path, URLS) as load:
            load.wait_for(60)
        once_each(cache, 9)
    assert cache.verify() == []


def test_workers_that_are_replaced(run: Callable[..., object], cache: Cache) -> None:
    with run("--workers=2", "--max-requests=5") as server:  # type: ignore[attr-defined]
        pids = {ask_bravely(server.path, "/pid") for _ in range(30)}
        assert len(pids) >= 3
        cache["generation"] = 1
        assert {ask_bravely(server.path, url) for url in URLS for _ in range(4)} == {
            f"value of {key}, generation 1" for key in KEYS
        }
        once_each(cache, 1)
    assert cache.verify() == []


def test_a_worker_that_times_out(run: Callable[..., object], cache: Cache) -> None:
    with run("--workers=2", "--timeout=1") as server:  # type: ignore[attr-defined]
        with pytest.raises((OSError, AssertionError)):
            ask(server.path, "/held")
        holder = cache["holder"]
        poll_until(lambda: holder not in server.workers(), what="the worker was killed")
        assert ask_bravely(server.path, URLS[0])
        assert cache.verify() == []


def test_a_reload_keeps_the_cache(run: Callable[..., object], cache: Cache) -> None:
    with run("--workers=2") as server:  # type: ignore[attr-defined]
        ask(server.path, URLS[0])
        before = set(server.workers())
        server.process.send_signal(signal.SIGHUP)
        poll_until(
            lambda: len(server.workers()) == 2 and not before & set(server.workers()),
            what="new workers",
        )
        assert ask_bravely(server.path, URLS[0])
        assert cache[f"computed 0 {KEYS[0]}"] == 1


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_the_last_worker_out_unlinks(cache_name: str, tmp_path: Path, preload: bool) -> None:
    """No owner, nothing persists: what the cache was goes with the server; the fixture looks for
    files that are left."""
    options = ["--workers=2", *(["--preload"] if preload else [])]
    command, path, env = gunicorn(tmp_path / "socket", cache_name, *options)
    with served(command, path, **env) as server:
        ask(server.path, URLS[0])
        with Cache(cache_name, create=False) as cache:
            assert cache[f"computed 0 {KEYS[0]}"] == 1
    with pytest.raises(FileNotFoundError):
        Cache(cache_name, create=False)
