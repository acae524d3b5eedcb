"""The core's own reader of plain msgpack against the package: it may give up, never differ."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import _core

GAVE_UP = object()

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.dictionaries(st.text(max_size=40) | st.integers() | st.binary(), inner, max_size=40)
    ),
    max_leaves=60,
)


def pack(value: Any) -> bytes:
    return msgpack.packb(value, default=str)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all the way down, in the same order; NaN is itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.keys()), list(b.keys())) and same(list(a.values()), list(b.values()))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


def by_the_package(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload, strict_map_key=False)
    except Exception:
        return GAVE_UP


@given(PLAIN)
def test_plain_values_are_decoded_as_the_package_does(value: Any) -> None:
    try:
        payload = pack(value)
    except OverflowError:  # ints past 64 bits as keys: not plain
        return
    found = _core.unpack_plain(payload, GAVE_UP)
    assert found is not GAVE_UP
    assert same(found, msgpack.unpackb(payload, strict_map_key=False))


@given(PLAIN, st.data())
def test_damaged_bytes_are_given_up_or_decoded_alike(value: Any, data: st.DataObject) -> None:
    try:
        payload = bytearray(pack(value))
    except OverflowError:
        return
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\xc0"):
        found = _core.unpack_plain(damaged, GAVE_UP)
        if found is not GAVE_UP:
            assert same(found, by_the_package(damaged))


@given(st.binary(max_size=60))
def test_any_bytes_are_given_up_or_decoded_alike(payload: bytes) -> None:
    found = _core.unpack_plain(payload, GAVE_UP)
    if found is not GAVE_UP:
        assert same(found, by_the_package(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xd4\x01a",  # an extension type
        b"\xdd\xff\xff\xff\xff",  # promises 2**32 - 1 elements
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xa2\xff\xfe",  # not UTF-8
        b"\x81\x90\x01",  # a list as a key
        b"\x91" * 1000 + b"\xc0",  # deeper than it goes
        b"\xc0\xc0",  # left over
    ],
    ids=repr,
)
def test_what_is_not_plain_is_left_to_the_package(payload: bytes) -> None:
    assert _core.unpack_plain(payload, GAVE_UP) is GAVE_UP


def test_keys_that_share_a_place_of_the_key_cache_are_told_apart() -> None:
    keys = [f"{first}{'x' * n}{last}" for first in "ab" for n in range(30) for last in "cdefgh"]
    value = {key: number for number, key in enumerate(keys)}
    for _ in range(3):
        assert _core.unpack_plain(pack(value)) == value
