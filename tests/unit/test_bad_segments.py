"""Segments that cannot be used, each with its error from api.md, and which may be replaced."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support.names import leftovers, segment_path
from support.processes import Channel, Worker
from support.segments import mapped, persistent

from shmcache import (
    Cache,
    CacheNotFound,
    CorruptSegment,
    LayoutMismatch,
    NotPermitted,
    _core,
)

MIB = 1 << 20


# ------------------------------------------------------------------------ bad segments


def write_layout_version(name: str) -> None:
    """As another release would have left it, its checksum right in that release's eyes."""
    with mapped(name) as data:
        offset = _core.LAYOUT["shm_superblock.layout_version"]
        struct.pack_into("<I", data, offset, _core.LAYOUT["SHM_LAYOUT_VERSION"] + 1)


def write_signature(name: str) -> None:
    with mapped(name) as data:
        offset = _core.LAYOUT["shm_superblock.signature"]
        data[offset] ^= 1


def flip(field_name: str) -> Callable[[str], None]:
    def flip_it(name: str) -> None:
        with mapped(name) as data:
            data[_core.LAYOUT[f"shm_superblock.{field_name}"]] ^= 0x10

    return flip_it


def truncate(size: int) -> Callable[[str], None]:
    return lambda name: os.truncate(segment_path(name), size)


def fill_with(content: bytes) -> Callable[[str], None]:
    def fill(name: str) -> None:
        size = segment_path(name).stat().st_size
        segment_path(name).write_bytes((content * (size // len(content) + 1))[:size])

    return fill


BAD_SEGMENTS: dict[str, tuple[Callable[[str], None], type[Exception]]] = {
    "another layout version": (write_layout_version, LayoutMismatch),
    "another build's signature": (write_signature, LayoutMismatch),
    "magic": (flip("magic"), CorruptSegment),
    "shards_off": (flip("shards_off"), CorruptSegment),
    "shard_count": (flip("shard_count"), CorruptSegment),
    "total_size": (flip("total_size"), CorruptSegment),
    "checksum": (flip("checksum"), CorruptSegment),
    "empty": (truncate(0), CorruptSegment),
    "one byte": (truncate(1), CorruptSegment),
    "half a superblock": (truncate(2048), CorruptSegment),
    "superblock only": (truncate(4096), CorruptSegment),
    "half": (truncate(MIB // 2), CorruptSegment),
    "one page short": (truncate(MIB - 4096), CorruptSegment),
    "zeros": (fill_with(b"\0"), CorruptSegment),
    "ones": (fill_with(b"\xff"), CorruptSegment),
    "text": (fill_with(b"not a cache at all. "), CorruptSegment),
}


@pytest.mark.parametrize("damage", BAD_SEGMENTS)
def test_a_bad_segment_is_an_error_for_an_attacher(cache_name: str, damage: str) -> None:
    spoil, error = BAD_SEGMENTS[damage]
    with persistent(cache_name):
        spoil(cache_name)
        with pytest.raises(error, match=cache_name):
            Cache(cache_name, create=False)
        assert segment_path(cache_name).exists()


@pytest.mark.parametrize("damage", BAD_SEGMENTS)
def test_a_bad_leftover_is_replaced_with_a_warning(
    cache_name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, _ = BAD_SEGMENTS[damage]
    with persistent(cache_name):
        spoil(cache_name)
        with caplog.at_level(logging.WARNING, logger="shmcache"):
            cache = Cache(cache_name, size="2MiB")
        with cache:
            assert dict(cache) == {}
            cache["k"] = 1
            assert cache.size == 2 * MIB
        (record,) = [entry for entry in caplog.records if entry.name.startswith("shmcache")]
        assert record.levelno == logging.WARNING
        assert cache_name in record.getMessage()
        assert leftovers(cache_name) == []


@pytest.mark.parametrize("damage", ["another layout version", "shards_off"])
def test_a_bad_leftover_of_policy_keep_is_kept(cache_name: str, damage: str) -> None:
    spoil, error = BAD_SEGMENTS[damage]
    with persistent(cache_name, policy="keep"):
        spoil(cache_name)
        before = segment_path(cache_name).read_bytes()
        with pytest.raises(error, match=cache_name):
            Cache(cache_name)
        assert segment_path(cache_name).read_bytes() == before


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_what_is_no_plain_file_is_refused(cache_name: str, kind: str, tmp_path: Path) -> None:
    path = segment_path(cache_name)
    target = tmp_path / "target"
    target.write_bytes(b"private" * 1000)
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(target)
    else:
        os.mkfifo(path)
    try:
        with pytest.raises((CorruptSegment, NotPermitted, CacheNotFound)):
            Cache(cache_name, create=False)
        assert target.read_bytes() == b"private" * 1000
    finally:
        path.rmdir() if kind == "directory" else path.unlink()


def hold(channel: Channel, name: str) -> None:
    with Cache(name, create=False):
        channel.sync()


def test_a_bad_segment_that_somebody_holds_is_never_replaced(
    start: Callable[..., Worker], cache_name: str
) -> None:
    with persistent(cache_name):
        holder = start(hold, cache_name)
        assert holder.recv() == "ready"
        inode = segment_path(cache_name).stat().st_ino
        write_layout_version(cache_name)
        with pytest.raises(LayoutMismatch, match=cache_name):
            Cache(cache_name)
        assert segment_path(cache_name).stat().st_ino == inode
        holder.send("go")
        holder.result()
