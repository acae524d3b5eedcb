"""Each invariant of a shard, broken by hand: `verify()` must find it, and by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmcache import Cache, CacheFull, _core

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = _core.LAYOUT
ALL_ONES = (1 << 64) - 1

KIND_LIVE = 1 << 2
TAG_BIT = 1 << 5
VALUE_LEASE = 10  # SHM_V_LEASE of layout.h
POSITION_SHIFT = 20


class Shard:
    """The only shard of a cache, as bytes that can be changed."""

    def __init__(self, cache: Cache) -> None:
        attachment: Any = cache._attachment
        self.geometry = attachment.superblock.geometry
        start = self.geometry.shards_off
        end = start + self.geometry.shard_stride
        self.bytes = memoryview(attachment.mapping)[start:end]
        self.words = self.bytes.cast("Q")
        self.halves = self.bytes.cast("I")
        first = self.geometry.index_off // 8
        self.slots = range(first, first + self.geometry.bucket_count * LAYOUT["SHM_BUCKET_SLOTS"])

    def live_slot(self) -> int:
        """Index in `words` of some slot that names an entry."""
        return next(i for i in self.slots if self.words[i] & 0xC == KIND_LIVE)

    def entry(self, slot: int) -> int:
        """Index in `words` of the header of the entry that a slot names, in the main log."""
        log = self.geometry.main_off // 8
        return int(log + (self.words[slot] >> POSITION_SHIFT) * LAYOUT["SHM_UNIT"] // 8)


def field(name: str, size: int) -> int:
    """Index of a field of the shard's header among words of that many bytes."""
    return LAYOUT[f"shm_shard.{name}"] // size


def break_chain(shard: Shard) -> None:
    header = shard.entry(shard.live_slot())
    shard.words[header] |= 0xFFFFFFFF  # a value longer than the log


def break_slot_entry(shard: Shard) -> None:
    tail = shard.words[field("tail", 8)]
    slot = shard.live_slot()
    below = shard.words[slot] & ((1 << POSITION_SHIFT) - 1)
    shard.words[slot] = below | (tail + 1) << POSITION_SHIFT


def break_home(shard: Shard) -> None:
    shard.words[shard.live_slot()] ^= TAG_BIT


def break_one_slot(shard: Shard) -> None:
    slot = shard.live_slot()
    bucket = slot - (slot - shard.slots.start) % LAYOUT["SHM_BUCKET_SLOTS"]
    other = next(
        i for i in range(bucket, bucket + LAYOUT["SHM_BUCKET_SLOTS"]) if shard.words[i] == 0
    )
    shard.words[other] = shard.words[slot]


def break_counts(shard: Shard) -> None:
    shard.halves[(LAYOUT["shm_shard.counts"] + LAYOUT["shm_counts.entries"]) // 4] += 1


def break_note(shard: Shard) -> None:
    shard.halves[(LAYOUT["shm_shard.note"] + LAYOUT["shm_note.armed"]) // 4] = 1


def break_gap(shard: Shard) -> None:
    shard.halves[field("largest", 4)] = shard.geometry.max_entry_units


def break_min_expiry(shard: Shard) -> None:
    shard.words[field("min_expiry", 8)] = ALL_ONES


def break_lease(shard: Shard) -> None:
    for slot in shard.slots:
        if shard.words[slot] & 0xC == KIND_LIVE:
            header = shard.entry(slot)
            if shard.words[header] >> 56 == VALUE_LEASE:
                key_bytes = shard.words[header] >> 32 & 0xFFFF
                assert key_bytes == 8, "an int key: the lease lies on a word"
                shard.words[header + 3] = 0
                return
    raise AssertionError("no lease")


def break_geometry(shard: Shard) -> None:
    shard.halves[field("probe_limit", 4)] = shard.geometry.max_probe_buckets + 1


BREAKERS: dict[str, Callable[[Shard], None]] = {
    "INV-LOG-CHAIN": break_chain,
    "INV-SLOT-ENTRY": break_slot_entry,
    "INV-HOME": break_home,
    "INV-ONE-SLOT": break_one_slot,
    "INV-COUNTS": break_counts,
    "INV-NOTE": break_note,
    "INV-GAP": break_gap,
    "INV-MIN-EXPIRY": break_min_expiry,
    "INV-LEASE": break_lease,
    "INV-GEOMETRY": break_geometry,
}


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"\bINV-[A-Z]+(?:-[A-Z]+)*", path.read_text()))


def fill(cache: Cache) -> None:
    """Fill a `keep` cache of one shard until it refuses, so that no more than the gap is free."""
    cache.set("expires", b"x" * 100, ttl=3600)
    assert _core.lease_take(cache, -1, b"\xff" * 8, 0, 0, 0, 5.0)[0] == "taken"
    with pytest.raises(CacheFull):
        for number in range(1_000_000):
            cache[number] = b"x" * 500


@pytest.mark.parametrize("name", BREAKERS)
def test_a_broken_invariant_is_found_by_name(open_cache: Callable[..., Cache], name: str) -> None:
    cache = open_cache(size="1MiB", shards=1, policy="keep", slots=0)
    fill(cache)
    assert cache.verify() == []
    BREAKERS[name](Shard(cache))
    findings = cache.verify()
    assert name in {finding.invariant for finding in findings}
    assert all(str(finding).startswith(finding.invariant) for finding in findings)


def test_every_invariant_that_verify_knows_is_broken_here() -> None:
    assert names_in(ROOT / "shmcache" / "_core" / "src" / "verify.h") == set(BREAKERS)


def test_every_invariant_is_documented_and_every_documented_one_exists() -> None:
    sources = [
        path
        for pattern in ("*.py", "*.pyx", "*.pxi", "*.h")
        for path in (ROOT / "shmcache").rglob(pattern)
    ]
    used = set().union(*(names_in(path) for path in sources))
    document = (ROOT / "docs" / "invariants.md").read_text()
    assert set(re.findall(r"^### (INV-[A-Z-]+)$", document, re.MULTILINE)) == used
