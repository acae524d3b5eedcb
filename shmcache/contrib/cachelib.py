"""A cachelib backend in shared memory, for cachelib itself and for Flask-Caching.

    cache = ShmCache("app", default_timeout=60, size="128MiB")          # cachelib

    app.config["CACHE_TYPE"] = "shmcache.contrib.cachelib.ShmCache"      # Flask-Caching
    app.config["CACHE_ARGS"] = ["app"]
    app.config["CACHE_OPTIONS"] = {"size": "128MiB"}

Place: level 6; over the public `Cache`.

Values. Whatever the cache's codec takes: an existing cache keeps its own; a new one that only this
user can write (mode 0600, the default) gets `pickle`, as cachelib's users expect, unless `codec`
asks for another ("msgpack" is safe to read whoever wrote it); one that others can write gets
msgpack. Where another `serializer` is set, what it makes is stored as bytes.

Outages. With ``on_error="miss"`` (the default) a cache that is gone, full or held is a miss, and
logged: `get` is None, `set` is False. ``on_error="raise"`` raises what shmcache raises.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from cachelib.base import BaseCache
from cachelib.serializers import SimpleSerializer

from shmcache import errors
from shmcache.cache import Cache
from shmcache.contrib._connection import OnError, as_pickle_raised, connect

__all__ = ["ShmCache"]

_MISSING: Final[Any] = object()
_NATIVE: Final = SimpleSerializer()


class ShmCache(BaseCache):
    """cachelib's interface over a cache in shared memory.

    Args:
        name: the cache's.
        default_timeout: seconds that an entry lives where a call gives no timeout; 0: for ever.
        key_prefix: a str put before all keys, or a callable that returns one. With a prefix,
            `clear` removes what begins with it; without, everything.
        ignore_delete_many_errors: whether `delete_many` is silent about keys that it could not
            delete (RuntimeError otherwise).
        on_error: ``"miss"`` or ``"raise"``.
        cache_arguments: those of `shmcache.Cache`, but `create`.

    Attributes:
        serializer: `dumps` and `loads`. The default one stands for the cache's own codec and is
            passed by; another one's bytes are stored as they are.

    All operations are atomic among processes: `add` has one winner, `inc` and `dec` lose nothing.
    """

    serializer: Any = _NATIVE

    def __init__(
        self,
        name: str,
        default_timeout: int | dt.timedelta = 300,
        *,
        key_prefix: str | Callable[[], str] | None = None,
        ignore_delete_many_errors: bool = True,
        on_error: OnError = "miss",
        **cache_arguments: Any,
    ) -> None:
        super().__init__(default_timeout, ignore_delete_many_errors)
        self.key_prefix = key_prefix or ""
        self._connection = connect(
            name, on_error=on_error, pickle_if_private=True, **cache_arguments
        )

    def _key(self, key: Any) -> Any:
        prefix = self.key_prefix() if callable(self.key_prefix) else self.key_prefix
        return f"{prefix}{key}" if prefix else key if isinstance(key, str) else f"{key}"

    def _ttl(self, timeout: int | dt.timedelta | None) -> float | None:
        """Seconds to live, None: for ever; below 0: expired already."""
        return self._normalize_timeout(timeout) or None

    def _dump(self, value: Any) -> Any:
        return value if self.serializer is _NATIVE else self.serializer.dumps(value)

    def _load(self, stored: Any) -> Any:
        if self.serializer is _NATIVE or stored is None or type(stored) is int:
            return stored
        return self.serializer.loads(stored)

    def _run(self, operation: Callable[[Cache], Any], missed: Any) -> Any:
        """`Connection.run`, with the errors of pickle as pickle raised them."""
        try:
            return self._connection.run(operation, missed)
        except TypeError as error:
            raised = as_pickle_raised(error)
            if raised is error:
                raise
            raise raised from None

    def _store(self, cache: Cache, key: Any, stored: Any, ttl: float | None) -> bool:
        if ttl is not None and ttl < 0:
            cache.delete(key)
            return True
        try:
            cache.set(key, stored, ttl)
        except (errors.ValueTooLarge, errors.CacheFull) as error:
            cache.delete(key)  # who asks for it must not get what it was before
            if self._connection.on_error == "raise":
                raise
            self._connection.log(error)
            return False
        return True

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._load(self._run(lambda cache: cache.get(self._key(key)), None))

    def get_many(self, *keys: str) -> list[Any]:
        """The values in the order of `keys`, None for each that is missing."""
        made = [self._key(key) for key in keys]
        found = self._run(lambda cache: cache.get_many(made), {})
        return [self._load(found.get(key)) for key in made]

    def set(self, key: str, value: Any, timeout: int | dt.timedelta | None = None) -> bool:
        """Store a value. True, False where there was no room or no cache."""
        stored, ttl = self._dump(value), self._ttl(timeout)
        return bool(self._run(lambda cache: self._store(cache, self._key(key), stored, ttl), False))

    def set_many(
        self, mapping: dict[str, Any], timeout: int | dt.timedelta | None = None
    ) -> list[Any]:
        """Store values; the keys that were stored."""
        ttl = self._ttl(timeout)
        made = {self._key(key): key for key in mapping}
        values = {stored: self._dump(mapping[key]) for stored, key in made.items()}

        def operation(cache: Cache) -> list[Any]:
            if ttl is None or ttl > 0:
                try:
                    cache.set_many(values, ttl)
                    return list(mapping)
                except (errors.ValueTooLarge, errors.CacheFull):
                    pass  # one by one, to tell which
            return [
                made[key] for key, stored in values.items() if self._store(cache, key, stored, ttl)
            ]

        kept: list[Any] = self._run(operation, [])
        return kept

    def add(self, key: str, value: Any, timeout: int | dt.timedelta | None = None) -> bool:
        """Store a value if the key has none: one winner among all processes."""
        stored, ttl = self._dump(value), self._ttl(timeout)

        def operation(cache: Cache) -> bool:
            if ttl is not None and ttl < 0:
                return self._key(key) not in cache
            try:
                return cache.add(self._key(key), stored, ttl)
            except errors.ValueTooLarge as error:
                if self._connection.on_error == "raise":
                    raise
                self._connection.log(error)
                return False

        return bool(self._run(operation, False))

    def delete(self, key: str) -> bool:
        """Remove a key; whether it was there."""
        return bool(self._run(lambda cache: cache.delete(self._key(key)), False))

    def delete_many(self, *keys: str) -> list[Any]:
        """Remove keys; those that are absent now. RuntimeError where the cache is out of order
        and `ignore_delete_many_errors` is False."""
        made = [self._key(key) for key in keys]
        deleted = self._run(lambda cache: cache.delete_many(made), None)
        if deleted is not None:
            return list(keys)
        if keys and not self.ignore_delete_many_errors:
            raise RuntimeError(f"Failed to delete keys: {list(keys)}")
        return []

    def has(self, key: str) -> bool:
        """Whether the key has a value that has not expired; decodes nothing."""
        return bool(self._run(lambda cache: self._key(key) in cache, False))

    def clear(self) -> bool:
        """Remove what begins with the prefix, everything where there is none. True."""
        prefix = self._key("")

        def operation(cache: Cache) -> bool:
            if not prefix:
                cache.clear()
            else:
                cache.delete_many(list(cache.scan(prefix)))
            return True

        return bool(self._run(operation, False))

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number, atomically; a missing one counts as 0, and then lives for the default
        timeout (an expiry that there is stays). None where the cache is out of order."""
        made = self._key(key)

        def operation(cache: Cache) -> Any:
            while True:
                try:
                    stored = cache.alter(
                        made, lambda stored: self._dump((self._load(stored) or 0) + delta)
                    )
                    return self._load(stored)
                except KeyError:
                    if cache.add(made, self._dump(delta), self._ttl(None)):
                        return delta

        value: int | None = self._run(operation, None)
        return value

    def dec(self, key: str, delta: int = 1) -> int | None:
        """`inc` of `-delta`."""
        return self.inc(key, -delta)
