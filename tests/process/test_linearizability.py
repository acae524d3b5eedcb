"""Histories of several processes on a few keys, recorded and checked key by key."""

from __future__ import annotations

import itertools
import math
import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.linearizability import ABSENT, Call, violations
from support.processes import Channel, Worker, release

from shmcache import Cache

PROCESSES = 4
KEYS = [f"key {number}" for number in range(4)]
OPERATIONS = ["get"] * 4 + ["set"] * 2 + ["gets", "cas", "cas", "add", "replace", "delete", "pop"]
OPERATIONS += ["incr"] * 2


def perform(cache: Cache, name: str, key: str, arguments: tuple[Any, ...]) -> Any:
    """One call, its answer in the checker's words."""
    if name == "get":
        return cache.get(key, ABSENT)
    if name == "gets":
        seen = cache.gets(key)
        return ABSENT if seen is None else (seen.value, seen.version)
    if name == "pop":
        return cache.pop(key, ABSENT)
    return getattr(cache, name)(key, *arguments)


def record(channel: Channel, name: str, caller: int, seed: int, calls: int, churn: bool) -> None:
    """Make random calls; say before and after each what it is and what it gave."""
    rng = random.Random(seed)
    cache = Cache(name, create=False)
    versions: dict[str, Any] = dict.fromkeys(KEYS, 0)
    channel.sync()
    for number in range(calls):
        key = rng.choice(KEYS)
        operation = rng.choice(OPERATIONS)
        unique = caller * 1_000_000 + number * 100
        arguments: tuple[Any, ...] = ()
        if operation in ("set", "add", "replace"):
            arguments = (unique,)
        elif operation == "incr":
            arguments = (1,)
        elif operation == "cas":
            arguments = (unique, versions[key])
        channel.send(("begin", operation, key, arguments, time.monotonic_ns()))
        result = perform(cache, operation, key, arguments)
        channel.send(("end", result, time.monotonic_ns()))
        if operation == "gets" and result != ABSENT:
            versions[key] = result[1]
        if churn and number % 3 == 0:  # the log wraps, so that the keys' entries are moved
            cache[f"filler {caller} {number % 7}"] = bytes(rng.randrange(20_000))
    channel.send("done")
    cache.close()


def collect(worker: Worker, caller: int, calls: list[Call], kill_after: float) -> None:
    """Turn a worker's messages into calls, until it is done or, after so many, killed."""
    for number in itertools.count():
        if number >= kill_after:
            worker.kill()
        try:
            message = worker.recv()
            if message == "done":
                worker.result()
                return
            _, operation, key, arguments, started = message
            result, ended = None, math.inf
            try:
                _, result, ended = worker.recv()
            finally:
                calls.append(Call(key, operation, arguments, result, started, ended, caller))
        except AssertionError:
            assert number >= kill_after, "a worker that nobody killed has died"
            return


def history(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    *,
    seed: int,
    calls: int = 250,
    churn: bool = False,
    victims: int = 0,
) -> list[Call]:
    """What PROCESSES workers did to one small cache; the first ``victims`` are killed midway."""
    rng = random.Random(seed)
    cache = open_cache(size="1MiB", shards=1, policy="keep", lock_timeout=30)
    workers = [
        start(record, cache.name, caller, rng.random(), calls, churn) for caller in range(PROCESSES)
    ]
    release(workers)
    found: list[list[Call]] = [[] for _ in workers]
    threads = [
        threading.Thread(
            target=collect,
            args=(
                worker,
                caller,
                found[caller],
                rng.randrange(calls // 4, calls) if caller < victims else math.inf,
            ),
        )
        for caller, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = [call for part in found for call in part]
    assert len(recorded) > calls * (PROCESSES - victims) * 0.99
    assert cache.verify() == []
    return recorded


def check(recorded: list[Call], seed: int) -> None:
    for key, calls in violations(recorded).items():
        listing = "\n".join(map(str, calls))
        pytest.fail(f"seed {seed}: the history of {key!r} is not linearizable:\n{listing}")


def overlaps(recorded: list[Call]) -> int:
    """How many calls of different processes on one key truly overlapped."""
    by_start = sorted(recorded, key=lambda call: call.started)
    return sum(
        a.key == b.key and a.caller != b.caller and b.started < a.ended
        for a, b in itertools.pairwise(by_start)
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entries move": {"churn": True},
    "processes die": {"victims": 2, "churn": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("turn", range(3))
def test_histories_are_linearizable(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], variant: str, turn: int
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    recorded = history(open_cache, start, seed=seed, **VARIANTS[variant])
    assert overlaps(recorded) > 5, "the calls must meet, else the check means nothing"
    check(recorded, seed)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_histories_are_linearizable(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], variant: str
) -> None:
    for _ in range(40):
        seed = secrets.randbits(32)
        print(f"seed {seed}")
        check(history(open_cache, start, seed=seed, calls=1000, **VARIANTS[variant]), seed)
