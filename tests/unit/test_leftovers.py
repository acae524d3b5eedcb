"""What is found at a cache's path and is no living segment: adopted, replaced, or left alone."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.attachments import MIB, attach, forget, leave
from support.names import leftovers, segment_path
from support.processes import Channel, Worker

from shmcache import errors, segment
from shmcache._core import LAYOUT
from shmcache._linux import Mapping
from shmcache.block import DEAD, store_word


@pytest.fixture
def opened(cache_name: str) -> Iterator[segment.Attachment]:
    attachment = attach(cache_name)
    yield attachment
    attachment.unlink()
    while attachment.handles:
        attachment.release()


# ------------------------------------------------------------------------------ what is left behind
def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_version(path: Path) -> None:
    patch(path, LAYOUT["shm_superblock.layout_version"], struct.pack("<I", 99))


def damage_magic(path: Path) -> None:
    patch(path, LAYOUT["shm_superblock.magic"], b"\xff" * 8)


def damage_signature(path: Path) -> None:
    patch(path, LAYOUT["shm_superblock.signature"], b"\xff" * 8)


def damage_geometry(path: Path) -> None:
    patch(path, LAYOUT["shm_superblock.shard_stride"], b"\xff" * 8)


def damage_all(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def truncate(path: Path) -> None:
    os.truncate(path, MIB // 2)


def truncate_within_superblock(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def copy(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


def punch(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    with path.open("r+b") as file:
        offset = ctypes.c_long(MIB // 2)
        assert libc.fallocate(file.fileno(), keep_size | punch_hole, offset, offset) == 0


DAMAGES = {
    damage_version: errors.LayoutMismatch,
    damage_magic: errors.CorruptSegment,
    damage_signature: errors.LayoutMismatch,
    damage_geometry: errors.CorruptSegment,
    damage_all: errors.CorruptSegment,
    truncate: errors.CorruptSegment,
    truncate_within_superblock: errors.CorruptSegment,
    empty: errors.CorruptSegment,
    copy: errors.CorruptSegment,
    punch: errors.CorruptSegment,
}


@pytest.mark.parametrize(("damage", "error"), DAMAGES.items())
def test_an_unusable_leftover_is_replaced(
    cache_name: str,
    damage: Callable[[Path], None],
    error: type[errors.ShmcacheError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(leave(cache_name))
    for create in (False, True):
        with pytest.raises(error, match=cache_name):
            attach(cache_name, create=create)
    with caplog.at_level(logging.WARNING, "shmcache"):
        attachment = attach(cache_name)
    assert "replacing" in caplog.text
    assert cache_name in caplog.text
    attachment.release()
    assert leftovers(cache_name) == []


@pytest.mark.parametrize("damage", [damage_version, damage_magic, damage_geometry, truncate, copy])
def test_an_unusable_leftover_of_policy_keep_is_kept(
    cache_name: str, damage: Callable[[Path], None]
) -> None:
    damage(leave(cache_name, policy="keep"))
    with pytest.raises((errors.LayoutMismatch, errors.CorruptSegment), match="'keep'"):
        attach(cache_name)
    assert segment.unlink_segment(cache_name)
    assert not segment.unlink_segment(cache_name)


def test_an_unusable_segment_that_is_in_use_is_not_replaced(
    opened: segment.Attachment, start: Callable[..., Worker]
) -> None:
    damage_geometry(segment_path(opened.name))

    def refused(channel: Channel) -> None:
        forget()
        with pytest.raises(errors.CorruptSegment, match="living process uses it"):
            attach(opened.name)

    start(refused).result()
    assert opened.still_named()


def test_a_segment_that_is_marked_dead_is_cleared_away(cache_name: str) -> None:
    path = leave(cache_name)
    store_word(Mapping.open(str(path)), DEAD, 1)
    old = path.stat().st_ino
    with pytest.raises(errors.CacheNotFound):
        attach(cache_name, create=False)
    assert leftovers(cache_name) == []
    attachment = attach(cache_name)
    assert attachment.superblock.inode != old
    attachment.release()


def test_a_leftover_is_adopted(cache_name: str, caplog: pytest.LogCaptureFixture) -> None:
    inode = leave(cache_name).stat().st_ino
    with caplog.at_level(logging.INFO, "shmcache"):
        attachment = attach(cache_name)
    assert attachment.superblock.inode == inode
    assert "adopted" in caplog.text
    assert attachment.generation == 2
    attachment.release()
    assert leftovers(cache_name) == []


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [make_directory, os.mkfifo, make_socket, make_link])
def test_what_is_no_file_is_left_alone(cache_name: str, make: Callable[[Path], None]) -> None:
    path = segment_path(cache_name)
    make(path)
    try:
        with pytest.raises(errors.CorruptSegment, match="no regular file"):
            attach(cache_name)
        assert os.path.lexists(path)
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
