"""Creating, attaching to and unlinking a segment, with real processes and real deaths.

What `Cache` makes of it is in test_opening.py; here are the steps between two of which a process
may die, stop, or meet another one.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.attachments import MIB, attach, forget, leave, plan
from support.names import SHM, leftovers, segment_path
from support.processes import Channel, Worker, release

from shmcache import creation, errors, liveness, segment
from shmcache._linux import LockHold, Mapping
from shmcache.block import Block, building_path, destroy
from shmcache.liveness import GATE_BYTE
from shmcache.registry import list_caches


@pytest.fixture
def opened(cache_name: str) -> Iterator[segment.Attachment]:
    attachment = attach(cache_name)
    yield attachment
    attachment.unlink()
    while attachment.handles:
        attachment.release()


# --------------------------------------------------------------------------------- create and share
def test_handles_of_a_process_share_one_client(cache_name: str) -> None:
    first = attach(cache_name)
    second = attach(cache_name)
    assert first is second
    assert first.live_clients() == 1
    first.release()
    assert leftovers(cache_name)
    second.release()
    assert leftovers(cache_name) == []


def test_threads_that_open_at_once_share_one_client(cache_name: str) -> None:
    barrier = threading.Barrier(8)
    found: list[segment.Attachment] = []

    def open_it() -> None:
        barrier.wait()
        found.append(attach(cache_name))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(attachment) for attachment in found}) == 1
    assert found[0].handles == 8
    assert found[0].live_clients() == 1
    for attachment in found:
        attachment.release()


def open_at_once(channel: Channel, name: str, forgetful: bool = False) -> tuple[int, int]:
    if forgetful:
        forget()
    channel.sync()
    attachment = attach(name)
    channel.sync()
    answer = attachment.superblock.nonce, attachment.client
    attachment.release()
    return answer


def test_processes_that_open_at_once_get_one_segment(
    start: Callable[..., Worker], cache_name: str
) -> None:
    workers = [start(open_at_once, cache_name) for _ in range(12)]
    release(workers)
    release(workers)
    nonces, clients = zip(*(worker.result() for worker in workers), strict=True)
    assert len(set(nonces)) == 1
    assert sorted(clients) == list(range(12))
    assert leftovers(cache_name) == []


IN_A_SMALL_TMPFS = """
import os, sys
from multiprocessing import get_context
from support.attachments import attach, MIB
from shmcache import errors

def child(barrier, size):
    barrier.wait()
    attachment = attach("small", size=size)
    barrier.wait()
    attachment.release()

if __name__ == "__main__":
    context = get_context("fork")
    barrier = context.Barrier(8)
    children = [context.Process(target=child, args=(barrier, 2 * MIB)) for _ in range(8)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0] * 8
    names = [name for name in os.listdir("/dev/shm") if "shmcache" in name]
    assert names == [], names
    try:
        attach("large", size=4 * MIB)
    except errors.OutOfSharedMemory as error:
        print(error)
    names = [name for name in os.listdir("/dev/shm") if "shmcache" in name]
    assert names == [], names
