"""`Namespace`: keys with a prefix, of one type, that are dropped all at once.

Place: level 4, beside the cache, whose attachment it shares. A namespace is a handle of its own:
every hot method puts the path and the namespace's epoch before the key (`_core/src/epoch.h`), for
the price of one load and a longer hash. What it stores counts in the cache's `len`, `stats` and
`clear`, and shows only through the namespace.

Following: a namespace is closed with its cache and, after `reopen` of that, connects at its next
call to what the cache is attached to then.
"""

# ruff: noqa: D102 (of the signatures for type checkers: the methods are documented in the binding)

from __future__ import annotations

from collections.abc import Awaitable, Callable, ItemsView, Iterable, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar, overload

from shmcache import _core, codec, limits, typed
from shmcache.errors import CacheClosed
from shmcache.keys import Key
from shmcache.memo import Memoizing
from shmcache.operations import Operations, Ttl
from shmcache.views import EXPIRED

__all__ = ["Namespace"]

T = TypeVar("T")
D = TypeVar("D")
K = TypeVar("K", bound=Key)

PATH_MAX: Final = 1024
"""Bytes of a path: the prefixes of all levels, two bytes more for each (SHM_MAX_PATH)."""

DEPTH_MAX: Final = 8
"""Namespaces within namespaces (LEVELS_MOST in the binding)."""


class Owner(Protocol):
    """What a namespace needs of its cache."""

    @property
    def name(self) -> str: ...
    @property
    def lock_timeout(self) -> float: ...
    @property
    def _attachment(self) -> Any: ...
    @property
    def _codec(self) -> Any: ...
    def _adopt_namespace(self, namespace: Namespace[Any]) -> None: ...


