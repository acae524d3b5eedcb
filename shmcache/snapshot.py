"""Snapshots: a cache's entries in a file, saved while clients write, loaded with what is left of
their ttls.

Place: level 5; composed of `_core`'s records (whole entries, encoded as they are: no codec runs),
and `snapshotfile.py` (blocks, checksums, the file). docs/snapshots.md has format and guarantees.

What a snapshot has: every entry that is there throughout the save, exactly once and whole, as it
was at some moment of the save; namespaced entries whose namespace is not invalidated; the last
complete value of each swap slot. What it has not: leases, tokens, latency rings, counters, what
has expired.

Loading is two passes. The first one reads the whole file and checks every byte of it; only then
is anything stored. So a damaged file is a `DecodeError`, and nothing of it is in the cache.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shmcache import _core, limits
from shmcache.cache import Cache
from shmcache.codec import Codec
from shmcache.errors import (
    CacheClosed,
    CacheExists,
    CacheFull,
    CacheNotFound,
    DecodeError,
    LimitReached,
    LockTimeout,
    NotPermitted,
    SlotTooLarge,
    ValueTooLarge,
)
from shmcache.observer import observe
from shmcache.snapshotfile import BLOCK_BYTES, ENTRIES, SLOT, Block, Reader, Writer
from shmcache.snapshotinfo import SnapshotInfo, hash_seed_of, header_of, info_of

__all__ = [
    "SnapshotInfo",
    "SnapshotProgress",
    "SnapshotReport",
    "inspect",
    "load",
    "restore",
    "save",
    "saved_seed",
    "verify",
]

logger = logging.getLogger("shmcache")

RECORD_HEAD_BYTES: Final = 24
"""Bytes of a record before its key (`RECORD_HEAD` in _core/export.pxi)."""

_UNIT: Final = _core.LAYOUT["SHM_UNIT"]
_SLOT_HEAD: Final = struct.Struct("<HBx")
"""Of a swap slot's payload: bytes of its name, kind of its value; name and value follow."""


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What a save or a load has done.

    Attributes:
        entries: entries saved, or stored.
        bytes: size of the file.
        seconds: time taken.
        slots: swap slots saved, or stored.
        damaged: entries and swap slots that a save left out, since their bytes in the segment
            contradict themselves (`shmcache verify` tells more).
        too_large: entries that a load left out, since this cache takes none so large.
        evicted: entries that the cache evicted while it was loaded, other writers' too.
        created: whether `restore` made the cache.
    """

    entries: int
    bytes: int
    seconds: float
    slots: int
    damaged: int = 0
    too_large: int = 0
    evicted: int = 0
    created: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far it has got: `phase` is "saving", "checking" or "loading", `fraction` of that phase
    0.0 to 1.0, `entries` those of it so far."""

    phase: str
    fraction: float
    entries: int


OnProgress = Callable[[SnapshotProgress], object]
Path = str | os.PathLike[str]


