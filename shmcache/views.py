"""The views that `Cache.keys()`, `.values()` and `.items()` return.

Place: level 3; below the cache, which makes them. They iterate by a `_core.Cursor`, slot by slot,
rather than by the keys and a look-up each: an entry that is deleted meanwhile is then not missed
half-way, and key and value are of one instant.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Final

from shmcache import _core

__all__ = [
    "EXPIRED",
    "ITEMS",
    "KEYS",
    "VALUES",
    "VERSIONS",
    "CacheItems",
    "CacheKeys",
    "CacheValues",
]

KEYS: Final = 0
VALUES: Final = 1
ITEMS: Final = 2
VERSIONS: Final = 3
EXPIRED: Final = 4
"""What a `_core.Cursor` yields: keys, values, (key, value) or (key, value, version)."""


class CacheKeys(KeysView[Any]):
    """The keys; `in` looks the key up."""

    _mapping: _core.Handle  # set by MappingView

    def __iter__(self) -> Iterator[Any]:
        return _core.Cursor(self._mapping, KEYS)


class CacheValues(ValuesView[Any]):
    """The values; `in` compares one after the other."""

    _mapping: _core.Handle

    def __iter__(self) -> Iterator[Any]:
        return _core.Cursor(self._mapping, VALUES)

    def __contains__(self, value: object) -> bool:
        return any(v is value or v == value for v in self)


class CacheItems(ItemsView[Any, Any]):
    """Pairs of key and value; `in` looks the key up and compares the value."""

    _mapping: _core.Handle

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return _core.Cursor(self._mapping, ITEMS)

    def __contains__(self, item: object) -> bool:
        # As in a dict's items(): what is no pair is in none. And as in the cache: nor is a key of
        # a type that cannot be stored, where the inherited method would raise TypeError.
        if not isinstance(item, tuple) or len(item) != 2 or item[0] not in self._mapping:
            return False
        return super().__contains__(item)
