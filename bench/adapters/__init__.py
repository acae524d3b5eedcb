"""The systems that are measured beside each other, one adapter class each (base.py: `Peer`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from bench.adapters.base import OPERATIONS, Absent, Peer
from bench.adapters.inside import Dict, LruCache
from bench.adapters.servers import Memcached, Redis
from bench.adapters.shared import Manager, Shmcache, Ultra, WarpCache
from bench.adapters.stores import DiskCache, Lmdb, Sqlite

PEERS: tuple[type[Peer], ...] = (
    Shmcache,
    Dict,
    LruCache,
    WarpCache,
    Ultra,
    Lmdb,
    Sqlite,
    DiskCache,
    Manager,
    Redis,
    Memcached,
)
"""In the order of tables: what is in the process, in shared memory, in files, behind a socket."""

__all__ = ["OPERATIONS", "PEERS", "Absent", "Peer", "opened"]


@contextlib.contextmanager
def opened(
    kinds: Iterable[type[Peer]], room: int, skipped: list[str], *, objects: bool = False
) -> Iterator[list[Peer]]:
    """One open peer of each kind; those that are absent go to `skipped`, with the reason."""
    with contextlib.ExitStack() as stack:
        peers = []
        for kind in kinds:
            peer = kind()
            try:
                peer.open(room, objects=objects)
            except Absent as absent:
                skipped.append(f"{kind.name}: {absent}")
                continue
            stack.callback(peer.close)
            peers.append(peer)
        yield peers
