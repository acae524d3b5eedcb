"""Bytes that an entry takes over its key and value, by the size of values, for every peer."""

from __future__ import annotations

import random
from collections.abc import Mapping

from bench.adapters import PEERS, Peer, opened
from bench.adapters.base import Adapter
from bench.adapters.shared import fitting
from bench.harness import Options, Result, Table, require
from bench.peers import hot_keys

KEY_BYTES = 20
SIZES = (16, 100, 1 << 10, 10 << 10, 64 << 10)
PAYLOAD = 64 << 20
"""Bytes of keys and values that are stored, at most; then and now less than `MOST` entries."""

MOST = 100_000
FIXED = 1 << 20
"""About what superblock, client table and rings take, whatever the size of the cache."""


def run(options: Options) -> Result:
    """Fill each peer with values of one size, and see what it has grown by."""
    result = Result(
        "footprint",
        "bytes per entry over key and value, by the size of values",
        f"Keys of {KEY_BYTES} characters, random values of the size given; up to {MOST:,} entries "
        f"or {PAYLOAD >> 20} MiB.  Counted is what the system has grown by since it was empty, "
        "less keys and values, for each entry: for shmcache (avg_entry_size as it is, slots=0) the "
        "live bytes of its logs, and the same share of its index, and in a row of its own the "
        "tables that a cache of any size has; for a dict table and objects by sys.getsizeof; for "
        "files the blocks that they take; for servers private memory.  UltraDict, lru_cache, "
        "warp_cache and Manager cannot tell.  `memory` counts a full cache instead.",
        "What allocators keep for themselves in the process; fragmentation after days; the copy of "
        "everything that UltraDict keeps in every process.",
    )
    sizes = SIZES[1:3] if options.quick else SIZES
    made = random.Random(options.seed)
    figures: dict[str, dict[str, float]] = {}
    for size in sizes:
        count = min(MOST, PAYLOAD // (size + KEY_BYTES))
        pairs = {key: made.randbytes(size) for key in hot_keys(count)}
        payload = sum(len(key) + len(value) for key, value in pairs.items())
        for kind in PEERS:
            if kind.footprint is Adapter.footprint:
                continue
            ours = fitting(kind, avg_entry_size=size + KEY_BYTES, slots=0)
            with opened([ours], payload, result.skipped) as peers:
                for peer in peers:
                    for name, grown in _grown(peer, pairs).items():
                        figures.setdefault(name, {})[str(size)] = (grown - payload) / count
    result.data = {"bytes_over_payload": figures}
    titles = [f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B" for size in sizes]
    rows = [
        [name] + [f"{row[str(size)]:,.0f}" if str(size) in row else "-" for size in sizes]
        for name, row in figures.items()
    ]
    result.tables = [Table("Bytes per entry over key and value", ["value of", *titles], rows)]
    return result


def _grown(peer: Peer, pairs: Mapping[str, bytes]) -> dict[str, float]:
    """Bytes by which a peer grows when it stores `pairs`, by the names of the rows."""
    before = peer.footprint()
    assert before is not None and peer.get is not None
    peer.fill(pairs)
    for key in list(pairs)[:: max(1, len(pairs) // 500)]:
        require(peer.get(key) == pairs[key], f"{peer.name} holds every pair")
    after = peer.footprint()
    assert after is not None
    if peer.name != "shmcache":
        return {peer.name: after - before}
    stats = peer.cache.stats()  # type: ignore[attr-defined]
    require(stats.entries == len(pairs), "all entries fit")
    outside = peer.cache.size - stats.bytes_total  # type: ignore[attr-defined]
    fixed = min(outside, FIXED)
    share = stats.bytes_used / stats.bytes_total
    return {
        "shmcache": stats.bytes_used + (outside - fixed) * share,
        "shmcache, fixed tables too": stats.bytes_used + fixed + (outside - fixed) * share,
    }
