"""memoize: which calls share a result, and what the decorated function offers."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from shmcache import Cache


def test_a_result_is_computed_once(cache: Cache) -> None:
    calls: list[Any] = []

    @cache.memoize
    def double(x: int) -> int:
        """Twice x."""
        calls.append(x)
        return 2 * x

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert calls == [2, 3]
    assert double.__wrapped__(5) == 10
    assert double.__doc__ == "Twice x."
    assert double.__name__ == "double"  # type: ignore[attr-defined]
    assert double.cache_info() == (1, 2, None, 2)


def test_equal_calls_share_a_key_whatever_they_look_like(cache: Cache) -> None:
    calls = 0

    @cache.memoize(100)
    def call(a: int, b: str = "x", *rest: int, c: int = 0, **more: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    same: list[Callable[[], int]] = [
        lambda: call(1),
        lambda: call(a=1),
        lambda: call(1, "x"),
        lambda: call(1, b="x", c=0),
        lambda: call(c=0, b="x", a=1),
    ]
    assert [each() for each in same] == [1] * 5
    assert call(1, "x", 2, p=1, q=2) == call(1, "x", 2, q=2, p=1) == 2
    assert call(1, "x", 2, p=2, q=1) == 3
    assert call.key(1) == call.key(a=1, b="x")


def test_types_count(cache: Cache) -> None:
    @cache.memoize
    def name(x: object) -> str:
        return type(x).__name__

    assert [name(x) for x in (1, 1.0, True, "1", b"1", None, (1,))] == [
        *("int", "float", "bool", "str", "bytes", "NoneType", "tuple")
    ]


def test_a_single_tuple_is_not_several_arguments(cache: Cache) -> None:
    @cache.memoize
    def one(x: Any) -> list[Any]:
        return ["one", x]

    assert one((1, 2)) == ["one", (1, 2)]
    assert one((1, 2)) == ["one", (1, 2)]

    @cache.memoize
    def none() -> str:
        return "none"

    assert none() == none() == "none"
    assert none.key() == ()


def test_exceptions_are_not_kept(cache: Cache) -> None:
    calls = 0

    @cache.memoize
    def fail(x: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise TypeError("its own")
        return x

    with pytest.raises(TypeError, match="its own"):
        fail(1)
    assert fail(1) == 1


def test_an_argument_that_is_no_key_says_what_to_do(cache: Cache) -> None:
    @cache.memoize
    def one(x: Any) -> int:
        return len(x)

    @cache.memoize
    def two(x: Any, y: int) -> int:
        return len(x) + y

    for call in (lambda: one([1]), lambda: two([1], 2), lambda: two(y=1, x={})):
        with pytest.raises(TypeError, match="key="):
            call()

    @cache.memoize(key=lambda x: repr(x))
    def by_repr(x: Any) -> int:
        return len(x)

    assert by_repr([1, 2]) == by_repr([1, 2]) == 2
    assert by_repr.key([1]) == "[1]"


def test_methods(cache: Cache) -> None:
    class User:
        def __init__(self, number: int) -> None:
            self.number = number
            self.calls = 0

        @cache.memoize(key=lambda self, field: (self.number, field))
        def read(self, field: str) -> str:
            self.calls += 1
            return f"{field} of {self.number}"

        @staticmethod
        @cache.memoize
        def static(x: int) -> int:
            return x

    user, other = User(1), User(2)
    assert user.read("a") == user.read("a") == "a of 1"
    assert user.read(field="a") == "a of 1"
    assert other.read("a") == "a of 2"
    assert (user.calls, other.calls) == (1, 1)
    assert User.read.invalidate(user, "a")
    assert user.read("a") == "a of 1"
    assert user.calls == 2
    assert User.static(3) == 3


def test_invalidate_clear_and_version(cache: Cache) -> None:
    calls = 0

    def count(x: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    first, second = cache.memoize(count), cache.memoize(version=2)(count)
    assert [first(1), first(2), second(1), first(1)] == [1, 2, 3, 1]
    assert first.invalidate(1)
    assert not first.invalidate(1)
    assert [first(1), first(2), second(1)] == [4, 2, 3]
    cache["mine"] = 1
    first.cache_clear()
    assert first.cache_info().currsize == 0
    assert [first(1), first(2), second(1), cache["mine"]] == [5, 6, 3, 1]


def test_two_handles_share_results(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    other = open_cache(cache.name)

    def compute(x: int) -> list[int]:
        calls.append(x)
        return [x]

    calls: list[int] = []
    assert cache.memoize(compute)(1) == other.memoize(compute)(1) == [1]
    assert calls == [1]


def test_none_and_negative_ttl(cache: Cache) -> None:
    calls = 0

    def nothing(x: int) -> None:
        nonlocal calls
        calls += 1

    kept, not_kept = cache.memoize(nothing), cache.memoize(version=1, negative_ttl=0)(nothing)
    for _ in range(3):
        kept(1)
    assert calls == 1
    for _ in range(3):
        not_kept(1)
    assert calls == 4


def test_async_functions(cache: Cache) -> None:
    calls = 0

    @cache.memoize(100)
    async def slow(x: int, y: int = 2) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return x * y

    async def main() -> list[int]:
        return await asyncio.gather(*(slow(2) for _ in range(20)), slow(2, y=2))

    assert asyncio.run(main()) == [4] * 21
    assert calls == 1
    assert inspect.iscoroutinefunction(slow)
    assert slow.invalidate(2)


def test_lambdas_of_a_module_do_not_share(cache: Cache) -> None:
    one = cache.memoize(lambda x: ["one", x])
    two = cache.memoize(lambda x: ["two", x])
    assert one(1) == ["one", 1]
    assert two(1) == ["two", 1]


def test_lambdas_of_a_line_do_not_share(cache: Cache) -> None:
    one, two = cache.memoize(lambda x: ["one", x]), cache.memoize(lambda x: ["two", x])
    assert one(1) == ["one", 1]
    assert two(1) == ["two", 1]


def test_options_that_make_no_sense_are_refused_where_they_are_written(cache: Cache) -> None:
    for wrong in ({"ttl": 0}, {"stale": -1}, {"timeout": float("nan")}, {"negative_ttl": -1}):
        with pytest.raises(ValueError, match="|".join(["ttl", *wrong])):
            cache.memoize(**wrong)
    for wrong in ({"key": 5}, {"foo": 1}, {"ttl": "60"}):
        with pytest.raises(TypeError):
            cache.memoize(**wrong)
    with pytest.raises(TypeError, match="positional"):
        cache.memoize(5, 6)  # type: ignore[call-overload]
    parameters = inspect.signature(Cache.memoize).parameters
    assert list(parameters) == [
        *("self", "ttl", "key", "version", "timeout", "stale", "negative_ttl")
    ]


def test_what_has_no_name_is_refused(cache: Cache) -> None:
    with pytest.raises(TypeError, match="a partial has none: wrap it in a def"):
        cache.memoize(functools.partial(max, 1))


def test_key_refuses_what_the_call_refuses(cache: Cache) -> None:
    @cache.memoize
    def count(x: list[int]) -> int:
        return len(x)

    for call in (count, count.key, count.invalidate):
        with pytest.raises(TypeError, match="pass key= to memoize"):
            call([1])


def test_it_is_the_cache_that_is_open_that_counts(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()

    @cache.memoize
    def double(x: int) -> int:
        return 2 * x

    assert double(1) == 2
    cache.close()
    with pytest.raises(ValueError, match="closed"):
        double(1)
    cache.reopen()
    assert double(1) == 2


def test_what_is_cleared_while_it_is_computed_is_not_kept(cache: Cache) -> None:
    calls = 0

    def count(x: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            counted.cache_clear()
        return calls

    counted = cache.memoize(count)
    assert counted(1) == 1
    assert counted(1) == 2
    assert counted(1) == 2
    assert cache.verify() == []
