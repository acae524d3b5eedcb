"""Snapshots: into which caches they are loaded, the file, and who may have written it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmcache import (
    Cache,
    CacheClosed,
    CacheExists,
    CacheFull,
    CacheNotFound,
    DecodeError,
    NotPermitted,
    ValueTooLarge,
    snapshot,
)
from shmcache.owner import Owner
from shmcache.snapshot import SnapshotProgress


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.snapshot"


# ---------------------------------------------------------------------------- where it is loaded
def test_the_file_wins_and_other_keys_stay(open_cache: Callable[..., Cache], file: Path) -> None:
    cache = open_cache()
    cache.set("a", "saved", ttl=50)
    snapshot.save(cache, file)
    cache["a"] = "later"
    cache["b"] = "other"
    seen = cache.gets("a")
    snapshot.load(cache, file)
    assert cache["a"] == "saved" and cache["b"] == "other"
    assert cache.ttl("a") is not None
    assert seen is not None and not cache.cas("a", "late", seen.version), "it is a write"


def test_local_entries_see_the_load(open_cache: Callable[..., Cache], file: Path) -> None:
    cache = open_cache(local_entries=10)
    cache["a"] = [1]
    snapshot.save(cache, file)
    cache["a"] = [2]
    assert cache["a"] == [2]
    snapshot.load(cache, file)
    assert cache["a"] == [1]


def test_another_codec_is_refused_by_both_names(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, other = open_cache(codec="json"), open_cache(codec="msgpack")
    cache["a"] = b"raw, and readable with any codec"
    snapshot.save(cache, file)
    with pytest.raises(ValueError, match=r"'json'.*'msgpack'"):
        snapshot.load(other, file)
    with pytest.raises(ValueError, match=r"'json'.*'msgpack'"):
        snapshot.restore(other.name, file)
    assert len(other) == 0


def test_keep_stops_and_says_how_far_it_got(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, small = open_cache(size="4MiB"), open_cache(size="1MiB", policy="keep")
    for number in range(8000):
        cache[number] = b"x" * 200
    total = snapshot.save(cache, file).entries
    with pytest.raises(CacheFull, match=rf"(\d+) of {total} entries were stored") as caught:
        snapshot.load(small, file)
    assert f" {len(small)} of {total} " in str(caught.value)
    assert caught.value.__cause__ is not None and small.verify() == []


def test_keep_refuses_an_entry_that_can_never_fit_before_anything(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, small = open_cache(size="16MiB"), open_cache(size="1MiB", policy="keep")
    cache["a"] = b"x" * small.max_value_size * 2
    cache["b"] = 1
    snapshot.save(cache, file)
    with pytest.raises(ValueTooLarge, match=r"has an entry of \d+ bytes"):
        snapshot.load(small, file)
    assert len(small) == 0


def test_evict_keeps_what_fits_and_counts_the_rest(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, small = open_cache(size="32MiB", shards=1), open_cache(size="1MiB")
    for number in range(8000):
        cache[number] = b"%05d" % number * 40
    cache["large"] = b"x" * small.max_value_size * 2
    cache["beyond a block"] = b"y" * (2 << 20)
    assert snapshot.save(cache, file).entries == 8002
    report = snapshot.load(small, file)
    assert (report.entries, report.too_large) == (8000, 2)
    assert report.evicted > 0 and len(small) == 8000 - report.evicted
    assert all(value == b"%05d" % key * 40 for key, value in small.items())
    assert small.verify() == []


def test_an_empty_cache(open_cache: Callable[..., Cache], file: Path) -> None:
    cache, other = open_cache(), open_cache()
    other["a"] = 1
    assert snapshot.save(cache, file).entries == 0
    assert snapshot.load(other, file).entries == 0
    assert dict(other) == {"a": 1}


# ---------------------------------------------------------------------------------- the file
def test_inspect_tells_what_a_cache_for_it_takes(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path
) -> None:
    cache = open_cache(
        size="3MiB", shards=2, avg_entry_size=64, policy="keep", codec="json", slots=3
    )
    cache["a"] = 1
    cache.slot().store([1])
    before = time.time()
    report = snapshot.save(cache, file)
    info = snapshot.inspect(file)
    assert info == snapshot.verify(file)
    assert before <= info.created_at <= time.time()
    assert (info.name, info.entries, info.slots, info.bytes) == (cache.name, 1, 1, report.bytes)
    with Cache(new_name(), **info.arguments) as other:
        assert (other.size, other.shards, other.policy, other.codec) == (3 << 20, 2, "keep", "json")
        assert other.slot().capacity == cache.slot().capacity
        assert other.max_value_size == cache.max_value_size


def test_restore_creates_a_cache_that_persists(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path
) -> None:
    cache = open_cache(policy="keep", shards=4)
    cache["a"] = 1
    snapshot.save(cache, file)
    name = new_name()
    report = snapshot.restore(name, file, mode=0o640)
    assert report.created and report.entries == 1
    with Cache(name, create=False) as other:
        assert dict(other) == {"a": 1} and other.persist
        assert (other.size, other.shards, other.policy) == (cache.size, 4, "keep")
        other["a"] = 2
    assert not snapshot.restore(name, file, size="64MiB").created
    with Cache(name, create=False) as other:
        assert other["a"] == 1 and other.size == cache.size
        other.unlink()
    assert snapshot.restore(name, file, size="1MiB").created
    with Cache(name, create=False) as other:
        assert other.size == 1 << 20
        other.unlink()


@pytest.mark.parametrize("size", [20, 300, 4000])
def test_a_full_cache_fits_a_new_one_of_its_size(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path, size: int
) -> None:
    """With hash seeds of their own, a few of these would find a shard that is too full."""
    how: dict[str, Any] = {"size": "1MiB", "policy": "keep", "shards": 8, "codec": "raw"}
    how["avg_entry_size"] = size
    cache = open_cache(**how)
    refused = 0
    for number in range(20_000):
        try:
            cache[number] = bytes(size + number % 3)
        except CacheFull:
            refused += 1
    assert refused > 100
    snapshot.save(cache, file)
    for _ in range(3):
        name = new_name()
        assert snapshot.restore(name, file).entries == len(cache)
        with Cache(name, create=False) as other:
            assert other._held.superblock.hash_seed == cache._held.superblock.hash_seed
            assert other == cache and other.verify() == []
            other.unlink()
    name = new_name()
    with Owner.open(name, snapshot=file, **how) as owner:
        assert owner.load_error is None and owner.cache == cache
        owner.cache.unlink()
        cache.clear()
        other_seed = open_cache(**how)
        snapshot.save(other_seed, file)
        owner.reopen(snapshot=file)
        seed = owner.cache._held.superblock.hash_seed
        assert seed == other_seed._held.superblock.hash_seed
        owner.close(unlink=True)


def test_a_hash_seed_of_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert snapshot.saved_seed(tmp_path / "absent") is None
    (tmp_path / "damaged").write_bytes(b"x" * 200)
    assert snapshot.saved_seed(tmp_path / "damaged") is None


def test_restore_removes_what_it_could_not_fill(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path
) -> None:
    cache = open_cache(size="4MiB", policy="keep")
    for number in range(8000):
        cache[number] = b"x" * 200
    snapshot.save(cache, file)
    name = new_name()
    with pytest.raises(CacheFull):
        snapshot.restore(name, file, size="1MiB")
    with pytest.raises(CacheNotFound):
        Cache(name, create=False)


def test_restore_does_not_make_a_persistent_cache_of_one_that_is_there(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache = open_cache()
    cache["a"] = 1
    snapshot.save(cache, file)
    snapshot.restore(cache.name, file)
    assert not cache.persist and cache.stats().clients == 1


def test_two_that_restore_at_once_share_one_cache(
    open_cache: Callable[..., Cache],
    new_name: Callable[[], str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = open_cache()
    cache["a"] = 1
    snapshot.save(cache, file)
    name, real = new_name(), snapshot.Cache
    quicker: list[Cache] = []

    def second(*args: Any, **options: Any) -> Cache:
        quicker.append(real(name, create=True))
        monkeypatch.setattr(snapshot, "Cache", real)
        raise CacheExists("somebody else was quicker")

    class Slower(Cache):
        _seeded = second  # type: ignore[assignment]

    monkeypatch.setattr(snapshot, "Cache", Slower)
    assert not snapshot.restore(name, file).created
    with quicker[0] as other:
        assert other["a"] == 1


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_file_has_the_mode_of_the_segment(
    mode: int, open_cache: Callable[..., Cache], file: Path
) -> None:
    cache = open_cache(mode=mode)
    old = os.umask(0o077)
    try:
        snapshot.save(cache, file)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other groups")
def test_the_file_has_the_group_of_the_segment(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache = open_cache(mode=0o660, group=54321)
    snapshot.save(cache, file)
    assert file.stat().st_gid == 54321 and stat.S_IMODE(file.stat().st_mode) == 0o660


def test_a_snapshot_replaces_the_old_one_through_a_link(
    open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = open_cache()
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    for number in range(3):
        cache[number] = number
        snapshot.save(cache, link)
    assert link.is_symlink() and snapshot.verify(file).entries == 3
    assert sorted(tmp_path.iterdir()) == [file, link]


@pytest.mark.parametrize("what", ["directory", "pipe"])
def test_what_is_no_file_is_refused(
    what: str, open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache, path = open_cache(), tmp_path / "here"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        snapshot.save(cache, path)
    with pytest.raises(DecodeError, match="no regular file"):
        snapshot.load(cache, path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    for call in (snapshot.inspect, snapshot.verify, lambda path: snapshot.load(cache, path)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            call(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        snapshot.save(cache, tmp_path / "nowhere" / "a")


def test_progress_is_told_of_both_ways(open_cache: Callable[..., Cache], file: Path) -> None:
    cache = open_cache(size="8MiB")
    for number in range(9000):
        cache[number] = b"x" * 300
    told: list[SnapshotProgress] = []
    total = snapshot.save(cache, file, on_progress=told.append).entries
    assert len(told) > 1 and told[-1] == SnapshotProgress("saving", 1.0, total)
    snapshot.load(cache, file, on_progress=told.append)
    for phase in ("saving", "checking", "loading"):
        steps = [step for step in told if step.phase == phase]
        assert [s.fraction for s in steps] == sorted(s.fraction for s in steps)
        assert 0.9 < steps[-1].fraction <= 1.0 and steps[-1].entries == total


def test_a_cache_that_goes_away_while_it_is_saved(cache: Cache, file: Path) -> None:
    file.write_text("old")
    for number in range(1000):
        cache[number] = number

    def close(_: SnapshotProgress) -> None:
        cache.close()

    with pytest.raises(CacheClosed):
        snapshot.save(cache, file, on_progress=close)
        snapshot.save(cache, file)
    other = Cache(cache.name, size="2MiB")
    other.close()
    with pytest.raises(CacheClosed):
        snapshot.save(other, file)


# ------------------------------------------------------------------------- pickle runs code
def test_a_pickle_snapshot_that_others_can_write_is_refused(
    open_cache: Callable[..., Cache], new_name: Callable[[], str], file: Path
) -> None:
    cache = open_cache(codec="pickle")
    cache["a"] = {1}
    snapshot.save(cache, file)
    snapshot.load(cache, file)
    for mode in (0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(NotPermitted, match=rf"0{mode:o}.*pickle|pickle.*0{mode:o}"):
            snapshot.load(cache, file)
        with pytest.raises(NotPermitted):
            snapshot.restore(new_name(), file)
    file.chmod(0o644)
    assert snapshot.load(cache, file).entries == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_a_pickle_snapshot_of_another_user_is_refused(
    open_cache: Callable[..., Cache], file: Path
) -> None:
    cache, safe = open_cache(codec="pickle"), open_cache()
    cache["a"] = safe["a"] = {1}
    snapshot.save(cache, file)
    os.chown(file, 54321, -1)
    with pytest.raises(NotPermitted, match="54321"):
        snapshot.load(cache, file)
    snapshot.save(safe, file)
    os.chown(file, 54321, -1)
    assert snapshot.load(safe, file).entries == 1, "msgpack runs nothing"
