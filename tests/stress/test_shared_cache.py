"""All xdist workers of a run attach to one cache and stress it together.

Every stressor checks its own keys, which nobody else writes, and counters that all of them share.
A handle stays open in each worker until its session ends; the last one out leaves nothing behind,
which conftest.py looks for when the run is over.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator

import pytest
from support import payloads
from support.names import run_token
from support.processes import STRESS_S, Channel, Worker, release

from shmcache import Cache, CacheFull

pytestmark = pytest.mark.stress

STRESSORS = 8
ROUNDS = 1500


@pytest.fixture(scope="session")
def shared() -> Iterator[Cache]:
    """The cache of all workers of this run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "alone")[:8]
    with Cache(f"t{run_token()}-shared-{run}", size="32MiB", policy="keep", shards=4) as cache:
        yield cache


@pytest.mark.parametrize("stressor", range(STRESSORS))
def test_own_keys_are_ones_own(shared: Cache, stressor: int) -> None:
    """What one writes alone reads back as written, whatever the others do beside."""
    rng = random.Random(stressor)
    own: dict[str, int] = {}
    for turn in range(ROUNDS):
        key = f"own {stressor} {os.getpid()} {rng.randrange(50)}"
        action = rng.randrange(6)
        if action < 3:
            shared[key] = payloads.make(key, turn, rng.randrange(3000))
            own[key] = turn
        elif action == 3:
            assert shared.delete(key) is (own.pop(key, None) is not None)
        elif action == 4:
            value = shared.pop(key, None)
            expected = own.pop(key, None)
            assert (None if value is None else payloads.check(key, value)) == expected
        elif key in own:
            assert payloads.check(key, shared[key]) == own[key]
        else:
            assert key not in shared
    found = shared.get_many(own)
    assert {key: payloads.check(key, value) for key, value in found.items()} == own
    assert shared.delete_many(own) == len(own)


@pytest.mark.parametrize("stressor", range(STRESSORS))
def test_a_shared_counter_gives_every_number_once(shared: Cache, stressor: int) -> None:
    """Each number that incr returns is a ticket; no two stressors may hold the same one."""
    last = 0
    for _ in range(ROUNDS // 3):
        ticket = shared.incr("tickets")
        assert ticket > last
        last = ticket
        assert shared.add(("ticket", ticket), stressor) is True, f"{ticket} was given twice"


@pytest.mark.parametrize("stressor", range(STRESSORS))
def test_a_shared_sum_loses_no_update(shared: Cache, stressor: int) -> None:
    """Optimistic updates of one value from everywhere: each stressor finds all of its own."""
    mine = f"{stressor} {os.getpid()}"
    for turn in range(1, ROUNDS // 15):

        def count(tally: dict[str, int]) -> dict[str, int]:
            return {**tally, mine: tally.get(mine, 0) + 1}

        tally = shared.alter("tally", count, default={})
        assert tally[mine] == turn


@pytest.mark.parametrize("stressor", range(2))
def test_the_shared_cache_is_sound_beside_its_writers(shared: Cache, stressor: int) -> None:
    for _ in range(20):
        assert shared.verify() == []
        for key, value in shared.items():
            if isinstance(key, str) and key.startswith("own"):
                payloads.check(key, value)


def churn(channel: Channel, name: str, seed: int) -> int:
    """Random calls on keys of everybody's, in a cache that is always full."""
    rng = random.Random(seed)
    right = 0
    with Cache(name, create=False) as cache:
        channel.sync()
        for turn in range(6000):
            key = f"key {int(rng.paretovariate(0.7)) % 3000}"
            if rng.random() < 0.5:
                value = cache.get(key)
                if value is not None:
                    payloads.check(key, value)
                    right += 1
                    continue
            try:
                cache.set(key, payloads.make(key, turn, rng.randrange(4000)), rng.choice([None, 5]))
            except CacheFull:
                cache.delete_many(list(cache.keys())[:50])
    return right


def overwrite_for_ever(channel: Channel, name: str, size: int) -> None:
    with Cache(name, create=False) as cache:
        channel.sync()
        for turn in itertools.count():
            if turn % 64 == 0 and channel.told():
                return
            cache[turn % 5] = bytes([turn % 256]) * size


def read_uniform(channel: Channel, name: str, seconds: float) -> tuple[int, int]:
    """Read values that hold one byte throughout; how many were read, and how many were torn."""
    read = torn = 0
    with Cache(name, create=False) as cache:
        channel.sync()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for key in range(5):
                value = cache.get(key)
                if value is not None:
                    read += 1
                    torn += value.count(value[0]) != len(value)
    return read, torn


@pytest.mark.parametrize("size", [2_000, 90_000])
def test_a_log_that_wraps_under_a_copy_tears_no_value(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], size: int
) -> None:
    """The log is so small that writers lap it whenever a reader is suspended inside its copy."""
    cache = open_cache(size="1MiB", shards=1)
    writers = [start(overwrite_for_ever, cache.name, size) for _ in range(2)]
    readers = [start(read_uniform, cache.name, STRESS_S / 2.5) for _ in range(3)]
    release(writers + readers)
    results = [reader.result() for reader in readers]
    for writer in writers:
        writer.send("stop")
        writer.result()
    assert min(read for read, _ in results) > 100
    assert sum(torn for _, torn in results) == 0, results
    assert cache.verify() == []


@pytest.mark.parametrize("policy", ["evict", "keep"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_on_a_full_cache_never_see_a_wrong_value(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], policy: str, method: str
) -> None:
    cache = open_cache(size="2MiB", shards=2, policy=policy)
    workers = [start(churn, cache.name, seed, method=method) for seed in range(3)]
    release(workers)
    hits = [worker.result() for worker in workers]
    assert min(hits) > 100
    assert cache.verify() == []
    assert cache.stats().entries == len(cache)
