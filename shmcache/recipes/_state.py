"""Where recipes keep what they share: a namespace for each, and records that change atomically.

Place: level 6, beneath the recipes; knows `Cache` and `Namespace`, and no recipe.

A record (`Cell`) is one entry. Whatever changes it is one compare-and-swap, so a process that is
killed has changed all of it or nothing, and there is nothing to repair. Records are stored as
bytes in a format of their own (msgpack), so they do not depend on the cache's codec and are never
unpickled.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

import msgpack

from shmcache.cache import Cache
from shmcache.errors import DecodeError
from shmcache.namespace import Namespace

__all__ = ["Cell", "Recipe", "damaged", "open_room", "pack", "unpack"]

logger = logging.getLogger("shmcache")

R = TypeVar("R")

_FRIENDLY: Final = 4
"""Lost races before a caller steps back: somebody else's change went through at each of them."""

_LONGEST_STEP_S: Final = 1e-3


def pack(record: Any) -> bytes:
    """A record as it is stored; `unpack` reads it."""
    packed: bytes = msgpack.packb(record)
    return packed


def open_room(cache: Cache, kind: str, name: str, *, durable: bool) -> Namespace[Any]:
    """The namespace that the recipe `kind` called `name` keeps its entries in.

    durable: whether it matters that nothing is evicted; logs a warning where the cache evicts.

    Raises TypeError or ValueError for a name that is no str, or empty.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"a recipe takes a Cache, not {type(cache).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"the name of a recipe must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("the name of a recipe must not be empty")
    if durable and cache.policy != "keep":
        logger.warning(
            "%s %r is in cache %r, which evicts: what it tracks may be dropped when the cache is "
            "full; make that cache with policy='keep'",
            kind,
            name,
            cache.name,
        )
    return cache.namespace(f"shmcache.recipes/{kind}/{name}", ttl=float("inf"))


def damaged(room: Namespace[Any], key: object) -> DecodeError:
    """What is raised where a record's bytes are no record."""
    return DecodeError(
        f"record {key!r} of {room.prefix!r} in cache {room.name!r} is damaged: run verify(), "
        "then clear the recipe's namespace or unlink the cache"
    )


def unpack(room: Namespace[Any], key: object, packed: Any) -> Any:
    """The record in `packed`; DecodeError naming `key` where its bytes are none."""
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise damaged(room, key) from error


def step_back(lost: int) -> None:
    """Give way after `lost` lost races, for a random time that grows with them."""
    if lost > _FRIENDLY:
        time.sleep(random.random() * min(_LONGEST_STEP_S, 2e-6 * 2 ** min(lost, 10)))


class Recipe:
    """What all recipes are: they pickle to "the recipe of that name", as a cache does, so that one
    can be an argument of a `multiprocessing.Process`. Functions among their arguments (a clock, a
    predicate) must pickle then too."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Remember what it is made from."""
        self = super().__new__(cls)
        self._arguments = (args, named)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        args, named = self._arguments
        return functools.partial(type(self), *args, **named), ()


class Cell:
    """One record, under one key of a recipe's namespace."""

    __slots__ = ("key", "room")

    def __init__(self, room: Namespace[Any], key: str) -> None:
        self.room = room
        self.key = key

    def load(self) -> Any:
        """The record, or None where there is none (yet, or any more). Takes no lock."""
        packed = self.room.get(self.key)
        return None if packed is None else unpack(self.room, self.key, packed)

    def alter(self, fn: Callable[[Any], tuple[Any, R]]) -> R:
        """Change the record atomically.

        ``fn(record)`` gets the record (None: there is none) and returns a new one, or None to
        leave things as they are, and the result of the call. It runs under no lock, and again
        where somebody else was quicker; what it raises leaves the record as it was.

        Blocks and raises as `Cache.set` (`CacheFull`, `LockTimeout`).
        """
        room, key = self.room, self.key
        lost = 0
        while True:
            seen = room.gets(key)
            new, result = fn(None if seen is None else unpack(room, key, seen.value))
            if new is None:
                return result
            if seen is None:
                if room.add(key, pack(new)):
                    return result
            elif room.cas(key, pack(new), seen.version):
                return result
            lost += 1
            step_back(lost)
