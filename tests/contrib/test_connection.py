"""What the backends have in common: opening, reopening, and what becomes of an outage."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.forks import in_child
from support.outages import UNOPENABLE, fill

from shmcache import Cache, errors
from shmcache.contrib import _connection
from shmcache.contrib._connection import Connection, connect


@pytest.fixture
def connection(cache_name: str) -> Iterator[Connection]:
    made = connect(cache_name, size="1MiB")
    yield made
    made.close()


def test_it_opens_at_its_first_use(connection: Connection) -> None:
    with pytest.raises(errors.CacheNotFound):
        Cache(connection.name, create=False)
    assert connection.run(lambda cache: cache.get("a", 1), 2) == 1
    Cache(connection.name, create=False).close()


def test_one_for_all_who_ask_the_same(connection: Connection) -> None:
    assert connect(connection.name, size="1MiB") is connection
    others = [
        connect(connection.name),
        connect(connection.name, size="1MiB", on_error="raise"),
        connect(connection.name, size="1MiB", pickle_if_private=True),
    ]
    assert connection not in others


@pytest.mark.parametrize("arguments", [{"on_error": "ignore"}, {"name": "a/b"}], ids=str)
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        connect(**{"name": "a", **arguments})


def test_threads_open_it_once(connection: Connection) -> None:
    barrier = threading.Barrier(8)
    got: list[Cache] = []

    def use() -> None:
        barrier.wait()
        got.append(connection.cache)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(cache) for cache in got}) == 1


def until_noticed(use: Callable[[], Any], noticed: Callable[[], bool]) -> None:
    """A handle notices an unlink within a second of use."""
    while not noticed():
        use()


def test_an_unlinked_cache_is_made_anew(connection: Connection) -> None:
    connection.run(lambda cache: cache.set("a", 1), None)
    old = connection.cache
    old.unlink()
    until_noticed(lambda: connection.run(len, 0), lambda: connection._cache is not old)
    connection.run(lambda cache: cache.set("a", 2), None)
    with Cache(connection.name, create=False) as other:
        assert other["a"] == 2


def test_async_operations_too(connection: Connection) -> None:
    async def one() -> int:
        return 1

    async def run() -> None:
        old = connection.cache
        old.unlink()
        number = 0
        while connection._cache is old:
            number += 1
            await connection.arun(partial(Cache.aget_or_init, key=number, factory=one))

    asyncio.run(run())
    with Cache(connection.name, create=False) as other:
        assert len(other) == 1


@pytest.mark.parametrize("outage", UNOPENABLE)
def test_what_cannot_be_opened_is_a_miss(
    cache_name: str, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments, error = UNOPENABLE[outage]
    connection = connect(cache_name, **arguments)
    with caplog.at_level(logging.WARNING, "shmcache"):
        for _ in range(20):
            assert connection.run(len, -1) == -1
    assert len(caplog.records) == 1, "logged once a minute"
    message = caplog.records[0].getMessage()
    assert error.__name__ in message and cache_name in message


@pytest.mark.parametrize("outage", UNOPENABLE)
def test_or_an_error(cache_name: str, outage: str) -> None:
    arguments, error = UNOPENABLE[outage]
    connection = connect(cache_name, on_error="raise", **arguments)
    for _ in range(3):
        with pytest.raises(error):
            connection.run(len, -1)


def test_opening_is_tried_again_after_a_while(
    cache_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    real = _connection.Cache

    def opening(*args: Any, **named: Any) -> Cache:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise errors.OutOfSharedMemory("full")
        return real(*args, **named)

    monkeypatch.setattr(_connection, "Cache", opening)
    now = 1000.0
    monkeypatch.setattr(_connection.time, "monotonic", lambda: now)
    connection = connect(cache_name, size="1MiB")
    assert [connection.run(len, -1) for _ in range(5)] == [-1] * 5
    assert tries == 1
    now += _connection.RETRY_SECONDS + 0.01
    assert connection.run(len, -1) == 0
    connection.close()


def test_each_kind_of_outage_is_logged_once_a_minute(
    connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(_connection.time, "monotonic", lambda: now)

    def fails(error: Exception) -> Callable[[Cache], int]:
        def operation(cache: Cache) -> int:
            raise error

        return operation

    with caplog.at_level(logging.WARNING, "shmcache"):
        for _ in range(3):
            connection.run(fails(errors.LockTimeout("held")), 0)
            connection.run(fails(errors.CacheFull("full")), 0)
        assert len(caplog.records) == 2
        now += _connection.LOG_SECONDS
        connection.run(fails(errors.LockTimeout("held")), 0)
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    "error",
    [TypeError("a"), ValueError("b"), ZeroDivisionError()],
    ids=repr,
)
def test_a_mistake_of_the_program_raises(connection: Connection, error: Exception) -> None:
    def operation(cache: Cache) -> int:
        raise error

    with pytest.raises(type(error)):
        connection.run(operation, 0)


def test_a_key_that_is_too_large_is_a_miss(connection: Connection) -> None:
    url = "/" + "x" * 70_000
    assert connection.run(lambda cache: cache.get(url), "missed") == "missed"
    assert connection.run(lambda cache: cache.set(url, 1), "missed") == "missed"


def test_a_full_cache_is_an_outage_and_keeps_what_it_has(cache_name: str) -> None:
    connection = connect(cache_name, size="1MiB", policy="keep", shards=1)
    fill(connection.cache)
    before = len(connection.cache)
    assert connection.run(lambda cache: cache.set("one more", b"x" * 8000), "missed") == "missed"
    assert len(connection.cache) == before
    connection.close()


class TestCodec:
    """Pickle only where nobody else can write what is read."""

    def codec(self, name: str, **arguments: Any) -> str:
        connection = connect(name, size="1MiB", pickle_if_private=True, **arguments)
        try:
            return connection.run(lambda cache: cache.codec, "none")
        finally:
            connection.close()

    def test_a_private_cache_is_made_with_pickle(self, cache_name: str) -> None:
        assert self.codec(cache_name) == "pickle"

    @pytest.mark.parametrize("mode", [0o660, 0o622, 0o606])
    def test_one_that_others_can_write_never(self, cache_name: str, mode: int) -> None:
        assert self.codec(cache_name, mode=mode) == "msgpack"

    def test_one_that_others_can_read_may(self, cache_name: str) -> None:
        assert self.codec(cache_name, mode=0o644) == "pickle"

    def test_one_that_is_there_keeps_its_own(self, open_cache: Any, cache_name: str) -> None:
        open_cache(cache_name, size="1MiB", codec="json")
        assert self.codec(cache_name) == "json"

    def test_one_that_is_asked_for(self, cache_name: str) -> None:
        assert self.codec(cache_name, codec="msgpack") == "msgpack"

    def test_only_where_it_is_asked_for_otherwise(self, connection: Connection) -> None:
        assert connection.run(lambda cache: cache.codec, "none") == "msgpack"


class TestForks:
    def test_a_child_has_a_connection_of_its_own(self, connection: Connection) -> None:
        connection.run(lambda cache: cache.set("a", 1), None)
        assert in_child(
            os.fork,
            lambda: (
                connection.run(lambda cache: cache["a"], None) == 1
                and connection.run(lambda cache: cache.incr("b"), None) == 1
            ),
        )
        assert connection.run(lambda cache: cache["b"], None) == 1

    def test_before_its_first_use_too(self, connection: Connection) -> None:
        """gunicorn --preload: the application is made in the master, and used in the workers."""

        def use() -> bool:
            try:
                return connection.run(lambda cache: cache.incr("b"), None) == 1
            finally:
                connection.close()

        assert in_child(os.fork, use)
        assert connection._cache is None

    def test_while_another_thread_opens_it(self, connection: Connection) -> None:
        with connection._opening.current(), _connection._guard.current():

            def use() -> bool:
                mine = connect(connection.name, size="1MiB")
                try:
                    return mine is connection and mine.run(len, -1) == 0
                finally:
                    mine.close()

            assert in_child(os.fork, use)


LENIENT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Missing())
import shmcache
with shmcache.Cache({name!r}, size="1MiB") as cache:
    cache["a"] = (1, 2)
    assert cache["a"] == (1, 2)
    assert cache.get_or_init("b", lambda: 5) == 5
import shmcache.contrib.asgi, shmcache.recipes, shmcache.cli
print("well")
"""

EXTRAS = (
    *("django", "asgiref", "flask", "flask_caching", "cachelib", "dogpile", "msgspec", "pydantic"),
    *("prometheus_client", "fastapi", "starlette", "uvicorn", "celery", "httpx", "pytest"),
)


def test_none_of_the_extras_is_needed(cache_name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LENIENT.format(blocked=EXTRAS, name=cache_name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "well", done.stderr


@pytest.mark.parametrize("module", ["django", "cachelib", "dogpile"])
def test_a_backend_without_its_framework_says_so(module: str) -> None:
    script = LENIENT.partition("import shmcache\n")[0].format(blocked=EXTRAS, name="x")
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport shmcache.contrib.{module}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ModuleNotFoundError" in done.stderr
