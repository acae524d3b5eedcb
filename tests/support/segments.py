"""A look at the bytes of a segment from outside, through the offsets that the core compiled."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from typing import Any

from shmcache import Cache, _core
from support.names import leftovers, remove, segment_path


def field(data: mmap.mmap | bytes, name: str, format_: str) -> int:
    """The superblock's field ``name``, as ``format_`` of struct says (little endian)."""
    (value,) = struct.unpack_from(f"<{format_}", data, _core.LAYOUT[f"shm_superblock.{name}"])
    assert isinstance(value, int)
    return value


def shard_offset(data: mmap.mmap | bytes, shard: int) -> int:
    """Bytes from the segment's start to shard number ``shard``."""
    return field(data, "shards_off", "Q") + shard * field(data, "shard_stride", "Q")


@contextlib.contextmanager
def mapped(name: str) -> Iterator[mmap.mmap]:
    """The published segment of cache ``name``, mapped for reading and writing."""
    with segment_path(name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        yield data


def holder(name: str, shard: int = 0) -> int:
    """The holder word of a shard: 0 if it is free."""
    with mapped(name) as data:
        offset = shard_offset(data, shard) + _core.LAYOUT["shm_shard.holder"]
        (word,) = struct.unpack_from("<Q", data, offset)
    assert isinstance(word, int)
    return word


@contextlib.contextmanager
def persistent(name: str, **arguments: Any) -> Iterator[None]:
    """A persistent cache that nobody has open, removed afterwards."""
    Cache(name, size="1MiB", persist=True, **arguments).close()
    try:
        yield
    finally:
        remove(leftovers(name))
