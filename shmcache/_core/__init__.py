"""The C core and its binding: everything that must be atomic or take nanoseconds.

Place: level 2 of the house. `src/` is the core (C11, knows no Python, makes no system call);
`binding.pyx` turns Python objects into bytes for it and its outcomes into exceptions. Users see
only what `Cache` inherits from `Handle`.
"""

from shmcache._core._binding import (
    FAULT_POINTS,
    LAYOUT,
    RING_OWN_GET,
    RING_OWN_SET,
    Cursor,
    Handle,
    Ring,
    Swap,
    Timing,
    Token,
    clear_shard,
    client_totals,
    entry_count,
    expire_shard,
    format_segment,
    now_ms,
    parse_superblock,
    set_fault,
    shard_of,
    shard_stats,
    unpack_plain,
    verify_rings,
    verify_shard,
    verify_swaps,
    verify_tokens,
    xxh64,
)

__all__ = [
    "FAULT_POINTS",
    "LAYOUT",
    "RING_OWN_GET",
    "RING_OWN_SET",
    "Cursor",
    "Handle",
    "Ring",
    "Timing",
    "Swap",
    "Token",
    "clear_shard",
    "client_totals",
    "entry_count",
    "expire_shard",
    "format_segment",
    "now_ms",
    "parse_superblock",
    "set_fault",
    "shard_of",
    "shard_stats",
    "unpack_plain",
    "verify_rings",
    "verify_shard",
    "verify_swaps",
    "verify_tokens",
    "xxh64",
]
