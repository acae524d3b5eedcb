"""What a cache and a namespace do alike: the mapping, and what is composed of the hot methods.

Place: level 4, below `cache.py` and `namespace.py`. The hot methods (get, set, add, delete, incr,
batches...) are inherited from `_core.Handle`, get_or_init from `once.py`.

Nothing here holds a shard while user code runs. Read-modify-write is optimistic: read with the
version, call the function, store if the version is still the same, else again.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from shmcache import _core, keys
from shmcache.errors import WouldBlock
from shmcache.keys import Key
from shmcache.once import Once
from shmcache.views import KEYS, VERSIONS, CacheItems, CacheKeys, CacheValues

__all__ = ["ABSENT", "Operations", "Ttl", "Versioned"]

Ttl = float | timedelta | None
V = TypeVar("V")
if TYPE_CHECKING:  # `Versioned` alone is that of any value
    from typing_extensions import TypeVar as WithDefault

    W = WithDefault("W", default=Any)
else:
    W = TypeVar("W")


class _Absent:
    """The type of ABSENT: a default that no caller passes, and that says so in `help()`."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT: Final[Any] = _Absent()
"""No argument was passed, where None is one."""


class Versioned(NamedTuple, Generic[W]):
    """A value and the version that `cas` compares; see `Cache.gets`."""

    value: W
    version: int


class Operations(Once, MutableMapping[Any, V]):
    """Reads and writes of single keys, batches, iteration. Not for direct use: `Cache` and
    `Namespace` derive from it."""

    __slots__ = ("_pop_at",)

    _pop_at: int

    def __iter__(self) -> Iterator[Any]:
        """Iterate over keys: weakly consistent, without a lock. A key that is present throughout
        is yielded exactly once; none is yielded torn or expired."""
        return _core.Cursor(self, KEYS)

    def _still_open(self) -> None:
        """A view is empty-handed until it is used; that the cache is closed or gone is said now."""
        _core.Cursor(self, KEYS)

    def keys(self) -> KeysView[Any]:
        """A view of the keys; iteration as `iter(cache)`."""
        self._still_open()
        return CacheKeys(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; iteration as `iter(cache)`."""
        self._still_open()
        return CacheValues(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of keys and values, each pair of one instant; iteration as `iter(cache)`."""
        self._still_open()
        return CacheItems(self)

    def scan(self, prefix: Key) -> Iterator[Any]:
        """Iterate over the keys of `prefix`'s type that start with it (str, bytes or tuple)."""
        kind, content = keys.encode_prefix(prefix)
        return _core.Cursor(self, KEYS, kind, content)

    def pop(self, key: Key, default: Any = ABSENT) -> Any:
        """Remove `key` and return its value: one winner among all processes. `default`, or
        KeyError, where it is absent. Blocks as `set`."""
        value = self._pop(key, None)
        if value is not ABSENT:
            return value
        if default is ABSENT:
            raise KeyError(key)
        return default

    def try_pop(self, key: Key, default: Any = ABSENT) -> Any:
        """`pop`, but `WouldBlock` at once where it would have waited."""
        self._tried()
        try:
            value = self._pop(key, 0.0)
        except WouldBlock:
            self._blocked()
            raise
        if value is not ABSENT:
            return value
        if default is ABSENT:
            raise KeyError(key)
        return default

    def _pop(self, key: Key, timeout: float | None) -> Any:
        while (seen := self._gets(key)) is not None:
            if self._delete_version(key, seen[1], timeout):
                return seen[0]
        return ABSENT

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return some entry, as (key, value): one winner among all processes. KeyError
        when nothing is left. Goes on where the last call of this handle stopped."""
        for start in (self._pop_at, 0):
            cursor = _core.Cursor(self, VERSIONS, start=start)
            for key, value, version in cursor:
                self._pop_at = cursor.position
                if self._delete_version(key, version):
                    return key, value
        self._pop_at = 0
        raise KeyError(f"popitem(): cache {self.name!r} is empty")

    def try_get(self, key: Key, default: Any = None) -> Any:
        """`get`, which never blocks anyway; counted among the attempts."""
        self._tried()
        return self.get(key, default)

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """The value of `key`; where it is absent, store `default` and return it. Atomic: all
        callers get the one value that was stored. Blocks as `set`."""
        while True:
            value = self.get(key, ABSENT)
            if value is not ABSENT:
                return value
            if self.add(key, default):
                return default

    def retain(self, fn: Callable[[Any, Any], object]) -> int:
        """Keep the entries for which ``fn(key, value)`` is true; returns how many were removed.
        `fn` runs under no lock; an entry that was overwritten since `fn` saw it stays."""
        return sum(
            self._delete_version(key, version) is True
            for key, value, version in _core.Cursor(self, VERSIONS)
            if not fn(key, value)
        )

    # ------------------------------------------------------------------- compare and swap

    def gets(self, key: Key) -> Versioned[V] | None:
        """The value of `key` with its version, or None. The version changes with every write to
        the key, and with nothing else."""
        seen = self._gets(key)
        return None if seen is None else Versioned(*seen)

    def alter(
        self,
        key: Key,
        fn: Callable[[Any], Any],
        *,
        default: Any = ABSENT,
        ttl: Ttl = None,
    ) -> Any:
        """Replace the value of `key` by ``fn(value)``, atomically; returns the new value.

        Optimistic: `fn` runs under no lock, and again if somebody wrote meanwhile. Where `key` is
        absent it gets `default`, or KeyError is raised. Keeps the entry's expiry unless `ttl` is
        given. Blocks and raises as `set`, and whatever `fn` raises.
        """
        while True:
            seen = self._peek(key)
            if seen is None:
                if default is ABSENT:
                    raise KeyError(key)
                new = fn(default)
                if self.add(key, new, ttl):
                    return new
            else:
                new = fn(seen[0])
                if self._cas_keep(key, new, seen[1], ttl):
                    return new

    def get_field(self, key: Key, *path: Any, default: Any = None) -> Any:
        """One field of a stored mapping or list, found along `path` (ints index lists), without
        building the rest where the codec can skip it (msgpack). `default` where the key or the
        path is missing."""
        seen = self._peek_encoded(key)
        if seen is None:
            return default
        encoded, value = seen
        if encoded:
            try:
                return self._codec.decode_field(value, path)
            except LookupError:
                return default
        return default if path else value
