"""The contestants that have to be opened, and the keys and values they are given.

Everything opened here lives in /dev/shm under a name of its own and is gone when the `with`
statement ends.  lmdb is a hard requirement of the workloads that name it; warp_cache is skipped
with a word where it is not installed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lmdb

SHM = Path("/dev/shm")
_numbers = itertools.count()


def hot_keys(count: int = 1_000) -> list[str]:
    """`count` different ASCII keys of 20 characters."""
    return [f"user:profile:{number:07d}" for number in range(count)]


def raw_keys(keys: list[str]) -> list[bytes]:
    """The same keys as bytes, for peers that take nothing else; encoded beforehand, untimed."""
    return [key.encode() for key in keys]


def value_of(number: int, size: int) -> bytes:
    """A value of `size` bytes that tells which key it belongs to."""
    head = number.to_bytes(8, "little")
    return (head * (size // 8 + 1))[:size]


@contextlib.contextmanager
def shmcache_open(**arguments: Any) -> Iterator[Any]:
    """A fresh `shmcache.Cache` with a name of its own, unlinked at the end."""
    from shmcache import Cache

    cache = Cache(f"bench-{os.getpid()}-{next(_numbers)}", create=True, **arguments)
    try:
        yield cache
    finally:
        cache.unlink()
        cache.close()


@contextlib.contextmanager
def lmdb_open(map_size: int, *, writemap: bool = False) -> Iterator[lmdb.Environment]:
    """A fresh lmdb environment in /dev/shm with sync off: as fast as it gets with durability
    given up, which a cache has no use for."""
    import lmdb

    folder = tempfile.mkdtemp(prefix="shmcache-bench-lmdb-", dir=SHM)
    try:
        with lmdb.open(
            folder,
            map_size=map_size,
            sync=False,
            metasync=False,
            writemap=writemap,
            lock=True,
            max_readers=64,
        ) as environment:
            yield environment
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def warp_open(function: Callable[[str], Any], max_size: int, max_value_size: int) -> Iterator[Any]:
    """`function` cached in warp_cache's shared backend; ImportError where it is missing.

    The package offers no way to remove its files, so what it made is removed here."""
    from warp_cache import cache

    places = [SHM, Path(tempfile.gettempdir())]
    before = {path for place in places for path in place.glob("*warp*")}
    wrapped = cache(
        max_size=max_size, backend="shared", max_key_size=64, max_value_size=max_value_size
    )(function)
    try:
        yield wrapped
    finally:
        wrapped.cache_clear()
        for place in places:
            for path in set(place.glob("*warp*")) - before:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def fill(cache: Any, pairs: Iterator[tuple[str, bytes]]) -> int:
    """Store pairs until a tenth of them has been evicted again, so that every shard is full;
    returns how many were stored.

    Checked every thousand pairs, so that filling is not dominated by asking."""
    stored = 0
    for stored, (key, value) in enumerate(pairs, 1):
        cache.set(key, value)
        if stored % 1_000 == 0 and cache.stats().evictions >= stored // 10:
            break
    return stored
