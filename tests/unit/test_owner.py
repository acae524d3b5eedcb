"""The owner in one process: who may be it, what it adopts, what it tidies up, how it ends."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import segments
from support.attachments import attach, leave
from support.names import leftovers, segment_path

from shmcache import (
    Cache,
    CacheClosed,
    CacheExists,
    CacheNotFound,
    DecodeError,
    GeometryWarning,
    SlotTooLarge,
)
from shmcache.block import OWNER
from shmcache.observer import observe
from shmcache.owner import Owner


@pytest.fixture
def owner(cache_name: str) -> Iterator[Owner]:
    """The owner of a fresh cache of 1 MiB and four shards, unlinked in the end."""
    made = Owner.open(cache_name, size="1MiB", shards=4)
    yield made
    made.close(unlink=True)


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


def test_a_handle_that_is_closed_owns_nothing_though_its_memory_stays_mapped(
    owner: Owner,
) -> None:
    memory = memoryview(owner.cache._held.mapping)  # as a call under way in another thread does
    with observe(owner.cache.name) as watched:
        assert watched.stats().owner_pid is not None
        owner.cache.close()
        assert watched.stats().owner_pid is None
    assert len(memory) == 1 << 20


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

    def stand_in(cache: Cache, path: Path, *, on_progress: Any = None) -> str:
        asked.append(path)
        text = path.read_text()
        if on_progress is not None:
            cache["part"] = 1
            on_progress(1, 2)
        if "codec" in text:
            raise ValueError(f"{path}: another codec")
        if "damaged" in text:
            raise DecodeError(f"{path}: damaged")
        cache["from"] = text
        return "report"

    module = types.ModuleType("shmcache.snapshot")
    module.load = stand_in  # type: ignore[attr-defined]
    module.saved_seed = lambda path: None  # type: ignore[attr-defined]
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
    file.write_text("codec")
    owner = Owner.open(cache_name, size="1MiB", snapshot=file)
    assert type(owner.load_error) is ValueError
    owner.close(unlink=True)
    assert len(load) == 3


class Stop(BaseException):
    """What a daemon raises out of a long load."""


def test_a_load_that_is_stopped_leaves_no_half_loaded_cache(
    cache_name: str, tmp_path: Path, load: list[Path]
) -> None:
    def stop(*_: object) -> None:
        assert segment_path(cache_name).exists()
        raise Stop

    file = tmp_path / "snapshot"
    file.write_text("warm")
    with pytest.raises(Stop):
        Owner.open(cache_name, size="1MiB", snapshot=file, on_progress=stop)
    assert leftovers(cache_name) == []
    seen: list[object] = []
    with Owner.open(
        cache_name, size="1MiB", snapshot=file, on_progress=lambda *done: seen.append(done)
    ) as owner:
        assert seen == [(1, 2)]
        assert owner.cache["from"] == "warm"
        owner.close(unlink=True)


def test_a_cache_that_goes_during_the_load_is_said_to_be_gone(
    cache_name: str, tmp_path: Path, load: list[Path]
) -> None:
    def unlink(*_: object) -> None:
        with observe(cache_name) as other:
            other.unlink()

    file = tmp_path / "snapshot"
    file.write_text("warm")
    with pytest.raises(CacheNotFound):
        Owner.open(cache_name, size="1MiB", snapshot=file, on_progress=unlink)
    assert leftovers(cache_name) == []


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
            owner.tend(0.0)
    owner.reopen()
    assert owner.adopted == (how == "replace")
    assert owner.cache.persist
    assert owner.cache.get("k") is None
    assert owner.tend(60.0).round_complete
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
