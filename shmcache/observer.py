"""Looking at a cache without being one of its clients: for tools beside the workers.

Place: level 4, above `cache.py`.  What the command line, metrics and the doctor open a cache with.

An observer reads and may write like anybody else, with a client slot of its own.  But it never
creates, adopts or unlinks the cache: it does not count in `stats().clients`, the last worker out
unlinks the cache under it (its next call raises `CacheNotFound`), and its own end changes
nothing.  A cache that killed processes have left stays what it was: left for the next one to adopt.
"""

from __future__ import annotations

from typing import Any, ClassVar

from shmcache.cache import Cache
from shmcache.codec import Codec

__all__ = ["observe"]


class _Observer(Cache):
    """A `Cache` that is no client; made by `observe`."""

    __slots__ = ()

    _observes: ClassVar[bool] = True

    def __repr__(self) -> str:
        return Cache.__repr__(self).replace(type(self).__name__, "Cache observing", 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _observe, (self.name, self.lock_timeout, self._opened["codec"], self._decodes)


class _Looker(_Observer):
    """An observer that leaves values as they are."""

    __slots__ = ()

    _decodes: ClassVar[bool] = False


def observe(
    name: str,
    *,
    lock_timeout: float = 5.0,
    codec: str | Codec | None = None,
    decode: bool = True,
) -> Cache:
    """A handle on an existing cache that does not count as one of its clients.

    Args:
        name: of the cache.
        lock_timeout: seconds that a writing call waits for a shard; 0: not at all.
        codec: as for `Cache`: needed where the cache's codec is an object of the application's.
        decode: False opens a cache whatever its codec is (an object that this process has not, or
            `pickle` that others can write), and reading or writing what a codec encodes raises
            DecodeError or TypeError: for counters, keys, `verify`.

    Returns:
        A `Cache` with all its calls.  It is not shared with other handles of this process, and
        takes one of the cache's client slots until it is closed.  It survives fork, pickles, and
        `reopen()` attaches again: as an observer each time.  `close()` never unlinks the cache;
        `unlink()` does.

    Raises:
        CacheNotFound: there is no such cache, or it was unlinked.
        NotPermitted: it belongs neither to this user nor to root nor to a group that this process
            is in (root may look at all of them), or the codec is `pickle`, others can write, and
            values are to be decoded.
        LayoutMismatch, CorruptSegment: what is there cannot be read; it stays where it is.
        ValueError: a name that is none, another codec than the cache's.
        LimitReached: every client slot is taken.
        LockTimeout: a stopped process holds the cache's gate.

    Costs about 0.1 ms; never waits for a cache to appear.
    """
    return _observe(name, lock_timeout, codec, decode)


def _observe(
    name: str, lock_timeout: float, codec: str | Codec | None, decode: bool = True
) -> Cache:
    return (_Observer if decode else _Looker)(
        name, create=False, lock_timeout=lock_timeout, codec=codec
    )
