"""get_or_init and aget_or_init in one process: every path that is not a race of processes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from support.processes import HANG_S, poll_until

from shmcache import Cache, CacheClosed, CacheFull, InitTimeout, ReentrantInit, _core, flights, once


def never() -> Any:
    raise AssertionError("the factory was called")


class Counted:
    """A factory that counts its calls."""

    def __init__(self, value: Any = "value") -> None:
        self.calls = 0
        self.value = value

    def __call__(self) -> Any:
        self.calls += 1
        return self.value

    async def later(self) -> Any:
        await asyncio.sleep(0)
        return self()


class Gate:
    """A factory that says that it has begun, and goes on when it is told to."""

    def __init__(self, value: Any = "value", error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.value, self.error = value, error

    def __call__(self) -> Any:
        self.begun.set()
        assert self.go.wait(HANG_S)
        if self.error is not None:
            raise self.error
        return self.value


def leases(cache: Cache) -> int:
    return sum(shard.leases for shard in cache.stats().shards)


def seats() -> int:
    """Callers of this process that wait for another one's factory."""
    return sum(len(flight.seats) for flight in list(flights.here().under_way.values()))


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_the_factory_is_called_once_and_its_value_kept(cache: Cache) -> None:
    factory = Counted({"a": [1, 2]})
    assert cache.get_or_init("k", factory) == {"a": [1, 2]}
    assert cache.get_or_init("k", never) == {"a": [1, 2]} == cache["k"]
    assert factory.calls == 1
    stats = cache.stats()
    assert (stats.misses, stats.hits, stats.sets) == (1, 2, 1)
    assert cache.ttl("k") is None


def test_the_ttl_is_the_factory_values(cache: Cache) -> None:
    cache.get_or_init("k", Counted(), 100)
    left = cache.ttl("k")
    assert left is not None
    assert 90 < left <= 100


def test_none_is_a_value_like_any_other(cache: Cache) -> None:
    factory = Counted(None)
    assert cache.get_or_init("k", factory) is None
    assert cache.get_or_init("k", never) is None
    assert "k" in cache


def test_negative_ttl_is_that_of_none_only(cache: Cache) -> None:
    cache.get_or_init("none", Counted(None), 100, negative_ttl=1000)
    cache.get_or_init("some", Counted(0), 100, negative_ttl=1000)
    assert (cache.ttl("none") or 0) > 900
    assert (cache.ttl("some") or 0) <= 100


