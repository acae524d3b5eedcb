"""Histories of several processes on a few keys, recorded and checked key by key."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import pickle
import random
import secrets
import struct
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
LOCAL_OPERATIONS = ["get"] * 12 + ["set", "gets", "cas", "add", "replace", "delete", "pop"]
"""For values that are decoded, and so kept by their readers: mostly gets, and no counting."""


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


class Rounds:
    """Keeps the workers side by side: nobody is a round ahead of another who lives."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * PROCESSES)  # shared with the forked workers

    def finish(self, caller: int, number: int) -> None:
        """Say that ``caller`` has finished round ``number``, and wait for the others a while."""
        at = struct.Struct("<Q")
        at.pack_into(self._memory, 8 * caller, number)
        patience = time.monotonic() + 0.005  # some may be dead, or done
        while time.monotonic() < patience:
            if min(at.unpack_from(self._memory, 8 * i)[0] for i in range(PROCESSES)) >= number:
                return
            os.sched_yield()


class Record:
    """What a worker has done, kept in memory that outlives it: two pickles for each call."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16 << 20)  # shared with the forked worker

    def write(self, *event: Any) -> None:
        """Append one event; called by the worker."""
        self._memory.write(pickle.dumps(event))

    def calls(self, caller: int) -> list[Call]:
        """All calls; the last one has no end if the worker died inside it."""
        found: list[Call] = []
        self._memory.seek(0)
        while True:
            try:
                operation, key, arguments, started = pickle.load(self._memory)
            except (pickle.UnpicklingError, EOFError):
                return found  # what follows was never written, or only half
            result, ended = None, math.inf
            try:
                result, ended = pickle.load(self._memory)
            except (pickle.UnpicklingError, EOFError):
                return found
            finally:
                found.append(Call(key, operation, arguments, result, started, ended, caller))


def work(
    channel: Channel,
    name: str,
    caller: int,
    seed: float,
    calls: int,
    churn: bool,
    local: bool,
    record: Record,
    rounds: Rounds,
) -> None:
    """Make random calls; record before and after each what it is and what it gave."""
    rng = random.Random(seed)
    cache = Cache(name, create=False, lock_timeout=30, local_entries=3 if local else 0)
    operations = LOCAL_OPERATIONS if local else OPERATIONS
    versions: dict[str, Any] = dict.fromkeys(KEYS, 0)
    midway = rng.randrange(calls // 4, calls)
    channel.sync()
    for number in range(calls):
        if number % 20 == 0:
            rounds.finish(caller, number)
        if number == midway:
            channel.send("midway")
        key = rng.choice(KEYS)
        operation = rng.choice(operations)
        unique: Any = caller * 1_000_000_000 + number * 1000
        if local:
            unique = (unique,)  # goes through the codec
        arguments: tuple[Any, ...] = ()
        if operation in ("set", "add", "replace"):
            arguments = (unique,)
        elif operation == "incr":
            arguments = (1,)
        elif operation == "cas":
            arguments = (unique, versions[key])
        record.write(operation, key, arguments, time.monotonic_ns())
        result = perform(cache, operation, key, arguments)
        record.write(result, time.monotonic_ns())
        if operation == "gets" and result != ABSENT:
            versions[key] = result[1]
        if churn and number % 3 == 0:  # the log wraps, so that the keys' entries are moved
            cache[f"filler {caller} {number % 7}"] = bytes(rng.randrange(20_000))
    cache.close()


def history(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    *,
    seed: int,
    calls: int = 1500,
    churn: bool = False,
    local: bool = False,
    victims: int = 0,
) -> list[Call]:
    """What PROCESSES workers did to one small cache; the first ``victims`` are killed midway."""
    rng = random.Random(seed)
    cache = open_cache(size="1MiB", shards=1, policy="keep", lock_timeout=30)
    records = [Record() for _ in range(PROCESSES)]
    rounds = Rounds()
    workers = [
        start(work, cache.name, caller, rng.random(), calls, churn, local, record, rounds)
        for caller, record in enumerate(records)
    ]
    release(workers)
    for number, worker in enumerate(workers):
        assert worker.recv() == "midway"
        if number < victims:
            worker.kill()
    for worker in workers[victims:]:
        worker.result()
    recorded = [call for caller, record in enumerate(records) for call in record.calls(caller)]
    assert len(recorded) >= calls * (PROCESSES - victims)
    assert cache.verify() == []
    return recorded


def check(recorded: list[Call], seed: int) -> None:
    for key, calls in violations(recorded).items():
        listing = "\n".join(map(str, calls))
        pytest.fail(f"seed {seed}: the history of {key!r} is not linearizable:\n{listing}")


def overlaps(recorded: list[Call]) -> int:
    """How many calls of different processes on one key truly overlapped."""
    by_start = sorted(recorded, key=lambda call: (call.key, call.started))
    return sum(
        a.key == b.key and a.caller != b.caller and b.started < a.ended
        for a, b in itertools.pairwise(by_start)
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entries move": {"churn": True},
    "local entries": {"local": True, "churn": True},
    "processes die": {"victims": 2, "churn": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_histories_are_linearizable(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], variant: str
) -> None:
    """At least three histories, and more until enough calls have met: on a busy machine the
    processes take turns rather than run side by side, and then the check would mean little."""
    met = 0
    patience = time.monotonic() + 40
    for turn in itertools.count(1):
        seed = secrets.randbits(32)
        print(f"seed {seed}")
        recorded = history(open_cache, start, seed=seed, **VARIANTS[variant])
        check(recorded, seed)
        met += overlaps(recorded)
        if (turn >= 3 and met >= 100) or time.monotonic() > patience:
            break
    assert met >= 100 or len(os.sched_getaffinity(0)) < 2, f"only {met} calls met"


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_histories_are_linearizable(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], variant: str
) -> None:
    for _ in range(15):
        seed = secrets.randbits(32)
        print(f"seed {seed}")
        check(history(open_cache, start, seed=seed, calls=5000, **VARIANTS[variant]), seed)
