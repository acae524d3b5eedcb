"""Owners, observers and the dead as real processes: who wins, what is left, who cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import faults, payloads
from support.attachments import forget
from support.names import leftovers, segment_path
from support.processes import HANG_S, Channel, Worker, poll_until, release, wait_stopped
from support.segments import field, holder, mapped

from shmcache import Cache, CacheExists, CacheNotFound, _core
from shmcache.observer import observe
from shmcache.owner import Owner


def own(channel: Channel, name: str, arguments: dict[str, Any]) -> str:
    """Become the owner, say so, and tend until told to end: "keep", "unlink", or by a signal."""
    forget()
    owner = Owner.open(name, **arguments)
    channel.send("adopted" if owner.adopted else "created")
    while not channel.told():
        owner.tend(0.002)
        time.sleep(0.002)
    how = channel.recv()
    owner.close(unlink=how == "unlink")
    return "closed"


def use(channel: Channel, name: str) -> None:
    """A client: one entry, then whatever is asked for, until told "end"."""
    forget()
    with Cache(name, create=False) as cache:
        cache.incr("clients")
        channel.send("attached")
        while (asked := channel.recv()) != "end":
            channel.send(cache.incr(asked))


def in_use(name: str) -> list[int]:
    """`in_use` of every client slot, from outside."""
    with mapped(name) as data:
        start, size = field(data, "clients_off", "Q"), _core.LAYOUT["sizeof.shm_client"]
        at = start + _core.LAYOUT["shm_client.in_use"]
        count = field(data, "client_count", "I")
        return [data[at + n * size] for n in range(count)]


# ------------------------------------------------------------------------------ one owner at a time
def test_of_many_that_start_at_once_one_is_the_owner(
    start: Callable[..., Worker], cache_name: str
) -> None:
    def compete(channel: Channel) -> tuple[str, str]:
        forget()
        channel.sync()
        try:
            owner = Owner.open(cache_name, size="1MiB")
        except CacheExists as error:
            channel.send("refused")
            channel.recv()
            return "refused", str(error)
        channel.send("owner")
        channel.recv()
        owner.close()
        return "owner", ""

    workers = [start(compete) for _ in range(8)]
    release(workers)
    words = [worker.recv() for worker in workers]
    assert sorted(words) == ["owner"] + ["refused"] * 7
    winner = workers[words.index("owner")]
    for worker in workers:
        worker.send()
    for word, text in (worker.result() for worker in workers):
        assert word == "owner" or f"pid {winner.pid}" in text
    assert segment_path(cache_name).exists()  # it persists
    Owner.open(cache_name).close(unlink=True)


def test_a_killed_owner_is_missed_by_nobody_and_the_next_one_adopts(
    start: Callable[..., Worker], cache_name: str
) -> None:
    first = start(own, cache_name, {"size": "2MiB", "policy": "keep"})
    assert first.recv() == "created"
    client = start(use, cache_name)
    assert client.recv() == "attached"
    with Cache(cache_name, create=False) as cache:
        assert cache.stats().owner_pid == first.pid
        for n in range(500):
            cache.set(n, payloads.make(str(n), n, 100), ttl=500 + n)
        first.kill()
        assert cache.stats().owner_pid is None
        assert cache.persist
        client.send("while it is gone")
        assert client.recv() == 1
    client.send("end")
    client.join()
    assert segment_path(cache_name).exists()  # without an owner and without a client

    second = start(own, cache_name, {"size": "2MiB"})
    assert second.recv() == "adopted"
    with Cache(cache_name, create=False) as cache:
        assert cache.stats().owner_pid == second.pid
        assert cache["while it is gone"] == 1
        for n in range(500):
            assert payloads.check(str(n), cache[n]) == n
            assert 500 + n - 60 < cache.ttl(n) <= 500 + n
        assert cache.verify() == []
    second.send("keep")
    assert second.result() == "closed"
    assert segment_path(cache_name).exists()
    third = start(own, cache_name, {})
    assert third.recv() == "adopted"
    third.send("unlink")
    assert third.result() == "closed"
    assert leftovers(cache_name) == []


def test_a_stopped_owner_is_the_owner_still_and_stops_nobody(
    start: Callable[..., Worker], cache_name: str
) -> None:
    worker = start(own, cache_name, {"size": "1MiB"})
    assert worker.recv() == "created"
    worker.stop()
    with Cache(cache_name, create=False) as cache:
        if holder(cache_name) == 0:  # it was not stopped within a shard
            cache["k"] = 1
            assert cache["k"] == 1
        began = time.monotonic()
        with pytest.raises(CacheExists, match=f"pid {worker.pid}"):
            Owner.open(cache_name)
        assert time.monotonic() - began < 4  # no waiting for it
    worker.resume()
    worker.send("unlink")
    assert worker.result() == "closed"
    assert leftovers(cache_name) == []


# ---------------------------------------------------------------------------- what the dead leave
def test_what_killed_clients_left_is_reaped(start: Callable[..., Worker], cache_name: str) -> None:
    def lease(channel: Channel, number: int) -> None:
        forget()
        cache = Cache(cache_name, create=False)
        key = f"key {number}"
        cache.get_or_init(key, lambda: (channel.send("computing"), channel.recv()))

    with Owner.open(cache_name, size="1MiB", shards=4) as owner:
        workers = [start(lease, number) for number in range(6)]
        for worker in workers:
            assert worker.recv() == "computing"
        stats = owner.cache.stats()
        assert stats.clients == 7
        assert sum(shard.leases for shard in stats.shards) == 6
        assert sum(map(bool, in_use(cache_name))) == 7
        hits = stats.hits + stats.misses
        assert hits > 0
        calls = [owner.tend(0.1)]
        assert calls[0].leases == calls[0].clients == 0  # they live
        for worker in workers[:4]:
            worker.kill()
        calls = [owner.tend(0.1) for _ in range(8)]
        assert sum(tended.leases for tended in calls) == 4
        assert sum(tended.clients for tended in calls) == 4
        stats = owner.cache.stats()
        assert sum(shard.leases for shard in stats.shards) == 2
        assert stats.clients == sum(map(bool, in_use(cache_name))) == 3
        assert stats.hits + stats.misses >= hits  # what they counted stays
        for worker in workers[4:]:
            worker.send("value")
            worker.join()
        assert owner.cache["key 5"] == (None, "value")
        assert owner.cache.verify() == []
        owner.close(unlink=True)


def test_dead_observers_are_reaped_too(start: Callable[..., Worker], cache_name: str) -> None:
    def look(channel: Channel) -> None:
        with observe(cache_name):
            channel.sync()

    with Owner.open(cache_name, size="1MiB") as owner:
        worker = start(look)
        assert worker.recv() == "ready"
        assert sorted(in_use(cache_name))[-2:] == [1, 2]
        assert owner.tend(0.1).clients == 0
        worker.kill()
        assert owner.tend(0.1).clients == 1
        assert sorted(in_use(cache_name))[-2:] == [0, 1]
        owner.close(unlink=True)


@contextmanager
def writer(name: str, point: str, action: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the test build that is killed, or stops, at that point inside the shard."""
    child = subprocess.Popen(
        faults.command("fault_child", name, point, action),
        env=faults.environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(HANG_S)


@pytest.mark.parametrize("point", ["locked", "entry_half", "note_armed", "slot_stored"])
def test_a_shard_whose_holder_was_killed_is_recovered_before_anybody_waits(
    cache_name: str, point: str
) -> None:
    faults.environment()
    with Owner.open(cache_name, size="1MiB", shards=1) as owner:
        cache = owner.cache
        cache["stopped"] = payloads.make("stopped", 0, 400)
        with writer(cache_name, point, "kill") as child:
            assert child.wait(HANG_S) == -signal.SIGKILL
            assert holder(cache_name) != 0
            tended = owner.tend(0.1)
            assert tended.recovered == 1
            assert tended.clients == 1
            assert holder(cache_name) == 0
        stats = cache.stats()
        assert stats.recoveries == 1
        assert stats.lock_contended == 0
        assert payloads.check("stopped", cache["stopped"]) in (0, 1)
        cache["stopped"] = payloads.make("stopped", 2, 400)
        assert cache.verify() == []
        owner.close(unlink=True)


def test_a_stopped_holder_hangs_nobody_but_is_named(cache_name: str) -> None:
    faults.environment()
    with Owner.open(cache_name, size="1MiB", shards=1) as owner:
        cache = owner.cache
        cache["stopped"] = payloads.make("stopped", 0, 400)
        with writer(cache_name, "slot_stored", "stop") as child:
            wait_stopped(child.pid)
            began = time.monotonic()
            calls = [owner.tend(0.01) for _ in range(50)]
            assert time.monotonic() - began < 10
            assert all(tended.round_complete for tended in calls)
            assert sum(tended.recovered for tended in calls) == 0
            assert [blocked.pid for blocked in calls[-1].blocked] == [child.pid]
            child.kill()
            child.wait(HANG_S)
            tended = owner.tend(0.01)
            assert tended.recovered == 1
            assert tended.blocked == owner.tend(0.01).blocked == ()
        assert cache.verify() == []
        owner.close(unlink=True)


# ------------------------------------------------------------- observers and the last one out
def test_a_stopped_observer_keeps_nothing_alive(
    start: Callable[..., Worker], cache_name: str
) -> None:
    def look(channel: Channel) -> str:
        with observe(cache_name) as watched:
            channel.sync()
            try:
                watched.get("k")
            except CacheNotFound:
                return "gone"
            return "there"

    cache = Cache(cache_name, size="1MiB")
    worker = start(look)
    assert worker.recv() == "ready"
    worker.stop()
    cache.close()
    assert leftovers(cache_name) == []
    worker.resume()
    worker.send("go")
    assert worker.result() == "gone"


def test_observers_and_members_race_at_the_gate(
    start: Callable[..., Worker], cache_name: str
) -> None:
    """Members come and go, so that every moment may be the last one's; observers look in."""

    def come_and_go(channel: Channel, number: int) -> int:
        forget()
        channel.sync()
        ends = time.monotonic() + 1.0
        turns = 0
        while time.monotonic() < ends:
            with Cache(cache_name, size="1MiB") as cache:
                cache[number] = turns
                assert cache[number] == turns, "the cache went under its member"
            turns += 1
        return turns

    def look_in(channel: Channel, number: int) -> int:
        forget()
        channel.sync()
        ends = time.monotonic() + 1.0
        seen = 0
        while time.monotonic() < ends:
            try:
                with observe(cache_name) as watched:
                    watched[number] = 1
                    seen += watched.get(number) == 1
            except CacheNotFound:
                pass
        return seen

    members = [start(come_and_go, number) for number in range(2)]
    observers = [start(look_in, 100 + number) for number in range(2)]
    release(members + observers)
    assert all(worker.result() > 10 for worker in members)
    assert sum(worker.result() for worker in observers) > 0
    assert leftovers(cache_name) == []


def test_an_owner_comes_while_the_last_one_goes(
    start: Callable[..., Worker], cache_name: str
) -> None:
    """Either it adopts, and the cache stays, or it makes a new one, and that stays."""

    def come_and_go(channel: Channel) -> None:
        forget()
        channel.sync()
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            Cache(cache_name, size="1MiB").close()

    def own_and_go(channel: Channel) -> int:
        forget()
        channel.sync()
        ends = time.monotonic() + 1.0
        turns = 0
        while time.monotonic() < ends:
            owner = Owner.open(cache_name, size="1MiB")
            owner.cache["k"] = turns
            owner.tend(0.0)
            owner.close(unlink=turns % 2 == 0)
            turns += 1
            assert turns % 2 or segment_path(cache_name).exists(), "an owner's cache went"
        return turns

    workers = [start(come_and_go), start(come_and_go), start(own_and_go)]
    release(workers)
    assert workers[2].result() > 10
    for worker in workers[:2]:
        worker.result()
    with Owner.open(cache_name, size="1MiB") as owner:
        owner.close(unlink=True)
    assert leftovers(cache_name) == []


def test_an_owner_that_exits_without_closing_leaves_the_cache(
    start: Callable[..., Worker], cache_name: str
) -> None:
    def forgetful(channel: Channel) -> int:
        forget()
        owner = Owner.open(cache_name, size="1MiB")
        owner.cache["k"] = "kept"
        channel.send(os.getpid())
        return 0

    worker = start(forgetful)
    worker.recv()
    worker.result()
    with Owner.open(cache_name) as owner:
        assert owner.adopted
        assert owner.cache["k"] == "kept"
        poll_until(lambda: owner.cache.stats().clients == 1, 5, what="only the new owner is left")
        owner.close(unlink=True)
