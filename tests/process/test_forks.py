"""Forks at awkward moments: beside writing threads, and by C code behind Python's back."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.names import leftovers, segment_path
from support.processes import Channel, Worker, poll_until, wait_zombie

from shmcache import Cache

# PyDLL keeps the GIL over the call, so that the child's interpreter is in a sound state, but no
# hook of Python's (os.register_at_fork) runs.
C_FORK = ctypes.PyDLL(None).fork


def fork_by_os() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; here that is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def fork_by_c() -> int:
    pid = C_FORK()
    assert isinstance(pid, int)
    return pid


FORKS: dict[str, Callable[[], int]] = {"os.fork": fork_by_os, "C fork": fork_by_c}


def in_fork(fork: Callable[[], int], child: Callable[[], bool]) -> int:
    """Run ``child`` in a fork; its exit code: 0 if it returned True."""
    pid = fork()
    if pid == 0:
        code = 7
        try:
            code = 0 if child() else 8
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def writing_threads(cache: Cache, count: int = 2) -> Iterator[None]:
    """Threads that write without a pause, small values and some that release the GIL."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            for number in itertools.count():
                if stop.is_set():
                    return
                cache[f"{thread} {number % 10}"] = bytes([number % 256]) * (number % 3000)
                if number % 10 == 0:
                    cache[f"{thread} large"] = bytes([number % 256]) * 70_000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert failures == []


def test_fork_while_other_threads_write(open_cache: Callable[..., Cache]) -> None:
    """The child's copies of those threads are gone in the midst of their writes.

    Not with a fork in C: where threads wait for the GIL, that leaves the child's own GIL unusable.
    """
    cache = open_cache(size="4MiB", shards=1)
    cache["k"] = "parent's"
    with writing_threads(cache):
        for number in range(40):

            def child(number: int = number) -> bool:
                good = cache["k"] == "parent's"
                cache[f"child {number}"] = number
                return good and cache[f"child {number}"] == number

            assert in_fork(fork_by_os, child) == 0
    stats = cache.stats()
    assert stats.recoveries == 0, "a living parent's shard was taken for a dead one's"
    assert cache.verify() == []


@pytest.mark.parametrize("kind", FORKS)
def test_a_forked_child_is_a_client_of_its_own(cache: Cache, kind: str) -> None:
    cache["k"] = 1
    here, there = os.pipe()
    go_read, go_write = os.pipe()

    def child() -> bool:
        cache.incr("k")
        os.write(there, b"attached")
        os.read(go_read, 1)
        return True

    pid = FORKS[kind]()
    if pid == 0:
        code = 7
        try:
            code = 0 if child() else 8
        finally:
            os._exit(code)
    assert os.read(here, 100) == b"attached"
    assert cache["k"] == 2
    assert cache.stats().clients == 2
    os.write(go_write, b".")
    assert wait_zombie(pid) == 0
    poll_until(lambda: cache.stats().clients == 1, 5, what="a zombie is dead")
    os.waitpid(pid, 0)
    for fd in (here, there, go_read, go_write):
        os.close(fd)


@pytest.mark.parametrize("first_use", ["get", "set", "len", "iterate", "stats", "contains"])
@pytest.mark.parametrize("kind", FORKS)
def test_any_first_use_gives_the_child_its_identity(
    cache: Cache, kind: str, first_use: str
) -> None:
    cache["k"] = 1
    uses: dict[str, Callable[[], object]] = {
        "get": lambda: cache["k"],
        "set": lambda: cache.set("new", 1),
        "len": lambda: len(cache),
        "iterate": lambda: list(cache.items()),
        "stats": cache.stats,
        "contains": lambda: "k" in cache,
    }

    def child() -> bool:
        uses[first_use]()
        return cache.stats().clients == 2 and cache["k"] == 1

    assert in_fork(FORKS[kind], child) == 0


def parent_with_c_fork(channel: Channel, name: str) -> None:
    """Attach, fork in C a child that never touches the cache, and wait to be killed."""
    cache = Cache(name, create=False)
    cache["parent"] = 1
    idle_read, _ = os.pipe()
    pid = fork_by_c()
    if pid == 0:
        os.read(idle_read, 1)  # for ever: the write end is this process's own copy
        os._exit(0)
    channel.send(pid)
    channel.recv()


def test_a_c_fork_does_not_keep_its_dead_parent_alive(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    worker = start(parent_with_c_fork, cache.name)
    child = worker.recv()
    try:
        assert cache.stats().clients == 2
        worker.kill()
        poll_until(lambda: cache.stats().clients == 1, 5, what="the parent is dead")
        os.kill(child, 0)
    finally:
        os.kill(child, 9)


def close_every_descriptor(channel: Channel, name: str) -> str:
    """What daemons do at their start."""
    cache = Cache(name, create=False)
    cache["before"] = 1
    keep = channel._pipe.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)
    cache["after"] = 2
    channel.sync()
    cache["later"] = 3
    cache.close()
    return "fine"


def test_closing_every_descriptor_frees_no_living_clients_lock(
    start: Callable[..., Worker], cache_name: str
) -> None:
    cache = Cache(cache_name, size="1MiB")
    worker = start(close_every_descriptor, cache_name)
    assert worker.recv() == "ready"
    assert dict(cache) == {"before": 1, "after": 2}
    assert cache.stats().clients == 2
    cache.close()
    assert segment_path(cache_name).exists(), "a living client was taken for dead"
    worker.send("go")
    assert worker.result() == "fine"
    assert leftovers(cache_name) == []


def test_opening_costs_no_lasting_descriptor(open_cache: Callable[..., Cache]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    cache = open_cache()
    cache["k"] = 1
    assert set(os.listdir("/proc/self/fd")) == before


def test_many_forks_leave_no_client_slots_behind(cache: Cache) -> None:
    """More forks than there are client slots: slots of the dead are found and reused."""
    cache["n"] = 0

    def child() -> bool:
        return cache.incr("n") > 0

    for _ in range(60):
        assert in_fork(fork_by_os, child) == 0
    assert cache["n"] == 60
    poll_until(lambda: cache.stats().clients == 1, 5, what="all children are gone")


@pytest.mark.nightly
def test_more_forks_than_client_slots(cache: Cache) -> None:
    def child() -> bool:
        return cache.incr("n") > 0

    for _ in range(3000):
        assert in_fork(fork_by_os, child) == 0
    assert cache["n"] == 3000
