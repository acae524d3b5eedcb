"""The semaphores of a segment: waiting, signals, and doing without."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from support.attachments import attach
from support.names import leftovers
from support.processes import poll_until

from shmcache import segment


@pytest.fixture
def opened(cache_name: str) -> Iterator[segment.Attachment]:
    attachment = attach(cache_name)
    yield attachment
    attachment.unlink()
    while attachment.handles:
        attachment.release()


# --------------------------------------------------------------------------------------- semaphores
def test_a_token_wakes_and_one_is_enough(opened: segment.Attachment) -> None:
    opened.post(0)
    opened.post(0)
    opened.wait(0, 60)  # the token is there: at once
    opened.wait(0, 0.001)  # none is left: the time
    done = threading.Event()

    def waiter() -> None:
        opened.wait(1, 60)
        done.set()

    thread = threading.Thread(target=waiter)
    thread.start()
    opened.post(1)
    assert done.wait(60)
    thread.join()


def test_a_signal_ends_a_wait(opened: segment.Attachment) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        opened.wait(0, 3600)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


def test_what_a_signal_handler_raises_comes_out_of_a_wait(opened: segment.Attachment) -> None:
    """posix_ipc alone would lose it: a worker told to stop by SIGTERM would wait on."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit("told to stop")

    before = signal.signal(signal.SIGUSR1, stop)
    waiter = threading.get_ident()
    sender = threading.Timer(0.01, lambda: signal.pthread_kill(waiter, signal.SIGUSR1))
    try:
        with pytest.raises(SystemExit, match="told to stop"):
            sender.start()
            for _ in range(200):  # ten seconds in all
                opened.wait(0, 0.05)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_missing_semaphores_degrade_to_short_sleeps(opened: segment.Attachment) -> None:
    for path in leftovers(opened.name):
        if path.name.startswith("sem."):
            path.unlink()
    opened.post(0)
    poll_until(lambda: opened.wait(0, 3600) is None, 60, what="a wait without a semaphore ends")
