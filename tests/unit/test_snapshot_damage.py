"""Damaged snapshots: whatever is wrong with a file, it is said, and nothing of it is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import SHARED
from support.segments import mapped

from shmcache import Cache, DecodeError, _core, snapshot
from shmcache.snapshotfile import BLOCK_BYTES, ENTRIES, SLOT, Writer

HEADER: dict[str, Any] = {
    "name": "made",
    "created_at": 1.5,
    "codec": "msgpack",
    "policy": "evict",
    "size": 1 << 20,
    "shards": 4,
    "avg_entry_size": 256,
    "swap_slots": 16,
    "slot_capacity": 64,
    "hash_seed": "0123456789abcdef",
}


@pytest.fixture
def small(open_cache: Callable[..., Cache], tmp_path: Path) -> bytes:
    """The bytes of a snapshot with a bit of everything in it."""
    cache = open_cache(size="1MiB")
    cache.set("key", "value", ttl=100)
    cache[1] = {"a": 1}
    cache.namespace("users").namespace("x")["a"] = 2.5
    cache.slot().store([1])
    snapshot.save(cache, tmp_path / "small")
    return (tmp_path / "small").read_bytes()


@pytest.fixture
def load(open_cache: Callable[..., Cache], tmp_path: Path) -> Iterator[Callable[[bytes], object]]:
    """Loads bytes; when the test is over, none of them may have left a trace in the cache."""
    cache = open_cache(size="1MiB")
    path = tmp_path / "damaged"

    def load_bytes(content: bytes) -> object:
        path.write_bytes(content)
        return snapshot.load(cache, path)

    yield load_bytes
    assert cache.stats().sets == 0 and _core.swap_names(cache) == [] and cache.verify() == []


def test_the_file_itself_is_good(
    small: bytes, open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    other = open_cache()
    assert snapshot.load(other, tmp_path / "small").entries == 3
    assert len(small) < 1000, "small enough to damage every byte of it"


def test_every_byte_flipped_is_seen(small: bytes, load: Callable[[bytes], object]) -> None:
    for at in range(len(small)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(small)
            damaged[at] ^= flip
            with pytest.raises(DecodeError, match=r"damaged at byte|no snapshot|format version"):
                load(bytes(damaged))


def test_every_length_is_seen(small: bytes, load: Callable[[bytes], object]) -> None:
    for length in range(len(small)):
        with pytest.raises(DecodeError, match="damaged at byte"):
            load(small[:length])
    for more in (b"\0", b"x" * 72, small):
        with pytest.raises(DecodeError):
            load(small + more)


def test_bytes_missing_or_doubled_anywhere_are_seen(
    small: bytes, load: Callable[[bytes], object]
) -> None:
    for at in range(0, len(small), 3):
        for damaged in (small[:at] + small[at + 1 :], small[:at] + small[at : at + 8] + small[at:]):
            with pytest.raises(DecodeError):
                load(damaged)


def test_blocks_that_change_places_are_seen(
    load: Callable[[bytes], object], tmp_path: Path
) -> None:
    path = tmp_path / "made"
    records = [record(b"a", b"1"), record(b"b", b"2")]
    with Writer(path, mode=0o600, gid=os.getgid(), header=HEADER) as writer:
        for one in records:
            writer.add(ENTRIES, 1, one)
        writer.commit(entries=2, slots=0)
    whole = path.read_bytes()
    first = whole.index(records[0]) - 24
    size = 24 + len(records[0])
    swapped = whole[:first] + whole[first + size : first + 2 * size] + whole[first : first + size]
    with pytest.raises(DecodeError, match=f"byte {first}: the checksum"):
        load(swapped + whole[first + 2 * size :])


def test_the_message_names_file_place_and_way_out(
    small: bytes, load: Callable[[bytes], object], tmp_path: Path
) -> None:
    with pytest.raises(DecodeError) as caught:
        load(small[:-1])
    text = str(caught.value)
    assert str(tmp_path / "damaged") in text and "take another copy" in text and "byte" in text


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4" * 50, b"\0" * 4096], ids=repr)
def test_what_never_was_a_snapshot(content: bytes, load: Callable[[bytes], object]) -> None:
    with pytest.raises(DecodeError):
        load(content)


def test_a_later_format_is_told(small: bytes, load: Callable[[bytes], object]) -> None:
    with pytest.raises(DecodeError, match=r"version 2 .* reads version 1"):
        load(small[:8] + struct.pack("<I", 2) + small[12:])


# -------------------------------------------- hostile files: every checksum right, and still wrong
def record(
    key: bytes = b"key", value: bytes = b"v", key_kind: int = 1, value_kind: int = 1, **fields: int
) -> bytes:
    """A record; `fields` override what it says."""
    said = {"value_len": len(value), "key_len": len(key), "ttl": 0, "stale": 0} | fields
    head = struct.pack(
        "<IHBBQQ",
        *(said["value_len"], said["key_len"], key_kind, value_kind, said["ttl"], said["stale"]),
    )
    return head + key + value


def path_of(*prefixes: bytes) -> bytes:
    path = b"".join(struct.pack("<H", len(prefix)) + prefix for prefix in prefixes)
    return struct.pack("<H", len(path)) + path


NAMESPACED = 0x10
BAD_RECORDS: dict[str, bytes] = {
    "no key kind": record(key_kind=0),
    "a key kind that is none": record(key_kind=9),
    "an epoch": record(path_of(b"a") + b"\0" * 8, b"\1" * 8, NAMESPACED | 15, 2),
    "a lease": record(b"key", b"x" * 16, 0x21, 10),
    "a pad": record(key_kind=0x81),
    "a flag of an expiry": record(key_kind=0x41),
    "an int key of 3 bytes": record(b"abc", key_kind=3),
    "a value kind that is none": record(value_kind=12),
    "the value of a lease": record(value_kind=10),
    "no value kind": record(value_kind=0),
    "an int of 1 byte": record(value_kind=2),
    "None with bytes": record(value_kind=5),
    "a value longer than the block": record(value_len=2),
    "a value of 4 GiB": record(value_len=0xFFFF_FFFF),
    "a key longer than the block": record(key_len=5),
    "a ttl past a century": record(ttl=1 << 50),
    "a ttl of 2**64 - 1": record(ttl=(1 << 64) - 1),
    "a stale window past any": record(ttl=1, stale=1 << 60),
    "a stale window without a ttl": record(stale=1),
    "a namespaced key without a path": record(b"k", key_kind=NAMESPACED | 1),
    "an empty path": record(b"\0\0k", key_kind=NAMESPACED | 1),
    "a path past the key": record(b"\xff\0k", key_kind=NAMESPACED | 1),
    "a path with an empty level": record(path_of(b"a", b"") + b"k", key_kind=NAMESPACED | 1),
    "a level past the path": record(b"\x03\0\x02\0ak", key_kind=NAMESPACED | 1),
    "half a length": record(b"\x01\0\x02k", key_kind=NAMESPACED | 1),
    "nine levels": record(path_of(*[b"a"] * 9) + b"k", key_kind=NAMESPACED | 1),
    "a path of 1,025 bytes": record(path_of(b"a" * 1023) + b"k", key_kind=NAMESPACED | 1),
    "no room for an epoch": record(path_of(b"a") + b"k" * 65_524, key_kind=NAMESPACED | 1),
    "half a head": record()[:20],
    "two where one is said": record() * 2,
    "a byte too many": record() + b"x",
    "nothing": b"",
}


def made(path: Path, *blocks: tuple[int, int, bytes], header: Any = None, **said: int) -> bytes:
    """A file with right checksums and these blocks."""
    with Writer(path, mode=0o600, gid=os.getgid(), header=HEADER | (header or {})) as writer:
        for kind, count, payload in blocks:
            writer.add(kind, count, payload)
        totals = {
            "entries": sum(count for kind, count, _ in blocks if kind == ENTRIES),
            "slots": sum(kind == SLOT for kind, _, _ in blocks),
        }
        writer.commit(**(totals | said))
    return path.read_bytes()


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_what_is_no_record_is_refused(
    name: str, load: Callable[[bytes], object], tmp_path: Path
) -> None:
    good = record(b"good", b"1")
    content = made(tmp_path / "made", (ENTRIES, 1, good), (ENTRIES, 1, BAD_RECORDS[name]))
    with pytest.raises(DecodeError, match="no record of an entry"):
        load(content)


def test_good_records_made_by_hand_are_loaded(
    open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = open_cache()
    blocks = [
        (ENTRIES, 2, record(b"a", b"1") + record(b"b", b"2", ttl=100_000, stale=0x7FFF << 31)),
        (ENTRIES, 1, record(path_of(b"x", b"y") + b"k", b"3", NAMESPACED | 2)),
        (SLOT, 1, struct.pack("<HBx", 4, 1) + b"slot" + b"bytes"),
    ]
    made(tmp_path / "made", *blocks)
    assert snapshot.load(cache, tmp_path / "made").entries == 3
    assert dict(cache) == {"a": b"1", "b": b"2"} and (cache.ttl("b") or 0) > 90
    assert dict(cache.namespace("x").namespace("y")) == {b"k": b"3"}
    assert cache.slot("slot").load() == b"bytes" and cache.verify() == []


RECORDS = st.builds(
    record,
    key=st.one_of(st.binary(max_size=40), st.builds(path_of, st.binary(max_size=4))),
    value=st.binary(max_size=40),
    key_kind=st.sampled_from([*range(1, 9), *range(17, 25), 0, 9, 31, 33, 0x50, 0x90]),
    value_kind=st.integers(0, 12),
    ttl=st.sampled_from([0, 1, 1000, 3_155_760_000_000, 1 << 43]),
    stale=st.sampled_from([0, 1, 0x7FFF << 31]),
)


@settings(max_examples=150, suppress_health_check=SHARED)
@given(st.lists(RECORDS, max_size=4), st.integers(-1, 1))
def test_any_records_are_refused_or_loaded_and_the_cache_stays_sound(
    cache: Cache, tmp_path: Path, records: list[bytes], more: int
) -> None:
    count = max(0, len(records) + more)
    made(tmp_path / "made", (ENTRIES, count, b"".join(records)))
    with contextlib.suppress(DecodeError):
        assert snapshot.load(cache, tmp_path / "made").entries == count == len(records)
    assert cache.verify() == []
    for kind in ("", b"", ()):
        with contextlib.suppress(DecodeError):  # a value, or a key, that cannot be decoded
            for key in cache.scan(kind):
                cache.get(key)


BAD_SLOTS: dict[str, bytes] = {
    "nothing": b"",
    "no name": struct.pack("<HBx", 0, 1) + b"bytes",
    "a name with a NUL": struct.pack("<HBx", 2, 1) + b"a\0",
    "a name that is no UTF-8": struct.pack("<HBx", 1, 1) + b"\xff",
    "a name past the block": struct.pack("<HBx", 9, 1) + b"a",
    "a name of 64 bytes": struct.pack("<HBx", 64, 1) + b"a" * 64,
    "a value kind that is none": struct.pack("<HBx", 1, 99) + b"a",
    "an int of 1 byte": struct.pack("<HBx", 1, 2) + b"ax",
}


@pytest.mark.parametrize("name", BAD_SLOTS)
def test_what_is_no_slot_is_refused(
    name: str, load: Callable[[bytes], object], tmp_path: Path
) -> None:
    content = made(tmp_path / "made", (ENTRIES, 1, record()), (SLOT, 1, BAD_SLOTS[name]))
    with pytest.raises(DecodeError, match="no swap slot"):
        load(content)


@pytest.mark.parametrize(
    ("header", "said", "blocks", "why"),
    [
        ({"codec": 1}, {}, [], "'codec' is none"),
        ({"name": None}, {}, [], "'name' is none"),
        ({"name": "\x1b[2J"}, {}, [], "'name' is none"),
        ({"codec": "a\n"}, {}, [], "'codec' is none"),
        ({"policy": "evicts"}, {}, [], "'policy' is none"),
        ({"size": -1}, {}, [], "'size'"),
        ({"size": 1.5}, {}, [], "'size'"),
        ({"shards": True}, {}, [], "'shards'"),
        ({"hash_seed": 1}, {}, [], "'hash_seed' is none"),
        ({"hash_seed": "0x12"}, {}, [], "'hash_seed' is none"),
        ({"created_at": 1e300}, {}, [], "'created_at'"),
        ({"created_at": "now"}, {}, [], "'created_at'"),
        ({}, {"entries": 1}, [], "0 entries, where the trailer says 1"),
        ({}, {"slots": 1}, [], "0 swap slots, where the trailer says 1"),
        ({}, {}, [(9, 1, b"x")], "no block of kind 9"),
        ({}, {}, [(3, 1, b"x" * 48)], "no block of kind 3"),
        ({}, {}, [(ENTRIES, 2, b"x" * (BLOCK_BYTES + 1))], "2 records in a block"),
        ({}, {}, [(SLOT, 1, struct.pack("<HBx", 1, 1) + b"a")] * 2, "there twice"),
    ],
)
def test_what_cannot_be_is_refused(
    header: dict[str, Any],
    said: dict[str, int],
    blocks: list[tuple[int, int, bytes]],
    why: str,
    load: Callable[[bytes], object],
    tmp_path: Path,
) -> None:
    with pytest.raises(DecodeError, match=why):
        load(made(tmp_path / "made", *blocks, header=header, **said))


def sealed(header: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<8sII", b"\x93SHMSNP\n", 1, len(header) if length is None else length)
    return head + header + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + header))


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"{", b"\xff", b"[" * 60_000, json.dumps([HEADER]).encode()], ids=len
)
def test_a_header_that_is_no_object(header: bytes, load: Callable[[bytes], object]) -> None:
    with pytest.raises(DecodeError, match="no JSON object"):
        load(sealed(header) + b"\0" * 72)


def test_a_length_is_not_believed(tmp_path: Path, open_cache: Callable[..., Cache]) -> None:
    """A file that takes no room on the disk, and says that it is 4 GiB: nothing of that size is
    ever in memory."""
    cache = open_cache()
    path = tmp_path / "huge"
    start = sealed(json.dumps(HEADER).encode())
    block = struct.pack("<IIQ", ENTRIES, 1, 24 + 3 + 0xFFFF_0000) + b"\0" * 8
    path.write_bytes(start + block + record(value_len=0xFFFF_0000))
    os.truncate(path, len(start) + 24 + 24 + 3 + (64 << 20))
    with path.open("ab") as file:
        totals = struct.pack("<QQQQ16s", 1, 0, 1, file.tell(), b"\0" * 16)
        head = struct.pack("<IIQ", 3, 1, len(totals))
        digest = xxhash.xxh3_64_intdigest(head + totals, seed=file.tell())
        file.write(head + struct.pack("<Q", digest) + totals)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match="goes past the trailer"):
        snapshot.load(cache, path)
    # the same, as long as it says, and with a wrong checksum
    block = struct.pack("<IIQ", ENTRIES, 1, 24 + 3 + (64 << 20)) + b"\0" * 8
    with path.open("r+b") as file:
        file.seek(len(start))
        file.write(block + record(value_len=64 << 20)[:27])
    with pytest.raises(DecodeError, match="checksum of a block"):
        snapshot.load(cache, path)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 32 << 10


def test_an_entry_too_large_for_the_cache_is_not_read_into_memory(
    tmp_path: Path, open_cache: Callable[..., Cache]
) -> None:
    cache = open_cache()
    path = tmp_path / "made"
    made(path, (ENTRIES, 1, record(b"a", b"x" * (32 << 20))), (ENTRIES, 1, record(b"b", b"1")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = snapshot.load(cache, path)
    assert (report.entries, report.too_large) == (1, 1) and dict(cache) == {"b": b"1"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10


def test_a_file_that_changes_between_the_passes(
    tmp_path: Path, open_cache: Callable[..., Cache]
) -> None:
    cache = open_cache()
    path = tmp_path / "made"
    content = made(path, *[(ENTRIES, 1, record(b"%d" % n, b"v" * 50)) for n in range(5)])
    at = content.rindex(b"v" * 50)

    def change(progress: snapshot.SnapshotProgress) -> None:
        if progress.phase == "loading":
            path.write_bytes(content[:at] + b"w" + content[at + 1 :])

    with pytest.raises(DecodeError, match="checksum"):
        snapshot.load(cache, path, on_progress=change)
    assert "4" not in cache


# ----------------------------------------------------------- a segment whose bytes were flipped
def test_what_is_damaged_in_the_segment_is_left_out(
    open_cache: Callable[..., Cache], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, other = open_cache(), open_cache()
    cache["good"] = 1
    cache["bad"] = b"this very value"
    cache.slot("good").store(1)
    cache.slot("bad").store(b"that very value")
    with mapped(cache.name) as data:
        at = data.find(b"badthis very value")
        assert data[at - 9] == 1, "the kind of the value, in the entry's header"
        data[at - 9] = 77
        at = data.find(b"that very value")
        data[at] ^= 1
    report = snapshot.save(cache, tmp_path / "a")
    assert (report.entries, report.slots, report.damaged) == (1, 1, 2)
    assert "damaged" in caplog.text
    snapshot.load(other, tmp_path / "a")
    assert dict(other) == {"good": 1} and _core.swap_names(other) == ["good"]
