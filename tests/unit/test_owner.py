"""The owner in one process: who may be it, what it adopts, what it tidies up, how it ends."""

from __future__ import annotations

import itertools
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import segments
from support.attachments import attach, leave
from support.names import leftovers, segment_path
from support.processes import Worker, poll_until

from shmcache import (
    Cache,
    CacheClosed,
    CacheExists,
    CacheNotFound,
    DecodeError,
    GeometryWarning,
    SlotTooLarge,
    _core,
)
from shmcache._linux import LockHold
from shmcache.block import OWNER
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


# ------------------------------------------------------------------------------- who may be it
def test_it_makes_a_cache_that_stays(cache_name: str) -> None:
    owner = Owner.open(cache_name, size="1MiB", policy="keep", codec="json")
    assert not owner.adopted
    assert owner.cache.persist
    assert (owner.cache.policy, owner.cache.codec) == ("keep", "json")
    assert owner.cache.stats().owner_pid == os.getpid()
    assert owner.cache.stats().clients == 1
    owner.cache["k"] = 1
    owner.close()
    owner.close()
    assert segment_path(cache_name).exists()
    with Cache(cache_name, create=False) as cache:
        assert cache["k"] == 1
        assert cache.persist
        assert cache.stats().owner_pid is None
        cache.unlink()


