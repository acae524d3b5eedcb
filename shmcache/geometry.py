"""From what a user asks for (bytes, shards, slots) to where every region of a segment lies.

Place in the flow: level 1.  `Cache` parses its sizes here; the process that creates a segment
asks `plan` for its `Geometry`, which the core writes into the superblock.  Nobody plans for a
segment that exists: an attacher takes the geometry that it finds there.  This module does
arithmetic, nothing else: it opens, maps and locks nothing.

    0            superblock              SUPERBLOCK_BYTES
    clients_off  CLIENT_COUNT slots      CLIENT_BYTES each
    tokens_off   TOKEN_COUNT tokens      TOKEN_BYTES each
    slots_off    slot_count swap slots   slot_stride each: a header and two buffers
    rings_off    lock, RING_COUNT records  RING_HEADER_BYTES each, then an arena for samples
    shards_off   shard_count shards      shard_stride each: header, index, main and probation log

Sizes of structs repeat `layout.h`, the one source of truth; a test compares them with what was
compiled.  A unit is 16 bytes of a log: every entry and pad is a whole number of units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shmcache.errors import OutOfSharedMemory

__all__ = [
    "MIN_SIZE_BYTES",
    "PROBATION_FRACTION",
    "Geometry",
    "parse_size",
    "plan",
]

# ----------------------------------------------------- structs of layout.h (a test compares them)
UNIT_BYTES = 16
LINE_BYTES = 64
SUPERBLOCK_BYTES = 4096
CLIENT_BYTES = 128
TOKEN_BYTES = 256
SLOT_HEADER_BYTES = 256
RINGS_HEADER_BYTES = 64
RING_HEADER_BYTES = 256
SHARD_HEADER_BYTES = 512
ENTRY_HEADER_BYTES = 16
BUCKET_SLOTS = 8
BUCKET_BYTES = 64
MAX_SHARDS = 1024
MAX_LOG_UNITS = 1 << 30

# ------------------------------------------------------------------------------ chosen numbers
MIN_SIZE_BYTES = 1 << 20
"""The smallest cache: below it the fixed regions would be a third of the segment and more."""

CLIENT_COUNT = 1024
"""Processes that can be attached at once (the promise of the public API)."""

TOKEN_COUNT = 64
"""Cancellation tokens that a cache can name (the promise of the public API)."""

RING_COUNT = 16 + 2
"""Latency rings: 16 that a cache can name (the promise of the public API), and the two in which
it records its own gets and sets."""

RING_ARENA_BYTES = RING_COUNT * (4096 * 8 + 8192)
"""Samples and histograms: each ring at its default capacity of 4,096 words of 8 bytes, and
8 KiB for its log-linear buckets (16 for each power of two of nanoseconds, 8 bytes each: 801)."""

RINGS_SHARE = 16
"""Rings take at most one 16th of a segment: a small cache gets shorter rings, not fewer keys."""

SLOTS_SHARE = 8
"""Swap slots take at most an eighth of a segment (the public API says so)."""

PROBATION_FRACTION = 0.10
"""Share of a shard's log bytes that new entries pass first (policy "evict"); 0 gives one log.
S3-FIFO (Yang et al., SOSP '23) found 10% good on nearly all of its 6,594 traces."""

BUDGET_EVICT = 0.80
"""Live share of both logs below which nothing live is evicted.  Log-structured memory gets 80 to
90% into use (Rumble et al., FAST '14); a prototype copied 4.3 bytes for each byte written at 79%
live, and 9.7 at 87%, so a cache that may evict stops at 80%."""

BUDGET_KEEP = 0.90
"""Live share of the log above which "keep" refuses a write.  80% of `bytes_total` is promised
with evenly spread keys; the margin covers a shard that drew more keys than the average (with 250
entries a shard, the fullest of four holds 7% more). What is left pays for the gap of moves (twice
the largest entry, 3% where entries are a 64th of the log) and for cleaning: about 20 bytes are
walked for each byte written to a log that is as full as it gets."""

MAX_ENTRY_DIVISOR = 6
"""The largest entry is this fraction of the main log.  Free space must hold the largest live
entry and a pad whatever is live: at 80 to 90% live, a sixth of the log is what is left over."""

VALUE_SHARE = 64
"""`max_value_size` is at least this fraction of the segment (the promise of the public API)."""

DEFAULT_MAX_SHARDS = 8
"""More shards than this stop paying by themselves (few writers meet in eight), and each one more
makes the largest possible value smaller."""

SHARDS_PER_CPU = 4
"""With four shards a CPU, writers on all CPUs rarely meet in one (birthday bound)."""

MAX_SLOT_BYTES = 1 << 31
"""The largest swap slot: a length has 32 bits, and what is replaced whole should be small."""

MIN_LOG_BYTES = 16 << 10
"""The smallest logs of a shard: below it, headers and pads outweigh the entries."""

ENTRY_OVERHEAD_BYTES = ENTRY_HEADER_BYTES + UNIT_BYTES // 2
"""What an entry takes in the log besides key and value: header, and half a unit of padding."""

INDEX_SLOTS_PER_ENTRY = 2
"""Half load at the intended entry size: at 50% load 0.1% of inserts meet a full pair of 8-slot
buckets, at 70% 1.4%, at 90% 5.9% (measured with a prototype)."""

KEY_ALLOWANCE_BYTES = 255
"""`max_value_size` leaves room for a key of this length; longer keys take it from the value."""

EXPIRY_BYTES = 8
"""The expiry word of an entry that has a ttl: part of what `max_value_size` sets aside."""

MAX_PROBE_EVICT = 4
MAX_PROBE_KEEP = 16
"""Buckets that a lookup may have to look at.  Under "evict" a full bucket evicts, so few do;
under "keep" nothing may be refused while the log has room, so the limit is generous: at half
load the chance of 16 full neighbours is nil."""

MIN_AVG_ENTRY_BYTES = 16
MAX_AVG_ENTRY_BYTES = 1 << 30

_SHARD_ALIGN = 2 * LINE_BYTES  # adjacent-line prefetch fetches pairs of lines: a pair of buckets
_INDEX_OFF = -(-SHARD_HEADER_BYTES // _SHARD_ALIGN) * _SHARD_ALIGN

_POLICIES = ("evict", "keep")

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d{1,19})(?:\.(\d{1,9}))?\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str, argument: str = "size") -> int:
    """Bytes that a size stands for.

    `size` is a number of bytes, or text such as "64MiB" (2^20 each), "64MB" (10^6 each), "1.5GiB",
    "512 kB" or "1048576"; the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB, in either case.
    `argument` is its name, for messages.

    Raises `ValueError` for anything else (a bare "64M" too, which some read as 10^6 and some as
    2^20), for a negative number and for a fraction of a byte; `TypeError` for another type.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(
            f"{argument} must be an int (bytes) or text such as '64MiB', not {type(size).__name__}"
        )
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{argument} {size} is negative; pass a number of bytes, or '64MiB'")
        return int(size)
    match = _SIZE.fullmatch(size)
    factor = _SIZE_UNITS.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(
            f"{argument} {size!r} is no size; write a number of bytes, or a number and one of "
            "B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024), "
            "such as '64MiB'"
        )
    fraction = match[2] or ""
    denominator = int("1" + "0" * len(fraction))
    total, rest = divmod(int(match[1] + fraction) * factor, denominator)
    if rest:
        raise ValueError(f"{argument} {size!r} is no whole number of bytes; round it to one")
    return total


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything lies: the geometry fields of `shm_superblock`, under their names.

    Offsets are bytes from the start of the segment, but for `index_off`, `main_off` and
    `probation_off`, which count from the start of a shard.  Units are 16 bytes.
    """

    total_size: int
    client_count: int
    clients_off: int
    tokens_off: int
    slots_off: int
    slot_stride: int
    slot_capacity: int
    rings_off: int
    rings_size: int
    shards_off: int
    shard_stride: int
    index_off: int
    main_off: int
    probation_off: int
    token_count: int
    slot_count: int
    ring_count: int
    shard_count: int
    bucket_count: int
    main_units: int
    probation_units: int
    budget_units: int
    max_entry_units: int
    avg_entry_size: int
    max_probe_buckets: int

    @property
    def max_value_size(self) -> int:
        """Bytes that a value may take, its key being `KEY_ALLOWANCE_BYTES` long or shorter."""
        overhead = ENTRY_HEADER_BYTES + EXPIRY_BYTES + KEY_ALLOWANCE_BYTES
        return max(1, self.max_entry_units * UNIT_BYTES - overhead)

    @property
    def bytes_total(self) -> int:
        """Bytes that the logs of all shards can hold."""
        return self.shard_count * (self.main_units + self.probation_units) * UNIT_BYTES


