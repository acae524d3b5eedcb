"""get_or_init among processes: each factory once, and no death that anybody waits for."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import pytest
from support.processes import HANG_S, Channel, Worker, poll_until, release

from shmcache import Cache, _core

PROCESSES, THREADS, KEYS = 8, 4, 200
LONGEST_WAIT_S = 1.0


def race(channel: Channel, name: str, seed: int) -> tuple[int, float]:
    """Ask for every key in several threads at once; (factories called, the longest wait)."""
    calls = [0] * THREADS
    longest = [0.0] * THREADS
    with Cache(name, create=False) as cache:
        cache.get("attached")
        channel.sync()

        def ask(me: int) -> None:
            order = list(range(KEYS))
            random.Random(seed * THREADS + me).shuffle(order)
            for key in order:

                def factory(key: int = key) -> dict[str, int]:
                    calls[me] += 1
                    cache.incr(f"calls {key}")
                    time.sleep(0.001)
                    return {"key": key}

                began = time.monotonic()
                value = cache.get_or_init(key, factory)
                longest[me] = max(longest[me], time.monotonic() - began)
                assert value == {"key": key}

        threads = [threading.Thread(target=ask, args=(me,)) for me in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(calls), max(longest)


def test_each_factory_runs_exactly_once(cache: Cache) -> None:
    workers = [Worker(race, cache.name, number) for number in range(PROCESSES)]
    release(workers)
    results = [worker.result() for worker in workers]
    assert sum(calls for calls, _ in results) == KEYS
    assert [cache[f"calls {key}"] for key in range(KEYS)] == [1] * KEYS
    assert all(cache[key] == {"key": key} for key in range(KEYS))
    assert sum(shard.leases for shard in cache.stats().shards) == 0
    assert cache.verify() == []


def initialise(channel: Channel, name: str, key: str, value: str, seconds: float) -> None:
    """Begin to initialise a key; report what came of it."""
    with Cache(name, create=False) as cache:
        cache.get("attached")
        channel.sync()
        channel.send(cache.get_or_init(key, lambda: channel.send("begun") or slow(value, seconds)))


def slow(value: str, seconds: float) -> str:
    time.sleep(seconds)
    return value


def wait_for(channel: Channel, name: str, rounds: int) -> list[float]:
    """Ask for one key after another, each when told to; how long each took, in seconds."""
    took = []
    with Cache(name, create=False) as cache:
        for number in range(rounds):
            channel.sync()
            began = time.monotonic()
            value = cache.get_or_init(f"k{number}", lambda: f"of {os.getpid()}")
            took.append(time.monotonic() - began)
            channel.send(value)
    return took


def kills(name: str, rounds: int) -> None:
    """Kill the initialiser at a random moment, before, within or after its factory."""
    rng = random.Random(4)
    waiters = [Worker(wait_for, name, rounds) for _ in range(3)]
    with Cache(name, create=False) as cache:
        for number in range(rounds):
            victim = Worker(initialise, name, f"k{number}", "of the victim", rng.random() * 0.02)
            release([victim])
            if number % 2:
                assert victim.recv() == "begun"
            time.sleep(rng.random() * 0.01)
            release(waiters)
            time.sleep(rng.random() * 0.02)
            victim.kill()
            values = {waiter.recv() for waiter in waiters}
            assert len(values) == 1, f"round {number}: {values}"
            assert cache[f"k{number}"] in values
        for waiter in waiters:
            longest = max(waiter.result())
            assert longest < LONGEST_WAIT_S, f"a waiter took {longest:.3f} s"
        assert cache.verify() == []
        assert sum(shard.leases for shard in cache.stats().shards) == 0


def test_a_killed_initialiser_is_taken_over_from(cache: Cache) -> None:
    kills(cache.name, 10)


@pytest.mark.nightly
def test_a_hundred_killed_initialisers(cache: Cache) -> None:
    kills(cache.name, 100)


def test_a_takeover_is_quick_and_the_stopped_are_not_robbed(cache: Cache) -> None:
    victim = Worker(initialise, cache.name, "k", "of the victim", HANG_S)
    release([victim])
    assert victim.recv() == "begun"
    victim.stop()
    with pytest.raises(TimeoutError):
        cache.get_or_init("k", lambda: "robbed", timeout=0.2)
    done: list[Any] = []
    waiter = threading.Thread(target=lambda: done.append(cache.get_or_init("k", lambda: "mine")))
    waiter.start()
    poll_until(lambda: bool(_core.lease_look(cache, "k")[2]), what="the lease is there")
    assert not done
    began = time.monotonic()
    victim.kill()
    waiter.join(HANG_S)
    assert done == ["mine"]
    assert time.monotonic() - began < LONGEST_WAIT_S


def test_a_set_in_another_process_wins(cache: Cache) -> None:
    worker = Worker(initialise, cache.name, "k", "late", 0.05)
    release([worker])
    assert worker.recv() == "begun"
    cache["k"] = "set"
    assert worker.recv() == "late"
    worker.result()
    assert cache["k"] == "set"


def test_waiters_wake_with_the_value(cache: Cache) -> None:
    """The median of some wake-ups, so that what else the machine does hides nothing."""
    took = []
    for number in range(9):
        key = f"k{number}"
        worker = Worker(initialise, cache.name, key, "theirs", 0.03)
        release([worker])
        assert worker.recv() == "begun"
        assert cache.get_or_init(key, lambda: "mine") == "theirs"
        took.append(time.monotonic())
        assert worker.recv() == "theirs"
        took[-1] = time.monotonic() - took[-1]
        worker.result()
    assert sorted(took)[len(took) // 2] < 0.01


def test_a_child_forked_meanwhile_waits_for_its_parent(cache: Cache) -> None:
    """It has a copy of the parent's flight, but nobody in it leads."""
    begun, go = threading.Event(), threading.Event()

    def factory() -> str:
        begun.set()
        assert go.wait(HANG_S)
        return "the parent's"

    def ask(channel: Channel) -> Any:
        channel.send("asking")
        return cache.get_or_init("k", lambda: "the child's")

    done: list[Any] = []
    leader = threading.Thread(target=lambda: done.append(cache.get_or_init("k", factory)))
    leader.start()
    assert begun.wait(HANG_S)
    worker = Worker(ask)
    assert worker.recv() == "asking"
    go.set()
    leader.join(HANG_S)
    assert done == ["the parent's"]
    assert worker.result() == "the parent's"


def fail(channel: Channel, name: str) -> str:
    with Cache(name, create=False) as cache:

        def factory() -> str:
            channel.sync()
            raise LookupError("theirs")

        try:
            cache.get_or_init("k", factory)
        except LookupError as error:
            return str(error)
    return "no error"


def test_an_exception_stays_in_its_process(cache: Cache) -> None:
    worker = Worker(fail, cache.name)
    assert worker.recv() == "ready"
    done: list[Any] = []
    waiter = threading.Thread(target=lambda: done.append(cache.get_or_init("k", lambda: "mine")))
    waiter.start()
    worker.send("go")
    assert worker.result() == "theirs"
    waiter.join(HANG_S)
    assert done == ["mine"]
