"""Whether a process is alive is the kernel's word: locks, identities, generations, exits."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.attachments import attach, forget
from support.forks import FORKS, in_child
from support.names import leftovers, segment_path
from support.processes import METHODS, Channel, Worker, poll_until, release, wait_zombie

from shmcache import attachment as attachment_module
from shmcache import errors, liveness, segment
from shmcache._core import LAYOUT
from shmcache._linux import LockHold, probe
from shmcache.block import DEAD, store_word

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def opened(cache_name: str) -> Iterator[segment.Attachment]:
    attachment = attach(cache_name)
    yield attachment
    attachment.unlink()
    while attachment.handles:
        attachment.release()


def locked(path: str, start: int) -> bool:
    return probe(path, [(start, 1)])[2][0]


# -------------------------------------------------------------------------------- the living
def attach_and_tell(channel: Channel, name: str) -> None:
    forget()
    attachment = attach(name)
    channel.send((attachment.client, attachment.generation))
    channel.recv()
    attachment.release()


def test_a_killed_client_is_dead_at_once_though_it_is_a_zombie(
    opened: segment.Attachment, start: Callable[..., Worker]
) -> None:
    worker = start(attach_and_tell, opened.name)
    client, generation = worker.recv()
    assert opened.is_alive(client, generation)
    assert not opened.is_alive(client, generation + 1)
    assert not opened.is_alive(client + 1, 1)
    assert opened.live_clients() == 2
    worker.stop()
    assert opened.is_alive(client, generation)  # stopped is not dead
    os.kill(worker.pid, signal.SIGKILL)
    wait_zombie(worker.pid)
    assert not opened.is_alive(client, generation)
    assert opened.live_clients() == 1
    assert opened.is_alive(opened.client, opened.generation)


def test_a_slot_that_is_taken_again_has_another_generation(
    opened: segment.Attachment, start: Callable[..., Worker]
) -> None:
    seen = []
    for ending in ("killed", "closed", "closed"):
        worker = start(attach_and_tell, opened.name)
        seen.append(worker.recv())
        if ending == "killed":
            worker.kill()
        else:
            worker.send("go")
            worker.result()
    assert len(set(seen)) == 3
    words = {liveness.identity_word(*pair) for pair in seen}
    assert len(words) == 3
    assert 0 not in words


def test_slots_of_the_dead_are_taken_when_no_other_is_left(cache_name: str) -> None:
    attachment = attach(cache_name)
    table = liveness.ClientTable(
        attachment.mapping, attachment.superblock.geometry, attachment.path
    )
    device, inode = attachment.superblock.device, attachment.superblock.inode
    count = attachment.superblock.geometry.client_count
    holds = [table.take(device, inode) for _ in range(count - 1)]
    with pytest.raises(errors.LimitReached, match="1024"):
        table.take(device, inode)
    assert attachment.live_clients() == count
    client, generation, hold = holds[700]
    hold.release()  # as death does: nothing is written
    taken = table.take(device, inode)
    assert taken[:2] == (client, generation + 1)
    del holds, hold, taken
    attachment.release()
    assert leftovers(cache_name) == []


def test_a_generation_that_wraps_is_never_zero(opened: segment.Attachment) -> None:
    slot = opened.superblock.geometry.clients_off + LAYOUT["sizeof.shm_client"]
    store_word(opened.mapping, slot + LAYOUT["shm_client.generation"], 2**32 - 1)
    table = liveness.ClientTable(opened.mapping, opened.superblock.geometry, opened.path)
    client, generation, hold = table.take(opened.superblock.device, opened.superblock.inode)
    assert (client, generation) == (1, 1)
    hold.release()


def test_bytes_of_the_table_are_not_believed(opened: segment.Attachment) -> None:
    """A living client whose slot says that it is free is not robbed of it."""
    slot = opened.superblock.geometry.clients_off
    store_word(opened.mapping, slot + LAYOUT["shm_client.in_use"], 0)
    table = liveness.ClientTable(opened.mapping, opened.superblock.geometry, opened.path)
    client, _, hold = table.take(opened.superblock.device, opened.superblock.inode)
    assert client != opened.client
    hold.release()
    store_word(opened.mapping, slot + LAYOUT["shm_client.in_use"], 1)


def test_a_process_without_descriptors_takes_nobody_for_dead(
    opened: segment.Attachment, monkeypatch: Any
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("shmcache.attachment.is_locked", refuse)
    assert opened.is_alive(99, 1)


IN_ANOTHER_PID_NAMESPACE = """
import os, sys
from support.attachments import attach
attachment = attach(sys.argv[1])
print(os.getpid(), attachment.client, attachment.generation, attachment.live_clients(), flush=True)
sys.stdin.read()
os.kill(0, 9)
"""


def test_another_pid_namespace(opened: segment.Attachment) -> None:
    space = ["unshare", "--pid", "--fork", "--kill-child", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*space, "true"]).returncode:
        pytest.skip("pid namespaces are not permitted here")
    with subprocess.Popen(
        [*space, sys.executable, "-c", IN_ANOTHER_PID_NAMESPACE, opened.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout
        pid, client, generation, clients = map(int, process.stdout.readline().split())
        assert pid == 1
        assert clients == 2
        assert opened.is_alive(client, generation)
        process.kill()
        process.wait()
    poll_until(lambda: not opened.is_alive(client, generation), what="the namespace is gone")
    assert opened.live_clients() == 1


# ----------------------------------------------------------------------------------- forks
@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_a_child_rejoins_as_a_client_of_its_own(
    opened: segment.Attachment, fork: Callable[[], int]
) -> None:
    mine = opened.client, opened.generation, opened.identity.value

    def check() -> bool:
        if opened.identity.value != 0:
            return False
        opened.rejoin()
        theirs = opened.client, opened.generation, opened.identity.value
        opened.rejoin()  # once is enough
        if theirs != (opened.client, opened.generation, opened.identity.value):
            return False
        both = opened.is_alive(*mine[:2]) and opened.is_alive(*theirs[:2])
        same = attach(opened.name) is opened and opened.handles == 2
        return both and same and theirs[2] not in (0, mine[2]) and opened.live_clients() == 2

    assert in_child(fork, check)
    assert (opened.client, opened.generation, opened.identity.value) == mine
    assert opened.live_clients() == 1


def test_a_child_of_an_unlinked_cache_cannot_rejoin(cache_name: str) -> None:
    attachment = attach(cache_name)
    attachment.unlink()

    def check() -> bool:
        with pytest.raises(errors.CacheNotFound):
            attachment.rejoin()
        return True

    assert in_child(os.fork, check)
    attachment.release()
    with pytest.raises(errors.CacheClosed):
        attachment.rejoin()


def test_a_child_does_not_rejoin_what_is_marked_dead(opened: segment.Attachment) -> None:
    """Its unlinker died before the files were gone: the path names the segment still."""
    store_word(opened.mapping, DEAD, 1)
    assert opened.still_named()

    def check() -> bool:
        with pytest.raises(errors.CacheNotFound):
            opened.rejoin()
        return not opened.identity.is_mine

    assert in_child(os.fork, check)


def test_a_child_that_never_joined_leaves_nothing_and_takes_nothing(
    opened: segment.Attachment,
) -> None:
    def check() -> bool:
        opened.release()
        return opened.handles == 0

    assert in_child(os.fork, check)
    assert opened.still_named()
    assert not opened.dead


def test_a_fork_while_another_thread_unlinks(opened: segment.Attachment) -> None:
    """The child finds the name's lock free, though a thread that it does not have had it."""
    gate = LockHold(opened.path, liveness.GATE_BYTE)
    thread = threading.Thread(target=opened.unlink)
    thread.start()

    def is_free() -> bool:
        lock = attachment_module._locks[opened.name].current()
        return lock.acquire(blocking=False) and lock.release() is None

    poll_until(lambda: not is_free(), what="the thread waits at the gate")

    def check() -> bool:
        with pytest.raises(errors.LockTimeout):
            liveness.close_gate(opened.name, opened.path, 0.01)
        return is_free()

    assert in_child(os.fork, check)
    gate.release()
    thread.join()
    assert leftovers(opened.name) == []


