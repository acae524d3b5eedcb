"""The suite's own helpers: what the other tests trust to find faults must find them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from support import names, payloads
from support.processes import METHODS, Channel, Worker, WorkerFailed, poll_until, wait_zombie


@pytest.mark.parametrize("size", [0, 60, 1000, 70_000])
def test_a_payload_gives_its_stamp_and_size(size: int) -> None:
    payload = payloads.make("key", 77, size)
    assert len(payload) == max(size, payloads.OVERHEAD)
    assert payloads.check("key", payload) == 77


def test_no_byte_of_a_payload_can_change_unseen() -> None:
    payload = payloads.make("key", 77, 200)
    for at in range(len(payload)):
        wrong = bytearray(payload)
        wrong[at] ^= 1
        with pytest.raises(AssertionError):
            payloads.check("key", bytes(wrong))


def test_no_mixture_of_two_payloads_passes() -> None:
    first, second = (payloads.make("key", stamp, 200) for stamp in (1, 2))
    for at in range(8, 200 - 8):
        with pytest.raises(AssertionError):
            payloads.check("key", first[:at] + second[at:])


@pytest.mark.parametrize("wrong", [None, "text", b"", b"short"])
def test_what_is_no_payload_is_rejected(wrong: object) -> None:
    with pytest.raises(AssertionError):
        payloads.check("key", wrong)


def test_a_payload_of_another_key_is_rejected() -> None:
    with pytest.raises(AssertionError):
        payloads.check("other", payloads.make("key", 1, 100))


def echo(channel: Channel, first: object) -> object:
    channel.send(first)
    return channel.recv()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_talks_and_returns(start: Callable[..., Worker], method: str) -> None:
    worker = start(echo, "hello", method=method)
    assert worker.recv() == "hello"
    worker.send([1, 2])
    assert worker.result() == [1, 2]


def fail(channel: Channel, how: str) -> None:
    if how == "raise":
        raise LookupError("the reason")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_workers_exception_is_the_tests_failure(start: Callable[..., Worker]) -> None:
    with pytest.raises(WorkerFailed, match="the reason"):
        start(fail, "raise").result()


def test_a_workers_death_is_the_tests_failure(start: Callable[..., Worker]) -> None:
    with pytest.raises(WorkerFailed, match="-9"):
        start(fail, "die").result()


def test_a_stopped_and_a_killed_worker(start: Callable[..., Worker]) -> None:
    worker = start(echo, "hello")
    worker.stop()
    worker.resume()
    assert worker.recv() == "hello"
    os.kill(worker.pid, signal.SIGKILL)
    assert wait_zombie(worker.pid) == signal.SIGKILL
    assert worker.join() == -signal.SIGKILL


def test_polling_gives_up_with_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match="the moon"):
        poll_until(lambda: False, 0.01, what="the moon")


def test_leftovers_are_those_of_one_name_only() -> None:
    name = names.unique_name("leftovers")
    own = [f"shmcache.{name}", f"shmcache.{name}~0~new", f"sem.shmcache.{name}~0~1"]
    others = [f"shmcache.{name}x", f"shmcache.x{name}", f"other.shmcache.{name}"]
    paths = [names.SHM / file for file in own + others]
    try:
        for path in paths:
            path.touch()
        assert names.leftovers(name) == sorted(names.SHM / file for file in own)
    finally:
        names.remove(paths)