"""


def test_starters_do_not_reserve_the_memory_twice(tmp_path: Path) -> None:
    """Eight workers start at once where there is room for one segment; then for none."""
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    small = "mount -t tmpfs -o size=3m,mode=1777 tmpfs /dev/shm"
    if (
        not shutil.which("unshare")
        or subprocess.run([*mount, small], capture_output=True).returncode
    ):
        pytest.skip("mount namespaces are not permitted here")
    script = tmp_path / "small.py"
    script.write_text(IN_A_SMALL_TMPFS)
    done = subprocess.run(
        [*mount, f'{small} && exec "$0" "$@"', sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    for words in ("4194304 bytes", "of 3145728 bytes", "--shm-size", "medium: Memory"):
        assert words in done.stdout


def test_a_shm_that_fills_while_reserving(cache_name: str, monkeypatch: Any) -> None:
    def full(fd: int, start: int, length: int) -> None:
        os.truncate(fd, length // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(errors.OutOfSharedMemory, match=r"1048576 bytes .* free of"):
        attach(cache_name)
    assert leftovers(cache_name) == []


def test_a_size_that_no_machine_has(cache_name: str) -> None:
    with pytest.raises(errors.OutOfSharedMemory, match="smaller size"):
        attach(cache_name, size=1 << 43, plan=lambda: plan(1 << 43, shards=1024))
    assert leftovers(cache_name) == []


# -------------------------------------------------------------------------------- creators that die
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = {
    "before the lock": (creation, "LockHold", False),
    "before the memory": (creation, "_reserve", False),
    "after the memory": (creation, "_reserve", True),
    "after the semaphores": (creation, "create_semaphores", True),
    "before publishing": (os, "link", False),
    "after publishing": (os, "link", True),
    "after taking back the building name": (os, "unlink", True),
}


def create_and_die(channel: Channel, name: str, step: str) -> None:
    module, function, afterwards = STEPS[step]
    real = getattr(module, function)

    def deadly(*args: Any, **kwargs: Any) -> None:
        if afterwards:
            real(*args, **kwargs)
        die()

    setattr(module, function, deadly)
    attach(name)


@pytest.mark.parametrize("step", STEPS)
def test_what_a_killed_creator_leaves_is_cleared_away(
    start: Callable[..., Worker], cache_name: str, step: str
) -> None:
    worker = start(create_and_die, cache_name, step)
    assert worker.join() == -signal.SIGKILL
    assert leftovers(cache_name)
    attachment = attach(cache_name)
    assert not os.path.lexists(building_path(cache_name))
    semaphores = [path for path in leftovers(cache_name) if path.name.startswith("sem.")]
    assert len(semaphores) == attachment.superblock.geometry.shard_count + 1
    assert all(f"{attachment.superblock.nonce:016x}" in path.name for path in semaphores)
    assert attachment.live_clients() == 1
    attachment.release()
    assert leftovers(cache_name) == []


def test_semaphores_of_a_segment_that_was_removed_by_hand_are_cleared_away(
    cache_name: str,
) -> None:
    attach(cache_name, persist=True).release()
    strays = set(leftovers(cache_name))
    segment_path(cache_name).unlink()
    attachment = attach(cache_name)
    assert strays & set(leftovers(cache_name)) == {segment_path(cache_name)}
    attachment.release()


def create_and_stop(channel: Channel, name: str) -> int:
    real = creation.create_semaphores

    def stopping(*args: Any) -> None:
        channel.sync()
        real(*args)

    creation.create_semaphores = stopping
    attachment = attach(name)
    nonce = attachment.superblock.nonce
    channel.sync()
    attachment.release()
    return nonce


def test_a_stopped_creator_is_waited_for_with_a_bound(
    start: Callable[..., Worker], cache_name: str, monkeypatch: Any
) -> None:
    worker = start(create_and_stop, cache_name)
    assert worker.recv() == "ready"
    worker.stop()
    monkeypatch.setattr(segment, "GATE_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(errors.LockTimeout, match="being created by a living process"):
        attach(cache_name)
    monkeypatch.setattr(segment, "GATE_TIMEOUT_SECONDS", 30.0)
    worker.resume()
    worker.send("go")
    attachment = attach(cache_name)
    release([worker])
    assert worker.result() == attachment.superblock.nonce
    attachment.release()


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_a_publication_that_fails_is_tried_again(
    cache_name: str, monkeypatch: Any, error: type[OSError]
) -> None:
    """EEXIST: another one won.  ENOENT: the building name was swept away."""
    real, calls = os.link, []

    def link(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise error(args)
        real(*args, **kwargs)

    monkeypatch.setattr(os, "link", link)
    attachment = attach(cache_name)
    assert len(calls) == 2
    semaphores = [path for path in leftovers(cache_name) if path.name.startswith("sem.")]
    assert all(f"{attachment.superblock.nonce:016x}" in path.name for path in semaphores)
    attachment.release()


# ----------------------------------------------------------------------------------------- the gate
@pytest.mark.parametrize("forgetful", [False, True], ids=["rejoins", "attaches"])
def test_whoever_was_at_the_gate_of_an_unlinked_segment_looks_again(
    start: Callable[..., Worker], cache_name: str, forgetful: bool
) -> None:
    old = attach(cache_name)
    gate = LockHold(old.path, GATE_BYTE)
    other = start(open_at_once, cache_name, forgetful)
    release([other])
    # The worker is on its way to the gate, or there; both must end well.
    destroy(cache_name, old.mapping)
    gate.release()
    release([other])
    nonce, _ = other.result()
    assert nonce != old.superblock.nonce
    assert old.dead
    old.release()


def test_the_gate_of_a_file_that_is_no_longer_named_is_none(
    opened: segment.Attachment, monkeypatch: Any
) -> None:
    """The path is replaced between the open and the lock."""
    gates: list[LockHold] = []

    def lock(path: str, start: int) -> LockHold:
        gates.append(LockHold(path, start))
        if len(gates) == 1:
            Path(path).rename(moved)
            Path(path).touch()
        return gates[-1]

    moved = Path(f"{opened.path}~moved")
    monkeypatch.setattr(liveness, "LockHold", lock)
    hold = liveness.close_gate(opened.name, opened.path)
    assert hold is gates[1]
    assert hold.inode == os.stat(opened.path).st_ino != gates[0].inode
    assert not gates[0].is_mine
    hold.release()
    moved.rename(opened.path)


def hold_gate(channel: Channel, path: str) -> None:
    hold = LockHold(path, GATE_BYTE)
    channel.sync()
    hold.release()


def test_a_stopped_process_at_the_gate(
    start: Callable[..., Worker],
    opened: segment.Attachment,
    monkeypatch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = start(hold_gate, opened.path)
    assert worker.recv() == "ready"
    worker.stop()
    monkeypatch.setattr("shmcache.liveness.close_gate.__defaults__", (0.05,))
    with pytest.raises(errors.LockTimeout, match="gate"):
        opened.unlink()
    with caplog.at_level(logging.WARNING, "shmcache"):
        opened.release()  # closing never fails: it leaves the files to the next one
    assert "left to the next one" in caplog.text
    assert segment_path(opened.name).exists()
    worker.kill()
    attach(opened.name).release()
    assert leftovers(opened.name) == []


# -------------------------------------------------------------------------------- what is asked for
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"policy": "keep"}, "policy 'evict'"), ({"codec_name": "json"}, "codec 'msgpack'")],
)
@pytest.mark.parametrize("shared", [False, True])
def test_another_policy_or_codec_takes_no_slot(
    cache_name: str, changes: dict[str, str], message: str, shared: bool
) -> None:
    path = leave(cache_name)
    attachment = attach(cache_name) if shared else None
    with pytest.raises(ValueError, match=message):
        attach(cache_name, **changes)
    assert path.exists(), "a refused attach is not the last one out"
    if attachment is None:
        attachment = attach(cache_name)
    assert attachment.handles == 1
    assert attachment.generation == 2
    attachment.release()


def test_pickle_needs_a_segment_that_nobody_else_writes(cache_name: str) -> None:
    with pytest.raises(errors.NotPermitted, match="pickle"):
        attach(cache_name, codec_name="pickle", mode=0o660)
    attachment = attach(cache_name, codec_name="pickle", persist=True)
    attachment.release()
    segment_path(cache_name).chmod(0o660)
    for codec_name in ("pickle", None):
        with pytest.raises(errors.NotPermitted, match="pickle"):
            attach(cache_name, codec_name=codec_name)
    segment.unlink_segment(cache_name)


@pytest.mark.parametrize("mode", [-1, 0o400, 0o060, 0o1600])
def test_modes_that_make_no_sense(cache_name: str, mode: int) -> None:
    with pytest.raises(ValueError, match="mode"):
        attach(cache_name, mode=mode)


@pytest.mark.parametrize("group", ["no-such-group", -1, 2**32])
def test_groups_that_do_not_exist(cache_name: str, group: str | int) -> None:
    with pytest.raises(ValueError, match=f"group.*{group}"):
        attach(cache_name, group=group)


def test_no_client_slot_is_left(start: Callable[..., Worker], cache_name: str) -> None:
    attachment = attach(cache_name, plan=lambda: replace(plan(), client_count=2))
    other = start(open_at_once, cache_name)
    release([other])
    assert other.recv() == "ready"

    def refused(channel: Channel) -> None:
        with pytest.raises(errors.LimitReached, match="all 2 client slots"):
            attachment.rejoin()

    start(refused).result()
    other.send("go")
    other.result()
    attachment.release()


# --------------------------------------------------------------------------------- unlink and looks
def test_unlink_is_idempotent_and_works_after_release(cache_name: str) -> None:
    attachment = attach(cache_name, persist=True)
    attachment.release()
    attachment.unlink()
    assert leftovers(cache_name) == []
    attachment.unlink()
    new = attach(cache_name)
    attachment.unlink()  # another segment by now
    assert new.still_named()
    new.unlink()
    assert new.dead
    assert not new.still_named()
    with pytest.raises(errors.CacheNotFound):
        new.is_alive(new.client, new.generation)
    with pytest.raises(errors.CacheNotFound):
        new.live_clients()
    newest = attach(cache_name)
    assert newest is not new
    new.release()
    assert newest.still_named()
    newest.release()


def test_a_listing_changes_nothing(opened: segment.Attachment) -> None:
    before = Path(opened.path).read_bytes()
    info = {info.name: info for info in list_caches()}[opened.name]
    assert (info.size, info.entries, info.clients, info.problem) == (MIB, 0, 1, "")
    assert Path(opened.path).read_bytes() == before


def test_a_listing_says_what_is_wrong(cache_name: str) -> None:
    path = leave(cache_name)
    os.truncate(path, MIB // 2)
    info = {info.name: info for info in list_caches()}[cache_name]
    assert (info.size, info.entries, info.clients) == (MIB // 2, None, None)
    assert "damaged" in info.problem
    path.unlink()
    attach(cache_name).release()  # clears the semaphores away


def test_a_block_is_shared_memory_that_does_not_pickle(opened: segment.Attachment) -> None:
    block = Block(f"shmcache.{opened.name}", Mapping.open(opened.path))
    assert block.name == f"shmcache.{opened.name}"
    assert block.size == MIB == len(block.buf)
    with pytest.raises(TypeError, match="pickle the Cache"):
        block.__reduce__()
    block.close()
    block.close()
    assert (SHM / block.name).exists()
