"""Swap slots with bytes flipped, and against a sequential model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from support.names import unique_name

from shmcache import (
    Cache,
    CorruptSegment,
    SlotTooLarge,
    SwapSlot,
    _core,
)

LAYOUT = _core.LAYOUT


# -------------------------------------------------------------------------------- damage


@contextlib.contextmanager
def slot_bytes(cache: Cache, number: int = 0) -> Iterator[memoryview]:
    """The bytes of a slot, header and buffers."""
    attachment: Any = cache._attachment
    geometry = attachment.superblock.geometry
    start = geometry.slots_off + number * geometry.slot_stride
    with memoryview(attachment.mapping) as all_bytes:
        yield all_bytes[start : start + geometry.slot_stride]


def test_a_flipped_byte_is_corrupt_and_never_a_wrong_config(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(slot_capacity=64)
    slot = cache.slot()
    values = {1: {"timeout": 1}, 2: {"timeout": 2}, 3: {"timeout": 3}}
    for value in values.values():
        slot.store(value)
    refused = set()
    with slot_bytes(cache) as data:
        for at in range(len(data)):
            for flip in (0x01, 0x80, 0xFF):
                data[at] ^= flip
                reader = open_cache(cache.name, lock_timeout=0.05)
                try:
                    found = reader.slot().load_versioned()
                except CorruptSegment as error:
                    assert "swap slot" in str(error)
                    refused.add(at)
                else:
                    assert found == (values[3], 3), f"byte {at} ^ {flip:#x}"
                reader.close()
                data[at] ^= flip
    word = LAYOUT["shm_swap.word"]
    buffer = LAYOUT["sizeof.shm_swap"] + slot.capacity
    record = LAYOUT["shm_swap.record"]
    assert set(range(word, word + 8)) <= refused
    assert set(range(buffer, buffer + 10)) <= refused, "of the value itself"
    assert set(range(record + 16, record + 80)) <= refused, "of the name"
    assert slot.load_versioned() == (values[3], 3)


def test_a_damaged_value_is_healed_by_the_next_store(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    cache.slot().store({"a": 1})
    with slot_bytes(cache) as data:
        data[LAYOUT["sizeof.shm_swap"] + cache.slot().capacity] ^= 4
    reader = open_cache(cache.name)
    with pytest.raises(CorruptSegment, match=r"INV-SWAP-CURRENT.*'config'.*store the value again"):
        reader.slot().load()
    assert cache.slot().store({"a": 2}) == 2
    assert reader.slot().load() == {"a": 2}


def test_a_damaged_version_is_not_counted_on_from(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    slot = cache.slot()
    slot.store({"a": 1})
    with slot_bytes(cache) as data:
        data[LAYOUT["shm_swap.word"] + 1] ^= 4
        for call in (slot.load, lambda: slot.store(1), lambda: slot.wait(0, 1)):
            with pytest.raises(CorruptSegment, match="INV-SWAP-VERSION"):
                call()
        data[LAYOUT["shm_swap.word"] + 1] ^= 4
    assert slot.load_versioned() == ({"a": 1}, 1)


def test_a_length_past_the_buffer_is_not_followed(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    cache.slot().store({"a": 1})
    at = LAYOUT["shm_swap.buffer"] + LAYOUT["sizeof.shm_swap_buffer"]
    with slot_bytes(cache) as data:
        data[at : at + 4] = b"\xff" * 4
    with pytest.raises(CorruptSegment):
        open_cache(cache.name).slot().load()


def test_a_lock_that_is_nobodys_is_taken_over(cache: Cache) -> None:
    slot = cache.slot()
    for field in ("holder", "directory"):
        at = LAYOUT[f"shm_swap.{field}"]
        with slot_bytes(cache) as data:
            data[at : at + 8] = b"\xfe" * 8
        assert slot.store(field) > 0
        assert cache.slot(f"new {field}").load() is None
    assert slot.load() == "directory"


def test_a_damaged_name_is_not_given_away_again(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    cache.slot("a").store("a's")
    cache.slot("b").store("b's")
    with slot_bytes(cache, 0) as data:
        data[LAYOUT["shm_swap.record"] + LAYOUT["shm_record.name"]] ^= 1
    other = open_cache(cache.name)
    assert other.slot("b").load() == "b's"
    for name in ("a", "new"):
        with pytest.raises(CorruptSegment, match="INV-RECORD-SEAL"):
            other.slot(name)
    assert cache.slot("a").load() == "a's", "who has found it before goes on"


@pytest.mark.parametrize(
    ("at", "name"),
    [
        (LAYOUT["shm_swap.word"], "INV-SWAP-VERSION"),
        (LAYOUT["sizeof.shm_swap"], "INV-SWAP-CURRENT"),
        (LAYOUT["shm_swap.record"] + LAYOUT["shm_record.name"], "INV-RECORD-SEAL"),
    ],
)
def test_verify_finds_the_damage(cache: Cache, at: int, name: str) -> None:
    cache.slot("other").store("value")
    for number in range(2):
        cache.slot().store(number)
    assert cache.verify() == []
    with slot_bytes(cache, 1) as data:
        data[at] ^= 1
    (finding,) = cache.verify()
    assert (finding.invariant, finding.swap, finding.shard) == (name, 1, None)
    assert str(finding).startswith(f"{name} does not hold in swap slot 1: ")


# --------------------------------------------------------------------- against a model


class SlotMachine(RuleBasedStateMachine):
    """Two handles on one cache, three names, against (value, version) pairs in a dict."""

    versions = Bundle("versions")
    names = st.sampled_from(["a", "b", "config"])
    values = st.one_of(
        st.binary(max_size=64),
        st.integers(),
        st.text(max_size=20),
        st.lists(st.integers()),
        st.none(),
        st.booleans(),
    )

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[Cache] = []
        self.model: dict[str, tuple[Any, int]] = {}

    @initialize()
    def begin(self) -> None:
        name = unique_name("swap-model")
        self.handles = [Cache(name, size="1MiB", slots=4), Cache(name)]

    def teardown(self) -> None:
        for handle in self.handles:
            handle.close()

    def slot(self, name: str, handle: int) -> tuple[SwapSlot, tuple[Any, int]]:
        return self.handles[handle].slot(name), self.model.get(name, (None, 0))

    @rule(name=names, handle=st.integers(0, 1), value=values, target=versions)
    def store(self, name: str, handle: int, value: Any) -> int:
        slot, (_, version) = self.slot(name, handle)
        assert slot.store(value) == version + 1
        self.model[name] = (value, version + 1)
        return version + 1

    @rule(name=names, handle=st.integers(0, 1), value=values, version=versions)
    def compare_and_swap(self, name: str, handle: int, value: Any, version: int) -> None:
        slot, (_, current) = self.slot(name, handle)
        assert slot.compare_and_swap(version, value) is (version == current)
        if version == current:
            self.model[name] = (value, current + 1)

    @rule(name=names, handle=st.integers(0, 1))
    def rcu(self, name: str, handle: int) -> None:
        slot, (value, version) = self.slot(name, handle)
        assert slot.rcu(lambda old: [repr(old)[:100]]) == [repr(value)[:100]]
        self.model[name] = ([repr(value)[:100]], version + 1)

    @rule(name=names, handle=st.integers(0, 1), version=versions)
    def wait(self, name: str, handle: int, version: int) -> None:
        slot, (_, current) = self.slot(name, handle)
        assert slot.wait(version, 0) == (current if current > version else None)

    @rule(name=names, handle=st.integers(0, 1))
    def too_large(self, name: str, handle: int) -> None:
        slot, _ = self.slot(name, handle)
        with pytest.raises(SlotTooLarge):
            slot.store(b"x" * (slot.capacity + 1))

    @rule(handle=st.integers(0, 1))
    def reopen(self, handle: int) -> None:
        self.handles[handle].reopen()

    @invariant()
    def both_see_the_same(self) -> None:
        for name in self.model:
            for handle in range(len(self.handles)):
                slot, (value, version) = self.slot(name, handle)
                assert slot.load_versioned() == (value, version)
                assert slot.load() == value
                assert type(slot.load()) is type(value)


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