# ------------------------------------------------------------------------------------- saving
def save(cache: Cache, path: Path, *, on_progress: OnProgress | None = None) -> SnapshotReport:
    """Save the entries of a cache to a file, while others read and write it.

    Args:
        cache: an open cache.
        path: of the file; replaced only when the new one is whole and on the disk. It gets the
            segment's mode and group, without the bits to execute it; its owner is this user.
        on_progress: called after each block, about a thousand times a GiB.

    Returns:
        What was saved.

    Raises:
        OSError: the directory or the disk; the old file stays.
        ValueError: `path` names something else than a file.
        CacheClosed, CacheNotFound: the handle was closed, or the cache unlinked, meanwhile.

    Takes no lock: writers never wait for it. Memory: one block, or the largest entry. Cost: a
    read of the index, a copy of the live bytes, and the disk.
    """
    started = time.monotonic()
    attachment = cache._held
    geometry = attachment.superblock.geometry
    index_slots = geometry.shard_count * geometry.bucket_count * _core.LAYOUT["SHM_BUCKET_SLOTS"]
    room = bytearray(max(BLOCK_BYTES, RECORD_HEAD_BYTES + geometry.max_entry_units * _UNIT))
    entries = damaged = 0
    with Writer(path, mode=attachment.mode, gid=attachment.gid, header=header_of(cache)) as writer:
        slots, unsound = _core.export_swaps(cache)
        for name, kind, value in slots:
            label = name.encode()
            writer.add(SLOT, 1, _SLOT_HEAD.pack(len(label), kind) + label + value)
        position: int | None = 0
        while position is not None:
            if cache._held is not attachment:
                raise CacheClosed(
                    f"cache {cache.name!r} was reopened while it was saved: save it again"
                )
            used, count, bad, position = _core.export_records(cache, room, position, BLOCK_BYTES)
            if count:
                writer.add(ENTRIES, count, memoryview(room)[:used])
            entries += count
            damaged += bad
            if on_progress is not None:
                done = 1.0 if position is None else position / index_slots
                on_progress(SnapshotProgress("saving", done, entries))
        size = writer.commit(entries=entries, slots=len(slots))
    if damaged or unsound:
        text = (
            "cache %r: damaged, and so not saved (verify() tells more): %d entries, swap slots %s"
        )
        logger.warning(text, cache.name, damaged, unsound)
    seconds = time.monotonic() - started
    return SnapshotReport(entries, size, seconds, len(slots), damaged + len(unsound))


# ------------------------------------------------------------------------------------ looking
def inspect(path: Path) -> SnapshotInfo:
    """What a snapshot is of, without reading the whole of it.

    Raises OSError, and DecodeError where header or trailer are damaged or cut off.
    """
    with Reader(path) as reader:
        return info_of(reader)


def saved_seed(path: Path) -> int | None:
    """The hash seed of the cache that was saved, for a cache that is created to be loaded from it.

    With it each key comes into the shard that it came from: a full `keep` cache fits into one of
    the same size again, which it may not where the keys spread over the shards anew. None where
    there is no such file, or none that can be read: `load` says what is wrong with it.
    """
    try:
        with Reader(path) as reader:
            info_of(reader)
            return hash_seed_of(reader)
    except (OSError, DecodeError):
        return None


def verify(path: Path, *, on_progress: OnProgress | None = None) -> SnapshotInfo:
    """`inspect`, after every byte of the file was checked.

    Raises OSError, and DecodeError naming file, byte and what is wrong.
    """
    with Reader(path) as reader:
        info = info_of(reader)
        _check(reader, on_progress)
        return info


@dataclass(slots=True)
class _Contents:
    """What the first pass has found out."""

    largest_units: int = 0
    slots: dict[str, int] = field(default_factory=dict)
    """Bytes of each swap slot's value."""


def _check(reader: Reader, on_progress: OnProgress | None) -> _Contents:
    """The first pass: every byte of the file, and that all records are records."""
    found = _Contents()
    entries = 0
    for block, first in reader.verify():
        if block.kind == SLOT:
            name, _, value_at = _parse_slot(reader, block, first)
            if name in found.slots:
                reader.fail(block.offset, f"swap slot {name!r} is there twice")
            found.slots[name] = block.length - value_at
        else:
            sound, number = _core.check_records(first, block.records, block.length)
            if not sound:
                reader.fail(block.payload_offset + number, "there is no record of an entry")
            found.largest_units = max(found.largest_units, number)
            entries += block.records
        if on_progress is not None:
            done = (block.payload_offset + block.length) / reader.totals.bytes
            on_progress(SnapshotProgress("checking", done, entries))
    for what, count, said in (
        ("entries", entries, reader.totals.entries),
        ("swap slots", len(found.slots), reader.totals.slots),
    ):
        if count != said:
            reader.fail(reader.totals.bytes, f"{count} {what}, where the trailer says {said}")
    return found


