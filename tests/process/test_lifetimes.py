"""Real processes: every start method, every way to end, and what is left afterwards."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.names import leftovers, segment_path
from support.processes import METHODS, Channel, Worker, poll_until, release

from shmcache import Cache, CacheNotFound


def exchange(channel: Channel, cache: Cache) -> int:
    """With a cache that came as an argument: see the parent's value, answer, count."""
    assert cache["from parent"] == [1, {"a": 2}]
    cache["from child"] = os.getpid()
    for _ in range(1000):
        cache.incr("counter")
    return os.getpid()


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_is_an_argument_of_a_process(
    cache: Cache, start: Callable[..., Worker], method: str
) -> None:
    cache["from parent"] = [1, {"a": 2}]
    workers = [start(exchange, cache, method=method) for _ in range(2)]
    pids = {worker.result() for worker in workers}
    assert cache["from child"] in pids
    assert cache["counter"] == 2000
    assert cache.verify() == []


def work(cache: Cache, number: int) -> int:
    cache[number] = number * 2
    return cache.incr("tasks")


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_is_an_argument_of_executor_tasks(cache: Cache, method: str) -> None:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        counts = list(pool.map(work, [cache] * 40, range(40)))
    assert sorted(counts) == list(range(1, 41))
    assert {number: cache[number] for number in range(40)} == {n: n * 2 for n in range(40)}