@dataclass(frozen=True, slots=True)
class _Shard:
    """One shard, cut from `stride` bytes."""

    stride: int
    bucket_count: int
    main_units: int
    probation_units: int

    @property
    def log_units(self) -> int:
        return self.main_units + self.probation_units


def plan(
    size: int,
    shards: int | None,
    avg_entry_size: int,
    policy: str,
    slots: int,
    slot_capacity: int,
    cpu_count: int,
) -> Geometry:
    """The geometry of a new segment.

    size: bytes in all, at least `MIN_SIZE_BYTES`.
    shards: a power of two up to 1,024; None chooses one, such that `max_value_size` is at least
        `size` / 64 whatever the machine (up to 64 GiB: a log ends at 16 GiB, and so a value at a
        sixth of that).
    avg_entry_size: bytes of key and value together that entries are expected to have; sizes the
        index.
    policy: "evict" (two logs a shard) or "keep" (one).
    slots, slot_capacity: swap slots, and bytes in each.  The capacity is rounded up to a whole
        number of 64 bytes, and shrinks so that all slots together take an eighth of `size`.
    cpu_count: CPUs that may run writers; read only if `shards` is None.

    Raises `ValueError` naming the argument, the value, and what would do; `TypeError` for what
    is no int; `OutOfSharedMemory` for a size that no number of shards can take.
    """
    numbers: dict[str, object] = {
        "size": size,
        "shards": 1 if shards is None else shards,
        "avg_entry_size": avg_entry_size,
        "slots": slots,
        "slot_capacity": slot_capacity,
        "cpu_count": cpu_count,
    }
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    if size < MIN_SIZE_BYTES:
        raise ValueError(
            f"size {size} is below the least that a cache can have: pass {MIN_SIZE_BYTES} bytes "
            "('1MiB') or more"
        )
    if not MIN_AVG_ENTRY_BYTES <= avg_entry_size <= MAX_AVG_ENTRY_BYTES:
        raise ValueError(
            f"avg_entry_size {avg_entry_size} is out of range: key and value together take "
            f"{MIN_AVG_ENTRY_BYTES} to {MAX_AVG_ENTRY_BYTES} bytes"
        )
    if policy not in _POLICIES:
        raise ValueError(f"unknown policy {policy!r}: pass 'evict' or 'keep'")
    if cpu_count < 1:
        raise ValueError(f"cpu_count {cpu_count} makes no sense: pass 1 or more")

    clients_off = SUPERBLOCK_BYTES
    tokens_off = clients_off + CLIENT_COUNT * CLIENT_BYTES
    slots_off = tokens_off + TOKEN_COUNT * TOKEN_BYTES
    capacity = _slot_capacity(size, slots, slot_capacity)
    slot_stride = SLOT_HEADER_BYTES + 2 * capacity
    rings_off = slots_off + slots * slot_stride
    directory = RINGS_HEADER_BYTES + RING_COUNT * RING_HEADER_BYTES
    rings_size = min(size // RINGS_SHARE, directory + RING_ARENA_BYTES)
    rings_size = rings_size // LINE_BYTES * LINE_BYTES
    shards_off = _round_up(rings_off + rings_size, _SHARD_ALIGN)

    room = size - shards_off
    if shards is None:
        shard_count = _default_shards(size, room, avg_entry_size, policy, cpu_count)
    else:
        shard_count = shards
        _check_shards(room, shards, avg_entry_size, policy)
    shard = _cut_shard(room // shard_count, avg_entry_size, policy)
    _check_log_size(size, shard_count, shard)

    main_off = _INDEX_OFF + shard.bucket_count * BUCKET_BYTES
    budget = BUDGET_EVICT if policy == "evict" else BUDGET_KEEP
    max_probe = MAX_PROBE_EVICT if policy == "evict" else MAX_PROBE_KEEP
    return Geometry(
        total_size=size,
        client_count=CLIENT_COUNT,
        clients_off=clients_off,
        tokens_off=tokens_off,
        slots_off=slots_off,
        slot_stride=slot_stride,
        slot_capacity=capacity,
        rings_off=rings_off,
        rings_size=rings_size,
        shards_off=shards_off,
        shard_stride=shard.stride,
        index_off=_INDEX_OFF,
        main_off=main_off,
        probation_off=main_off + shard.main_units * UNIT_BYTES,
        token_count=TOKEN_COUNT,
        slot_count=slots,
        ring_count=RING_COUNT,
        shard_count=shard_count,
        bucket_count=shard.bucket_count,
        main_units=shard.main_units,
        probation_units=shard.probation_units,
        budget_units=int(shard.log_units * budget),
        max_entry_units=shard.main_units // MAX_ENTRY_DIVISOR,
        avg_entry_size=avg_entry_size,
        max_probe_buckets=min(max_probe, shard.bucket_count),
    )


def _slot_capacity(size: int, slots: int, capacity: int) -> int:
    """Bytes in each swap slot: as asked for, or what an eighth of `size` leaves to each."""
    if slots < 0:
        raise ValueError(f"slots {slots} is negative: pass how many swap slots to reserve")
    if capacity < 1:
        raise ValueError(f"slot_capacity {capacity} is too small: a swap slot takes 1 byte or more")
    if capacity > MAX_SLOT_BYTES:
        raise ValueError(
            f"slot_capacity {capacity} is too large: a swap slot takes {MAX_SLOT_BYTES} bytes at "
            "most; keep what is larger elsewhere, and its name in the slot"
        )
    capacity = _round_up(capacity, LINE_BYTES)
    if slots == 0:
        return capacity
    share = size // SLOTS_SHARE
    fits = (share // slots - SLOT_HEADER_BYTES) // 2 // LINE_BYTES * LINE_BYTES
    if fits < LINE_BYTES:
        most = share // (SLOT_HEADER_BYTES + 2 * LINE_BYTES)
        raise ValueError(
            f"{slots} swap slots do not fit in an eighth of {size} bytes: pass slots={most} or "
            "fewer, or a larger size"
        )
    return min(capacity, fits)


def _default_shards(size: int, room: int, avg_entry_size: int, policy: str, cpu_count: int) -> int:
    """A power of two: the most that `cpu_count` and the largest value leave room for."""
    least_entry_bytes = size / VALUE_SHARE + ENTRY_HEADER_BYTES + EXPIRY_BYTES + KEY_ALLOWANCE_BYTES
    least_main_bytes = MAX_ENTRY_DIVISOR * (least_entry_bytes + UNIT_BYTES)
    shards = _floor_power_of_two(min(DEFAULT_MAX_SHARDS, SHARDS_PER_CPU * cpu_count))
    while shards > 1:
        shard = _cut_shard(room // shards, avg_entry_size, policy)
        if shard.main_units * UNIT_BYTES >= least_main_bytes:
            break
        shards //= 2
    # A log has 30 bits of offset: a segment of hundreds of GiB needs more shards than CPUs do.
    while shards < MAX_SHARDS:
        if _cut_shard(room // shards, avg_entry_size, policy).main_units <= MAX_LOG_UNITS:
            break
        shards *= 2
    return shards


def _check_shards(room: int, shards: int, avg_entry_size: int, policy: str) -> None:
    """Refuses a number of shards that is no power of two, or whose logs would be too small."""
    if not 1 <= shards <= MAX_SHARDS or shards & (shards - 1):
        raise ValueError(
            f"shards={shards} is no power of two from 1 to {MAX_SHARDS}: pass one, or leave it out"
        )
    fits = shards
    while fits and _log_bytes(room // fits, avg_entry_size, policy) < MIN_LOG_BYTES:
        fits //= 2
    if fits < shards:
        raise ValueError(
            f"shards={shards} would leave each shard less than {MIN_LOG_BYTES} bytes of log: "
            f"{fits} fit in this size, so pass shards={fits} or fewer, or a larger size"
        )


def _check_log_size(size: int, shards: int, shard: _Shard) -> None:
    if max(shard.main_units, shard.probation_units) > MAX_LOG_UNITS:
        most = MAX_LOG_UNITS * UNIT_BYTES
        if shards == MAX_SHARDS:
            raise OutOfSharedMemory(
                f"size {size} is more than any cache can have: pass {MAX_SHARDS * most} bytes "
                "('16TiB') at most, and no more than /dev/shm has free"
            )
        raise ValueError(
            f"size {size} in {shards} shards makes a log larger than {most} bytes: pass more "
            f"shards (at most {MAX_SHARDS}), or a smaller size"
        )


def _log_bytes(stride: int, avg_entry_size: int, policy: str) -> int:
    if stride < _INDEX_OFF + 2 * BUCKET_BYTES + UNIT_BYTES:
        return 0
    return _cut_shard(stride, avg_entry_size, policy).log_units * UNIT_BYTES


def _cut_shard(stride: int, avg_entry_size: int, policy: str) -> _Shard:
    """Divides `stride` bytes into header, index and logs.

    The index has at least `INDEX_SLOTS_PER_ENTRY` slots for each entry of the intended size that
    the logs can hold.  With e bytes an entry in the log and i bytes in the index, L bytes of log
    want L * i / e of index, so L = body * e / (e + i); the index is rounded up, so the log that
    is left is never larger than that L.
    """
    stride = stride // _SHARD_ALIGN * _SHARD_ALIGN
    body = stride - _INDEX_OFF
    entry_bytes = avg_entry_size + ENTRY_OVERHEAD_BYTES
    index_bytes = INDEX_SLOTS_PER_ENTRY * (BUCKET_BYTES // BUCKET_SLOTS)
    entries = -(-body // (entry_bytes + index_bytes))
    bucket_count = max(2, _round_up(-(-INDEX_SLOTS_PER_ENTRY * entries // BUCKET_SLOTS), 2))
    log_units = (body - bucket_count * BUCKET_BYTES) // UNIT_BYTES
    main_units = log_units
    if policy == "evict" and PROBATION_FRACTION > 0:
        main_units = int(log_units * (1 - PROBATION_FRACTION))
        units_per_line = LINE_BYTES // UNIT_BYTES
        main_units = main_units // units_per_line * units_per_line
    return _Shard(stride, bucket_count, main_units, log_units - main_units)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _floor_power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
