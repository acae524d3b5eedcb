"""shmcache: a cache that the worker processes of a host share, in shared memory.

    from shmcache import Cache

    cache = Cache("app")            # attach, or create it if nobody has
    cache["user:1"] = {"name": "Ada"}
    cache.get("user:1")             # in any process of this host

A get costs about what a `functools.lru_cache` hit costs, every process sees every write at once,
and a process that is killed at any instruction harms no other one. Linux only.
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError(
        f"shmcache works on Linux only, not on {sys.platform}: it needs /dev/shm, open file "
        "description locks and MADV_WIPEONFORK"
    )

from shmcache.cache import Cache, Versioned
from shmcache.codec import Codec
from shmcache.errors import (
    CacheClosed,
    CacheExists,
    CacheFull,
    CacheNotFound,
    Cancelled,
    CorruptSegment,
    DecodeError,
    GeometryWarning,
    InitTimeout,
    KeyTooLarge,
    LayoutMismatch,
    LimitReached,
    LockTimeout,
    NotPermitted,
    OutOfSharedMemory,
    ReentrantInit,
    ShmcacheError,
    SlotTooLarge,
    ValueTooLarge,
    WouldBlock,
)
from shmcache.keys import Key
from shmcache.latency import HistogramBucket, LatencyRing, LatencySummary
from shmcache.namespace import Namespace
from shmcache.segment import CacheInfo, list_caches
from shmcache.stats import ShardStats, Stats, WaitSummary
from shmcache.swap import SwapSlot, Watcher
from shmcache.token import CancellationToken
from shmcache.verify import Finding

__version__ = "0.1.0.dev0"

__all__ = [
    "Cache",
    "CacheClosed",
    "CacheExists",
    "CacheFull",
    "CacheInfo",
    "CacheNotFound",
    "CancellationToken",
    "Cancelled",
    "Codec",
    "CorruptSegment",
    "DecodeError",
    "Finding",
    "GeometryWarning",
    "HistogramBucket",
    "InitTimeout",
    "Key",
    "KeyTooLarge",
    "LatencyRing",
    "LatencySummary",
    "LayoutMismatch",
    "LimitReached",
    "LockTimeout",
    "Namespace",
    "NotPermitted",
    "OutOfSharedMemory",
    "ReentrantInit",
    "ShardStats",
    "ShmcacheError",
    "SlotTooLarge",
    "Stats",
    "SwapSlot",
    "ValueTooLarge",
    "Versioned",
    "WaitSummary",
    "Watcher",
    "WouldBlock",
    "list_caches",
]