def attach(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        cache.incr("seen")
        channel.sync()


@pytest.mark.parametrize("method", METHODS)
def test_the_last_process_out_unlinks(
    start: Callable[..., Worker], cache_name: str, method: str
) -> None:
    cache = Cache(cache_name, size="1MiB")
    workers = [start(attach, cache_name, method=method) for _ in range(3)]
    for worker in workers:
        assert worker.recv() == "ready"
    cache.close()
    for worker in workers:
        assert segment_path(cache_name).exists()
        worker.send("go")
        worker.result()
    assert leftovers(cache_name) == []


def end_by(channel: Channel, name: str, ending: str) -> None:
    cache = Cache(name, size="1MiB", policy="keep")
    cache["k"] = "left behind"
    channel.send("stored")
    channel.recv()
    if ending == "os._exit":
        os._exit(3)
    elif ending == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif ending == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif ending == "abort":
        os.abort()
    elif ending == "sys.exit":
        sys.exit(0)


@pytest.mark.parametrize("ending", ["os._exit", "SIGKILL", "SIGTERM"])
def test_what_a_killed_process_left_is_adopted(
    start: Callable[..., Worker], cache_name: str, ending: str
) -> None:
    worker = start(end_by, cache_name, ending)
    assert worker.recv() == "stored"
    worker.send()
    assert worker.join() != 0
    assert segment_path(cache_name).exists()
    with Cache(cache_name) as cache:
        assert cache["k"] == "left behind"
        assert cache.stats().clients == 1
        cache["k"] = "adopted"
        assert cache.verify() == []
    assert leftovers(cache_name) == []


def test_a_forked_child_that_ends_by_os_exit_leaves_the_parents_cache_alone(cache: Cache) -> None:
    cache["k"] = 1
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                cache["k"] += 1
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache["k"] == 4
    poll_until(lambda: cache.stats().clients == 1, 5, what="the children's deaths are noticed")
    assert segment_path(cache.name).exists()


def close_inherited(channel: Channel, cache: Cache) -> str:
    cache["child"] = 1
    cache.close()
    return "closed"


def test_a_child_that_closes_its_inherited_handle_closes_only_its_own(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    assert start(close_inherited, cache).result() == "closed"
    assert cache["child"] == 1
    assert segment_path(cache.name).exists()
    cache["parent"] = 2
    assert dict(cache) == {"child": 1, "parent": 2}


def never_touch(channel: Channel, cache: Cache) -> str:
    return "ended"


def test_a_child_that_never_uses_its_inherited_handle(
    start: Callable[..., Worker], cache_name: str
) -> None:
    cache = Cache(cache_name, size="1MiB")
    worker = start(never_touch, cache)
    assert worker.result() == "ended"
    assert cache.stats().clients == 1
    cache.close()
    assert leftovers(cache_name) == []


def use_after(channel: Channel, cache: Cache) -> str:
    channel.sync()
    try:
        cache.get("k")
    except CacheNotFound:
        return "not found"
    return "found"


def test_a_child_whose_parent_closed_the_cache_before_its_first_use(
    start: Callable[..., Worker], cache_name: str
) -> None:
    """The child has no identity until it uses the cache; by then the last one may be out."""
    cache = Cache(cache_name, size="1MiB")
    cache["k"] = 1
    worker = start(use_after, cache)
    assert worker.recv() == "ready"
    cache.close()
    assert leftovers(cache_name) == []
    worker.send("go")
    assert worker.result() == "not found"


def outlive(channel: Channel, cache: Cache) -> int:
    cache["child"] = "here"
    channel.sync()
    cache["alone"] = 1
    return len(cache)


def test_a_child_that_outlives_its_parents_handle(
    start: Callable[..., Worker], cache_name: str
) -> None:
    cache = Cache(cache_name, size="1MiB")
    worker = start(outlive, cache)
    assert worker.recv() == "ready"
    cache.close()
    assert segment_path(cache_name).exists()
    worker.send("go")
    assert worker.result() == 2
    assert leftovers(cache_name) == []


def grandchild_counts(channel: Channel, cache: Cache, depth: int) -> None:
    cache.incr("depth")
    if depth:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                grandchild_counts(channel, cache, depth - 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_forks_of_forks(cache: Cache, start: Callable[..., Worker]) -> None:
    start(grandchild_counts, cache, 4).result()
    assert cache["depth"] == 5
    assert cache.verify() == []


def unlink_it(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        cache.unlink()


def test_an_unlink_by_another_process_is_noticed_within_a_second_of_use(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    cache["k"] = 1
    start(unlink_it, cache.name).result()

    def noticed() -> bool:
        try:
            cache.get("k")
        except CacheNotFound:
            return True
        return False

    poll_until(noticed, 1.0, what="a reader notices the unlink")
    with pytest.raises(CacheNotFound):
        cache["k"] = 2
    cache.reopen()
    assert "k" not in cache


RESOURCE_TRACKER = """
import multiprocessing, sys
from multiprocessing import resource_tracker
from shmcache import Cache

def child(cache):
    cache.incr("n")

if __name__ == "__main__":
    resource_tracker.ensure_running()  # as any other use of multiprocessing would
    with Cache(sys.argv[1], create=False) as cache:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=child, args=(cache,))
        process.start()
        process.join()
        sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("ending", ["normal", "killed"])
def test_the_resource_tracker_leaves_the_segment_alone(
    cache: Cache, tmp_path: Any, ending: str
) -> None:
    script = tmp_path / "attacher.py"
    code = RESOURCE_TRACKER
    if ending == "killed":
        code = code.replace("sys.exit(process.exitcode)", "import os; os.kill(os.getpid(), 9)")
    script.write_text(code)
    inode = segment_path(cache.name).stat().st_ino
    # The pipe ends only when the tracker, which outlives the process, has ended too.
    done = subprocess.run(
        [sys.executable, str(script), cache.name],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == (-9 if ending == "killed" else 0), done.stderr
    assert done.stderr == ""
    assert segment_path(cache.name).stat().st_ino == inode
    assert cache["n"] == 1
    cache["k"] = "alive"


def test_a_failed_attach_does_not_unlink(cache: Cache) -> None:
    """cpython#153279: SharedMemory unlinks what it could not attach to."""
    inode = segment_path(cache.name).stat().st_ino
    for wrong in ({"policy": "keep"}, {"codec": "json"}, {"create": True}):
        with pytest.raises((ValueError, FileExistsError)):
            Cache(cache.name, **wrong)  # type: ignore[arg-type]
    assert segment_path(cache.name).stat().st_ino == inode


def attach_and_wait(channel: Channel, cache: Cache) -> None:
    cache.get("k")
    channel.sync()


@pytest.mark.nightly
def test_1024_processes_can_attach(cache: Cache) -> None:
    """This process and 1,023 forks; every one of them writes."""
    gate_read, gate_write = os.pipe()
    ready_read, ready_write = os.pipe()
    pids = []
    try:
        for _ in range(1023):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.close(gate_write)
                    cache.incr("attached")
                    os.write(ready_write, b".")
                    os.read(gate_read, 1)
                    code = 0
                finally:
                    os._exit(code)
            pids.append(pid)
        for _ in pids:
            assert os.read(ready_read, 1) == b"."
        assert cache["attached"] == 1023
        assert cache.stats().clients == 1024
    finally:
        os.close(gate_write)
        for pid in pids:
            os.waitpid(pid, 0)
    poll_until(lambda: cache.stats().clients == 1, 5, what="all are gone")
    assert cache.verify() == []


def creator(channel: Channel, name: str, turns: int) -> int:
    opened = 0
    channel.sync()
    for _ in range(turns):
        with Cache(name, size="1MiB") as cache:
            cache.incr("n")
            opened += cache["n"] >= 1
    return opened


def test_opening_and_closing_at_once_never_fails(
    start: Callable[..., Worker], cache_name: str
) -> None:
    """Last ones out unlink while others attach: nobody may land in a segment that has gone."""
    workers = [start(creator, cache_name, 150) for _ in range(4)]
    release(workers)
    assert [worker.result() for worker in workers] == [150] * 4
    assert leftovers(cache_name) == []
