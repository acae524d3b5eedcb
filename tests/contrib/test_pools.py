"""multiprocessing's pools and ProcessPoolExecutor, by every way to start a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from support.processes import HANG_S, METHODS

from shmcache import Cache

ITEMS = 40


@pytest.fixture
def cache(cache_name: str) -> Iterator[Cache]:
    with Cache(cache_name, size="2MiB") as cache:
        yield cache


def square(cache: Cache, number: int) -> int:
    """With the cache as an argument: it pickles to "attach by name"."""

    def compute() -> int:
        cache.incr(f"computed {number % 5}")
        return (number % 5) ** 2

    return int(cache.get_or_init(number % 5, compute))


_opened: Cache | None = None


def initialise(name: str) -> None:
    """With the cache as a global of the worker, opened once by its initialiser."""
    global _opened
    _opened = Cache(name, create=False)


def square_of_global(number: int) -> int:
    assert _opened is not None
    return square(_opened, number)


def suicide(cache: Cache) -> None:
    cache["died"] = os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def sound(cache: Cache) -> None:
    assert [cache[f"computed {number}"] for number in range(5)] == [1] * 5
    assert cache.verify() == []


SQUARES = [(number % 5) ** 2 for number in range(ITEMS)]


@pytest.mark.parametrize("method", METHODS)
def test_pool_with_an_initialiser(cache: Cache, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(3, initialise, (cache.name,), maxtasksperchild=10) as pool:
        assert pool.map_async(square_of_global, range(ITEMS), 2).get(HANG_S) == SQUARES
        pool.close()
        pool.join()
    sound(cache)


@pytest.mark.parametrize("method", METHODS)
def test_pool_with_the_cache_as_an_argument(cache: Cache, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        arguments = [(cache, number) for number in range(ITEMS)]
        assert pool.starmap_async(square, arguments, 5).get(HANG_S) == SQUARES
        pool.close()
        pool.join()
    sound(cache)


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(cache: Cache, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        futures = [pool.submit(square, cache, number) for number in range(ITEMS)]
        assert [future.result(HANG_S) for future in futures] == SQUARES
    sound(cache)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_breaks_leaves_the_cache_whole(cache: Cache, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(square, cache, number) for number in range(ITEMS)]
        for future in futures:
            future.result(HANG_S)
        with pytest.raises(BrokenProcessPool):
            pool.submit(suicide, cache).result(HANG_S)
    assert cache["died"] != os.getpid()
    sound(cache)


@pytest.mark.parametrize("method", METHODS)
def test_the_pool_makes_the_cache_and_the_last_one_out_unlinks_it(
    cache_name: str, method: str
) -> None:
    """No handle in the parent: what the workers made goes with them; the fixture looks."""
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(_own, [cache_name] * 4, timeout=HANG_S)) == [25] * 4


def _own(name: str) -> int:
    global _opened
    if _opened is None:
        _opened = Cache(name, size="2MiB")
    return int(_opened.get_or_init("a", lambda: 25))
