"""What an owner tidies up: each slice, each round, and whom it passes by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import segments
from support.names import segment_path
from support.processes import Worker, poll_until

from shmcache import (
    Cache,
    _core,
)
from shmcache._linux import LockHold
from shmcache.liveness import GATE_BYTE
from shmcache.observer import observe
from shmcache.owner import Owner, Tended

DEAD_HOLDER = 900 << 32 | 1
"""The identity word of a client that never was: the kernel says that it is not alive."""


@pytest.fixture
def owner(cache_name: str) -> Iterator[Owner]:
    """The owner of a fresh cache of 1 MiB and four shards, unlinked in the end."""
    made = Owner.open(cache_name, size="1MiB", shards=4)
    yield made
    made.close(unlink=True)


def rounds(owner: Owner, count: int = 1, budget_s: float = 0.005) -> list[Tended]:
    """Tend until that many rounds are complete."""
    calls = []
    while sum(tended.round_complete for tended in calls) < count:
        calls.append(owner.tend(budget_s))
    return calls


def test_every_shard_is_visited_within_a_round(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[int] = []
    holder_of = _core.shard_holder

    def spy(cache: Cache, shard: int) -> Any:
        visited.append(shard)
        return holder_of(cache, shard)

    monkeypatch.setattr(_core, "shard_holder", spy)
    calls = [owner.tend(0.0) for _ in range(8)]  # one shard a call
    assert visited == [0, 1, 2, 3] * 2
    assert [tended.shard for tended in calls] == [1, 2, 3, 0] * 2
    assert [tended.round_complete for tended in calls] == [False, False, False, True] * 2
    visited.clear()
    tended = owner.tend(60.0)  # nothing to do: it ends with the round, not with the budget
    assert visited == [0, 1, 2, 3]
    assert tended == Tended(0, 0, 0, 0, 0, True)


def test_a_round_goes_on_over_calls_until_all_is_swept(cache_name: str) -> None:
    """More slots than one slice, in each shard."""
    with Owner.open(cache_name, size="4MiB", shards=2, avg_entry_size=64) as owner:
        cache = owner.cache
        for n in range(4000):
            cache.set(n, n, ttl=0.05 if n % 2 else None)
        poll_until(lambda: sum(1 for _ in cache) == 2000, 5, what="they expire")
        assert cache.stats().entries == len(cache) == 4000
        calls = [owner.tend(0.0) for _ in range(2)]
        assert calls[-1].round_complete
        assert 0 < sum(tended.expired for tended in calls) < 2000  # a slice each
        calls.append(owner.tend(60.0))
        assert sum(tended.expired for tended in calls) == 2000
        assert len(cache) == 2000
        assert cache.stats().expirations == 2000
        assert cache.verify() == []
        owner.close(unlink=True)


def test_it_stops_soon_after_its_budget(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "sweep_shard", lambda cache, shard: (0, False))  # never done
    began = time.monotonic()
    owner.tend(0.02)
    assert 0.02 <= time.monotonic() - began < 2.0
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="budget_s"):
            owner.tend(wrong)


def test_invalidated_namespaces_are_swept(owner: Owner) -> None:
    users = owner.cache.namespace("users")
    for n in range(300):
        users[n] = n
        owner.cache[n] = n
    users.invalidate()
    assert len(owner.cache) == 600
    assert sum(tended.expired for tended in rounds(owner, 2)) == 300
    assert len(owner.cache) == 300


def test_what_expires_later_is_swept_later(owner: Owner) -> None:
    owner.cache.set("soon", 1, ttl=0.02)
    owner.cache.set("later", 1, ttl=0.5)
    poll_until(lambda: rounds(owner) and len(owner.cache) == 1, 5, what="one is swept")
    assert "later" in owner.cache
    poll_until(lambda: rounds(owner) and len(owner.cache) == 0, 5, what="both are")


def take_lease(cache: Cache, key: str, dead: bool) -> None:
    """Take the key's lease, for this process or for one that never was."""
    outcome, version = _core.lease_take(cache, key, key.encode(), 0, 0, 0, 5.0)
    assert outcome == "taken"
    if dead:
        word = _core.identity(cache).to_bytes(8, "little")
        with segments.mapped(cache.name) as data:
            start = segments.shard_offset(data, _core.shard_of(cache, key))
            at = data.find(key.encode() + word, start)
            assert at > 0
            data[at + len(key) : at + len(key) + 8] = DEAD_HOLDER.to_bytes(8, "little")
    assert version


def test_leases_of_the_dead_are_dropped_and_those_of_the_living_kept(owner: Owner) -> None:
    for n in range(100):
        take_lease(owner.cache, f"key {n:03}", dead=n < 80)
        owner.cache[n] = n
    assert sum(shard.leases for shard in owner.cache.stats().shards) == 100
    assert sum(tended.leases for tended in rounds(owner, 9)) == 80
    assert sum(shard.leases for shard in owner.cache.stats().shards) == 20
    for n in range(80, 100):
        outcome, _ = _core.lease_take(
            owner.cache, f"key {n:03}", f"key {n:03}".encode(), 0, 0, 0, 1
        )
        assert outcome == "held"
    assert owner.cache.verify() == []


