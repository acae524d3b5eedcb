"""Swap slots and tokens between processes: no torn value, no lost update, nobody waits in vain."""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from support.processes import HANG_S, Channel, Worker, release

from shmcache import Cache

METHODS = ["fork", "spawn"]
LATENCY_S = 0.02
"""What is promised of a change being noticed.  Medians are compared with it, and single cases
with twenty times as much: others use the machine too."""


def config(number: int) -> dict[str, Any]:
    """About 2 KiB that tell by themselves whether they are whole."""
    text = f"{number}:" * (1900 // (len(str(number)) + 1))
    return {"number": number, "text": text, "check": zlib.crc32(f"{number}{text}".encode())}


def number_of(value: dict[str, Any]) -> int:
    number, text = value["number"], value["text"]
    assert zlib.crc32(f"{number}{text}".encode()) == value["check"], f"config {number} is torn"
    assert isinstance(number, int)
    return number


# ------------------------------------------------------------------------------ reading


def read_until_told(channel: Channel, name: str) -> tuple[int, int]:
    """Check every value and that versions never go back; (loads, different versions)."""
    with Cache(name, create=False) as cache:
        slot = cache.slot()
        channel.sync()
        loads, versions, last = 0, 0, 0
        while not channel.told():
            for _ in range(50):
                value, version = slot.load_versioned()
                assert version >= last, f"version {version} after {last}"
                if version != last:
                    versions += 1
                assert number_of(value) == version
                assert slot.load() is value or slot._version() > version
                last = version
                loads += 1
        return loads, versions


@pytest.mark.parametrize("method", METHODS)
def test_four_readers_of_a_config_swapped_as_fast_as_possible(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str, method: str
) -> None:
    cache = open_cache(cache_name, size="2MiB")
    slot = cache.slot()
    slot.store(config(1))
    readers = [start(read_until_told, cache_name, method=method) for _ in range(4)]
    release(readers)
    stored = 1
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for _ in range(20):
            stored += 1
            assert slot.store(config(stored)) == stored
    for reader in readers:
        reader.send("stop")
    for reader in readers:
        loads, versions = reader.result()
        assert versions > 10, f"a reader saw {versions} versions of {stored} in {loads} loads"
    assert slot.load_versioned() == (config(stored), stored)
    assert cache.stats().entries == 0


def test_four_writers_never_give_one_version_twice(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="2MiB")
    writers = [start(store_many, cache_name, 500) for _ in range(4)]
    release(writers)
    versions = [version for writer in writers for version in writer.result()]
    assert sorted(versions) == list(range(1, 2001))
    assert cache.slot()._version() == 2000


def store_many(channel: Channel, name: str, count: int) -> list[int]:
    with Cache(name, create=False, lock_timeout=60) as cache:
        slot = cache.slot()
        channel.sync()
        return [slot.store(n) for n in range(count)]


def increment(channel: Channel, name: str, count: int) -> list[int]:
    with Cache(name, create=False, lock_timeout=60) as cache:
        slot = cache.slot()
        channel.sync()
        return [slot.rcu(lambda value: {"n": value["n"] + 1})["n"] for _ in range(count)]


def test_two_thousand_concurrent_increments_add_up(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="2MiB")
    slot = cache.slot()
    slot.store({"n": 0})
    workers = [start(increment, cache_name, 500, method=method) for method in ("fork", "spawn") * 2]
    release(workers)
    results = [number for worker in workers for number in worker.result()]
    assert sorted(results) == list(range(1, 2001))
    assert slot.load_versioned() == ({"n": 2000}, 2001)


def store_for_ever(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        slot = cache.slot()
        channel.sync()
        while True:
            slot.rcu(lambda value: config(number_of(value) + 1))


def test_killed_at_any_moment(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    """Thirty writers, each killed while it stores as fast as it can."""
    cache = open_cache(cache_name, size="2MiB")
    slot = cache.slot()
    slot.store(config(1))
    for _ in range(30):
        writer = start(store_for_ever, cache_name)
        release([writer])
        before = slot._version()
        assert slot.wait(before + 5, HANG_S), "the writer does not write"
        writer.kill()
        value, version = slot.load_versioned()
        assert number_of(value) == version
        assert slot.store(config(version + 1)) == version + 1
        assert slot.load() == config(version + 1)


def test_one_slot_for_all_who_name_it_first(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="2MiB", slots=4)
    workers = [start(name_and_add, cache_name) for _ in range(4)]
    release(workers)
    for worker in workers:
        worker.result()
    for n in range(4):
        assert cache.slot(f"slot {n}").load() == 4
        assert cache.token(f"token {n}").child("of it").cancelled


def name_and_add(channel: Channel, name: str) -> None:
    with Cache(name, create=False, lock_timeout=60) as cache:
        channel.sync()
        for n in range(4):
            cache.slot(f"slot {n}").rcu(lambda value: (value or 0) + 1)
            cache.token(f"token {n}").child("of it").cancel()


# ------------------------------------------------------------------------------ waiting


def echo_versions(channel: Channel, name: str, how: str) -> None:
    """Say when each version was noticed, by the clock that all processes share."""
    with Cache(name, create=False) as cache:
        slot = cache.slot()
        if how == "wait":
            channel.sync()
            version = 0
            while version < 20:
                newer = slot.wait(version, HANG_S)
                noticed = time.monotonic()
                assert newer is not None
                version = newer
                channel.send((version, noticed))
        else:
            with slot.watch(lambda value, version: channel.send((version, time.monotonic()))):
                channel.sync()
                channel.recv()


@pytest.mark.parametrize("how", ["wait", "watch"])
@pytest.mark.parametrize("method", METHODS)
def test_a_change_is_noticed_in_time(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    cache_name: str,
    method: str,
    how: str,
) -> None:
    slot = open_cache(cache_name, size="2MiB").slot()
    worker = start(echo_versions, cache_name, how, method=method)
    release([worker])
    latencies = []
    for version in range(1, 21):
        began = time.monotonic()
        assert slot.store({"version": version}) == version
        seen, noticed = worker.recv()
        assert seen == version
        latencies.append(noticed - began)
    if how == "watch":
        worker.send("stop")
    worker.result()
    assert sorted(latencies)[10] < LATENCY_S, latencies
    assert max(latencies) < 20 * LATENCY_S, latencies


def wait_at_rest(channel: Channel, name: str, what: str, seconds: float) -> float:
    """CPU seconds for each second of waiting for what never comes."""
    with Cache(name, create=False) as cache:
        slot, token = cache.slot(), cache.token("t").child("c")
        channel.sync()
        before = time.process_time()
        if what == "slot":
            assert slot.wait(0, seconds) is None
        elif what == "watch":
            with slot.watch(lambda value, version: None):
                assert not channel.told()
                token.wait(seconds)  # both at rest
        elif what == "token":
            assert not token.wait(seconds)
        else:

            async def main() -> None:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(token.wait_async(), seconds)

            asyncio.run(main())
        return (time.process_time() - before) / seconds


@pytest.mark.parametrize("what", ["slot", "watch", "token", "async"])
def test_waiting_burns_no_core(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str, what: str
) -> None:
    """A few tenths of a percent as measured, 1% of a core at most asked for twice over."""
    open_cache(cache_name, size="2MiB")
    worker = start(wait_at_rest, cache_name, what, 1.5)
    release([worker])
    assert worker.result() < 0.03


def wait_for_token(channel: Channel, name: str, method: str) -> str | None:
    with Cache(name, create=False) as cache:
        token = cache.token("shutdown").child("workers").child(str(os.getpid()))
        channel.sync()
        if method == "wait":
            assert token.wait(HANG_S)
        else:
            asyncio.run(asyncio.wait_for(token.wait_async(), HANG_S))
        return json.dumps([token.reason, time.monotonic()])


def cancel_and_die(channel: Channel, name: str) -> None:
    cache = Cache(name, create=False)
    channel.sync()
    cache.token("shutdown").cancel("from a process that is gone")
    channel.send("cancelled")
    channel.recv()


def test_a_cancel_reaches_everybody_and_outlives_who_made_it(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="2MiB")
    waiting = [
        start(wait_for_token, cache_name, how, method=method)
        for how in ("wait", "async")
        for method in METHODS
    ]
    canceller = start(cancel_and_die, cache_name)
    release(waiting)
    began = time.monotonic()
    release([canceller])
    assert canceller.recv() == "cancelled"
    canceller.kill()
    for worker in waiting:
        reason, noticed = json.loads(worker.result())
        assert reason == "from a process that is gone"
        assert noticed - began < 20 * LATENCY_S
    assert cache.token("shutdown").reason == "from a process that is gone"
    assert cache.token("shutdown").child("late").cancelled
    cache.token("shutdown").reset()
    assert not cache.token("shutdown").child("late").cancelled
