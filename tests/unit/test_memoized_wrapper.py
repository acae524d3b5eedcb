"""What `memoize` puts around a function: how it is called, looks, binds, pickles and counts."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import itertools
import pickle
import pydoc
import threading
import typing
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import SHARED
from support.forks import FORKS, in_child

from shmcache import Cache, KeyTooLarge

_versions = itertools.count()


def echo(cache: Cache, fn: Callable[..., Any]) -> Any:
    """`fn` memoized in a set of its own."""
    return cache.memoize(version=next(_versions))(fn)


SIGNATURES: list[Callable[..., Any]] = [
    lambda: (),
    lambda a: (a,),
    lambda a, /: (a,),
    lambda a=1: (a,),
    lambda *, a: (a,),
    lambda *, a=None: (a,),
    lambda a, b: (a, b),
    lambda a, b=2, /, c=3, *, d=4, e: (a, b, c, d, e),
    lambda a=(), b=True: (a, b),
    lambda a, *rest: (a, rest),
    lambda a, **more: (a, more),
    lambda *rest, d=4, **more: (rest, d, more),
]


@settings(suppress_health_check=SHARED)
@given(
    st.sampled_from(SIGNATURES),
    st.lists(st.sampled_from([1, "x", 2.5, None, True, (), b"y"]), max_size=4),
    st.dictionaries(st.sampled_from("abcdez"), st.integers(0, 3), max_size=4),
)
def test_every_call_finds_the_key_that_the_signature_says(
    cache: Cache, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> None:
    """Keys made in the binding are those of `fn.key`, and what fits no signature is refused as
    the function itself would."""
    cached = echo(cache, fn)
    try:
        inspect.signature(fn).bind(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError) as caught:
            cached(*args, **kwargs)
        assert str(caught.value) == str(error)
        return
    first = cached(*args, **kwargs)
    assert [cached(*args, **kwargs) for _ in range(2)] == [first] * 2
    assert cached.cache_info() == (2, 1, None, 1)
    assert cached.invalidate(*args, **kwargs) is True
    assert cached.cache_info().currsize == 0


def test_names_that_were_made_up_at_run_time(cache: Cache) -> None:
    calls = 0

    @cache.memoize
    def add(left: int, right: int) -> int:
        nonlocal calls
        calls += 1
        return left + right

    assert add(1, **{"".join(["ri", "ght"]): 2}) == add(1, 2) == 3
    assert calls == 1


def test_more_parameters_than_are_put_in_order_by_the_binding(cache: Cache) -> None:
    names = [f"p{number}" for number in range(40)]
    scope: dict[str, Any] = {}
    exec(f"def many({', '.join(names)}=7): return [{', '.join(names)}]", scope)
    many = echo(cache, scope["many"])
    assert many(*range(39)) == [*range(39), 7]
    assert many(*range(39)) == many(*range(38), p38=38) == [*range(39), 7]
    assert many.cache_info() == (2, 1, None, 1)


@pytest.mark.parametrize("local_entries", [0, 10])
def test_a_key_function_sees_the_call(open_cache: Callable[..., Cache], local_entries: int) -> None:
    cache = open_cache(local_entries=local_entries)
    seen: list[Any] = []

    def key(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return "k"

    fn = cache.memoize(key=key)(lambda *args, **kwargs: {"args": list(args)})
    assert fn([1], x={}) == fn(2) == {"args": [[1]]}
    assert seen == [(([1],), {"x": {}}), ((2,), {})]


def test_local_entries_hand_out_the_same_object(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(local_entries=10)
    other = open_cache(cache.name)

    def load(a: object, b: int = 0) -> dict[str, object]:
        return {"a": a, "b": b}

    cached, elsewhere = cache.memoize(load), other.memoize(load)
    cached("x", 1)
    assert cached("x", 1) == {"a": "x", "b": 1}
    assert cached("x", 1) is cached("x", b=1) is cached(b=1, a="x")
    assert [type(cached(a)["a"]) for a in (1, True, 1)] == [int, bool, int]
    before = cached("x", 1)
    assert elsewhere.invalidate("x", 1)
    assert cached("x", 1) is not before
    assert cached.cache_info().misses == 4


class Unreadable:
    """A codec whose bytes never come back."""

    name = "unreadable"

    def encode(self, value: Any) -> bytes:
        return b"x"

    def decode(self, data: memoryview) -> Any:
        raise ValueError("never")


def test_what_cannot_be_decoded_is_computed_again(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(codec=Unreadable())
    one, two = cache.memoize(lambda x: [x]), cache.memoize(version=2)(lambda x, y: [x, y])
    assert one(1) == one(1) == [1]
    assert two(1, 2) == two(1, y=2) == [1, 2]
    assert one.cache_info()[:2] == two.cache_info()[:2] == (0, 2)


def test_keys_past_the_limits_raise_what_get_raises(cache: Cache) -> None:
    one, two = echo(cache, lambda x: 1), echo(cache, lambda x, y: 1)
    for call in (lambda: one("x" * 70_000), lambda: two("x" * 70_000, 1)):
        with pytest.raises(KeyTooLarge):
            call()
    for call in (lambda: one(1 << 64), lambda: two(1, y=1 << 64)):
        with pytest.raises(OverflowError):
            call()
    with pytest.raises(TypeError, match="key="):
        two.invalidate([], 1)
    assert one("x" * 20_000) == two("x" * 20_000, 1) == two("x" * 1_000, 1) == 1
    assert two("x" * 20_000, 1) == two("x" * 1_000, 1) == 1
    assert two.cache_info() == (2, 2, None, 2)


def test_it_looks_like_the_function(cache: Cache) -> None:
    def area(width: int, height: int = 2) -> int:
        """Width times height."""
        return width * height

    area.note = "kept"  # type: ignore[attr-defined]
    cached: Any = cache.memoize(area)
    assert cached.__wrapped__ is area
    assert (cached.__name__, cached.__module__) == ("area", __name__)
    assert cached.__qualname__ == area.__qualname__
    assert (cached.__doc__, cached.note) == ("Width times height.", "kept")
    assert inspect.signature(cached) == inspect.signature(area)
    assert typing.get_type_hints(cached) == {"width": int, "height": int, "return": int}
    assert "Width times height." in pydoc.render_doc(cached)
    assert "area" in repr(cached) and cache.name in repr(cached)
    assert inspect.isroutine(cached) and callable(cached)
    assert weakref.ref(cached)() is cached
    assert copy.copy(cached) is copy.deepcopy(cached) is cached
    cached.extra = 1
    assert cached.extra == 1 and {cached: 1}[cached] == 1


def at_module_level(x: int) -> int:
    """Found again by its name."""
    return x + 1


def test_it_pickles_by_reference(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cached: Any = cache.memoize(at_module_level)
    monkeypatch.setitem(globals(), "at_module_level", cached)
    assert pickle.loads(pickle.dumps(cached)) is cached


class Point:
    """Methods of all kinds; the fixture below memoizes them."""

    def __init__(self, x: int) -> None:
        self.x = x

    def plus(self, y: int, *, times: int = 1) -> int:
        """x + y."""
        return (self.x + y) * times


def test_methods_bind(cache: Cache) -> None:
    keyed = cache.memoize(key=lambda self, y, times=1: (self.x, y, times))

    class Cached(Point):
        plus = keyed(Point.plus)

        @classmethod
        @cache.memoize(key=lambda cls, y: (cls.__name__, y))
        def made(cls, y: int) -> str:
            return f"{cls.__name__}{y}"

        @staticmethod
        @cache.memoize
        def apart(y: int) -> int:
            return -y

    point = Cached(1)
    bound = point.plus
    assert bound(2) == point.plus(y=2) == Cached.plus(point, 2) == 3
    assert point.plus(2, times=2) == 6
    assert inspect.ismethod(bound) and bound.__self__ is point
    assert list(inspect.signature(bound).parameters) == ["y", "times"]
    assert Cached.made(1) == Cached.made(y=1) == "Cached1"
    assert point.apart(1) == Cached.apart(1) == -1
    assert list(map(point.plus, [2, 2])) == [3, 3]
    assert Cached.plus.cache_info() == (4, 2, None, 2)  # type: ignore[attr-defined]


def test_other_ways_to_call_it(cache: Cache) -> None:
    cached: Any = cache.memoize(lambda a, b=0: a + b)
    cached(1, 2)
    assert functools.partial(cached, 1)(b=2) == cached(*[1], b=2) == 3
    assert cached.__call__(1, 2) == type(cached).__call__(cached, 1, b=2) == 3
    assert list(map(cached, [1, 1], [2, 2])) == [3, 3]
    assert cached.cache_info() == (6, 1, None, 1)


def test_an_exception_of_the_function_comes_with_no_other(cache: Cache) -> None:
    @cache.memoize
    def fail(x: int) -> int:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own") as caught:
        fail(1)
    assert caught.value.__context__ is None
    assert fail.cache_info()[:2] == (0, 1)


def test_a_miss_counts_once(cache: Cache) -> None:
    fn = cache.memoize(lambda x: x)
    fn(1)
    fn(1)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)


@pytest.mark.parametrize("how", FORKS)
def test_a_child_goes_on_with_it(cache: Cache, how: str) -> None:
    @cache.memoize
    def double(x: int, y: int = 2) -> int:
        return x * y

    assert double(2) == 4

    def works() -> bool:
        before = double(2) == double(x=2) == 4 and double(3) == 6
        return before and double.cache_info() == (2, 2, None, 2)

    assert in_child(FORKS[how], works)
    assert double(3) == 6
    assert double.cache_info() == (1, 1, None, 2)


def test_many_threads_get_whole_results_and_exact_counts(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(local_entries=8)

    @cache.memoize
    def pair(a: str, b: int) -> list[Any]:
        return [a, b] * 10

    wrong: list[Any] = []
    rounds, threads = 2_000, 8

    def ask(offset: int) -> None:
        for number in range(rounds):
            b = (number + offset) % 17
            if pair("k", b) != ["k", b] * 10 or pair(b=b, a="k") != ["k", b] * 10:
                wrong.append(b)
            if number % 500 == 0:
                pair.invalidate("k", b)

    crew = [threading.Thread(target=ask, args=(offset,)) for offset in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert wrong == []
    info = pair.cache_info()
    assert info.hits + info.misses == 2 * rounds * threads
    assert cache.verify() == []


def test_it_does_not_outlive_its_last_user(cache: Cache) -> None:
    def fn(x: int) -> int:
        return x

    cached: Any = cache.memoize(fn)
    cached.myself = cached
    cached(1)
    gone = weakref.ref(cached)
    del cached
    gc.collect()
    assert gone() is None


def test_a_coroutine_function_is_one(cache: Cache) -> None:
    async def wait(x: int) -> int:
        """Waits."""
        return x

    cached: Any = cache.memoize(wait)
    assert inspect.iscoroutinefunction(cached) and cached.__wrapped__ is wait
    assert (cached.__name__, cached.__doc__) == ("wait", "Waits.")
    assert inspect.signature(cached) == inspect.signature(wait)
    with pytest.raises(TypeError, match="key="):
        asyncio.run(cached([]))
    assert asyncio.run(cached(5)) == asyncio.run(cached(x=5)) == 5
    assert cached.cache_info() == (1, 1, None, 1)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
