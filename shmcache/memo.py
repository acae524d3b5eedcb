"""`memoize`: a function's results, kept in a cache that all workers share.

Place: level 4, above `namespace.py`: each function has a namespace of its own, named by its module,
qualified name and `version`, so that clearing it is O(1). A call's key is made of its arguments as
the signature binds them, so that equal calls share it; types count, as everywhere: `f(1)`, `f(1.0)`
and `f(True)` are three calls.

It must not know how values are stored, or who computes them: that is `get_or_init`'s.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from shmcache import errors
from shmcache.keys import Key
from shmcache.namespace import Namespace
from shmcache.operations import Ttl

__all__ = ["CacheInfo", "Memoized", "memoize"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_MISS: Final[Any] = object()
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
    def __get__(self, instance: object, owner: Any = None) -> Callable[..., R_co]: ...

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


class _Keys(Generic[P]):
    """Makes the key of a call: the argument itself where the function takes a single plain one,
    else the tuple of all arguments, defaults filled in, keyword arguments by name."""

    def __init__(self, fn: Callable[P, Any], key: Callable[..., Key] | None) -> None:
        self.fn = fn
        self.made_by = key
        self.signature = inspect.signature(fn)
        parameters = self.signature.parameters.values()
        self.plain = all(parameter.kind in _PLAIN for parameter in parameters)
        self.count = len(parameters)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        if self.made_by is not None:
            return self.made_by(*args, **kwargs)
        if self.plain and not kwargs and len(args) == self.count:
            return args[0] if self.count == 1 else args  # type: ignore[return-value]
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parts: list[Any] = []
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                parts.append(tuple(sorted(value.items())))
            else:
                parts.append(value)
        return parts[0] if self.plain and self.count == 1 else tuple(parts)

    def refuse(self, error: TypeError) -> TypeError:
        return TypeError(
            f"an argument of {self.fn.__qualname__} is no key ({error}): pass key= to memoize, "
            "which is called with the same arguments and returns a key"
        )


def _name(fn: Callable[..., Any], version: object) -> str:
    """The prefix of the function's namespace, the same in all processes that run the same code."""
    name = f"memoize:{fn.__module__}.{fn.__qualname__}"
    if fn.__qualname__.endswith("<lambda>"):  # all of a module's would share one
        name += f":{fn.__code__.co_firstlineno}"
    return name if version is None else f"{name}#{version!r}"


def memoize(
    namespace_of: Callable[[str], Namespace[Any]],
    fn: Callable[P, R],
    *,
    ttl: Ttl = None,
    key: Callable[..., Key] | None = None,
    version: object = None,
    timeout: float = 20.0,
    stale: float = 0.0,
    negative_ttl: Ttl = None,
) -> Memoized[P, R]:
    """Wrap `fn`; see `Cache.memoize`."""
    space = namespace_of(_name(fn, version))
    make: Any = _Keys(fn, key)
    look_up = space.get
    own = key is None and make.plain and make.count == 1  # the argument is the key
    misses = calls = 0

    def kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """(the key, its value or _MISS)."""
        nonlocal calls, misses
        calls += 1
        wanted = args[0] if own and len(args) == 1 and not kwargs else make(*args, **kwargs)
        try:
            value = look_up(wanted, _MISS)
        except errors.DecodeError:
            value = _MISS
        except TypeError as error:
            raise make.refuse(error) from None
        if value is _MISS:
            misses += 1
        return wanted, value

    arguments: dict[str, Any] = {
        "ttl": ttl,
        "timeout": timeout,
        "stale": stale,
        "negative_ttl": negative_ttl,
    }
    wrapper: Any
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            wanted, value = kept(args, kwargs)
            if value is not _MISS:
                return value
            return await space.aget_or_init(wanted, partial(fn, *args, **kwargs), **arguments)

        wrapper = wait
    else:

        def ask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            wanted, value = kept(args, kwargs)
            if value is not _MISS:
                return value
            return space.get_or_init(wanted, partial(fn, *args, **kwargs), **arguments)

        if own:

            @functools.wraps(fn)
            def call(argument: Any = _MISS, /, *rest: Any, **named: Any) -> Any:
                if rest or named or argument is _MISS:
                    return ask((*(() if argument is _MISS else (argument,)), *rest), named)
                try:  # in line: most hits need no second call
                    value = look_up(argument, _MISS)
                except (errors.DecodeError, TypeError):
                    value = _MISS
                if value is _MISS:
                    return ask((argument,), named)
                nonlocal calls
                calls += 1
                return value

        else:

            @functools.wraps(fn)
            def call(*args: Any, **kwargs: Any) -> Any:
                return ask(args, kwargs)

        wrapper = call

    def invalidate(*args: Any, **kwargs: Any) -> bool:
        """Forget the result of this call, in all processes. True if there was one."""
        return space.delete(make(*args, **kwargs))

    def cache_info() -> CacheInfo:
        """Hits and misses of this process; `currsize` walks the cache's index."""
        return CacheInfo(calls - misses, misses, None, len(space))

    wrapper.invalidate = invalidate
    wrapper.key = make
    wrapper.cache_clear = space.invalidate
    wrapper.cache_info = cache_info
    return wrapper  # type: ignore[no-any-return]
