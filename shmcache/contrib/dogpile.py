"""A dogpile.cache region backend in shared memory, registered as ``shmcache``.

    region = make_region().configure(
        "shmcache",
        expiration_time=300,
        arguments={"name": "app", "size": "128MiB", "distributed_lock": True},
    )

Place: level 6; over the public `Cache`. dogpile serialises (pickle, or what the region says) and
decides when a value is too old; what arrives here are bytes, stored as bytes.

With ``distributed_lock`` one process of all regenerates a value while the others wait, or serve
the old one. The lock is a lease: a process that is killed loses it at once.

Outages. With ``on_error="miss"`` (the default) a cache that is gone, full or held is a miss, and
logged; ``"raise"`` raises what shmcache raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from dogpile.cache.api import NO_VALUE, BytesBackend, CacheMutex
from dogpile.cache.api import SerializedReturnType as Serialized

from shmcache import errors
from shmcache.cache import Cache
from shmcache.contrib._connection import connect
from shmcache.contrib._mutex import LeaseMutex

__all__ = ["ShmBackend"]

_CACHE_ARGUMENTS: Final = frozenset(inspect.signature(Cache.__init__).parameters) - {
    "self",
    "name",
    "create",
}


class ShmBackend(BytesBackend):
    """dogpile's backend ``shmcache``.

    Arguments (of `configure(arguments=...)`; unknown ones are ignored, as dogpile asks):
        name: the cache's. Required.
        distributed_lock: whether processes exclude each other while a value is regenerated;
            False (the default): the threads of each process do.
        expiration_time: seconds after which the cache drops an entry; longer than the region's
            own expiration time, or stale values cannot be served meanwhile. None: never.
        on_error: ``"miss"`` or ``"raise"``.
        Further: those of `shmcache.Cache`, but `create`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        if "name" not in arguments:
            raise ValueError(
                "dogpile's backend 'shmcache' needs the cache's name: "
                'configure("shmcache", arguments={"name": "app"})'
            )
        self._connection = connect(
            arguments["name"],
            on_error=arguments.get("on_error", "miss"),
            **{key: arguments[key] for key in _CACHE_ARGUMENTS & arguments.keys()},
        )
        self._ttl: float | None = arguments.get("expiration_time")
        self._distributed = bool(arguments.get("distributed_lock", False))

    def get_mutex(self, key: str) -> CacheMutex | None:
        """The lock of a key for all processes; None, dogpile's own, without `distributed_lock`."""
        if not self._distributed:
            return None
        return cast(CacheMutex, LeaseMutex(self._connection, key))

    def get_serialized(self, key: str) -> Serialized:
        """The bytes, or NO_VALUE."""
        found: Any = self._connection.run(lambda cache: cache.get(key, NO_VALUE), NO_VALUE)
        return cast(Serialized, found)

    get = get_serialized

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[Serialized]:
        """The bytes of each key, or NO_VALUE, in the order of `keys`."""
        wanted = list(keys)
        found = self._connection.run(
            lambda cache: cache.get_many(dict.fromkeys(wanted)), cast("dict[str, Any]", {})
        )
        return [found.get(key, NO_VALUE) for key in wanted]

    get_multi = get_serialized_multi

    def set_serialized(self, key: str, value: bytes) -> None:
        """Store bytes; where they are too large, the old ones go."""
        self._connection.run(lambda cache: self._store(cache, key, value), None)

    set = set_serialized  # type: ignore[assignment]

    def _store(self, cache: Cache, key: str, value: bytes) -> None:
        try:
            cache.set(key, value, self._ttl)
        except (errors.ValueTooLarge, errors.CacheFull) as error:
            cache.delete(key)
            if self._connection.on_error == "raise":
                raise
            self._connection.log(error)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        """Store the bytes of several keys, each shard being taken once."""

        def operation(cache: Cache) -> None:
            try:
                cache.set_many(mapping, self._ttl)
            except (errors.ValueTooLarge, errors.CacheFull):
                for key, value in mapping.items():
                    self._store(cache, key, value)

        self._connection.run(operation, None)

    set_multi = set_serialized_multi  # type: ignore[assignment]

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        self._connection.run(lambda cache: cache.delete(key), False)

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Remove keys, those that are there."""
        wanted = list(keys)
        self._connection.run(lambda cache: cache.delete_many(wanted), 0)
