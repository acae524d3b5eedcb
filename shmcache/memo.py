"""`memoize`: a function's results, kept in a cache that all workers share.

Place: level 4, beneath `cache.py` and `namespace.py`, which have `memoize` from here. Each function
has a namespace of its own, named by its module, qualified name and `version`, so that clearing it
is O(1). A call's key is made of its arguments as the signature binds them, so that equal calls
share it; types count, as everywhere: `f(1)`, `f(1.0)` and `f(True)` are three calls. The wrapper
and its hits are in the binding (`_core/memoized.pxi`).

It must not know how values are stored, or who computes them: that is `get_or_init`'s.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from shmcache import _core, limits
from shmcache.keys import Key, encode

if TYPE_CHECKING:
    from shmcache.operations import Ttl

__all__ = ["CacheInfo", "Memoized", "Memoizing", "memoize"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_PLAIN: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CacheInfo(NamedTuple):
    """What `cache_info` returns, in the fields of functools: hits and misses of this process,
    `maxsize` always None, and how many results the cache holds (of all processes)."""

    hits: int
    misses: int
    maxsize: None
    currsize: int


class Memoized(Protocol[P, R_co]):
    """A memoized function, for type checkers: called as the function, with four attributes."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The call's result, kept or computed."""
        ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Memoized[P, R_co]: ...
    @overload
    def __get__(
        self: Memoized[Concatenate[Any, Q], R_co], instance: object, owner: Any = None
    ) -> Callable[Q, R_co]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result of this call, in all processes. True if there was one."""
        ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """The key of this call within the function's results."""
        ...

    def cache_clear(self) -> None:
        """Forget all results, in all processes. O(1)."""
        ...

    def cache_info(self) -> CacheInfo:
        """Hits and misses of this process; `currsize` walks the cache's index."""
        ...


class _Keys:
    """Makes the key of a call: the argument itself where the function takes a single plain one,
    else the tuple of all arguments, defaults filled in, keyword arguments by name.

    The binding does the same by itself for most calls (`_core/memoized.pxi`, told by `layout`);
    this says what is meant, and does the rest.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.signature = inspect.signature(fn)
        self.kinds = [parameter.kind for parameter in self.signature.parameters.values()]
        self.single = len(self.kinds) == 1 and self.kinds[0] in _PLAIN

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The key of a call; TypeError if it does not fit the signature."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parts: list[Any] = []
        for value, kind in zip(bound.arguments.values(), self.kinds, strict=True):
            if kind is inspect.Parameter.VAR_KEYWORD:
                parts.append(tuple(sorted(value.items())))
            else:
                parts.append(value)
        return parts[0] if self.single else tuple(parts)

    def layout(self, make: object) -> tuple[Any, ...]:
        """What the binding needs to make the same keys, `make` being what it asks where it cannot
        (and the mark of "no default"): names, positional, positional_only, defaults, single."""
        if make is not self or not {*self.kinds} <= {*_PLAIN, inspect.Parameter.KEYWORD_ONLY}:
            return None, 0, 0, (), False
        parameters = self.signature.parameters
        defaults = (parameter.default for parameter in parameters.values())
        return (
            tuple(map(sys.intern, parameters)),
            sum(kind in _PLAIN for kind in self.kinds),
            self.kinds.count(inspect.Parameter.POSITIONAL_ONLY),
            tuple(make if default is inspect.Parameter.empty else default for default in defaults),
            self.single,
        )

    def refuse(self, error: TypeError) -> TypeError:
        """The TypeError of a call whose key was none."""
        return TypeError(
            f"an argument of {self.fn.__qualname__} is no key ({error}): pass key= to memoize, "
            "which is called with the same arguments and returns a key"
        )


class _Pending:
    """The result of an async function that is not there yet: a coroutine of its own."""

    __slots__ = ("result",)

    def __init__(self, result: Coroutine[Any, Any, Any]) -> None:
        self.result = result


def _name(fn: Callable[..., Any], version: object) -> str:
    """The prefix of the function's namespace, the same in all processes that run the same code."""
    if not hasattr(fn, "__qualname__"):
        raise TypeError(
            f"memoize takes a function, by whose name all processes know its results, and a "
            f"{type(fn).__name__} has none: wrap it in a def"
        )
    name = f"memoize:{fn.__module__}.{fn.__qualname__}"
    if fn.__qualname__.endswith("<lambda>"):  # all of a module's would share one, all of a line's
        columns = [column for _, _, column, _ in fn.__code__.co_positions() if column]
        name += f":{fn.__code__.co_firstlineno}.{max(columns, default=0)}"
    return name if version is None else f"{name}#{version!r}"


def _check(ttl: Ttl, key: object, timeout: float, stale: float, negative_ttl: Ttl) -> None:
    """What `get_or_init` would refuse at the first call is refused where it is written."""
    limits.ttl_to_ms(ttl)
    limits.check_timeout("timeout", timeout)
    limits.check_timeout("stale", stale)
    if negative_ttl is not None and negative_ttl != 0:
        limits.ttl_to_ms(negative_ttl)
    if key is not None and not callable(key):
        raise TypeError(
            f"key must be a function of the call's arguments that returns the key, not {key!r:.80}"
        )


