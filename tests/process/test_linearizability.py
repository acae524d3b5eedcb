"""Histories of several processes on a few keys, recorded and checked key by key.

What they are checked against is written down in support/linearizability.py: a dict, with
get_or_init and with invalidate() of a namespace, which is checked as a whole.
"""

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
from dataclasses import dataclass
from typing import Any

import pytest
from support.linearizability import ABSENT, Call, is_linearizable_space, violations
from support.processes import Channel, Worker, release

from shmcache import Cache

PROCESSES = 4
KEYS = [f"key {number}" for number in range(4)]
OPERATIONS = ["get"] * 4 + ["set"] * 2 + ["gets", "cas", "cas", "add", "replace", "delete", "pop"]
OPERATIONS += ["incr"] * 2
LOCAL_OPERATIONS = ["get"] * 12 + ["set", "gets", "cas", "add", "replace", "delete", "pop"]
"""For values that are decoded, and so kept by their readers: mostly gets, and no counting."""
ONCE = ["get_or_init"] * 8 + ["delete"] * 3
"""Added where keys are initialised, and have to be missing often."""


class Factory:
    """Of a get_or_init: takes a while, and knows when it ran."""

    def __init__(self, value: Any, rng: random.Random, begun: Callable[[], None]) -> None:
        self.ran: tuple[int, int] | None = None
        self._value = value
        self._yields = rng.randrange(30)
        self._begun = begun

    def __call__(self) -> Any:
        began = time.monotonic_ns()
        self._begun()
        for _ in range(self._yields):
            os.sched_yield()
        self.ran = began, time.monotonic_ns()
        return self._value


def perform(cache: Any, name: str, key: str | None, arguments: tuple[Any, ...]) -> Any:
    """One call, its answer in the checker's words."""
    if name == "invalidate":
        return cache.invalidate()
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
            result, ended, ran = None, math.inf, None
            try:
                result, ended, ran = pickle.load(self._memory)
            except (pickle.UnpicklingError, EOFError):
                return found
            finally:
                found.append(Call(key, operation, arguments, result, started, ended, caller, ran))


@dataclass(frozen=True)
class Variant:
    """What a history is made of."""

    churn: bool = False  # the log wraps, so that the keys' entries are moved
    local: bool = False  # with local entries, and values that are kept there
    once: bool = False  # with get_or_init
    space: bool = False  # in a namespace that is invalidated now and then
    victims: int = 0  # processes that are killed midway; with `once`, within a factory

    @property
    def operations(self) -> list[str]:
        chosen = LOCAL_OPERATIONS if self.local else OPERATIONS
        return [*chosen, *(ONCE if self.once else []), *(["invalidate"] if self.space else [])]


def work(
    channel: Channel,
    name: str,
    caller: int,
    seed: float,
    calls: int,
    variant: Variant,
    record: Record,
    rounds: Rounds,
) -> None:
    """Make random calls; record before and after each what it is and what it gave."""
    rng = random.Random(seed)
    cache = Cache(name, create=False, lock_timeout=30, local_entries=3 if variant.local else 0)
    target: Any = cache.namespace("space") if variant.space else cache
    operations = variant.operations
    versions: dict[str, Any] = dict.fromkeys(KEYS, 0)
    midway = rng.randrange(calls // 4, calls)
    number = 0
    told = False

    def tell() -> None:
        nonlocal told
        if not told and number >= midway:
            told = True
            channel.send("midway")

    channel.sync()
    for number in range(calls):
        if number % 20 == 0:
            rounds.finish(caller, number)
        if not variant.once:
            tell()
        key = rng.choice(KEYS)
        operation = rng.choice(operations)
        unique: Any = caller * 1_000_000_000 + number * 1000
        if variant.local:
            unique = (unique,)  # goes through the codec
        arguments: tuple[Any, ...] = ()
        given: tuple[Any, ...] | None = None
        factory = None
        if operation in ("set", "add", "replace", "get_or_init"):
            arguments = (unique,)
        elif operation == "incr":
            arguments = (1,)
        elif operation == "cas":
            arguments = (unique, versions[key])
        if operation == "get_or_init":
            factory = Factory(unique, rng, tell)
            given = (factory,)
        named = None if operation == "invalidate" else key
        record.write(operation, named, arguments, time.monotonic_ns())
        result = perform(target, operation, named, arguments if given is None else given)
        record.write(result, time.monotonic_ns(), factory.ran if factory else None)
        if operation == "gets" and result != ABSENT:
            versions[key] = result[1]
        if variant.churn and number % 3 == 0:
            cache[f"filler {caller} {number % 7}"] = bytes(rng.randrange(20_000))
    midway = 0
    tell()
    cache.close()


def history(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    *,
    seed: int,
    variant: Variant,
    calls: int = 1500,
) -> list[Call]:
    """What PROCESSES workers did to one small cache; the first few are killed midway."""
    rng = random.Random(seed)
    shards = 2 if variant.space else 1  # with each epoch a key may lie in another one
    size = f"{shards}MiB"
    cache = open_cache(size=size, shards=shards, policy="keep", lock_timeout=30)
    victims = variant.victims
    records = [Record() for _ in range(PROCESSES)]
    rounds = Rounds()
    workers = [
        start(work, cache.name, caller, rng.random(), calls, variant, record, rounds)
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


def check(recorded: list[Call], seed: int, variant: Variant) -> None:
    if variant.space:
        if not is_linearizable_space(recorded):
            listing = "\n".join(map(str, sorted(recorded, key=lambda call: call.started)))
            pytest.fail(f"seed {seed}: the namespace's history is not linearizable:\n{listing}")
        return
    for key, calls in violations(recorded).items():
        listing = "\n".join(map(str, calls))
        pytest.fail(f"seed {seed}: the history of {key!r} is not linearizable:\n{listing}")


def overlaps(recorded: list[Call]) -> int:
    """How many calls of different processes on one key truly overlapped."""
    keyed = [call for call in recorded if call.key is not None]
    by_start = sorted(keyed, key=lambda call: (call.key, call.started))
    return sum(
        a.key == b.key and a.caller != b.caller and b.started < a.ended
        for a, b in itertools.pairwise(by_start)
    )


VARIANTS: dict[str, Variant] = {
    "plain": Variant(),
    "entries move": Variant(churn=True),
    "local entries": Variant(local=True, churn=True),
    "processes die": Variant(victims=2, churn=True),
    "once": Variant(once=True),
    "once, local entries": Variant(once=True, local=True, churn=True),
    "once, initialisers die": Variant(once=True, victims=2, churn=True),
    "namespace": Variant(space=True),
    "namespace, local entries": Variant(space=True, local=True, churn=True),
    "namespace, once, local entries, processes die": Variant(
        space=True, once=True, local=True, victims=2
    ),
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
        recorded = history(open_cache, start, seed=seed, variant=VARIANTS[variant])
        check(recorded, seed, VARIANTS[variant])
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
        recorded = history(open_cache, start, seed=seed, variant=VARIANTS[variant], calls=5000)
        check(recorded, seed, VARIANTS[variant])
