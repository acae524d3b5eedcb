"""Values of every type that msgpack round-trips, and a comparison that sees what == does not."""

from __future__ import annotations

import collections
import math
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
from hypothesis import strategies as st

BERLIN = ZoneInfo("Europe/Berlin")
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.just(BERLIN),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
        st.text(min_size=1, max_size=6),
    ),
)
FIXED_ZONES = ZONES.filter(lambda zone: not isinstance(zone, ZoneInfo))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False),
    TEXT,
    st.binary(max_size=12),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.dates(),
    st.times(timezones=FIXED_ZONES),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
    ),
    max_leaves=15,
)


def shape(value: object) -> object:
    """A value with its types spelled out, so that == sees them too, and the zones of times."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return (kind, [(shape(key), shape(member)) for key, member in value.items()])
    if isinstance(value, list | tuple):
        return (kind, [shape(member) for member in value])
    if isinstance(value, set | frozenset):
        return (kind, value, collections.Counter(type(member).__name__ for member in value))
    if isinstance(value, datetime | time):
        return (kind, value, value.isoformat(), value.fold, str(value.tzinfo))
    if isinstance(value, float | Decimal):
        return (kind, repr(value))
    return (kind, value)


def encode_by_hand(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and a == b
    return bool(a == b)