def test_unlink_leaves_nothing(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB") as cache:
        Owner.open(cache_name).close(unlink=True)
        assert leftovers(cache_name) == []
        with pytest.raises(CacheNotFound):
            cache.get("k")


def test_a_second_one_is_told_who_is_the_first(owner: Owner) -> None:
    pid = owner.cache.stats().owner_pid
    with pytest.raises(CacheExists, match=f"has an owner daemon already, pid {pid}") as caught:
        Owner.open(owner.cache.name)
    assert "stop that one first" in str(caught.value)
    assert owner.cache.stats().owner_pid == pid
    assert not owner.cache.closed
    owner.tend()


def test_after_close_another_may_be_it_though_handles_stay_open(owner: Owner) -> None:
    name = owner.cache.name
    with Cache(name):
        owner.close()
        with Owner.open(name) as second:
            assert second.adopted
            owner.close()  # once more: it is not its any longer
            assert second.cache.stats().owner_pid is not None
            second.tend()
            with pytest.raises(CacheExists):
                Owner.open(name)


def test_an_owner_word_that_names_nobody_possible_is_nobody(owner: Owner) -> None:
    owner.cache._held.disown()
    for word in (1, 0xFFFFFFFF << 32, (1 << 64) - 1, 5000 << 32 | 3):
        with segments.mapped(owner.cache.name) as data:
            data[OWNER : OWNER + 8] = word.to_bytes(8, "little")
        assert owner.cache.stats().owner_pid is None
    owner.cache._held.mark_owner()


# ------------------------------------------------------------------------------------- adopting
def test_it_adopts_what_is_there_and_makes_it_stay(cache_name: str) -> None:
    cache = Cache(cache_name, size="1MiB", avg_entry_size=512)
    cache.set("k", "warm", ttl=1000)
    assert not cache.persist
    with Owner.open(cache_name) as owner:
        assert owner.adopted
        assert cache.persist
        cache.close()
        assert owner.cache["k"] == "warm"
        assert 990 < owner.cache.ttl("k") <= 1000
    assert segment_path(cache_name).exists()
    Owner.open(cache_name).close(unlink=True)


def test_it_adopts_a_leftover(cache_name: str) -> None:
    inode = leave(cache_name).stat().st_ino
    with Owner.open(cache_name) as owner:
        assert owner.adopted
        assert owner.cache._held.superblock.inode == inode
    assert segment_path(cache_name).stat().st_ino == inode
    Owner.open(cache_name).close(unlink=True)


def test_other_geometry_is_a_warning_other_policy_an_error(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB") as cache:
        with (
            pytest.warns(GeometryWarning, match=cache_name),
            Owner.open(cache_name, size="8MiB") as owner,
        ):
            assert owner.cache.size == 1 << 20
        for wrong in ({"policy": "keep"}, {"codec": "json"}):
            with pytest.raises(ValueError, match="was created with"):
                Owner.open(cache_name, **wrong)
        assert cache.stats().owner_pid is None
        cache.unlink()


@pytest.mark.parametrize("argument", ["create", "wait", "persist"])
def test_what_an_owner_decides_is_no_argument(cache_name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        Owner.open(cache_name, **{argument: True})
    assert leftovers(cache_name) == []


def test_what_it_made_is_gone_if_it_cannot_own_it(
    cache_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr("shmcache.attachment.Attachment.mark_owner", refuse)
    with pytest.raises(OSError, match="descriptor"):
        Owner.open(cache_name, size="1MiB")
    assert leftovers(cache_name) == []


# ------------------------------------------------------------------------------------- snapshots
@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for snapshot.load: files that exist set an entry; "damaged" in them raises."""
    asked: list[Path] = []

    def stand_in(cache: Cache, path: Path) -> str:
        asked.append(path)
        text = path.read_text()
        if "damaged" in text:
            raise DecodeError(f"{path}: damaged")
        cache["from"] = text
        return "report"

    module = types.ModuleType("shmcache.snapshot")
    module.load = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shmcache.snapshot", module)
    return asked


def test_a_snapshot_is_loaded_only_where_the_cache_is_made(
    cache_name: str, tmp_path: Path, load: list[Path]
) -> None:
    file = tmp_path / "snapshot"
    file.write_text("warm")
    with Owner.open(cache_name, size="1MiB", snapshot=file) as owner:
        assert owner.loaded == "report"
        assert owner.load_error is None
        assert owner.cache["from"] == "warm"
        del owner.cache["from"]
    with Owner.open(cache_name, snapshot=file) as owner:
        assert owner.adopted
        assert owner.loaded is None
        assert "from" not in owner.cache
        owner.cache.unlink()
        owner.reopen(snapshot=file)
        assert owner.cache["from"] == "warm"
        owner.close(unlink=True)
    assert load == [file, file]


def test_a_damaged_snapshot_is_reported_and_a_missing_one_is_none(
    cache_name: str, tmp_path: Path, load: list[Path]
) -> None:
    file = tmp_path / "snapshot"
    owner = Owner.open(cache_name, size="1MiB", snapshot=file)
    assert owner.loaded is owner.load_error is None
    owner.close(unlink=True)
    file.write_text("damaged")
    owner = Owner.open(cache_name, size="1MiB", snapshot=file)
    assert isinstance(owner.load_error, DecodeError)
    assert len(owner.cache) == 0
    owner.tend()
    owner.close(unlink=True)
    assert len(load) == 2


# --------------------------------------------------------------------------------------- tending
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


# ------------------------------------------------------------- the segment goes, the owner stays
@pytest.mark.parametrize("how", ["unlink", "rm", "replace"])
def test_it_says_that_the_segment_has_gone_and_reopens(owner: Owner, how: str) -> None:
    name = owner.cache.name
    owner.cache["k"] = 1
    if how == "rm":  # as logind's RemoveIPC does
        for path in leftovers(name):
            path.unlink()
    else:
        with observe(name) as other:
            other.unlink()
    if how == "replace":
        attach(name, persist=True).release()
    for _ in range(2):
        with pytest.raises(CacheNotFound, match="reopen"):
            owner.tend()
    owner.reopen()
    assert owner.adopted == (how == "replace")
    assert owner.cache.persist
    assert owner.cache.get("k") is None
    assert rounds(owner)[-1].round_complete
    with pytest.raises(CacheExists):
        Owner.open(name)


def test_reopen_may_be_tried_again(owner: Owner) -> None:
    name = owner.cache.name
    owner.cache.unlink()
    attach(name).unlink()
    with Owner.open(name, size="1MiB") as usurper:
        with pytest.raises(CacheExists):
            owner.reopen()
        with pytest.raises(CacheClosed):
            owner.tend()
        usurper.close()
        owner.reopen()
    assert owner.adopted
    owner.tend()


# ----------------------------------------------------------------------------------- the config
def test_the_config_is_stored_where_it_differs(owner: Owner) -> None:
    slot = owner.cache.slot("config")
    assert owner.store_config({}) == 1
    assert owner.store_config({}) is None
    config: dict[str, Any] = {"limit": 1, "hosts": ["a", "b"], "deep": {"x": 1.5, "on": True}}
    assert owner.store_config(config) == 2
    assert slot.load() == config
    assert owner.store_config(types.MappingProxyType(config)) is None
    for changed in (
        {**config, "limit": 1.0},
        {**config, "limit": True},
        {**config, "hosts": ["a"]},
        {**config, "hosts": ["a", "c"]},
        {**config, "deep": {"x": 1.5, "on": 1}},
        {**config, "deep": {"x": 1.5}},
    ):
        before = slot.load_versioned()[1]
        assert owner.store_config(changed) == before + 1
        assert repr(slot.load()) == repr(changed)
    with pytest.raises(SlotTooLarge):
        owner.store_config({"x": "y" * (slot.capacity + 1)})
    assert slot.load() == changed


def test_it_shows_what_it_is(owner: Owner) -> None:
    assert repr(owner) == f"<Owner of cache {owner.cache.name!r}, created>"
    owner.close()
    assert "closed" in repr(owner)
    Owner.open(owner.cache.name).close()
