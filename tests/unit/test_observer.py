"""Observers: they read and write, and nothing that lives or dies with the cache is up to them."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.attachments import attach, forget, leave
from support.calls import EVERY
from support.forks import FORKS, in_child
from support.names import leftovers, segment_path
from support.processes import Channel, Worker

from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    CorruptSegment,
    DecodeError,
    LayoutMismatch,
    LimitReached,
    NotPermitted,
    _core,
    list_caches,
)
from shmcache._linux import Mapping
from shmcache.block import DEAD, store_word
from shmcache.observer import observe

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")


@pytest.fixture
def watched(cache: Cache) -> Iterator[Cache]:
    """An observer of the fixture `cache`."""
    with observe(cache.name) as observer:
        yield observer


# ----------------------------------------------------------------------------------- what it can do
def test_it_sees_and_changes_entries(cache: Cache, watched: Cache) -> None:
    cache["a"] = [1, "two"]
    assert watched["a"] == [1, "two"]
    watched.set("b", 2, ttl=60)
    assert cache["b"] == 2
    assert watched.incr("b") == 3
    assert watched.delete("a")
    assert "a" not in cache
    assert watched.namespace("n").get_or_init("k", lambda: "v") == "v"
    watched.slot("config").store({"x": 1})
    assert cache.slot("config").load() == {"x": 1}
    assert cache.verify() == watched.verify() == []


def test_its_settings_are_the_cache_s_own(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(policy="keep", codec="json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with observe(cache.name, lock_timeout=0.25) as watched:
            assert (watched.policy, watched.codec) == ("keep", "json")
            assert (watched.size, watched.shards) == (cache.size, cache.shards)
            assert watched.lock_timeout == 0.25
            assert isinstance(watched, Cache)
            assert "observing" in repr(watched)
    with pytest.raises(ValueError, match="created with codec 'json'"):
        observe(cache.name, codec="msgpack")


def test_it_is_no_client(cache: Cache, watched: Cache) -> None:
    assert cache.stats().clients == watched.stats().clients == 1
    (info,) = [info for info in list_caches() if info.name == cache.name]
    assert info.clients == 1


def test_it_is_not_shared_with_other_handles_of_the_process(cache: Cache, watched: Cache) -> None:
    with observe(cache.name) as another, Cache(cache.name) as member:
        identities = {_core.identity(handle) for handle in (cache, watched, another, member)}
        assert len(identities) == 3
        assert _core.identity(cache) == _core.identity(member)
    watched["k"] = 1
    assert cache["k"] == 1


# ------------------------------------------------------------------------------- what it leaves be
def test_it_creates_nothing(cache_name: str) -> None:
    with pytest.raises(CacheNotFound, match=cache_name) as caught:
        observe(cache_name)
    assert "create=None" not in str(caught.value)
    assert leftovers(cache_name) == []


def test_the_last_member_out_unlinks_under_it(cache: Cache, watched: Cache) -> None:
    cache["k"] = 1
    assert watched["k"] == 1
    cache.close()
    assert leftovers(cache.name) == []
    with pytest.raises(CacheNotFound, match=cache.name):
        watched.get("k")
    with pytest.raises(CacheNotFound):
        watched.reopen()


def test_its_end_leaves_the_cache_there(cache: Cache) -> None:
    watched = observe(cache.name)
    watched.close()
    watched.close()
    assert watched.closed
    with pytest.raises(CacheClosed):
        watched.get("k")
    assert segment_path(cache.name).exists()
    cache["k"] = 1
    assert cache["k"] == 1


@pytest.mark.parametrize("call", EVERY)
def test_every_call_says_that_the_cache_has_gone(cache: Cache, watched: Cache, call: str) -> None:
    cache.unlink()
    with pytest.raises(CacheNotFound):
        EVERY[call](watched)


def test_it_may_unlink_by_hand(cache: Cache, watched: Cache) -> None:
    watched.unlink()
    assert leftovers(cache.name) == []
    with pytest.raises(CacheNotFound):
        cache.get("k")


def test_reopen_follows_the_name(cache: Cache, watched: Cache) -> None:
    cache.unlink()
    cache.reopen()
    cache["k"] = "new"
    watched.reopen()
    assert watched["k"] == "new"
    assert cache.stats().clients == 1
    cache.close()
    assert leftovers(cache.name) == []


# --------------------------------------------------------------------------------------- leftovers
def test_a_leftover_is_looked_at_and_stays_one(
    cache_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave(cache_name)
    before = path.stat().st_ino
    with caplog.at_level(logging.DEBUG, "shmcache"), observe(cache_name) as watched:
        watched["k"] = "seen"
        assert watched.stats().clients == 0
        caplog.clear()
        member = attach(cache_name)  # adopts it, whoever looks on
        assert "adopted" in caplog.text
        member.set_persist(True)
        member.release()
        member = attach(cache_name)
        member.set_persist(False)
        assert member.superblock.inode == before
        member.release()
        assert leftovers(cache_name) == []


def test_an_observer_alone_adopts_nothing(
    cache_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave(cache_name)
    with caplog.at_level(logging.DEBUG, "shmcache"):
        observe(cache_name).close()
    assert caplog.text == ""
    assert path.exists()
    attach(cache_name).release()
    assert leftovers(cache_name) == []


def damage_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(_core.LAYOUT["shm_superblock.layout_version"])
        file.write(b"\x63\0\0\0")


def damage_all(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


@pytest.mark.parametrize(
    ("damage", "error"), [(damage_version, LayoutMismatch), (damage_all, CorruptSegment)]
)
def test_an_unusable_leftover_is_not_replaced(
    cache_name: str, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    path = leave(cache_name)
    damage(path)
    before = path.stat().st_ino
    with pytest.raises(error, match=cache_name):
        observe(cache_name)
    assert path.stat().st_ino == before
    attach(cache_name).release()  # which replaces it, and is the last one out


def test_what_is_marked_dead_is_left_to_the_next_member(cache_name: str) -> None:
    path = leave(cache_name)
    store_word(Mapping.open(str(path)), DEAD, 1)
    with pytest.raises(CacheNotFound, match="died before its files"):
        observe(cache_name)
    assert path.exists()
    attach(cache_name).release()


def test_the_second_name_of_a_segment_is_left(cache_name: str) -> None:
    path = leave(cache_name)
    building = path.with_name(path.name + "~new")
    building.hardlink_to(path)
    observe(cache_name).close()
    assert building.exists()
    attach(cache_name).release()
    assert leftovers(cache_name) == []


# ----------------------------------------------------------------------------------- client slots
def test_its_slot_is_used_again(cache: Cache) -> None:
    numbers = set()
    for _ in range(5):
        with closing(observe(cache.name)) as watched:
            numbers.add(_core.identity(watched) >> 32)
    assert len(numbers) == 1


def test_the_slot_of_a_killed_one_is_used_again(cache: Cache, start: Callable[..., Worker]) -> None:
    def look(channel: Channel) -> None:
        watched = observe(cache.name)
        channel.send(_core.identity(watched) >> 32)
        channel.recv()

    workers = [start(look) for _ in range(3)]
    numbers = {worker.recv() for worker in workers}
    assert len(numbers) == 3
    for worker in workers:
        worker.kill()
    count = cache._held.superblock.geometry.client_count
    handles = []
    try:
        with pytest.raises(LimitReached):
            for _ in range(count):
                handles.append(observe(cache.name))
        assert {_core.identity(handle) >> 32 for handle in handles} >= numbers
        assert len(handles) == count - 1
        assert cache.stats().clients == 1
    finally:
        for handle in handles:
            handle.close()


# ------------------------------------------------------------------------- fork, pickle, processes
@pytest.mark.parametrize("fork", FORKS)
def test_a_forked_child_observes_too(cache: Cache, watched: Cache, fork: str) -> None:
    mine = _core.identity(watched)

    def look() -> object:
        watched["child"] = 1
        return (
            _core.identity(watched) != mine
            and watched.stats().clients == 1
            and watched._held.observer
        )

    assert in_child(FORKS[fork], look)
    assert cache["child"] == 1
    assert segment_path(cache.name).exists()
    cache.close()
    assert leftovers(cache.name) == []


def test_it_unpickles_as_an_observer(cache: Cache, watched: Cache) -> None:
    watched.lock_timeout = 0.5
    with closing(pickle.loads(pickle.dumps(watched))) as copy:
        assert copy.lock_timeout == 0.5
        assert cache.stats().clients == 1
        cache["k"] = 1
        assert copy["k"] == 1
        cache.close()
        with pytest.raises(CacheNotFound):
            copy.get("k")


def test_an_exiting_process_leaves_the_cache_there(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    def look(channel: Channel) -> Any:
        forget()
        return observe(cache.name).stats().clients

    assert start(look).result() == 1
    assert cache.stats().clients == 1
    assert segment_path(cache.name).exists()


def test_a_lease_of_a_dead_observer_is_taken_over(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    def initialise(channel: Channel) -> None:
        with observe(cache.name) as watched:
            watched.get_or_init("k", lambda: (channel.send("computing"), channel.recv()))

    worker = start(initialise)
    assert worker.recv() == "computing"
    worker.kill()
    assert cache.get_or_init("k", lambda: "mine", timeout=5) == "mine"
    assert worker.join() == -9


# -------------------------------------------------------------------------------------- permissions
def become_nobody(groups: tuple[int, ...] = ()) -> None:
    os.setgroups(groups)
    os.setgid(NOBODY - 1)
    os.setuid(NOBODY)


@as_root
def test_who_may_observe(new_name: Callable[[], str], start: Callable[..., Worker]) -> None:
    private, ours, theirs = (new_name() for _ in range(3))

    def look(channel: Channel) -> None:
        become_nobody((1234,))
        forget()
        with pytest.raises(NotPermitted, match="0o660"):
            observe(private)  # root's, but 0600
        with closing(observe(ours)) as watched:
            watched["k"] = "from a member of its group"
        with Cache(theirs, size="1MiB") as mine:
            mine["k"] = "nobody's"
            channel.sync()

    with (
        Cache(private, size="1MiB"),
        Cache(ours, size="1MiB", mode=0o660, group=1234) as shared,
    ):
        worker = start(look)
        assert worker.recv() == "ready"
        with closing(observe(theirs)) as watched:  # root looks at anybody's
            assert watched["k"] == "nobody's"
        with pytest.raises(NotPermitted, match="group="):
            Cache(theirs)
        worker.send("go")
        worker.result()
        assert shared["k"] == "from a member of its group"


@as_root
def test_a_stranger_s_cache_that_all_may_write_is_refused(
    cache_name: str, start: Callable[..., Worker]
) -> None:
    def hold(channel: Channel) -> None:
        os.setgroups(())
        os.setgid(4321)
        os.setuid(4321)
        forget()
        with Cache(cache_name, size="1MiB", mode=0o666):
            channel.sync()

    def look(channel: Channel) -> str:
        become_nobody()
        forget()
        with pytest.raises(NotPermitted) as caught:
            observe(cache_name)
        return str(caught.value)

    holder = start(hold)
    assert holder.recv() == "ready"
    assert "uid 4321" in start(look).result()
    holder.send("go")
    holder.result()


def test_pickle_on_a_segment_that_others_can_write_is_refused(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB", codec="pickle"):
        segment_path(cache_name).chmod(0o666)
        with pytest.raises(NotPermitted, match="pickle"):
            observe(cache_name)


class _Own:
    name = "own"

    def encode(self, value: object) -> bytes:
        return repr(value).encode()

    def decode(self, payload: memoryview) -> object:
        return bytes(payload)


def test_without_decoding_any_codec_will_do(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(codec=_Own())
    cache["list"], cache["text"] = [1], "plain"
    with pytest.raises(ValueError, match="own"):
        observe(cache.name)
    with observe(cache.name, decode=False) as watched:
        assert watched.codec == "own"
        assert sorted(watched) == ["list", "text"]
        assert watched["text"] == "plain"  # no codec made it
        assert watched.verify() == []
        with pytest.raises(DecodeError, match="decode=False"):
            watched["list"]
        with pytest.raises(TypeError, match="decode=False"):
            watched["list"] = [2]
        again = pickle.loads(pickle.dumps(watched))
        assert again.codec == "own"
        again.close()


def test_pickle_that_others_can_write_is_looked_at_undecoded(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(codec="pickle")
    os.chmod(f"/dev/shm/shmcache.{cache.name}", 0o666)
    with pytest.raises(NotPermitted):
        observe(cache.name)
    with observe(cache.name, decode=False) as watched:
        assert watched.stats().entries == 0