# -------------------------------------------------------------------------------- the last out
def test_a_call_under_way_keeps_its_process_alive_for_others(cache_name: str) -> None:
    """Closed by another thread in the middle of a write: nobody may take over its shard."""
    other_handle = attach(cache_name, persist=True)
    buffer = memoryview(other_handle.mapping)
    client, generation = other_handle.client, other_handle.generation
    other_handle.release()
    byte = liveness.client_byte(client, generation)
    assert locked(str(segment_path(cache_name)), byte)
    buffer.release()
    assert not locked(str(segment_path(cache_name)), byte)
    segment.unlink_segment(cache_name)


def test_who_closed_is_no_client_though_its_last_call_is_under_way(
    start: Callable[..., Worker], cache_name: str
) -> None:
    attachment = attach(cache_name)
    worker = start(attach_and_tell, cache_name)
    worker.recv()
    buffer = memoryview(attachment.mapping)
    attachment.release()
    assert leftovers(cache_name)
    worker.send("go")
    worker.result()
    assert leftovers(cache_name) == []
    buffer.release()


def test_a_handle_that_is_dropped_inside_a_critical_section(cache_name: str) -> None:
    """A finaliser runs anywhere, in the middle of opening the same cache too."""
    attachment = attach(cache_name)

    class Handle:
        def __del__(self) -> None:
            attachment.release()

    handle = Handle()
    handle.itself = handle  # type: ignore[attr-defined]
    gone = weakref.ref(handle)
    del handle
    with attachment_module.critical(cache_name):
        gc.collect()
        assert gone() is None
        assert attachment.handles == 1  # put off
    assert attachment.handles == 0
    assert leftovers(cache_name) == []