def _parse_slot(reader: Reader, block: Block, first: memoryview) -> tuple[str, int, int]:
    """(name, kind of the value, where in the payload it begins) of a swap slot's block."""
    if block.records == 1 and len(first) >= _SLOT_HEAD.size:
        length, kind = _SLOT_HEAD.unpack_from(first)
        value_at = _SLOT_HEAD.size + length
        if length <= limits.LABEL_MAX and value_at <= len(first):
            try:
                name = bytes(first[_SLOT_HEAD.size : value_at]).decode()
                limits.check_label("swap slot", name)
            except ValueError:
                name = ""
            if name and _core.value_sound(kind, block.length - value_at):
                return name, kind, value_at
    reader.fail(block.payload_offset, "there is no swap slot's value")


# ------------------------------------------------------------------------------------ loading
def load(cache: Cache, path: Path, *, on_progress: OnProgress | None = None) -> SnapshotReport:
    """Store the entries of a snapshot in a cache that is open, beside other writers.

    The file wins: an entry of it replaces the one under its key; what the cache has besides stays.
    Each is stored as `set` stores, with as much ttl as it had left when it was saved; a namespaced
    one in its namespace as that is now.

    Args:
        cache: the cache to load into, of the codec that the snapshot was saved with.
        path: of the file.
        on_progress: called after each block of both passes.

    Returns:
        What was stored. Under policy `evict` a smaller cache keeps what fits (`evicted`).

    Raises, before anything is stored:
        OSError: the file cannot be read.
        DecodeError: it is no snapshot, or a byte of it is damaged; names file, byte and reason.
        ValueError: it was saved with another codec.
        NotPermitted: a snapshot of codec `pickle` that another user than this one and root owns or
            may write.
        SlotTooLarge, LimitReached: a swap slot does not fit.
        ValueTooLarge: policy `keep`, and an entry is larger than this cache takes.
    Raises part-way, naming how many entries were stored:
        CacheFull: policy `keep`, and there is no room.
        LockTimeout: a shard is held by a process that is stopped.
        DecodeError: the file was changed while it was read.
    """
    started = time.monotonic()
    with Reader(path) as reader:
        info = info_of(reader)
        _may_load(reader, info)
        _same_codec(reader, info, cache.codec)
        found = _check(reader, on_progress)
        return _store(cache, reader, info, found, on_progress, started)


def restore(
    name: str,
    path: Path,
    *,
    size: int | str | None = None,
    codec: Codec | None = None,
    mode: int = 0o600,
    group: str | int | None = None,
    on_progress: OnProgress | None = None,
) -> SnapshotReport:
    """`load` into the cache of that name, which is created like the saved one where it is absent.

    A cache that this makes persists, since nobody has it open when this returns: `unlink` it when
    it has had its day. If loading fails it is removed again. It is made only after the whole file
    was checked.

    Args:
        name: of the cache to load into; need not be the saved one's.
        path: of the snapshot.
        size: of a cache that is created, instead of the saved one's; the number of shards is then
            chosen anew.
        codec: the codec object, where the snapshot was saved with one of the caller's own.
        mode, group: of a cache that is created, as for `Cache`; the file has no say in them.
        on_progress: as for `load`.

    Returns what `load` does, with `created`. Raises what `load` and creating a `Cache` raise.
    """
    started = time.monotonic()
    limits.check_name(name)
    with Reader(path) as reader:
        info = info_of(reader)
        _may_load(reader, info)
        if codec is not None:
            _same_codec(reader, info, codec.name)
        found = _check(reader, on_progress)
        arguments = info.arguments | {"mode": mode, "group": group}
        if size is not None:
            arguments |= {"size": size, "shards": None}
        if codec is not None:
            arguments["codec"] = codec
        while True:
            try:
                cache, created = observe(name, decode=False), False
                break
            except CacheNotFound:
                pass
            try:
                seed = hash_seed_of(reader)
                cache, created = Cache._seeded(seed, name, create=True, **arguments), True
                break
            except CacheExists:  # somebody else was quicker
                continue
        try:
            _same_codec(reader, info, cache.codec)
            report = _store(cache, reader, info, found, on_progress, started, created)
            if created:  # now that it is whole: what a killed load leaves does not pass for one
                cache._held.set_persist(True)
        except BaseException:
            if created:
                cache.unlink()
            raise
        finally:
            cache.close()
        return report


