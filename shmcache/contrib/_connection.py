"""A framework's cache: opened at its first use, reopened when it is gone, an outage being a miss.

Place: level 6, below the backends. Knows `Cache` and its errors; knows no framework.

A request that could do without its cache must not fail for it. So `Connection.run` turns what is
nobody's mistake (the cache was unlinked, /dev/shm is full, a shard's holder is stopped, the
segment is another version's) into what the caller says a miss looks like, and logs it once a
minute. What is a mistake of the program (a key of a wrong type, a value that the codec cannot
encode, arguments that make no sense) raises as ever. ``on_error="raise"`` lets everything through.

An unlinked or replaced cache is attached anew at once (`Cache.reopen`). One that cannot be opened
is tried again a second later, not with every request.

Handles are shared by all of a process that asks with the same arguments, and stay open until the
process ends: a framework that makes a backend a thread does not make a cache that lives and dies
with a thread. A forked child has an identity of its own at its first use, as with any `Cache`.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar

from shmcache import errors, limits
from shmcache._linux import ProcessLock
from shmcache.cache import Cache

__all__ = ["OUTAGES", "Connection", "OnError", "as_pickle_raised", "connect"]

T = TypeVar("T")
OnError = Literal["miss", "raise"]

logger = logging.getLogger("shmcache")

OUTAGES: Final = (
    errors.CacheNotFound,
    errors.CacheClosed,
    errors.NotPermitted,
    errors.OutOfSharedMemory,
    errors.LayoutMismatch,
    errors.CorruptSegment,
    errors.LimitReached,
    errors.CacheFull,
    errors.LockTimeout,
    errors.InitTimeout,
    errors.DecodeError,
    errors.KeyTooLarge,
)
"""What a request must not fail for: the cache, or what somebody left in it, is at fault. Or a
client, whose URL made a key of more than 65,535 bytes: nothing can be stored there."""

RETRY_SECONDS: Final = 1.0
"""Time between two attempts to open a cache that cannot be opened."""

LOG_SECONDS: Final = 60.0
"""Time between two log records of one kind of outage."""

_GONE = (errors.CacheNotFound, errors.CacheClosed)

_connections: dict[tuple[Any, ...], Connection] = {}
_guard = ProcessLock()


def connect(
    name: str,
    *,
    on_error: OnError = "miss",
    pickle_if_private: bool = False,
    **arguments: Any,
) -> Connection:
    """The process's connection to a cache with these arguments.

    Args:
        name: of the cache.
        on_error: ``"miss"`` or ``"raise"``.
        pickle_if_private: where neither a codec is asked for nor the cache exists, create it with
            codec ``pickle`` if `mode` lets no other user write.
        arguments: those of `Cache`, but `create`.

    Opens nothing. Raises ValueError, TypeError for a name or an `on_error` that is none.
    """
    limits.check_name(name)
    _check_on_error(on_error)
    asked = tuple(sorted((key, repr(value)) for key, value in arguments.items()))
    ident = (name, on_error, pickle_if_private, asked)
    with _guard.current():
        connection = _connections.get(ident)
        if connection is None:
            connection = Connection(name, on_error, pickle_if_private, arguments)
            _connections[ident] = connection
        return connection


def _check_on_error(on_error: str) -> None:
    if on_error not in ("miss", "raise"):
        raise ValueError(f"on_error must be 'miss' or 'raise', not {on_error!r}")


def as_pickle_raised(error: TypeError) -> BaseException:
    """What pickle raised, where the codec's TypeError for a value that cannot be encoded came of
    that: frameworks' users know pickle's own errors. Else the error itself."""
    cause = error.__cause__
    return cause if isinstance(cause, (pickle.PickleError, AttributeError)) else error


class Connection:
    """A cache that is opened when it is first used; made by `connect`, or around an open cache by
    `of`. Safe to use from threads, and in forked children."""

    def __init__(
        self, name: str, on_error: OnError, pickle_if_private: bool, arguments: dict[str, Any]
    ) -> None:
        self.name = name
        self.on_error = on_error
        self._pickle_if_private = pickle_if_private
        self._arguments = arguments
        self._cache: Cache | None = None
        self._lent = False
        self._opening = ProcessLock()
        self._refused: errors.ShmcacheError | None = None
        self._retry_at = 0.0
        self._logged: dict[type[BaseException], float] = {}

    @classmethod
    def of(cls, cache: Cache, on_error: OnError) -> Connection:
        """A connection to a cache that is open and stays its owner's: it is reopened in place
        where it was unlinked, left alone where its owner has closed it, and never closed."""
        _check_on_error(on_error)
        connection = cls(cache.name, on_error, False, {})
        connection._cache = cache
        connection._lent = True
        return connection

    @property
    def cache(self) -> Cache:
        """The open cache. Raises what opening one raises; for a second after a failure the same
        error again, unless `on_error` is ``"raise"``."""
        cache = self._cache
        if cache is None:
            with self._opening.current():
                cache = self._cache
                if cache is None:
                    cache = self._cache = self._attempt(self._attach_or_create)
        return cache

    def _attempt(self, opening: Callable[[], Cache]) -> Cache:
        refused = self._refused
        if refused is not None and self.on_error == "miss" and time.monotonic() < self._retry_at:
            raise refused.with_traceback(None)
        try:
            cache = opening()
        except OUTAGES as error:
            self._refused = error
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise
        self._refused = None
        return cache

    def _attach_or_create(self) -> Cache:
        arguments = self._arguments
        private = not arguments.get("mode", 0o600) & 0o022
        if not self._pickle_if_private or arguments.get("codec") is not None or not private:
            return Cache(self.name, **arguments)
        try:
            return Cache(self.name, **arguments, create=False)
        except errors.CacheNotFound:
            pass
        try:
            return Cache(self.name, **{**arguments, "codec": "pickle"})
        except ValueError:  # somebody has just made it, with another codec (or we ask for nonsense)
            return Cache(self.name, **arguments)

    def run(self, operation: Callable[[Cache], T], missed: T) -> T:
        """The result of `operation`, or `missed` where an outage keeps it from having one.

        Called once more where the cache has been unlinked or replaced: on the one that is there
        now. Raises what `operation` raises otherwise, and everything with ``on_error="raise"``.
        """
        try:
            try:
                return operation(self.cache)
            except _GONE:
                self._reopen()
                return operation(self.cache)
        except OUTAGES as error:
            if self.on_error == "raise":
                raise
            self.log(error)
            return missed

    async def arun(self, operation: Callable[[Cache], Awaitable[T]]) -> T:
        """The result of an async `operation`, called once more where the cache was unlinked or
        replaced. Raises its errors, outages too: only the caller knows what has been done."""
        try:
            return await operation(self.cache)
        except _GONE:
            self._reopen()
            return await operation(self.cache)

    def _reopen(self) -> None:
        """Attach anew what is gone; raises what that raises (a lent cache), or lets the next use
        do so."""
        with self._opening.current():
            cache = self._cache
            if cache is None:
                return
            try:
                len(cache)  # another thread may have reopened it meanwhile
                return
            except errors.CacheClosed:
                if self._lent and self._refused is None:
                    raise  # by its owner; else by a `reopen` of ours that found no cache
            except errors.CacheNotFound:
                pass
            if self._lent:
                self._attempt(lambda: _reopened(cache))
            else:
                self._cache = None
                cache.close()

    def log(self, error: BaseException) -> None:
        """Log an outage that is served as a miss; of one kind once a minute."""
        now = time.monotonic()
        if now - self._logged.get(type(error), -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[type(error)] = now
            logger.warning(
                "cache %r: an outage is treated as a miss (%s: %s)",
                self.name,
                type(error).__name__,
                error,
            )

    def close(self) -> None:
        """Let go of the cache; the next use opens it again. A lent one stays open."""
        if self._lent:
            return
        with self._opening.current():
            cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()


def _reopened(cache: Cache) -> Cache:
    cache.reopen()
    return cache