def test_a_release_too_many_is_none(opened: segment.Attachment) -> None:
    opened.release()
    opened.release()
    assert opened.handles == 0
    with pytest.raises(errors.CacheClosed):
        opened.live_clients()


# --------------------------------------------------------------------------------------- exit
def open_and_return(channel: Channel, name: str) -> int:
    attachment = attach(name)
    channel.send(attachment.client)
    return attachment.live_clients()


@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_child_counts_as_closing(
    start: Callable[..., Worker], cache_name: str, method: str
) -> None:
    worker = start(open_and_return, cache_name, method=method)
    worker.recv()
    assert worker.result() == 1
    assert leftovers(cache_name) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_rejoined_counts_as_closing_at_its_end(
    start: Callable[..., Worker], cache_name: str, method: str
) -> None:
    attachment = attach(cache_name)
    worker = start(open_and_return, cache_name, method=method)
    assert worker.recv() != attachment.client
    assert worker.result() == 2
    assert attachment.live_clients() == 1
    attachment.release()
    assert leftovers(cache_name) == []


EXITS = {
    "end of script": "",
    "sys.exit": "sys.exit(0)",
    "exception": "raise SystemExit",
    "forked child": "pid = os.fork()\nif pid == 0: attachment.rejoin(); sys.exit(0)\nos.wait()",
    "daemon thread": "threading.Thread(target=lambda: attachment.wait(0, 60), daemon=True).start()",
    "child that outlives the script": (
        "process = multiprocessing.get_context('fork').Process(target=attachment.rejoin)\n"
        "process.start()"
    ),
}


@pytest.mark.parametrize("ending", EXITS.values(), ids=EXITS)
def test_a_normal_interpreter_exit_counts_as_closing(cache_name: str, ending: str) -> None:
    script = (
        "import multiprocessing, os, sys, threading\n"
        "from support.attachments import attach\n"
        f"attachment = attach({cache_name!r})\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert leftovers(cache_name) == []


def test_what_a_process_does_after_its_exit_hook_is_refused(cache_name: str) -> None:
    script = (
        "import atexit\n"
        "def late():\n"
        "    try: attachment.rejoin()\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "atexit.register(late)\n"  # registered first, runs last
        "from support.attachments import attach\n"
        f"attachment = attach({cache_name!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert (done.stdout, done.stderr) == ("CacheClosed\n", "")
    assert leftovers(cache_name) == []


def test_what_killed_processes_left_is_adopted(
    start: Callable[..., Worker], cache_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    workers = [start(attach_and_tell, cache_name) for _ in range(3)]
    for worker in workers:
        worker.recv()
    inode = segment_path(cache_name).stat().st_ino
    for worker in workers:
        worker.kill()
    assert segment_path(cache_name).stat().st_ino == inode
    with caplog.at_level(logging.INFO, "shmcache"):
        attachment = attach(cache_name)
    assert "adopted" in caplog.text
    assert attachment.superblock.inode == inode
    assert attachment.live_clients() == 1
    attachment.release()
    assert leftovers(cache_name) == []


TRACKED = """
import sys
from multiprocessing import resource_tracker
from support.attachments import attach

seen = []
for name in ("register", "unregister"):
    setattr(resource_tracker, name, lambda *arguments, name=name: seen.append((name, arguments)))
attachment = attach(sys.argv[1])
attachment.post(0)
attachment.release()
print(seen, resource_tracker._resource_tracker._fd)
"""


def test_the_resource_tracker_is_neither_told_nor_started(opened: segment.Attachment) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, opened.name],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[] None\n", "")
    assert opened.still_named()
    assert not opened.dead


def open_and_close(channel: Channel, name: str) -> set[str]:
    forget()
    channel.sync()
    problems = set()
    while not channel.told():
        attachment = attach(name)
        if not attachment.still_named() or attachment.dead or attachment.live_clients() < 1:
            problems.add("the last one out unlinked under a fresh attacher")
        attachment.release()
    return problems


@pytest.mark.stress
def test_the_last_one_out_never_unlinks_under_a_fresh_attacher(
    start: Callable[..., Worker], cache_name: str
) -> None:
    workers = [start(open_and_close, cache_name) for _ in range(4)]
    release(workers)
    stop = threading.Event()
    stop.wait(1)  # how long the load lasts
    for worker in workers:
        worker.send("stop")
    assert [worker.result() for worker in workers] == [set()] * 4
    assert leftovers(cache_name) == []
