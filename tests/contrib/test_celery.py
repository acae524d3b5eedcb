"""The real Celery worker (prefork): its processes share a cache, and are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import poll_until
from support.servers import TESTS, Server

from shmcache import Cache

pytest.importorskip("celery")

KEYS = [f"key{number}" for number in range(5)]


@pytest.fixture
def cache(cache_name: str) -> Iterator[Cache]:
    with Cache(cache_name, size="4MiB") as cache:
        yield cache


@pytest.fixture
def environment(tmp_path: Path, cache: Cache) -> dict[str, str]:
    broker = tmp_path / "broker"
    (broker / "control").mkdir(parents=True)
    return {"SHMCACHE_APP": cache.name, "SHMCACHE_BROKER": str(broker)}


@pytest.fixture
def worker(tmp_path: Path, environment: dict[str, str]) -> Iterator[Server]:
    command = ["-m", "celery", "-A", "support.celery_app", "worker", "--pool=prefork"]
    command += ["--concurrency=2", "--loglevel=WARNING", "--without-gossip", "--without-mingle"]
    command += ["--without-heartbeat"]
    server = Server(command, tmp_path / "celery", environment)
    try:
        yield server
    except BaseException:
        sys.stderr.write(server.log.read_text()[-8000:])
        raise
    finally:
        server.kill()  # how Celery ends is not the matter: it waits long for a process it has lost


def send(environment: dict[str, str], times: int, task: str = "compute") -> None:
    """Send each key's task so often, as a web application would: from a process of its own."""
    arguments = KEYS if task == "compute" else [None]
    code = (
        f"from support.celery_app import {task} as task\n"
        f"for key in {arguments!r} * {times}: task.delay(*filter(None, [key]))\n"
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = {**os.environ, **environment, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def test_prefork_workers_compute_each_value_once(
    worker: Server, environment: dict[str, str], cache: Cache
) -> None:
    send(environment, 4)
    poll_until(lambda: cache.get("done", 0) == 4 * len(KEYS), what="all tasks")
    assert [cache[f"computed 0 {key}"] for key in KEYS] == [1] * len(KEYS)
    assert cache.verify() == []

    # in a task: an idle process may hold the lock of Celery's own queue, which dies with it
    send(environment, 1, "perish")
    poll_until(lambda: "died" in cache, what="a death")
    cache["generation"] = 1
    send(environment, 2)
    poll_until(lambda: cache["done"] >= 6 * len(KEYS), what="all tasks, after the deaths")
    assert [cache[f"computed 1 {key}"] for key in KEYS] == [1] * len(KEYS)
    assert len(list(cache.scan("worker "))) >= 2
    assert cache.verify() == []