def hold(cache: Cache, shard: int, word: int) -> None:
    """Make the shard's lock look as if that client held it."""
    with segments.mapped(cache.name) as data:
        at = segments.shard_offset(data, shard) + _core.LAYOUT["shm_shard.holder"]
        data[at : at + 8] = word.to_bytes(8, "little")


def test_a_shard_whose_holder_died_is_freed_though_nobody_waits(owner: Owner) -> None:
    for shard, word in enumerate((DEAD_HOLDER, (1 << 64) - 1)):  # dead; nobody's
        hold(owner.cache, shard, word)
    assert sum(tended.recovered for tended in rounds(owner)) == 2
    assert owner.cache.stats().recoveries == 2
    assert [segments.holder(owner.cache.name, shard) for shard in range(4)] == [0] * 4
    assert not _core.recover_shard(owner.cache, 0)
    assert owner.cache.verify() == []


def test_a_shard_of_a_living_holder_is_passed_by_and_named(owner: Owner) -> None:
    cache = owner.cache
    cache.set_many({n: n for n in range(100)})
    mine = _core.identity(cache)
    hold(cache, 2, mine)
    try:
        assert _core.shard_holder(cache, 2)[:2] == ((mine >> 32) - 1, mine & 0xFFFFFFFF)
        assert not _core.recover_shard(cache, 2)
        first = owner.tend(60.0)
        assert first.round_complete
        assert first.blocked == ()  # it may be passing through
        second = owner.tend(60.0)
        assert second.round_complete
        (blocked,) = second.blocked
        assert (blocked.shard, blocked.client) == (2, (mine >> 32) - 1)
        assert blocked.pid == cache.stats().owner_pid
        assert owner.tend(0.0).blocked == (blocked,)
        assert segments.holder(cache.name, 2) & ~(1 << 63) == mine
    finally:
        hold(cache, 2, 0)
    assert rounds(owner)[-1].blocked == ()
    assert cache.verify() == []


def test_one_call_blocks_nobody(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rounds it makes: they are too close to each other."""
    turns = itertools.count()
    monkeypatch.setattr(_core, "sweep_shard", lambda cache, shard: (0, next(turns) > 40))
    hold(owner.cache, 2, _core.identity(owner.cache))
    assert owner.tend(60.0).blocked == ()
    assert next(turns) > 40
    hold(owner.cache, 2, 0)


def test_a_busy_shard_is_no_blocked_one(owner: Owner) -> None:
    """Held at every call, by another acquisition each time."""
    keys = (n for n in itertools.count() if _core.shard_of(owner.cache, n) == 1)
    for _ in range(4):
        owner.cache[next(keys)] = 1
        hold(owner.cache, 1, _core.identity(owner.cache))
        assert rounds(owner)[-1].blocked == ()
        hold(owner.cache, 1, 0)


def test_a_closed_gate_makes_nobody_wait(owner: Owner, start: Callable[..., Worker]) -> None:
    worker = start(lambda channel: (Cache(owner.cache.name), channel.send("in"), channel.recv()))
    assert worker.recv() == "in"
    gate = LockHold(str(segment_path(owner.cache.name)), GATE_BYTE)
    began = time.monotonic()
    worker.kill()
    assert all(owner.tend(60.0).clients == 0 for _ in range(3))
    assert time.monotonic() - began < 2
    gate.release()
    assert owner.tend(60.0).clients == 1


def test_nobody_goes_to_the_gate_for_the_living(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("at the gate")

    with observe(owner.cache.name):
        monkeypatch.setattr("shmcache.attachment.close_gate", fail)
        assert owner.tend(60.0).clients == 0


def test_slots_are_looked_at_in_turn(owner: Owner, start: Callable[..., Worker]) -> None:
    name = owner.cache.name
    workers = [
        start(lambda channel: (Cache(name), channel.send("in"), channel.recv())) for _ in range(3)
    ]
    for worker in workers:
        assert worker.recv() == "in"
        worker.kill()
    reap = owner.cache._held.reap_clients
    assert [reap(1) for _ in range(6)] == [0, 1, 1, 1, 0, 0]  # the first slot is the owner's


def test_wrong_shards_are_refused(owner: Owner) -> None:
    for call in (
        _core.sweep_shard,
        _core.shard_holder,
        _core.recover_shard,
        _core.reap_leases,
    ):
        with pytest.raises(IndexError, match="shard 4 of 4"):
            call(owner.cache, 4)
    assert all(_core.shard_holder(owner.cache, shard) is None for shard in range(4))
