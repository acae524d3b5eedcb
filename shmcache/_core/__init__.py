"""The C core and its binding: everything that must be atomic or take nanoseconds.

Place: level 2 of the house. `src/` is the core (C11, knows no Python, makes no system call);
`binding.pyx` turns Python objects into bytes for it and its outcomes into exceptions. Users see
only what `Cache` inherits from `Handle`.
"""

from shmcache._core._binding import (
    FAULT_POINTS,
    LAYOUT,
    Cursor,
    Handle,
    clear_shard,
    client_totals,
    count_store_failure,
    entry_count,
    expire_shard,
    format_segment,
    identity,
    key_content,
    lease_look,
    lease_publish,
    lease_release,
    lease_take,
    lease_wait,
    look_up,
    now_ms,
    parse_superblock,
    set_fault,
    shard_of,
    shard_stats,
    unpack_plain,
    verify_shard,
    xxh64,
)

__all__ = [
    "FAULT_POINTS",
    "LAYOUT",
    "Cursor",
    "Handle",
    "clear_shard",
    "client_totals",
    "count_store_failure",
    "entry_count",
    "expire_shard",
    "format_segment",
    "identity",
    "key_content",
    "lease_look",
    "lease_publish",
    "lease_release",
    "lease_take",
    "lease_wait",
    "look_up",
    "now_ms",
    "parse_superblock",
    "set_fault",
    "shard_of",
    "shard_stats",
    "unpack_plain",
    "verify_shard",
    "xxh64",
]
