"""Django's cache, in shared memory: one cache for all worker processes of a host.

    CACHES = {
        "default": {
            "BACKEND": "shmcache.contrib.django.ShmCache",
            "LOCATION": "app",                       # the cache's name
            "OPTIONS": {"size": "256MiB", "codec": "msgpack"},  # Cache's arguments
        }
    }

Place: level 6; over the public `Cache`. Django's keys are stored as they are made (prefix,
version, key), so `shmcache get app :1:KEY` shows a value.

Values. `codec="msgpack"` is the choice we recommend: it stores what JSON would and tuples, sets,
dates, decimals and UUIDs besides, and reading it can never run code. Without a codec, a cache
that only this user can write (mode 0600, the default) is created with `pickle`, since Django's
users expect any picklable value to fit; one that others can write never is. An existing cache
keeps its own codec.

Outages. With ``on_error="miss"`` (an option, the default) a cache that is gone, full or held is a
miss, and logged; a value that is too large is not stored, and the old one is dropped, as with
memcached. ``on_error="raise"`` raises what shmcache raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from shmcache import errors
from shmcache.cache import Cache
from shmcache.contrib._connection import OUTAGES, as_pickle_raised, connect

__all__ = ["ShmCache"]

_MISSING: Final[Any] = object()
_OURS = ("on_error",)  # of OPTIONS: not an argument of Cache
_DJANGOS = ("MAX_ENTRIES", "CULL_FREQUENCY")  # read by BaseCache


class ShmCache(BaseCache):
    """A full backend: versions, key functions, timeouts, `touch`, atomic `incr`, batches, async.

    Beyond what Django asks: `incr` keeps the entry's expiry; `get_or_set` with a callable has one
    process of all compute the value while the others wait for it; sub-second timeouts count.

    OPTIONS takes the arguments of `shmcache.Cache` (but `create`), `on_error`, and Django's
    `MAX_ENTRIES` and `CULL_FREQUENCY`: only where MAX_ENTRIES is given are entries counted and
    culled; what bounds the cache otherwise is its size.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS") or {})
        self._culls = "MAX_ENTRIES" in options or "max_entries" in params
        on_error = options.pop("on_error", "miss")
        arguments = {key: value for key, value in options.items() if key not in _DJANGOS}
        self._connection = connect(location, on_error=on_error, pickle_if_private=True, **arguments)

    def _run(self, operation: Callable[[Cache], Any], missed: Any) -> Any:
        """`Connection.run`, with the errors of pickle as pickle raised them."""
        try:
            return self._connection.run(operation, missed)
        except TypeError as error:
            raised = as_pickle_raised(error)
            if raised is error:
                raise
            raise raised from None

    def _ttl(self, timeout: Any) -> float | None:
        """Seconds to live, None: for ever; 0 and less: expired already."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else float(timeout)

    def _cull(self, cache: Cache, key: str) -> None:
        """Make room for one entry more, where MAX_ENTRIES is given."""
        count = len(cache)
        if not self._culls or count < self._max_entries or key in cache:
            return
        cache.expire()
        if self._cull_frequency == 0:
            cache.clear()
            return
        for _ in range(count // self._cull_frequency):
            try:
                cache.popitem()
            except KeyError:
                return

    def _store(self, cache: Cache, key: str, value: Any, ttl: float | None) -> bool:
        """Store a value, or drop the old one; whether the key has the value now."""
        if ttl is not None and ttl <= 0:
            cache.delete(key)
            return True
        if self._culls:
            self._cull(cache, key)
        try:
            cache.set(key, value, ttl)
        except (errors.ValueTooLarge, errors.CacheFull) as error:
            cache.delete(key)
            if self._connection.on_error == "raise":
                raise
            self._connection.log(error)
            return False
        return True

    # ------------------------------------------------------------------------- single keys

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value, or `default`. Takes no lock."""
        key = self.make_and_validate_key(key, version=version)
        return self._run(lambda cache: cache.get(key, default), default)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Whether the key has a value that has not expired; decodes nothing."""
        key = self.make_and_validate_key(key, version=version)
        return bool(self._run(lambda cache: key in cache, False))

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """Store a value. One that there is no room for removes the old value."""
        key = self.make_and_validate_key(key, version=version)
        ttl = self._ttl(timeout)
        self._run(lambda cache: self._store(cache, key, value, ttl), False)

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Store a value if the key has none: one winner among all processes."""
        key = self.make_and_validate_key(key, version=version)
        ttl = self._ttl(timeout)

        def operation(cache: Cache) -> bool:
            if ttl is not None and ttl <= 0:
                return key not in cache
            if self._culls:
                self._cull(cache, key)
            try:
                return cache.add(key, value, ttl)
            except errors.ValueTooLarge as error:
                if self._connection.on_error == "raise":
                    raise
                self._connection.log(error)
                return False

        return bool(self._run(operation, False))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Set the expiry anew; whether the key was there."""
        key = self.make_and_validate_key(key, version=version)
        ttl = self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return bool(self._run(lambda cache: cache.delete(key), False))
        return bool(self._run(lambda cache: cache.touch(key, ttl), False))

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove the key; whether it was there."""
        key = self.make_and_validate_key(key, version=version)
        return bool(self._run(lambda cache: cache.delete(key), False))

    def incr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        """Add to a number, atomically among all processes, and keep its expiry.

        Raises ValueError where the key is missing (or an outage makes it so), TypeError where the
        value is no number.
        """
        made = self.make_and_validate_key(key, version=version)

        def operation(cache: Cache) -> Any:
            try:
                return cache.alter(made, lambda value: value + delta)
            except KeyError:
                return _MISSING

        value = self._run(operation, _MISSING)
        if value is _MISSING:
            raise ValueError(f"Key {key!r} not found")
        return value

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """The value; where it is missing, `default`, stored.

        A callable is called by one process (and thread) of all, and the others wait for its
        value, 20 seconds at most; whoever has waited in vain calls it too.
        """
        ttl = self._ttl(timeout)
        if not callable(default) or self._culls or (ttl is not None and ttl <= 0):
            return super().get_or_set(key, default, timeout=timeout, version=version)
        made = self.make_and_validate_key(key, version=version)
        once = _Once(default)
        value = self._run(lambda cache: once.ask(cache, made, ttl), _MISSING)
        if once.failure is not None:
            raise once.failure
        return once.compute() if value is _MISSING else value

    # ----------------------------------------------------------------------------- batches

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """The values of those keys that have one."""
        made = {self.make_and_validate_key(key, version=version): key for key in keys}
        found = self._run(lambda cache: cache.get_many(made), {})
        return {made[key]: value for key, value in found.items()}

    def set_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        """Store values, each shard being taken once. Returns the keys that were not stored."""
        made = {self.make_and_validate_key(key, version=version): key for key in data}
        values = {stored: data[key] for stored, key in made.items()}
        ttl = self._ttl(timeout)

        def operation(cache: Cache) -> list[Any]:
            if not self._culls and (ttl is None or ttl > 0):
                try:
                    cache.set_many(values, ttl)
                    return []
                except (errors.ValueTooLarge, errors.CacheFull):
                    pass  # one by one, to tell which
            return [
                made[key]
                for key, value in values.items()
                if not self._store(cache, key, value, ttl)
            ]

        failed: list[Any] = self._run(operation, list(data))
        return failed

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Remove keys, each shard being taken once."""
        made = [self.make_and_validate_key(key, version=version) for key in keys]
        self._run(lambda cache: cache.delete_many(made), 0)

    def clear(self) -> None:
        """Remove everything from the cache, whoever stored it."""
        self._run(lambda cache: cache.clear(), None)

    def close(self, **kwargs: Any) -> None:
        """Nothing: the cache stays open from one request to the next."""

    # ------------------------------------------------------------------------------- async
    # A read never waits. A write tries at once, and goes to a thread only where a shard is held
    # (`try_` of Cache, which would raise WouldBlock) or where what it does may take its time.

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """`get`."""
        return self.get(key, default, version)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """`has_key`."""
        return self.has_key(key, version)

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """`get_many`."""
        return self.get_many(keys, version)

    async def aset(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """`set`, in a thread only where it would have to wait."""
        ttl = self._ttl(timeout)
        if not self._culls and (ttl is None or ttl > 0):
            made = self.make_and_validate_key(key, version=version)
            try:
                self._connection.cache.try_set(made, value, ttl)
                return
            except (*OUTAGES, errors.ValueTooLarge, TypeError):
                pass  # the long way deals with each of them
        await sync_to_async(self.set, thread_sensitive=False)(key, value, timeout, version)

    async def aset_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        """`set_many`, in a thread."""
        failed: list[Any] = await sync_to_async(self.set_many, thread_sensitive=False)(
            data, timeout, version
        )
        return failed

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """`delete`, in a thread only where it would have to wait."""
        made = self.make_and_validate_key(key, version=version)
        try:
            return self._connection.cache.try_delete(made)
        except OUTAGES:
            pass
        return bool(await sync_to_async(self.delete, thread_sensitive=False)(key, version))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """`delete_many`, in a thread."""
        await sync_to_async(self.delete_many, thread_sensitive=False)(list(keys), version)

    async def aincr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        """`incr`, in a thread: as atomic, and the expiry is kept."""
        return await sync_to_async(self.incr, thread_sensitive=False)(key, delta, version)

    async def adecr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        """`aincr` of `-delta`."""
        return await self.aincr(key, -delta, version)

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """`get_or_set`: a callable (an async one too) is called by one task of all processes."""
        ttl = self._ttl(timeout)
        if not callable(default) or self._culls or (ttl is not None and ttl <= 0):
            return await super().aget_or_set(key, default, timeout=timeout, version=version)
        made = self.make_and_validate_key(key, version=version)
        once = _Once(default)
        try:
            return await self._connection.arun(
                lambda cache: cache.aget_or_init(made, once.acompute, ttl)
            )
        except errors.ReentrantInit:
            pass  # a default that asks for its own key computes it again, as elsewhere
        except OUTAGES as error:
            if error is once.failure or self._connection.on_error == "raise":
                raise
            self._connection.log(error)
        return await once.acompute()

    async def aclear(self) -> None:
        """`clear`, in a thread."""
        await sync_to_async(self.clear, thread_sensitive=False)()


class _Once:
    """A default that is computed once, whatever becomes of the cache meanwhile; tells its own
    failure from one of the cache."""

    def __init__(self, default: Callable[[], Any]) -> None:
        self._default = default
        self._value: Any = _MISSING
        self.failure: BaseException | None = None

    def compute(self) -> Any:
        """The default, for `get_or_init`."""
        if self._value is _MISSING:
            try:
                self._value = self._default()
            except BaseException as error:
                self.failure = error
                raise
        return self._value

    async def acompute(self) -> Any:
        """The same for `aget_or_init`; awaits what has to be awaited."""
        if self._value is _MISSING:
            try:
                value = self._default()
                self._value = await value if inspect.isawaitable(value) else value
            except BaseException as error:
                self.failure = error
                raise
        return self._value

    def ask(self, cache: Cache, key: str, ttl: float | None) -> Any:
        """The value, _MISSING where the default is to be computed without the cache."""
        try:
            return cache.get_or_init(key, self.compute, ttl)
        except errors.ReentrantInit:
            return _MISSING  # a default that asks for its own key computes it again, as elsewhere
        except BaseException as error:
            if error is self.failure:
                return _MISSING
            raise
