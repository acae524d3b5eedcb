"""Sizes as users write them, and the layout that is planned from them."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import OutOfSharedMemory, geometry
from shmcache.geometry import Geometry, parse_size, plan

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def default_plan(size: int = 32 * MIB, **changes: object) -> Geometry:
    arguments: dict[str, object] = {
        "shards": None,
        "avg_entry_size": 256,
        "policy": "evict",
        "slots": 16,
        "slot_capacity": 64 * KIB,
        "cpu_count": 2,
    }
    arguments.update(changes)
    return plan(size, **arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- parse_size
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1048576, MIB),
        (0, 0),
        ("1048576", MIB),
        ("64MiB", 64 * MIB),
        ("64 MiB", 64 * MIB),
        (" 64mib ", 64 * MIB),
        ("64MB", 64_000_000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("2GB", 2_000_000_000),
        ("2GiB", 2 * GIB),
        ("1TB", 10**12),
        ("1TiB", 1 << 40),
        ("7B", 7),
        ("1.5GiB", GIB + GIB // 2),
        ("0.1MB", 100_000),
    ],
)
def test_sizes_that_can_be_read(text: int | str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "64M", "64 Mo", "-1MiB", -1, "1e6", "1,5MiB", "0x10", "1..5kB", ".5MB", "٣MB",
     "0.5B", "1.0001kB", "nan", "inf"],
)  # fmt: skip
def test_sizes_that_make_no_sense(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number"):
        parse_size(text)


@pytest.mark.parametrize("value", [None, 1.5, b"64MiB", True, [1]])
def test_a_size_of_another_type(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        parse_size(value)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- plan
def check_invariants(g: Geometry, policy: str) -> None:
    """Every region is aligned, and none overlaps its neighbour or leaves the segment."""
    assert g.clients_off == geometry.SUPERBLOCK_BYTES
    ends_and_starts = [
        (g.clients_off + g.client_count * geometry.CLIENT_BYTES, g.tokens_off),
        (g.tokens_off + g.token_count * geometry.TOKEN_BYTES, g.slots_off),
        (g.slots_off + g.slot_count * g.slot_stride, g.rings_off),
        (g.rings_off + g.rings_size, g.shards_off),
        (g.shards_off + g.shard_count * g.shard_stride, g.total_size),
        (geometry.SHARD_HEADER_BYTES, g.index_off),
        (g.index_off + g.bucket_count * geometry.BUCKET_BYTES, g.main_off),
        (g.main_off + g.main_units * 16, g.probation_off),
        (g.probation_off + g.probation_units * 16, g.shard_stride),
    ]
    for end, start in ends_and_starts:
        assert end <= start
    for offset in (g.clients_off, g.tokens_off, g.slots_off, g.rings_off, g.main_off):
        assert offset % 64 == 0
    for offset in (g.shards_off, g.shard_stride, g.index_off):
        assert offset % 128 == 0
    assert (g.main_off + g.main_units * 16) % 64 == 0 or g.probation_units == 0
    assert g.slot_capacity % 64 == 0
    assert g.slot_stride == geometry.SLOT_HEADER_BYTES + 2 * g.slot_capacity
    assert g.slot_count * g.slot_stride <= g.total_size // 8
    assert g.rings_size >= g.ring_count * geometry.RING_HEADER_BYTES
    assert g.shard_count & (g.shard_count - 1) == 0
    assert g.bucket_count >= 2
    assert g.bucket_count % 2 == 0
    assert (g.probation_units > 0) == (policy == "evict")
    assert 0 < g.main_units <= geometry.MAX_LOG_UNITS
    assert g.probation_units <= geometry.MAX_LOG_UNITS
    assert g.max_entry_units == g.main_units // 6
    assert 0 < g.budget_units < g.main_units + g.probation_units
    assert 1 <= g.max_probe_buckets <= g.bucket_count
    assert all(
        0 <= value < 2**32
        for name, value in dataclasses.asdict(g).items()
        if name.endswith(("_count", "_units", "_buckets")) or name == "avg_entry_size"
    )
    log_bytes = (g.main_units + g.probation_units) * 16
    entries = log_bytes // (g.avg_entry_size + 24)
    assert g.bucket_count * 8 >= 2 * entries  # half load or less at the intended size


@pytest.mark.parametrize("policy", ["evict", "keep"])
@pytest.mark.parametrize("size", [MIB, MIB + 1, 3 * MIB, 32 * MIB, 64 * MIB, GIB, 64 * GIB])
@pytest.mark.parametrize("cpu_count", [1, 2, 3, 64, 4096])
@pytest.mark.parametrize("avg_entry_size", [16, 256, MIB])
def test_default_shards_leave_room_for_large_values(
    size: int, policy: str, cpu_count: int, avg_entry_size: int
) -> None:
    g = default_plan(size, policy=policy, cpu_count=cpu_count, avg_entry_size=avg_entry_size)
    check_invariants(g, policy)
    assert g.total_size == size
    assert g.max_value_size >= size / 64
    assert g.client_count >= 1024
    assert g.token_count >= 64
    assert g.ring_count >= 16


@given(
    size=st.integers(MIB, 64 * GIB),
    shards=st.none() | st.integers(0, 10).map(lambda bits: 1 << bits),
    avg_entry_size=st.integers(16, 4 * MIB),
    policy=st.sampled_from(["evict", "keep"]),
    slots=st.integers(0, 64),
    slot_capacity=st.integers(1, 16 * MIB),
    cpu_count=st.integers(1, 256),
)
def test_any_plan_keeps_the_invariants(
    size: int,
    shards: int | None,
    avg_entry_size: int,
    policy: str,
    slots: int,
    slot_capacity: int,
    cpu_count: int,
) -> None:
    try:
        g = plan(size, shards, avg_entry_size, policy, slots, slot_capacity, cpu_count)
    except ValueError as error:
        assert shards is not None, error
        assert "shards" in str(error)
        return
    check_invariants(g, policy)
    assert g.slot_count == slots
    assert g.slot_capacity <= max(64, -(-slot_capacity // 64) * 64)
    if shards is None:
        assert g.max_value_size >= size / 64
    else:
        assert g.shard_count == shards
        assert (g.main_units + g.probation_units) * 16 >= geometry.MIN_LOG_BYTES


def test_the_default_cache_keeps_slots_of_64_kib() -> None:
    g = default_plan()
    assert g.slot_capacity == 64 * KIB
    assert g.slot_count == 16


def test_a_small_cache_shrinks_its_slots_not_their_number() -> None:
    g = default_plan(MIB)
    assert g.slot_count == 16
    assert 0 < g.slot_capacity < 64 * KIB


def test_a_cache_without_slots() -> None:
    g = default_plan(slots=0)
    assert g.slots_off == g.rings_off
    check_invariants(g, "evict")


def test_overhead_at_the_intended_entry_size() -> None:
    """Header, padding and index of an entry: at most 48 bytes over key and value."""
    for avg_entry_size in (64, 120, 256, 1024):
        g = default_plan(64 * MIB, avg_entry_size=avg_entry_size)
        log_bytes = (g.main_units + g.probation_units) * 16
        index_bytes = g.bucket_count * 64
        entries = log_bytes / (-(-(avg_entry_size + 16) // 16) * 16)
        assert (log_bytes + index_bytes) / entries - avg_entry_size <= 48


def test_probation_takes_its_fraction() -> None:
    g = default_plan(64 * MIB)
    share = g.probation_units / (g.main_units + g.probation_units)
    assert share == pytest.approx(geometry.PROBATION_FRACTION, abs=0.001)


def test_without_a_probation_fraction_there_is_one_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "PROBATION_FRACTION", 0.0)
    g = default_plan()
    assert g.probation_units == 0
    check_invariants(g, "keep")


def test_budgets() -> None:
    evict = default_plan()
    keep = default_plan(policy="keep")
    assert evict.budget_units / (evict.main_units + evict.probation_units) == pytest.approx(
        0.80, abs=0.001
    )
    assert keep.budget_units / keep.main_units == pytest.approx(0.90, abs=0.001)


@pytest.mark.parametrize("shards", [0, 3, -1, 2048, 1000])
def test_shards_that_are_no_power_of_two(shards: int) -> None:
    with pytest.raises(ValueError, match=f"shards={shards} is no power of two"):
        default_plan(shards=shards)


def test_more_shards_than_fit_says_how_many_do() -> None:
    with pytest.raises(ValueError, match=r"shards=1024 .* 32 fit"):
        default_plan(MIB, shards=1024)
    check_invariants(default_plan(MIB, shards=32), "evict")


def test_more_slots_than_fit_says_how_many_do() -> None:
    with pytest.raises(ValueError, match="pass slots=341 or fewer"):
        default_plan(MIB, slots=1000)
    check_invariants(default_plan(MIB, slots=341), "evict")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": MIB - 1}, "size 1048575"),
        ({"avg_entry_size": 15}, "avg_entry_size 15"),
        ({"avg_entry_size": 2 * GIB}, "avg_entry_size"),
        ({"policy": "lru"}, "'lru'"),
        ({"slots": -1}, "slots -1"),
        ({"slot_capacity": 0}, "slot_capacity 0"),
        ({"cpu_count": 0}, "cpu_count 0"),
        ({"size": 170 * GIB, "shards": 1}, "log larger"),
    ],
)
def test_arguments_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_plan(**{"size": 32 * MIB, **changes})  # type: ignore[arg-type]


def test_the_structs_are_those_that_were_compiled() -> None:
    layout = pytest.importorskip("shmcache._core").LAYOUT
    compiled = {
        "UNIT_BYTES": "SHM_UNIT",
        "LINE_BYTES": "SHM_LINE",
        "SUPERBLOCK_BYTES": "SHM_SUPERBLOCK_SIZE",
        "TOKEN_BYTES": "SHM_TOKEN_SIZE",
        "SLOT_HEADER_BYTES": "SHM_SLOT_HEADER_SIZE",
        "RING_HEADER_BYTES": "SHM_RING_HEADER_SIZE",
        "RINGS_HEADER_BYTES": "sizeof.shm_rings",
        "BUCKET_SLOTS": "SHM_BUCKET_SLOTS",
        "MAX_SHARDS": "SHM_MAX_SHARDS",
        "MAX_LOG_UNITS": "SHM_MAX_LOG_UNITS",
        "CLIENT_BYTES": "sizeof.shm_client",
        "SHARD_HEADER_BYTES": "sizeof.shm_shard",
        "ENTRY_HEADER_BYTES": "sizeof.shm_entry",
    }
    assert {ours: getattr(geometry, ours) for ours in compiled} == {
        ours: layout[theirs] for ours, theirs in compiled.items()
    }
    assert sys.byteorder == "little"
    for field in dataclasses.fields(Geometry):
        assert f"shm_superblock.{field.name}" in layout


@pytest.mark.parametrize("policy", ["evict", "keep"])
def test_a_size_that_no_number_of_shards_can_take(policy: str) -> None:
    for shards in (None, geometry.MAX_SHARDS):
        with pytest.raises(OutOfSharedMemory, match="16TiB"):
            default_plan(size=100 << 40, shards=shards, policy=policy)
        with pytest.raises(OutOfSharedMemory):
            default_plan(size=1 << 62, shards=shards, policy=policy)
    assert default_plan(size=16 << 40, policy=policy).shard_count == geometry.MAX_SHARDS
    with pytest.raises(ValueError, match="more shards"):
        default_plan(size=100 << 40, shards=4, policy=policy)
