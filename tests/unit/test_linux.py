"""The Linux calls that Python does not wrap: locks that last, pages that are wiped, mappings."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forks import FORKS, in_child
from support.processes import Channel, Worker

from shmcache._linux import LockHold, Mapping, ProcessLock, ProcessPage, probe


def locked(path: str, start: int) -> bool:
    return probe(path, [(start, 1)])[2][0]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "file"
    file.write_bytes(b"")
    return str(file)


def test_a_hold_is_exclusive_until_it_is_released(path: str) -> None:
    hold = LockHold(path, 7)
    assert probe(path, [(7, 1), (8, 1), (0, 7), (0, 8), (0, 0)])[2] == [
        *(True, False, False, True, True)
    ]
    with pytest.raises(BlockingIOError):
        LockHold(path, 7)
    LockHold(path, 8).release()
    assert hold.is_mine
    assert os.stat(path).st_ino == hold.inode
    assert os.stat(path).st_dev == hold.device
    hold.release()
    hold.release()
    assert not hold.is_mine
    assert not locked(path, 7)


def test_a_hold_that_is_dropped_is_released(path: str) -> None:
    hold = LockHold(path, 2**62)
    assert locked(path, 2**62)
    del hold
    assert not locked(path, 2**62)


def test_a_hold_does_not_follow_links(tmp_path: Path, path: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        LockHold(str(link), 1)
    with pytest.raises(FileNotFoundError):
        LockHold(str(tmp_path / "absent"), 1)


def test_a_hold_keeps_no_descriptor(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    hold = LockHold(path, 1)
    mapping = Mapping.open(path)
    assert os.listdir("/proc/self/fd") == before
    hold.release()
    mapping.close()


def hold_and_close_everything(channel: Channel, path: str) -> list[int]:
    hold = LockHold(path, 1)
    keep = channel._pipe.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)
    foreign = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    channel.sync()
    hold.release()  # closes no descriptor, by now somebody else's
    return [fd for fd in foreign if os.fstat(fd).st_rdev == os.stat("/dev/null").st_rdev]


def test_closerange_frees_no_lock_and_release_closes_nobodys_file(
    start: Callable[..., Worker], path: str
) -> None:
    worker = start(hold_and_close_everything, path)
    assert worker.recv() == "ready"
    assert locked(path, 1)
    worker.send("go")
    assert len(worker.result()) == 20
    assert not locked(path, 1)


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_a_child_inherits_no_hold_and_no_identity(fork: Callable[[], int], path: str) -> None:
    hold = LockHold(path, 1)
    page = ProcessPage(5)
    view = memoryview(page).cast("Q")

    def check() -> bool:
        hold.release()  # not the child's: nothing happens
        wiped = (hold.is_mine, page.is_mine, page.value, view[0]) == (False, False, 0, 0)
        page.set(9)
        return wiped and locked(path, 1) and view[0] == 9 and in_child(fork, lambda: view[0] == 0)

    assert in_child(fork, check)
    assert hold.is_mine
    assert (page.value, view[0]) == (5, 5)
    assert locked(path, 1)


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_a_lock_that_another_thread_held_at_the_fork(fork: Callable[[], int]) -> None:
    lock = ProcessLock()
    held, done = threading.Event(), threading.Event()

    def hold_it() -> None:
        with lock.current():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold_it)
    thread.start()
    assert held.wait(60)
    assert not lock.current().acquire(blocking=False)
    assert in_child(fork, lambda: lock.current().acquire(blocking=False))
    done.set()
    thread.join()
    assert lock.current().acquire(blocking=False)


def test_memory_goes_with_its_last_buffer(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10000)
    mapping = Mapping.open(str(file))
    view = memoryview(mapping)[:3]
    mapping.close()
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        memoryview(mapping)

    def maps() -> str:
        return Path("/proc/self/maps").read_text()

    del mapping
    assert bytes(view) == b"xxx"
    assert str(file) in maps()
    view.release()
    del view
    gc.collect()
    assert str(file) not in maps()


def test_a_mapping_that_is_read_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    mapping = Mapping.open(str(file), writable=False)
    assert memoryview(mapping).readonly
    assert bytes(memoryview(mapping)) == b"abc"
    assert len(Mapping.open("/dev/null")) == 0