def memoize(
    namespace_of: Callable[[str], Any],
    fn: Callable[P, R],
    *,
    ttl: Ttl = None,
    key: Callable[..., Key] | None = None,
    version: object = None,
    timeout: float = 20.0,
    stale: float = 0.0,
    negative_ttl: Ttl = None,
) -> Memoized[P, R]:
    """Wrap `fn`; see `Cache.memoize`. `namespace_of` makes a `Namespace`."""
    space = namespace_of(_name(fn, version))
    keys = _Keys(fn)
    make: Any = keys if key is None else key
    start: Any = fn

    def compute(wanted: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return space._initialise(
            wanted, partial(fn, *args, **kwargs), ttl, timeout, stale, negative_ttl
        )

    def defer(wanted: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _Pending(
            space._ainitialise(
                wanted, partial(start, *args, **kwargs), ttl, timeout, stale, negative_ttl
            )
        )

    later = inspect.iscoroutinefunction(fn)
    recall = _core.Memoized(
        space, make, keys.refuse, defer if later else compute, *keys.layout(make)
    )
    wrapper: Any = recall
    if later:

        async def wait(*args: Any, **kwargs: Any) -> Any:
            value = recall(*args, **kwargs)
            return await value.result if type(value) is _Pending else value

        wrapper = wait
    functools.update_wrapper(wrapper, fn)

    def invalidate(*args: Any, **kwargs: Any) -> bool:
        """Forget the result of this call, in all processes. True if there was one."""
        return bool(space.delete(key_of(*args, **kwargs)))

    def key_of(*args: Any, **kwargs: Any) -> Key:
        """The key of this call within the function's results."""
        wanted: Key = make(*args, **kwargs)
        try:
            encode(wanted)
        except TypeError as error:
            raise keys.refuse(error) from None
        return wanted

    def cache_info() -> CacheInfo:
        """Hits and misses of this process; `currsize` walks the cache's index."""
        return CacheInfo(recall.hits, recall.misses, None, len(space))

    wrapper.invalidate = invalidate
    wrapper.key = key_of
    wrapper.cache_clear = space.invalidate
    wrapper.cache_info = cache_info
    return wrapper  # type: ignore[no-any-return]


class Memoizing:
    """`memoize`, of caches and namespaces."""

    __slots__ = ()

    if TYPE_CHECKING:

        def namespace(self, prefix: str) -> Any: ...  # noqa: D102

    @overload
    def memoize(self, fn: Callable[P, R], /) -> Memoized[P, R]: ...
    @overload
    def memoize(
        self,
        ttl: Ttl = None,
        /,
        *,
        key: Callable[..., Key] | None = None,
        version: object = None,
        timeout: float = 20.0,
        stale: float = 0.0,
        negative_ttl: Ttl = None,
    ) -> Callable[[Callable[P, R]], Memoized[P, R]]: ...
    @overload
    def memoize(
        self,
        *,
        ttl: Ttl,
        key: Callable[..., Key] | None = None,
        version: object = None,
        timeout: float = 20.0,
        stale: float = 0.0,
        negative_ttl: Ttl = None,
    ) -> Callable[[Callable[P, R]], Memoized[P, R]]: ...
    def memoize(
        self,
        ttl: Any = None,
        *,
        key: Callable[..., Key] | None = None,
        version: object = None,
        timeout: float = 20.0,
        stale: float = 0.0,
        negative_ttl: Ttl = None,
    ) -> Any:
        """A decorator that keeps a function's results here, for all workers: each call's result
        is computed by one caller among all processes (`get_or_init`).

        Used as ``@cache.memoize`` or ``@cache.memoize(60, version=2)``, on plain and ``async``
        functions and methods.

        Args:
            ttl: seconds that a result is kept; None: for ever.
            key: called with the call's arguments; returns the key. Needed where an argument is
                none (a method's `self`, as a rule): else the call is a TypeError.
            version: part of the function's name in the cache: another one, other results.
            timeout, stale, negative_ttl: as for `get_or_init`.

        The decorated function has ``invalidate(*args, **kwargs)`` (True if there was a result),
        ``key(*args, **kwargs)``, ``cache_clear()`` (O(1), for all processes), ``cache_info()`` and
        ``__wrapped__``. Arguments are bound to the signature, so that equal calls share a key;
        their types count: ``f(1)`` and ``f(1.0)`` are two calls. Processes share results by the
        function's module and qualified name, so functions made in a loop share one set.

        Of a namespace, the results are nested in it: its `invalidate` drops them too.
        """
        fn, ttl = (ttl, None) if callable(ttl) else (None, ttl)
        _check(ttl, key, timeout, stale, negative_ttl)
        decorate = partial(
            memoize,
            self.namespace,
            ttl=ttl,
            key=key,
            version=version,
            timeout=timeout,
            stale=stale,
            negative_ttl=negative_ttl,
        )
        return decorate if fn is None else decorate(fn)
