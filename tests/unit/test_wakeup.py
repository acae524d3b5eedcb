"""What ends a wait: signals, another thread, and a file that was changed in each way there is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import poll_until

from shmcache.wakeup import FileWatch, Wakeup


def test_signals_come_by_number_and_their_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Wakeup([signal.SIGUSR1, signal.SIGUSR2]) as wakeup:
        assert wakeup.wait(0) == []
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        seen: list[int] = []
        while len(seen) < 2:
            seen += wakeup.wait(60)
        assert sorted(seen) == [signal.SIGUSR1, signal.SIGUSR2]
        assert wakeup.wait(0) == []
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_ends_the_wait() -> None:
    with Wakeup([]) as wakeup:
        thread = threading.Thread(target=wakeup.wake)
        thread.start()
        assert wakeup.wait(60) == []
        thread.join()
        for _ in range(100_000):  # more than the socket holds: waking never blocks
            wakeup.wake()
    wakeup.wake()  # after the end: nobody waits


def rewrite(path: Path) -> None:
    path.write_text("bb")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text(path.read_text())
    other.replace(path)


def rename_away_and_write(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_text("b")


def put_back_with_its_times(path: Path) -> None:
    status = path.stat()
    scratch = path.with_suffix(".scratch")

    def ticked() -> bool:  # the file system's clock is a coarse one
        scratch.write_text("")
        return scratch.stat().st_ctime_ns > status.st_ctime_ns

    poll_until(ticked, what="a tick of the file system's clock")
    path.write_text("b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def turn_the_link(path: Path) -> None:
    target = path.with_suffix(".target")
    target.write_text("a")
    link = path.with_suffix(".link")
    link.symlink_to(target)
    link.replace(path)


WAYS = [rewrite, replace, rename_away_and_write, put_back_with_its_times, turn_the_link]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_change_is_told_once_at_the_second_look(
    way: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "app.toml"
    path.write_text("a")
    watch = FileWatch(path)
    assert [watch.changed() for _ in range(3)] == [False, False, False]
    way(path)
    assert [watch.changed() for _ in range(4)] == [False, True, False, False]


def test_what_is_still_being_written_is_let_be(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_text("a")
    watch = FileWatch(path)
    for length in range(2, 6):
        path.write_text("a" * length)
        assert not watch.changed()
    assert watch.changed()


def test_a_file_that_vanishes_counts_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "app.toml"
    path.write_text("a")
    watch = FileWatch(path)
    path.unlink()
    assert [watch.changed() for _ in range(4)] == [False] * 4
    assert caplog.text.count("is gone") == 1
    path.write_text("b")
    assert [watch.changed() for _ in range(3)] == [False, True, False]


def test_what_was_read_meanwhile_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_text("a")
    watch = FileWatch(path)
    path.write_text("bb")
    watch.taken()
    assert not watch.changed()
    assert not watch.changed()
