"""cachelib's backend and Flask-Caching over it, beyond their own tests (tests/upstream)."""

from __future__ import annotations

import datetime as dt
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.outages import UNOPENABLE, fill, hold_all_shards
from support.processes import Channel, poll_until, release

from shmcache import Cache, errors

pytest.importorskip("cachelib")

from cachelib.serializers import BaseSerializer

from shmcache.contrib.cachelib import ShmCache


@pytest.fixture
def make(new_name: Callable[[], str]) -> Iterator[Callable[..., ShmCache]]:
    """Makes backends: ``make(name=None, **arguments)``."""
    made = []

    def backend(name: str | None = None, **arguments: Any) -> ShmCache:
        arguments.setdefault("size", "1MiB")
        made.append(ShmCache(name or new_name(), **arguments))
        return made[-1]

    yield backend
    for one in made:
        one._connection.close()


@pytest.fixture
def backend(make: Any) -> ShmCache:
    return make()


def ttl(backend: ShmCache, key: str) -> float | None:
    return backend._connection.cache.ttl(key)


class TestMeaning:
    def test_timeouts(self, backend: ShmCache) -> None:
        backend.set("default", 1)
        backend.set("never", 1, timeout=0)
        backend.set("delta", 1, timeout=dt.timedelta(seconds=50))
        assert 290 < (ttl(backend, "default") or 0) <= 300
        assert ttl(backend, "never") is None
        assert 40 < (ttl(backend, "delta") or 0) <= 50

    def test_one_of_the_past_removes(self, backend: ShmCache) -> None:
        backend.set("a", 1)
        assert backend.set("a", 2, timeout=-1) is True
        assert backend.get("a") is None and not backend.has("a")
        assert backend.add("a", 1, timeout=-1) is True
        assert backend.get("a") is None
        assert backend.set_many({"a": 1, "b": 2}, timeout=-1) == ["a", "b"]
        assert backend.get_many("a", "b") == [None, None]

    def test_expiry(self, backend: ShmCache) -> None:
        backend.set("a", 1, timeout=1)
        poll_until(lambda: not backend.has("a"), 10, what="expiry")
        assert backend.add("a", 2) is True

    def test_inc_keeps_the_expiry_and_makes_what_is_missing(self, backend: ShmCache) -> None:
        backend.set("a", 1, timeout=50)
        assert backend.inc("a", 2) == 3
        assert 40 < (ttl(backend, "a") or 0) <= 50
        assert backend.inc("b") == 1
        assert 290 < (ttl(backend, "b") or 0) <= 300
        assert backend.dec("c", 4) == -4

    def test_values_keep_their_types(self, backend: ShmCache) -> None:
        for value in (True, False, 0, 1, 1.0, "1", b"1", (1, [2], {3}), {"a": None}, complex(1, 2)):
            backend.set("a", value)
            got = backend.get("a")
            assert (got, type(got)) == (value, type(value))

    def test_a_prefix(self, make: Any, backend: ShmCache) -> None:
        name = backend._connection.name
        ours = make(name, key_prefix="ours:")
        dynamic = make(name, key_prefix=lambda: "other:")
        for one in (backend, ours, dynamic):
            one.set("a", 1)
        assert sorted(backend._connection.cache) == ["a", "other:a", "ours:a"]
        assert ours.clear() is True
        assert sorted(backend._connection.cache) == ["a", "other:a"]
        assert backend.clear() is True
        assert len(backend._connection.cache) == 0

    def test_the_same_name_is_the_same_store(self, make: Any, backend: ShmCache) -> None:
        backend.set("a", 1)
        got = []
        thread = threading.Thread(
            target=lambda: got.append(make(backend._connection.name).get("a"))
        )
        thread.start()
        thread.join()
        assert got == [1]
        assert make().get("a") is None

    def test_another_serializer(self, backend: ShmCache) -> None:
        class Repr(BaseSerializer):
            def dumps(self, value: Any) -> bytes:
                return repr(value).encode()

            def loads(self, stored: bytes) -> Any:
                return eval(stored.decode())

        backend.serializer = Repr()
        backend.set("a", (1, 2))
        assert backend._connection.cache["a"] == b"(1, 2)"
        assert backend.get("a") == (1, 2)
        assert backend.inc("n", 2) == 2 and backend.inc("n") == 3

    def test_what_cannot_be_stored(self, backend: ShmCache, make: Any) -> None:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            backend.set("a", lambda: 1)
        with pytest.raises(TypeError, match="object"):
            make(codec="msgpack").set("a", object())


def _count(channel: Channel, name: str, times: int) -> int:
    backend = ShmCache(name, size="1MiB")
    channel.sync()
    won = 0
    for number in range(times):
        backend.inc("n")
        won += backend.add(f"k{number}", 1)
    return won


def test_inc_and_add_between_processes(backend: ShmCache, start: Any) -> None:
    backend.set("n", 0)
    workers = [start(_count, backend._connection.name, 300) for _ in range(3)]
    release(workers)
    assert sum(worker.result() for worker in workers) == 300
    assert backend.get("n") == 900


