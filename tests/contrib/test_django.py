"""Django's backend, beyond Django's own tests (tests/upstream runs those)."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.outages import UNOPENABLE, fill, hold_all_shards
from support.processes import METHODS, Channel, poll_until, release

from shmcache import Cache, errors

pytest.importorskip("django")

from django.core.cache import CacheHandler
from django.core.cache.backends.base import BaseCache

from shmcache.contrib.django import ShmCache

MISS = object()


@pytest.fixture
def make(new_name: Callable[[], str]) -> Iterator[Callable[..., ShmCache]]:
    """Makes backends: ``make(name=None, TIMEOUT=..., **options)``."""
    made = []

    def backend(name: str | None = None, TIMEOUT: Any = 300, **options: Any) -> ShmCache:
        options.setdefault("size", "1MiB")
        params = {"TIMEOUT": TIMEOUT, "OPTIONS": options}
        made.append(ShmCache(name or new_name(), params))
        return made[-1]

    yield backend
    for one in made:
        one._connection.close()


@pytest.fixture
def backend(make: Any) -> ShmCache:
    return make()


class TestMeaning:
    def test_incr_keeps_the_expiry(self, backend: ShmCache) -> None:
        backend.set("a", 1, 50)
        assert backend.incr("a") == 2
        assert backend.decr("a", 5) == -3
        assert 40 < backend._connection.cache.ttl(":1:a") <= 50

    def test_incr_of_a_float_and_of_none(self, backend: ShmCache) -> None:
        backend.set("a", 1.5)
        assert backend.incr("a") == 2.5
        backend.set("a", None)
        with pytest.raises(TypeError):
            backend.incr("a")
        backend.set("a", 2**70)
        assert backend.incr("a") == 2**70 + 1

    def test_incr_of_what_is_missing(self, backend: ShmCache) -> None:
        with pytest.raises(ValueError, match="'a' not found"):
            backend.incr("a")

    def test_none_is_a_value(self, backend: ShmCache) -> None:
        backend.set("a", None)
        assert backend.get("a", MISS) is None
        assert backend.get("b", MISS) is MISS
        assert backend.has_key("a") and "b" not in backend
        assert backend.add("a", 1) is False
        assert backend.get_many(["a", "b"]) == {"a": None}
        assert backend.get_or_set("a", 5) is None
        assert backend.get_or_set("c", lambda: None) is None
        assert backend.get("c", MISS) is None

    @pytest.mark.parametrize("timeout", [0, -1, -0.5])
    def test_a_timeout_of_the_past(self, backend: ShmCache, timeout: float) -> None:
        backend.set("a", 1)
        backend.set("a", 2, timeout)
        assert backend.get("a") is None
        backend.set("a", 1)
        assert backend.touch("a", timeout) is True
        assert backend.get("a") is None
        assert backend.add("b", 1, timeout) is True
        assert backend.get("b") is None
        assert backend.set_many({"c": 1}, timeout) == []
        assert backend.get("c") is None
        assert backend.get_or_set("d", lambda: 4, timeout) == 4

    def test_a_fraction_of_a_second(self, backend: ShmCache) -> None:
        backend.set("a", 1, 0.05)
        assert backend.get("a") == 1
        poll_until(lambda: backend.get("a") is None, 5, what="expiry")

    def test_none_is_for_ever(self, make: Any) -> None:
        backend = make(TIMEOUT=None)
        backend.set("a", 1)
        backend.set("b", 1, None)
        backend.set("c", 1, 60 * 60 * 24 * 31)  # relative, though longer than 30 days
        cache = backend._connection.cache
        assert cache.ttl(":1:a") is cache.ttl(":1:b") is None
        assert cache.ttl(":1:c") > 60 * 60 * 24 * 30

    def test_the_same_location_is_the_same_store(self, make: Any, new_name: Any) -> None:
        name = new_name()
        first, second, other = make(name), make(name, slots=4), make()
        first.set("a", 1)
        assert second.get("a") == 1
        assert other.get("a") is None
        got = []
        thread = threading.Thread(target=lambda: got.append(make(name).get("a")))
        thread.start()
        thread.join()
        assert got == [1]

    def test_as_django_makes_it(self, new_name: Any) -> None:
        settings = {
            "default": {
                "BACKEND": "shmcache.contrib.django.ShmCache",
                "LOCATION": new_name(),
                "KEY_PREFIX": "p",
                "VERSION": 3,
                "TIMEOUT": "60",
                "OPTIONS": {"size": "1MiB", "codec": "msgpack"},
            }
        }
        cache = CacheHandler(settings)["default"]
        cache.set("a", (1, 2))
        store = cache._connection.cache
        assert store["p:3:a"] == (1, 2)
        assert 50 < store.ttl("p:3:a") <= 60
        assert store.codec == "msgpack"
        cache.close()
        assert cache.get("a") == (1, 2)
        cache._connection.close()

    @pytest.mark.parametrize("value", [lambda: 1, threading.Lock()], ids=["function", "lock"])
    def test_what_pickle_refuses(self, backend: ShmCache, value: Any) -> None:
        with pytest.raises(Exception) as refused:
            pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        kind = refused.type
        backend.set("a", "old")
        with pytest.raises(kind):
            backend.set("a", value)
        with pytest.raises(kind):
            backend.set_many({"b": 1, "a": value})
        with pytest.raises(kind):
            backend.add("c", value)

    def test_what_the_safe_codec_refuses(self, make: Any) -> None:
        backend = make(codec="msgpack")
        with pytest.raises(TypeError, match="object"):
            backend.set("a", object())

    def test_max_entries(self, make: Any) -> None:
        backend = make(MAX_ENTRIES=30)
        for number in range(100):
            backend.set(str(number), number)
        assert 1 <= len(backend._connection.cache) <= 30
        assert backend.get("99") == 99


class TestOncePerKey:
    def test_get_or_set_calls_the_default_once(self, backend: ShmCache) -> None:
        calls = []
        barrier = threading.Barrier(8)

        def default() -> int:
            calls.append(1)
            time.sleep(0.02)  # wide enough for the others to come
            return 7

        def use() -> None:
            barrier.wait()
            assert backend.get_or_set("a", default) == 7

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1

    def test_a_default_that_raises(self, backend: ShmCache) -> None:
        error = errors.CacheFull("the program's own")

        def fails() -> int:
            raise error

        with pytest.raises(errors.CacheFull) as raised:
            backend.get_or_set("a", fails)
        assert raised.value is error

    def test_a_default_that_asks_for_its_own_key(self, backend: ShmCache) -> None:
        assert backend.get_or_set("a", lambda: backend.get_or_set("a", lambda: 1) + 1) == 2

    def test_a_default_is_not_computed_again_for_want_of_room(self, make: Any) -> None:
        backend = make(policy="keep", shards=1)
        fill(backend._connection.cache)
        calls = []
        large = "x" * (backend._connection.cache.max_value_size + 1)
        assert backend.get_or_set("a", lambda: calls.append(1) or large) == large
        assert len(calls) == 1

    def test_async(self, backend: ShmCache) -> None:
        calls = []

        async def default() -> int:
            calls.append(1)
            await asyncio.sleep(0.02)
            return 7

        async def run() -> list[int]:
            return await asyncio.gather(*(backend.aget_or_set("a", default) for _ in range(8)))

        assert asyncio.run(run()) == [7] * 8
        assert len(calls) == 1
        assert asyncio.run(backend.aget_or_set("b", lambda: 3)) == 3
        assert asyncio.run(backend.aget_or_set("c", 4)) == 4


def _incr(channel: Channel, name: str, asynchronous: bool, times: int) -> list[int]:
    backend = ShmCache(name, {"OPTIONS": {"size": "1MiB"}})
    channel.sync()
    if not asynchronous:
        return [backend.incr("n") for _ in range(times)]

    async def run() -> list[int]:
        return await asyncio.gather(*(backend.aincr("n") for _ in range(times)))

    return asyncio.run(run())


def _add(channel: Channel, name: str, times: int) -> int:
    backend = ShmCache(name, {"OPTIONS": {"size": "1MiB"}})
    channel.sync()
    return sum(backend.add(f"k{number}", 1) for number in range(times))


class TestBetweenProcesses:
    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_incr_loses_nothing(self, backend: ShmCache, start: Any, asynchronous: bool) -> None:
        backend.set("n", 0, None)
        name, times = backend._connection.name, 200
        workers = [start(_incr, name, asynchronous, times) for _ in range(3)]
        release(workers)
        seen = [value for worker in workers for value in worker.result()]
        assert sorted(seen) == list(range(1, 3 * times + 1))
        assert backend.get("n") == 3 * times

    def test_add_has_one_winner(self, backend: ShmCache, start: Any) -> None:
        backend.set("a", 1)
        workers = [start(_add, backend._connection.name, 500) for _ in range(3)]
        release(workers)
        assert sum(worker.result() for worker in workers) == 500

    @pytest.mark.parametrize("method", METHODS)
    def test_by_every_way_to_start(self, backend: ShmCache, start: Any, method: str) -> None:
        backend.set("n", 0)
        worker = start(_incr, backend._connection.name, False, 2, method=method)
        release([worker])
        assert worker.result() == [1, 2]
        assert backend.get("n") == 2


async def _agenerate(backend: ShmCache) -> None:
    assert await backend.aadd("a", 1) is True
    assert await backend.aadd("a", 2) is False
    assert await backend.aget("a") == 1
    assert await backend.aget("b", MISS) is MISS
    await backend.aset("a", 5, 50)
    assert await backend.aincr("a", 2) == 7
    assert await backend.adecr("a") == 6
    assert 40 < backend._connection.cache.ttl(":1:a") <= 50
    assert await backend.atouch("a", None) is True
    assert backend._connection.cache.ttl(":1:a") is None
    assert await backend.atouch("b") is False
    assert await backend.ahas_key("a") is True
    assert await backend.aset_many({"c": 1, "d": None}) == []
    assert await backend.aget_many(["c", "d", "e"]) == {"c": 1, "d": None}
    assert await backend.aincr_version("c") == 2
    assert await backend.aget("c", version=2) == 1
    assert await backend.adecr_version("c", version=2) == 1
    assert await backend.adelete("c") is True
    assert await backend.adelete("c") is False
    await backend.aset("a", 1, 0)
    assert await backend.aget("a") is None
    await backend.adelete_many(["d", "x"])
    assert await backend.aget("d", MISS) is MISS
    with pytest.raises(ValueError):
        await backend.aincr("x")
    await backend.aset("a", 1)
    await backend.aclear()
    assert await backend.aget("a") is None
    await backend.aclose()


class TestAsync:
    def test_every_call(self, backend: ShmCache) -> None:
        asyncio.run(_agenerate(backend))

    def test_none_is_missing(self) -> None:
        """What BaseCache would emulate by several calls is atomic here."""
        emulated = {"aincr", "adecr", "aget_or_set", "aget_many", "aset_many", "adelete_many"}
        assert {
            name for name in emulated if getattr(ShmCache, name) is getattr(BaseCache, name)
        } == set()
        for name, member in inspect.getmembers(BaseCache, inspect.iscoroutinefunction):
            assert inspect.iscoroutinefunction(getattr(ShmCache, name)), (name, member)


CALLS: dict[str, tuple[Callable[[ShmCache], Any], Any]] = {
    "get": (lambda c: c.get("a", MISS), MISS),
    "has_key": (lambda c: c.has_key("a"), False),
    "set": (lambda c: c.set("a", 1), None),
    "add": (lambda c: c.add("a", 1), False),
    "touch": (lambda c: c.touch("a"), False),
    "delete": (lambda c: c.delete("a"), False),
    "get_many": (lambda c: c.get_many(["a", "b"]), {}),
    "set_many": (lambda c: c.set_many({"a": 1, "b": 2}), ["a", "b"]),
    "delete_many": (lambda c: c.delete_many(["a"]), None),
    "clear": (lambda c: c.clear(), None),
    "get_or_set": (lambda c: c.get_or_set("a", lambda: 7), 7),
    "get_or_set a value": (lambda c: c.get_or_set("a", 7), 7),
    "aget": (lambda c: asyncio.run(c.aget("a", MISS)), MISS),
    "aset": (lambda c: asyncio.run(c.aset("a", 1)), None),
    "aadd": (lambda c: asyncio.run(c.aadd("a", 1)), False),
    "adelete": (lambda c: asyncio.run(c.adelete("a")), False),
    "aset_many": (lambda c: asyncio.run(c.aset_many({"a": 1})), ["a"]),
    "aget_or_set": (lambda c: asyncio.run(c.aget_or_set("a", lambda: 7)), 7),
}
READS = {"get", "has_key", "get_many", "aget"}
INITS = {"get_or_set", "aget_or_set"}  # a held shard: they compute, and store nothing


class TestOutages:
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("outage", UNOPENABLE)
    def test_a_miss(self, make: Any, outage: str, call: str) -> None:
        run, missed = CALLS[call]
        assert run(make(**UNOPENABLE[outage][0])) == missed

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("outage", UNOPENABLE)
    def test_an_error_where_that_is_asked(self, make: Any, outage: str, call: str) -> None:
        arguments, error = UNOPENABLE[outage]
        with pytest.raises(error):
            CALLS[call][0](make(on_error="raise", **arguments))

    @pytest.mark.parametrize("call", sorted(CALLS.keys() - READS - INITS))
    def test_a_held_shard(self, make: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        backend, strict = make(), make(on_error="raise")
        for one in (backend, strict):
            assert one.get("x") is None
        with monkeypatch.context() as patch:
            hold_all_shards(patch)
            run, missed = CALLS[call]
            assert run(backend) == missed
            with pytest.raises(errors.LockTimeout):
                run(strict)

    def test_incr_is_an_error_in_any_case(self, make: Any) -> None:
        with pytest.raises(ValueError, match="not found"):
            make(size="1TiB").incr("a")

    @pytest.mark.parametrize("call", CALLS)
    def test_an_unlinked_cache(self, make: Any, call: str) -> None:
        """The request that notices works already, on a new cache."""
        backend = make()
        old = backend._connection.cache
        old.unlink()
        while backend._connection.cache is old:
            CALLS[call][0](backend)
        backend.set("a", 1)
        with Cache(backend._connection.name, create=False) as other:
            assert other[":1:a"] == 1

    def test_a_full_cache_drops_the_old_value(self, make: Any) -> None:
        backend = make(policy="keep", shards=1)
        name = backend._connection.name
        backend.set("a", "old")
        backend.set("b", "old")
        fill(backend._connection.cache)
        large = "x" * 10_000
        backend.set("a", large)
        assert backend.get("a") is None
        assert backend.set_many({"b": large, "c": large}) == ["b", "c"]
        assert backend.get("b") is None
        strict = make(name, policy="keep", shards=1, on_error="raise")
        fill(backend._connection.cache)
        with pytest.raises(errors.CacheFull):
            strict.set("a", large)

    def test_a_value_that_is_too_large_drops_the_old_one(self, make: Any) -> None:
        backend = make()
        large = b"x" * (backend._connection.run(lambda cache: cache.max_value_size, 0) + 1)
        backend.set("a", 1)
        backend.set("a", large)
        assert backend.get("a") is None
        backend.set("a", 1)
        assert backend.set_many({"b": 2, "a": large, "c": 3}) == ["a"]
        assert backend.get_many("abc") == {"b": 2, "c": 3}
        assert backend.add("d", large) is False
        assert backend.add("d", 1) is True
        asyncio.run(backend.aset("d", large))
        assert backend.get("d") is None
        strict = make(backend._connection.name, on_error="raise")
        strict.set("a", 1)
        with pytest.raises(errors.ValueTooLarge):
            strict.set("a", large)
        assert strict.get("a") is None

    def test_another_codec_than_the_caches_is_a_mistake(self, make: Any, open_cache: Any) -> None:
        cache = open_cache(codec="json")
        with pytest.raises(ValueError, match="codec"):
            make(cache.name, codec="pickle").get("a")