def test_with_negative_ttl_0_none_is_not_kept(cache: Cache) -> None:
    factory = Counted(None)
    assert cache.get_or_init("k", factory, negative_ttl=0) is None
    assert cache.get_or_init("k", factory, negative_ttl=0) is None
    assert factory.calls == 2
    assert "k" not in cache
    assert leases(cache) == 0
    assert cache.stats().store_failures == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ttl": 0}, ValueError),
        ({"ttl": "1"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"stale": -1}, ValueError),
        ({"stale": "1"}, TypeError),
        ({"negative_ttl": -1}, ValueError),
    ],
)
def test_arguments_that_make_no_sense(
    cache: Cache, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        cache.get_or_init("k", never, **arguments)
    assert cache.get_or_init("k", Counted(1)) == 1


def test_an_exception_is_its_own_callers_and_leaves_nothing(cache: Cache) -> None:
    def fail() -> Any:
        raise LookupError("this very one")

    with pytest.raises(LookupError, match="this very one"):
        cache.get_or_init("k", fail)
    assert leases(cache) == 0
    assert cache.get_or_init("k", Counted(5)) == 5


def test_after_an_exception_one_waiter_takes_over(cache: Cache, pool: Any) -> None:
    gate, second = Gate(error=LookupError("first")), Counted("second")
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    others = [pool.submit(cache.get_or_init, "k", second) for _ in range(5)]
    poll_until(lambda: seats() == 5, what="five wait")
    gate.go.set()
    with pytest.raises(LookupError, match="first"):
        first.result(HANG_S)
    assert [other.result(HANG_S) for other in others] == ["second"] * 5
    assert second.calls == 1


def test_threads_share_one_call_and_get_copies(cache: Cache, pool: Any) -> None:
    gate = Gate([1])
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    others = [pool.submit(cache.get_or_init, "k", never) for _ in range(5)]
    poll_until(lambda: seats() == 5, what="five wait")
    assert leases(cache) == 1
    assert len(cache) == 0
    assert list(cache) == []
    gate.go.set()
    values = [task.result(HANG_S) for task in (first, *others)]
    assert values == [[1]] * 6
    assert len({id(value) for value in values}) == 6
    assert cache.verify() == []


def test_a_waiter_gives_up_after_timeout(cache: Cache, pool: Any) -> None:
    gate = Gate()
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    for timeout in (0, 0.02):
        with pytest.raises(InitTimeout, match="'k'"):
            cache.get_or_init("k", never, timeout=timeout)
    gate.go.set()
    assert first.result(HANG_S) == "value"
    assert cache.get_or_init("k", never) == "value"


@pytest.mark.parametrize("write", ["set", "delete"])
def test_who_writes_meanwhile_wins(cache: Cache, pool: Any, write: str) -> None:
    gate = Gate("late")
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    waiter = pool.submit(cache.get_or_init, "k", Counted("anew"))
    poll_until(lambda: seats() == 1, what="one waits")
    if write == "set":
        cache.set("k", "new")
    else:
        cache.delete("k")
    gate.go.set()
    assert first.result(HANG_S) == "late"
    after = "new" if write == "set" else "anew"
    assert waiter.result(HANG_S) == after == cache["k"]
    assert leases(cache) == 0


def test_the_old_value_is_served_while_one_computes_anew(cache: Cache, pool: Any) -> None:
    cache.get_or_init("k", Counted("old"), 0.05, stale=1000)
    poll_until(lambda: "k" not in cache, what="the value expires")
    gate = Gate("new")
    first = pool.submit(cache.get_or_init, "k", gate, 100, stale=1000)
    assert gate.begun.wait(HANG_S)
    assert cache.get("k") is None
    for _ in range(3):
        assert cache.get_or_init("k", never) == "old"
    gate.go.set()
    assert first.result(HANG_S) == "new"
    assert cache.get_or_init("k", never) == "new" == cache["k"]


def test_after_stale_the_old_value_is_gone(cache: Cache) -> None:
    cache.get_or_init("k", Counted("old"), 0.02, stale=0.02)
    deadline = time.monotonic() + 0.05
    poll_until(lambda: time.monotonic() > deadline, what="ttl and stale are over")
    assert _core.look_up(cache, "k") is None
    assert cache.get_or_init("k", Counted("new")) == "new"


def test_a_refresh_that_raises_leaves_the_old_value_to_others(cache: Cache) -> None:
    cache.get_or_init("k", Counted("old"), 0.02, stale=1000)
    poll_until(lambda: "k" not in cache, what="the value expires")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_init("k", lambda: 1 // 0)
    assert leases(cache) == 0
    found = _core.look_up(cache, "k")
    assert found is not None
    assert found[0] == "old"


def test_a_factory_may_ask_for_other_keys_but_not_its_own(cache: Cache) -> None:
    assert cache.get_or_init("a", lambda: [cache.get_or_init("b", Counted(1))]) == [1]
    with pytest.raises(ReentrantInit, match="'c'"):
        cache.get_or_init("c", lambda: cache.get_or_init("c", Counted(1)))
    with pytest.raises(ReentrantInit):
        cache.get_or_init(
            "d", lambda: cache.get_or_init("e", lambda: cache.get_or_init("d", never))
        )
    assert leases(cache) == 0
    assert cache.get_or_init("c", Counted(2)) == 2


def test_it_is_the_context_that_is_reentrant_not_the_thread(cache: Cache, pool: Any) -> None:
    def in_another_thread() -> Any:
        context = copy_context()
        return pool.submit(context.run, cache.get_or_init, "k", Counted(1)).result(HANG_S)

    with pytest.raises(ReentrantInit):
        cache.get_or_init("k", in_another_thread)


def test_a_full_cache_slows_down_and_does_not_break(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB", policy="keep", shards=1)
    number = 0
    with pytest.raises(CacheFull):
        for number in range(10_000):
            cache[number] = b"x" * 1000
    large = b"y" * 2000
    assert cache.get_or_init("k", Counted(large)) == large
    assert "k" not in cache
    assert cache.stats().store_failures == 1
    too_large = b"z" * (cache.max_value_size + 1)
    cache.delete(0)
    assert cache.get_or_init("k", Counted(too_large)) == too_large
    assert cache.stats().store_failures == 2
    assert leases(cache) == 0


def test_what_could_not_be_stored_is_handed_on(cache: Cache, pool: Any) -> None:
    gate = Gate(b"z" * (cache.max_value_size + 1))
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    waiter = pool.submit(cache.get_or_init, "k", never)
    poll_until(lambda: seats() == 1, what="one waits")
    gate.go.set()
    assert first.result(HANG_S) is waiter.result(HANG_S) is gate.value


def test_what_cannot_be_encoded_raises_for_its_caller(cache: Cache, pool: Any) -> None:
    gate = Gate(object())
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    waiter = pool.submit(cache.get_or_init, "k", Counted("good"))
    poll_until(lambda: seats() == 1, what="one waits")
    gate.go.set()
    with pytest.raises(TypeError, match="object"):
        first.result(HANG_S)
    assert waiter.result(HANG_S) == "good" == cache["k"]


def test_leases_are_not_shown(cache: Cache) -> None:
    seen: list[Any] = []

    def look() -> int:
        seen.append((len(cache), list(cache), dict(cache.items()), "k" in cache, cache.get("k")))
        with pytest.raises(KeyError):
            cache.popitem()
        return 1

    cache.get_or_init("k", look)
    assert seen == [(0, [], {}, False, None)]


def test_closing_meanwhile_frees_the_waiters(open_cache: Callable[..., Cache], pool: Any) -> None:
    cache = open_cache()
    name = cache.name
    other = open_cache(name)

    def factory() -> int:
        cache.close()
        return 1

    with pytest.raises(ValueError, match="closed"):
        cache.get_or_init("k", factory)
    assert other.get_or_init("k", Counted(2), timeout=1) == 2


def test_closing_frees_the_threads_that_wait(open_cache: Callable[..., Cache], pool: Any) -> None:
    cache, gate = open_cache(), Gate()
    first = pool.submit(cache.get_or_init, "k", gate)
    assert gate.begun.wait(HANG_S)
    second = pool.submit(cache.get_or_init, "k", never, timeout=2 * HANG_S)
    poll_until(lambda: seats() == 1, what="one waits")
    cache.close()
    with pytest.raises(CacheClosed):
        second.result(HANG_S)  # though the factory is still running
    gate.go.set()
    with pytest.raises(CacheClosed):
        first.result(HANG_S)


# ---------------------------------------------------------------------------------- async


def test_a_thousand_tasks_cost_one_call(cache: Cache) -> None:
    factory = Counted({"n": 1})

    async def when_all_wait() -> Any:
        while seats() < 999:
            await asyncio.sleep(0.001)
        return factory()

    async def main() -> list[Any]:
        calls = (cache.aget_or_init("k", when_all_wait) for _ in range(1000))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [{"n": 1}] * 1000
    assert factory.calls == 1


def test_tasks_wait_for_a_thread_and_threads_for_a_task(cache: Cache, pool: Any) -> None:
    gate = Gate("thread's")

    async def wait_for_thread() -> Any:
        waiting = [asyncio.create_task(cache.aget_or_init("a", Counted().later)) for _ in range(3)]
        while seats() < 3:
            await asyncio.sleep(0.001)
        gate.go.set()
        return await asyncio.gather(*waiting)

    first = pool.submit(cache.get_or_init, "a", gate)
    assert gate.begun.wait(HANG_S)
    assert asyncio.run(wait_for_thread()) == ["thread's"] * 3
    assert first.result(HANG_S) == "thread's"

    async def lead() -> Any:
        async def slowly() -> str:
            nonlocal follower
            follower = pool.submit(cache.get_or_init, "b", never)
            while seats() < 1:
                await asyncio.sleep(0.001)
            return "task's"

        follower: Any = None
        return await cache.aget_or_init("b", slowly), await asyncio.wrap_future(follower)

    assert asyncio.run(lead()) == ("task's", "task's")


def test_cancelling_the_initialiser_hands_over(cache: Cache) -> None:
    async def main() -> Any:
        begun = asyncio.Event()

        async def forever() -> Any:
            begun.set()
            await asyncio.sleep(HANG_S)

        first = asyncio.create_task(cache.aget_or_init("k", forever))
        await begun.wait()
        waiting = [asyncio.create_task(cache.aget_or_init("k", factory.later)) for _ in range(4)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        first.cancel()
        values = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(value) for value in values[:2]] == [asyncio.CancelledError] * 2
        return values[2:]

    factory = Counted("second's")
    assert asyncio.run(main()) == ["second's"] * 3
    assert factory.calls == 1
    assert leases(cache) == 0
    assert not flights.here().under_way


def test_a_task_that_is_cancelled_as_it_is_called_hands_on(cache: Cache) -> None:
    async def main() -> Any:
        begun = asyncio.Event()

        async def fail() -> Any:
            begun.set()
            await asyncio.sleep(0)
            waiting[0].cancel()  # its seat is called in this very turn of the loop
            raise LookupError

        first = asyncio.create_task(cache.aget_or_init("k", fail))
        waiting: list[Any] = []
        await begun.wait()
        waiting.extend(
            asyncio.create_task(cache.aget_or_init("k", Counted(n).later)) for n in range(2)
        )
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    values = asyncio.run(main())
    assert [type(value) for value in values[:2]] in (
        [LookupError, asyncio.CancelledError],
        [LookupError, int],
    )
    assert values[2] in (0, 1)
    assert not flights.here().under_way


def test_async_waiters_time_out(cache: Cache) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slowly() -> str:
            await go.wait()
            return "value"

        first = asyncio.create_task(cache.aget_or_init("k", slowly))
        await asyncio.sleep(0)
        with pytest.raises(InitTimeout):
            await cache.aget_or_init("k", slowly, timeout=0.02)
        go.set()
        assert await first == "value"

    asyncio.run(main())


def test_async_factories_are_reentrant_by_context(cache: Cache) -> None:
    async def own() -> Any:
        return await asyncio.create_task(cache.aget_or_init("k", Counted().later))

    async def main() -> None:
        with pytest.raises(ReentrantInit):
            await cache.aget_or_init("k", own)
        assert await cache.aget_or_init("k", Counted(3).later) == 3

    asyncio.run(main())


def test_tasks_wait_for_another_client_without_blocking_the_loop(
    open_cache: Callable[..., Cache],
) -> None:
    """A lease that this process does not hold: as another process's would be."""
    cache = open_cache()
    _, version = _core.lease_take(cache, "k", b"k", 0, 0, 0, 5.0)
    real = once._Call._is_alive
    once._Call._is_alive = lambda self, holder: True  # type: ignore[method-assign]
    try:

        async def main() -> Any:
            keys = ["k"] * 500
            waiting = asyncio.gather(*(cache.aget_or_init(key, Counted().later) for key in keys))
            for _ in range(5):
                began = time.monotonic()
                await asyncio.sleep(0.01)
                assert time.monotonic() - began < 1
            assert _core.lease_publish(cache, "k", b"k", "theirs", None, 0, version, 5.0)
            return set(await waiting)

        assert asyncio.run(main()) == {"theirs"}
    finally:
        once._Call._is_alive = real  # type: ignore[method-assign]


def test_a_namespace_that_is_invalidated_meanwhile_keeps_no_lease(cache: Cache) -> None:
    """A lease that stayed under the old epoch would count among those that a shard has room for."""
    space = cache.namespace("space")

    def late() -> str:
        space.invalidate()
        return "late"

    def fail() -> str:
        space.invalidate()
        raise LookupError

    async def later() -> str:
        return late()

    assert space.get_or_init("k", late) == "late"
    assert space.get("k") is None
    with pytest.raises(LookupError):
        space.get_or_init("k", fail)
    assert asyncio.run(space.aget_or_init("k", later)) == "late"
    assert space.get("k") is None
    assert sum(shard.leases for shard in cache.stats().shards) == 0
    assert space.get_or_init("k", Counted("new")) == "new"
    assert cache.verify() == []
