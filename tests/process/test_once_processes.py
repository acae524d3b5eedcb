"""get_or_init among processes: each factory once, and no death that anybody waits for."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
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


def ask_both(cache: Cache, number: int, seed: int) -> tuple[dict[int, set[str]], float]:
    """Ask for the two keys of a round in all threads; (the values of each, the longest wait)."""
    keys = [2 * number, 2 * number + 1]
    values: dict[int, set[str]] = {key: set() for key in keys}
    longest = [0.0] * THREADS

    def ask(me: int) -> None:
        rng = random.Random(seed * THREADS + me)
        for key in rng.sample(keys, 2):

            def factory(key: int = key) -> str:
                cache.incr(f"calls {key}")
                time.sleep(rng.random() * 0.01)
                return f"of {os.getpid()}"

            began = time.monotonic()
            values[key].add(cache.get_or_init(key, factory))
            longest[me] = max(longest[me], time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(me,)) for me in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return values, max(longest)


def survive(channel: Channel, name: str, rounds: int, seed: int) -> None:
    """Race in one round after another, each when told to; report what was seen in it."""
    with Cache(name, create=False) as cache:
        cache.get("attached")
        for number in range(rounds):
            channel.sync()
            channel.send(ask_both(cache, number, seed + number))


def die(channel: Channel, name: str, number: int) -> None:
    """Race in one round, and be killed in it, or soon after it."""
    with Cache(name, create=False) as cache:
        cache.get("attached")
        channel.sync()
        ask_both(cache, number, number)
        channel.recv()


def test_a_hundred_killed_initialisers(open_cache: Callable[..., Cache]) -> None:
    """Eight processes with four threads each race two keys a round, 200 in all. One of them is
    killed at a random moment; as the first in every second round, so within a factory mostly."""
    rounds = KEYS // 2
    cache = open_cache(size="4MiB")
    rng = random.Random(4)
    racers = [Worker(survive, cache.name, rounds, n * 1000) for n in range(PROCESSES - 1)]
    for number in range(rounds):
        keys = [2 * number, 2 * number + 1]
        victim = Worker(die, cache.name, number)
        if number % 2:
            release([victim])
            poll_until(
                lambda key=keys[0]: bool(_core.lease_look(cache, key)[2]) or key in cache,  # type: ignore[misc]
                what="the victim begins",
            )
            release(racers)
        else:
            release([*racers, victim])
        time.sleep(rng.random() * 0.01)
        victim.kill()
        seen = [racer.recv() for racer in racers]
        for key in keys:
            values = set().union(*(values[key] for values, _ in seen))
            assert values == {cache[key]}, f"round {number}, key {key}"
            assert cache[f"calls {key}"] <= 2, "once by the dead, and once"
        longest = max(longest for _, longest in seen)
        assert longest < LONGEST_WAIT_S, f"round {number}: a waiter took {longest:.3f} s"
    for racer in racers:
        racer.result()
    assert cache.verify() == []
    assert sum(shard.leases for shard in cache.stats().shards) == 0


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