def _may_load(reader: Reader, info: SnapshotInfo) -> None:
    """Unpickling runs what the file says: refuse files that others could have written."""
    if info.codec != "pickle":
        return
    if reader.uid not in (0, os.geteuid()) or reader.mode & 0o022:
        raise NotPermitted(
            f"snapshot {reader.path} has codec 'pickle', belongs to user {reader.uid} and has mode "
            f"{reader.mode:04o}: loading it would run whatever its writer put there, so it must "
            "belong to this user or root, and nobody else may be able to write it (chmod go-w); "
            "if you trust it, make a copy of your own"
        )


def _same_codec(reader: Reader, info: SnapshotInfo, codec: str) -> None:
    if info.codec != codec:
        raise ValueError(
            f"snapshot {reader.path} was saved with codec {info.codec!r}, and the cache has "
            f"{codec!r}: load it into a cache of codec {info.codec!r}"
        )


def _must_fit(cache: Cache, reader: Reader, found: _Contents) -> None:
    """Refuse what is sure not to fit, before anything is stored."""
    geometry = cache._held.superblock.geometry
    for name, length in found.slots.items():
        if length > geometry.slot_capacity:
            raise SlotTooLarge(
                f"snapshot {reader.path}: swap slot {name!r} has {length} bytes, and those of "
                f"cache {cache.name!r} take {geometry.slot_capacity}: load it into a cache with a "
                "larger slot_capacity; nothing was loaded"
            )
    named = set(_core.swap_names(cache))
    if len(found.slots.keys() - named) > geometry.slot_count - len(named):
        raise LimitReached(
            f"snapshot {reader.path} has the swap slots {sorted(found.slots)}, and cache "
            f"{cache.name!r} has {geometry.slot_count}, of which {sorted(named)} are named: load "
            "it into a cache with more slots; nothing was loaded"
        )
    if cache.policy == "keep" and found.largest_units > geometry.max_entry_units:
        raise ValueTooLarge(
            f"snapshot {reader.path} has an entry of {found.largest_units * _UNIT} bytes, and "
            f"cache {cache.name!r} takes {geometry.max_entry_units * _UNIT} at most: load it into "
            "a larger cache; nothing was loaded"
        )


def _store(
    cache: Cache,
    reader: Reader,
    info: SnapshotInfo,
    found: _Contents,
    on_progress: OnProgress | None,
    started: float,
    created: bool = False,
) -> SnapshotReport:
    """The second pass. Each block's checksum is asked for again: the file may have changed."""
    _must_fit(cache, reader, found)
    geometry = cache._held.superblock.geometry
    most = RECORD_HEAD_BYTES + geometry.max_entry_units * _UNIT
    counts = [0, 0]
    evicted = _evictions(cache)
    slots = 0
    try:
        for block in reader.blocks():
            if block.kind == SLOT:
                payload = reader.payload(block)
                name, kind, at = _parse_slot(reader, block, payload)
                _core.import_swap(cache.slot(name), kind, bytes(payload[at:]))
                slots += 1
            elif block.length > max(most, BLOCK_BYTES):
                counts[1] += 1  # one entry; not even read
            else:
                _core.import_records(cache, reader.payload(block), counts)
            if on_progress is not None:
                done = (block.payload_offset + block.length) / info.bytes
                on_progress(SnapshotProgress("loading", done, counts[0]))
    except (CacheFull, LockTimeout) as error:
        raise type(error)(
            f"snapshot {reader.path}: {counts[0]} of {info.entries} entries were stored, then: "
            f"{error}"
        ) from error
    return SnapshotReport(
        entries=counts[0],
        bytes=info.bytes,
        seconds=time.monotonic() - started,
        slots=slots,
        too_large=counts[1],
        evicted=max(0, _evictions(cache) - evicted),
        created=created,
    )


def _evictions(cache: Cache) -> int:
    return sum(int(_core.shard_stats(cache, i)["evictions"]) for i in range(cache.shards))