class Namespace(Operations[T], Memoizing):
    """The entries of a cache whose keys begin with one prefix; made by `Cache.namespace`.

    A `MutableMapping` with the operations of a cache. Its keys come without the prefix. Iteration,
    `len` (which counts by walking the index), `popitem` and `retain` see this namespace only, not
    those nested in it. What concerns the segment (`stats`, `verify`, `close`...) is the cache's.

    Two handles with the same path see the same entries, whatever their types and ttls are.
    """

    __slots__ = ("__weakref__", "_cache", "_own_codec", "_prefixes", "_ttl", "_type")

    _cache: Any
    _own_codec: codec.BoundCodec | None
    _prefixes: tuple[str, ...]

    def __init__(
        self, cache: Owner, prefixes: tuple[str, ...], type: Any = None, ttl: Ttl = None
    ) -> None:
        path, ends = _path(prefixes)
        self._pop_at = 0
        self._cache = cache
        self._prefixes = prefixes
        self._type = type
        self._ttl = ttl
        self._own_codec = None
        self._set_namespace(path, ends, limits.ttl_to_ms(ttl), cache)
        cache._adopt_namespace(self)
        if self._follow() is None:
            raise CacheClosed(
                f"this handle on cache {cache.name!r} is closed; open the cache again with "
                f"Cache({cache.name!r})"
            )

    def _follow(self) -> Any:
        cache = self._cache
        attachment = cache._attachment
        if attachment is None:
            return None
        own: codec.BoundCodec = cache._codec
        if self._type is not None:
            own = typed.codec_for(self._type, own)
        self._share_local(cache)
        self._connect(attachment, own, cache.lock_timeout)
        return self._attachment

    @property
    def prefix(self) -> str:
        """The prefix of this level."""
        return self._prefixes[-1]

    @property
    def default_ttl(self) -> Ttl:
        """Seconds that an entry lives where a call gives no ttl; None: for ever."""
        return self._ttl

    @property
    def closed(self) -> bool:
        """Whether the cache's handle was closed."""
        return self._cache._attachment is None

    @overload
    def namespace(self, prefix: str, type: None = None, *, ttl: Ttl = None) -> Namespace[Any]: ...
    @overload
    def namespace(self, prefix: str, type: type[D], *, ttl: Ttl = None) -> Namespace[D]: ...
    @overload
    def namespace(self, prefix: str, type: Any, *, ttl: Ttl = None) -> Namespace[Any]: ...
    def namespace(self, prefix: str, type: Any = None, *, ttl: Ttl = None) -> Namespace[Any]:
        """A namespace within this one: dropped with it, hidden from its iteration.

        Args:
            prefix: as for `Cache.namespace`; at most 8 levels, 1,024 bytes in all.
            type: as for `Cache.namespace`; not inherited.
            ttl: as for `Cache.namespace`; None takes this namespace's.
        """
        return Namespace(
            self._cache, (*self._prefixes, prefix), type, self._ttl if ttl is None else ttl
        )

    def invalidate(self) -> None:
        """Drop every entry, nested namespaces included, for all processes: once it has returned,
        nobody gets any of them. O(1): one shard is taken once; the memory is reclaimed by the
        writes that need it, as that of expired entries is. Blocks as `set`."""
        self._drop_epoch()

    def clear(self) -> None:
        """`invalidate`."""
        self._drop_epoch()

    def expire(self) -> int:
        """Remove what has expired of this namespace (not of nested ones), now; returns how many
        entries. Writes to the cache do it by themselves when they need room. O(slots of the
        cache): walks the index, without a lock, and takes a shard for each expired entry."""
        return sum(
            self._delete_version(key, version) is None
            for key, version in _core.Cursor(self, EXPIRED)
        )

    def __len__(self) -> int:
        """Entries that iteration yields. O(slots of the cache): walks the index, without a lock."""
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __repr__(self) -> str:
        path = "/".join(self._prefixes)
        return f"<Namespace {path!r} of cache {self.name!r}{' closed' if self.closed else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Namespace, (self._cache, self._prefixes, self._type, self._ttl)

    def __copy__(self) -> Self:
        return self

    if TYPE_CHECKING:  # the hot methods, with the type of the values

        @overload
        def get(self, key: Key, default: None = None) -> T | None: ...
        @overload
        def get(self, key: Key, default: T) -> T: ...
        @overload
        def get(self, key: Key, default: D) -> T | D: ...
        def get(self, key: Key, default: Any = None) -> Any: ...
        @overload
        def try_get(self, key: Key, default: None = None) -> T | None: ...
        @overload
        def try_get(self, key: Key, default: D) -> T | D: ...
        def try_get(self, key: Key, default: Any = None) -> Any: ...
        def __getitem__(self, key: Key, /) -> T: ...
        def set(self, key: Key, value: T, ttl: Ttl = None) -> None: ...
        def __setitem__(self, key: Key, value: T, /) -> None: ...
        def add(self, key: Key, value: T, ttl: Ttl = None) -> bool: ...
        def replace(self, key: Key, value: T, ttl: Ttl = None) -> bool: ...
        def cas(self, key: Key, value: T, version: int, ttl: Ttl = None) -> bool: ...
        def try_set(self, key: Key, value: T, ttl: Ttl = None) -> None: ...
        def try_add(self, key: Key, value: T, ttl: Ttl = None) -> bool: ...
        @overload
        def pop(self, key: Key) -> T: ...
        @overload
        def pop(self, key: Key, default: D = ...) -> T | D: ...
        def pop(self, key: Key, default: Any = ...) -> Any: ...
        @overload
        def try_pop(self, key: Key) -> T: ...
        @overload
        def try_pop(self, key: Key, default: D = ...) -> T | D: ...
        def try_pop(self, key: Key, default: Any = ...) -> Any: ...
        def popitem(self) -> tuple[Any, T]: ...
        @overload
        def setdefault(self, key: Key, default: None = None) -> T | None: ...
        @overload
        def setdefault(self, key: Key, default: T) -> T: ...
        def setdefault(self, key: Key, default: Any = None) -> Any: ...
        # narrower than the cache's, on purpose: only values of its type
        def get_or_init(  # type: ignore[override]
            self,
            key: Key,
            factory: Callable[[], T],
            ttl: Ttl = None,
            *,
            timeout: float = 20.0,
            stale: float = 0.0,
            negative_ttl: Ttl = None,
        ) -> T: ...
        async def aget_or_init(  # type: ignore[override]
            self,
            key: Key,
            factory: Callable[[], Awaitable[T]],
            ttl: Ttl = None,
            *,
            timeout: float = 20.0,
            stale: float = 0.0,
            negative_ttl: Ttl = None,
        ) -> T: ...
        def get_many(self, keys: Iterable[K]) -> dict[K, T]: ...
        def set_many(self, mapping: Mapping[K, T], ttl: Ttl = None) -> None: ...
        def alter(
            self, key: Key, fn: Callable[[T], T], *, default: T = ..., ttl: Ttl = None
        ) -> T: ...
        def retain(self, fn: Callable[[Any, T], object]) -> int: ...
        def values(self) -> ValuesView[T]: ...
        def items(self) -> ItemsView[Any, T]: ...


def _path(prefixes: tuple[str, ...]) -> tuple[bytes, list[int]]:
    """What keys begin with, and where each level's path ends in it."""
    if len(prefixes) > DEPTH_MAX:
        raise ValueError(f"namespaces nest {DEPTH_MAX} deep at most, not {len(prefixes)}")
    path = b""
    ends = []
    for prefix in prefixes:
        if not isinstance(prefix, str):
            raise TypeError(f"the prefix of a namespace must be a str, not {type(prefix).__name__}")
        content = prefix.encode("utf-8", "surrogatepass")
        if not content:
            raise ValueError("the prefix of a namespace must not be empty")
        if len(path) + 2 + len(content) > PATH_MAX:
            raise ValueError(
                f"the path of a namespace takes at most {PATH_MAX} bytes (2 for each level "
                f"besides its prefix): {prefix!r:.40} is too long"
            )
        path += len(content).to_bytes(2, "little") + content
        ends.append(len(path))
    return len(path).to_bytes(2, "little") + path, ends
