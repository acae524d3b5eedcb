"""Peers inside the process: the limit of what Python can do, shared with nobody."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.adapters.base import Adapter


class Dict(Adapter):
    """A dict: nothing is copied, encoded or shared."""

    name = "dict"
    about = "a plain dict of the process: hands out the very object; the limit"
    shared = False

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        store: dict[str, Any] = {}
        self._store = store

        def incr(key: str) -> int:
            store[key] = count = store.get(key, 0) + 1
            return count

        def get_many(keys: Sequence[str]) -> dict[str, Any]:
            return {key: store[key] for key in keys}

        self.get = self.get_miss = store.get
        self.contains = store.__contains__
        self.set = store.__setitem__
        self.delete = store.__delitem__
        self.incr = incr
        self.get_many = get_many
        self.set_many = store.update

    def footprint(self) -> int:
        """The table and all objects, by `sys.getsizeof`."""
        objects = (sys.getsizeof(k) + sys.getsizeof(v) for k, v in self._store.items())
        return sys.getsizeof(self._store) + sum(objects)

    def close(self) -> None:
        """See `Peer`."""


class LruCache(Adapter):
    """`functools.lru_cache`: only calls of the decorated function, no other operation."""

    name = "lru_cache"
    about = "functools.lru_cache around a function: a hit is a call of it; the limit"
    shared = False

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        self._values: dict[str, Any] = {}
        self.get = functools.lru_cache(maxsize=1 << 21)(self._load)

    def fill(self, pairs: Mapping[str, Any]) -> None:
        """Call the function once with every key, so that later calls are hits."""
        assert self.get is not None
        self._values.update(pairs)
        for key in pairs:
            self.get(key)
        self._values.clear()  # a call that is no hit is a KeyError from now on

    def close(self) -> None:
        """See `Peer`."""

    def _load(self, key: str) -> Any:
        return self._values[key]