CALLS: dict[str, tuple[Callable[[ShmCache], Any], Any]] = {
    "get": (lambda c: c.get("a"), None),
    "has": (lambda c: c.has("a"), False),
    "get_many": (lambda c: c.get_many("a", "b"), [None, None]),
    "get_dict": (lambda c: c.get_dict("a"), {"a": None}),
    "set": (lambda c: c.set("a", 1), False),
    "add": (lambda c: c.add("a", 1), False),
    "delete": (lambda c: c.delete("a"), False),
    "set_many": (lambda c: c.set_many({"a": 1, "b": 2}), []),
    "delete_many": (lambda c: c.delete_many("a"), []),
    "clear": (lambda c: c.clear(), False),
    "inc": (lambda c: c.inc("a"), None),
    "dec": (lambda c: c.dec("a"), None),
}
READS = {"get", "has", "get_many", "get_dict"}


class TestOutages:
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("outage", UNOPENABLE)
    def test_a_miss_or_an_error(self, make: Any, outage: str, call: str) -> None:
        arguments, error = UNOPENABLE[outage]
        run, missed = CALLS[call]
        assert run(make(**arguments)) == missed
        with pytest.raises(error):
            run(make(on_error="raise", **arguments))

    @pytest.mark.parametrize("call", sorted(CALLS.keys() - READS))
    def test_a_held_shard(self, make: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        backend, strict = make(), make(on_error="raise")
        for one in (backend, strict):
            one.set("a", 1)
        run, missed = CALLS[call]
        with monkeypatch.context() as patch:
            hold_all_shards(patch)
            assert run(backend) == missed
            with pytest.raises(errors.LockTimeout):
                run(strict)
        assert backend.get("a") == 1

    def test_delete_many_is_an_error_where_that_is_asked(self, make: Any) -> None:
        backend = make(size="1TiB", ignore_delete_many_errors=False)
        with pytest.raises(RuntimeError, match="a"):
            backend.delete_many("a")

    @pytest.mark.parametrize("call", CALLS)
    def test_an_unlinked_cache(self, make: Any, call: str) -> None:
        backend = make()
        old = backend._connection.cache
        old.unlink()
        while backend._connection.cache is old:
            CALLS[call][0](backend)
        assert backend.set("a", 1) is True
        with Cache(backend._connection.name, create=False) as other:
            assert other["a"] == 1

    def test_what_there_is_no_room_for(self, make: Any) -> None:
        backend = make(policy="keep", shards=1)
        backend.set("a", "old")
        fill(backend._connection.cache)
        large = "x" * 10_000
        assert backend.set("a", large) is False
        assert backend.get("a") is None
        assert backend.set_many({"b": large, "c": large}) == []
        strict = make(backend._connection.name, policy="keep", shards=1, on_error="raise")
        fill(backend._connection.cache)
        with pytest.raises(errors.CacheFull):
            strict.set("a", large)

    def test_a_value_that_is_too_large(self, make: Any, backend: ShmCache) -> None:
        backend.set("a", 1)
        large = b"x" * (backend._connection.cache.max_value_size + 1)
        assert backend.set("a", large) is False
        assert backend.get("a") is None
        assert backend.add("a", large) is False
        assert backend.set_many({"b": 1, "a": large}) == ["b"]
        strict = make(backend._connection.name, on_error="raise")
        with pytest.raises(errors.ValueTooLarge):
            strict.set("a", large)


class TestFlask:
    @pytest.fixture
    def app(self, new_name: Callable[[], str]) -> Iterator[tuple[Any, Any]]:
        flask = pytest.importorskip("flask")
        flask_caching = pytest.importorskip("flask_caching")
        app = flask.Flask("tests")
        app.config.update(
            CACHE_TYPE="shmcache.contrib.cachelib.ShmCache",
            CACHE_ARGS=[new_name()],
            CACHE_OPTIONS={"size": "1MiB", "codec": "msgpack"},
            CACHE_DEFAULT_TIMEOUT=77,
        )
        cache = flask_caching.Cache(app)
        yield app, cache
        with app.app_context():
            cache.cache._connection.close()

    def test_its_settings_arrive(self, app: Any) -> None:
        flask_app, cache = app
        with flask_app.app_context():
            assert isinstance(cache.cache, ShmCache)
            cache.set("a", (1, 2))
            assert cache.get("a") == (1, 2)
            store = cache.cache._connection.cache
            assert store.codec == "msgpack"
            assert 70 < store.ttl("a") <= 77

    def test_a_cached_view_and_a_memoized_function(self, app: Any) -> None:
        flask_app, cache = app
        calls = []

        @flask_app.route("/")
        @cache.cached(timeout=50)
        def view() -> str:
            calls.append("view")
            return f"answer {len(calls)}"

        @cache.memoize(50)
        def double(number: int) -> int:
            calls.append(number)
            return number * 2

        client = flask_app.test_client()
        assert {client.get("/").text for _ in range(3)} == {"answer 1"}
        with flask_app.app_context():
            assert [double(1), double(2), double(1)] == [2, 4, 2]
            cache.delete_memoized(double, 1)
            assert [double(1), double(2)] == [2, 4]
        assert calls == ["view", 1, 2, 1]

    def test_a_request_survives_an_outage(self, app: Any) -> None:
        flask_app, cache = app

        @flask_app.route("/")
        @cache.cached(timeout=50)
        def view() -> str:
            return "answer"

        client = flask_app.test_client()
        assert client.get("/").text == "answer"
        with flask_app.app_context():
            old = cache.cache._connection.cache
            old.unlink()
            while cache.cache._connection.cache is old:
                assert client.get("/").text == "answer"
            assert client.get("/").text == "answer"
            assert len(cache.cache._connection.cache) == 1
