"""The real uvicorn with four workers, the response cache around its application."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import poll_until
from support.servers import Load, Server, served

from shmcache import Cache

pytest.importorskip("uvicorn")

KEYS = [f"key{number}" for number in range(6)]


@pytest.fixture
def cache(cache_name: str) -> Iterator[Cache]:
    with Cache(cache_name, size="4MiB") as cache:
        yield cache


@pytest.fixture
def server(tmp_path: Path, cache: Cache) -> Iterator[Server]:
    path = tmp_path / "socket"
    command = ["-m", "uvicorn", "--uds", str(path), "--workers", "4", "--log-level", "warning"]
    command += ["support.served_app:asgi"]
    with served(command, path, SHMCACHE_APP=cache.name) as server:
        poll_until(lambda: len(server.workers()) == 4, what="four workers")
        yield server


def load_generation(server: Server, number: int, kill: int = 0) -> Load:
    """Answers of one generation under load; workers are killed meanwhile."""
    urls = [f"/value/{number}/{key}" for key in KEYS]
    with Load(server.path, urls) as load:
        if kill:
            load.wait_for(10)
            for pid in server.workers()[:kill]:
                os.kill(pid, signal.SIGKILL)
        load.wait_for(80)
    for key, url in zip(KEYS, urls, strict=True):
        assert load.answers[url] == {f"value of {key}, generation {number}"}
    return load


def test_four_workers_ask_the_application_once_for_each_url(server: Server, cache: Cache) -> None:
    for number in range(3):
        load = load_generation(server, number)
        assert load.lost == 0
        assert [cache[f"computed {number} {key}"] for key in KEYS] == [1] * len(KEYS)
    assert cache.verify() == []


def test_killed_workers_harm_nobody(server: Server, cache: Cache) -> None:
    for number in range(2):
        load_generation(server, number, kill=2)
        assert cache.verify() == []
        for key in KEYS:  # counted, and killed before it was stored: once more for each death
            assert 1 <= cache[f"computed {number} {key}"] <= 3
        poll_until(lambda: len(server.workers()) == 4, what="four workers again")
    load_generation(server, 9)
    assert [cache[f"computed 9 {key}"] for key in KEYS] == [1] * len(KEYS)
    assert cache.verify() == []
