"""Namespaces: whose keys are whose, what invalidating drops, and when the memory comes back."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.names import unique_name
from support.processes import Channel, Worker, poll_until

from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    KeyTooLarge,
    Namespace,
)

KEYS: tuple[Any, ...] = ("a", "\u00e4\ud800", b"a", 1, True, 1.5, None, ("a", 1), "k" * 300)


@pytest.fixture
def users(cache: Cache) -> Namespace[Any]:
    """A namespace of the cache."""
    return cache.namespace("users")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:20])
def test_the_operations_work_on_keys_of_its_own(
    cache: Cache, users: Namespace[Any], key: Any
) -> None:
    cache[key] = "the cache's"
    assert users.get(key) is None and key not in users
    users.set(key, 1)
    assert (users[key], cache[key]) == (1, "the cache's")
    assert users.incr(key, 4) == 5
    assert users.add(key, 9) is False and users.replace(key, [2]) is True
    seen = users.gets(key)
    assert seen is not None and users.cas(key, [3], seen.version) is True
    assert users.alter(key, lambda value: [*value, 4]) == [3, 4]
    assert users.get_many([key]) == {key: [3, 4]}
    assert users.ttl(key) is None and users.touch(key, 100) is True
    assert 99 < (users.ttl(key) or 0) <= 100
    assert list(users) == [key] and type(next(iter(users))) is type(key)
    assert list(users.items()) == [(key, [3, 4])]
    assert users.pop(key) == [3, 4] and users.pop(key, "gone") == "gone"
    users.set_many({key: {"x": 1}})
    assert users.get_field(key, "x") == 1
    assert users.setdefault(key, 7) == {"x": 1}
    assert users.popitem() == (key, {"x": 1})
    users[key] = 1
    assert users.delete_many([key]) == 1
    with pytest.raises(KeyError):
        users[key]
    assert cache[key] == "the cache's"


def test_its_entries_show_only_through_it_and_in_the_counts(cache: Cache) -> None:
    users = cache.namespace("users")
    cache["plain"] = 0
    users["a"] = 1
    users.namespace("admins")["b"] = 2
    assert list(cache) == ["plain"] and dict(cache.items()) == {"plain": 0}
    assert cache.get("a") is None
    assert list(users) == ["a"] and len(users) == 1 and bool(users)
    assert list(users.namespace("admins")) == ["b"]
    assert len(cache) == 3 == cache.stats().entries
    assert cache.stats().sets == 3
    assert list(cache.scan("")) == ["plain"]
    cache.clear()
    assert users == {} and users.namespace("admins") == {} and not users
    assert cache.verify() == []


def test_namespaces_of_different_paths_never_meet(cache: Cache) -> None:
    spaces = [cache.namespace("a"), cache.namespace("ab"), cache.namespace("a").namespace("b")]
    spaces += [cache.namespace("b"), cache.namespace("b").namespace("a")]
    for number, space in enumerate(spaces):
        space["x"] = number
    for number, space in enumerate(spaces):
        assert dict(space) == {"x": number}


def test_scan_keeps_to_the_namespace(users: Namespace[Any], cache: Cache) -> None:
    cache["key 0"] = 0
    users.update({"key 1": 1, "key 2": 2, "other": 3, b"key 3": 4})
    assert set(users.scan("key")) == {"key 1", "key 2"}
    assert users.retain(lambda key, value: value > 2) == 2
    assert set(users) == {"other", b"key 3"}


@pytest.mark.parametrize("how", ["invalidate", "clear"])
@pytest.mark.parametrize("who", ["this handle", "another handle", "another process"])
def test_what_was_invalidated_is_gone_for_everybody(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], how: str, who: str
) -> None:
    cache = open_cache(local_entries=10)
    users, other = cache.namespace("users"), cache.namespace("other")
    nested = users.namespace("nested")
    for space in (users, other, nested):
        space["a"] = ["value"]
        assert space["a"] is space["a"]
    if who == "this handle":
        getattr(users, how)()
    elif who == "another handle":
        getattr(cache.namespace("users"), how)()
    else:
        start(_invalidate, cache.name, how).result()
    assert users.get("a") is None and nested.get("a") is None
    assert "a" not in users and list(users) == list(nested) == []
    assert other["a"] == ["value"]
    users["a"] = 2
    nested["a"] = 3
    assert (users["a"], nested["a"], list(users)) == (2, 3, ["a"])


def _invalidate(channel: Channel, name: str, how: str) -> None:
    with Cache(name, create=False) as cache:
        getattr(cache.namespace("users"), how)()


def test_invalidating_a_nested_one_leaves_the_outer(cache: Cache) -> None:
    users = cache.namespace("users")
    nested = users.namespace("nested")
    users["a"], nested["a"] = 1, 2
    nested.invalidate()
    assert users["a"] == 1 and nested.get("a") is None


def test_invalidating_nothing_is_nothing(users: Namespace[Any]) -> None:
    users.invalidate()
    users.clear()
    assert users.get("a") is None
    users["a"] = 1
    assert users["a"] == 1


@pytest.mark.parametrize("policy", ["keep", "evict"])
def test_invalidated_entries_make_room_for_new_ones(
    open_cache: Callable[..., Cache], policy: str
) -> None:
    """Also under `keep`, where nothing else would ever drop them."""
    cache = open_cache(size="1MiB", shards=1, policy=policy, slots=0, avg_entry_size=1000)
    kept = cache.namespace("kept")
    kept["a"] = "stays"
    cache["b"] = "stays too"
    users = cache.namespace("users")
    fits = int(cache.stats().bytes_total * 0.6) // 1100
    for turn in range(6):
        for number in range(fits):
            users[number] = bytes(1000)
        assert sum(1 for _ in users) == fits, f"turn {turn}"
        assert cache.verify() == []
        users.invalidate()
    assert kept["a"] == "stays" and cache["b"] == "stays too"
    assert cache.stats().evictions == 0


def test_expire_frees_what_was_invalidated(cache: Cache) -> None:
    users = cache.namespace("users")
    nested = users.namespace("nested")
    for number in range(1000):
        users[number] = nested[number] = bytes(100)
    cache["stays"] = 1
    users.invalidate()
    assert len(cache) == 2001
    assert cache.expire() == 2000
    assert len(cache) == 1 and cache.stats().bytes_used < 1000
    assert cache.expire() == 0
    assert cache.verify() == []


def test_an_epoch_that_was_evicted_is_drawn_anew(open_cache: Callable[..., Cache]) -> None:
    """Entries of a namespace that nobody used while others washed its epoch out stay hidden."""
    cache = open_cache(size="1MiB", shards=1)
    with Cache(cache.name, create=False) as other:
        for number in range(50):
            other.namespace(f"space {number}")["a"] = number
    for number in range(60_000):
        cache[number] = bytes(100)
    for number in range(50):
        assert cache.namespace(f"space {number}").get("a") in (None, number)
        cache.namespace(f"space {number}")["b"] = number
        assert cache.namespace(f"space {number}")["b"] == number
    assert cache.verify() == []


def test_a_used_namespace_keeps_its_epoch(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB", shards=1)
    users = cache.namespace("users")
    users["a"] = 1
    for number in range(40_000):
        cache[number] = bytes(100)
        assert users.get("a") == 1, f"lost after {number} others"
    assert cache.stats().evictions > 10_000


def test_a_default_ttl_counts_where_a_call_gives_none(cache: Cache) -> None:
    users = cache.namespace("users", ttl=100)
    nested = users.namespace("nested")
    users["a"] = 1
    users.set("b", 1, 5)
    users.set("c", 1, float("inf"))
    users.set_many({"d": 1})
    users.incr("e")
    nested["f"] = 1
    users.set("g", 1, 7)
    users.alter("g", lambda value: value + 1)
    users.set("h", 1, 7)
    users.touch("h")
    assert users.default_ttl == nested.default_ttl == 100
    expected = {"a": 100, "b": 5, "c": None, "d": 100, "e": 100, "g": 7, "h": 100}
    for key, seconds in expected.items():
        left = users.ttl(key)
        assert (left is None) == (seconds is None), key
        assert left is None or seconds is None or seconds - 1 < left <= seconds, key
    assert (nested.ttl("f") or 0) > 99
    cache.namespace("brief", ttl=0.02)["a"] = 1
    poll_until(lambda: "a" not in cache.namespace("brief"), 5, what="the default ttl passes")


def test_bad_arguments_are_refused(cache: Cache) -> None:
    for prefix in ("", "x" * 1100):
        with pytest.raises(ValueError):
            cache.namespace(prefix)
    with pytest.raises(TypeError):
        cache.namespace(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        cache.namespace("a", ttl=0)
    deep = cache.namespace("0")
    for level in range(1, 8):
        deep = deep.namespace(str(level))
    deep["a"] = 1
    assert deep["a"] == 1
    with pytest.raises(ValueError, match="8 deep"):
        deep.namespace("8")
    with pytest.raises(KeyTooLarge):
        cache.namespace("a").set("x" * 65_530, 1)
    with pytest.raises(TypeError):
        cache.namespace("a").set({}, 1)  # type: ignore[arg-type]


def test_it_closes_and_reopens_with_its_cache(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(persist=True, local_entries=4)
    users = cache.namespace("users")
    users["a"] = [1]
    assert users["a"] is users["a"]
    cache.close()
    assert users.closed
    for call in (lambda: users.get("a"), lambda: users.set("a", 1), lambda: list(users)):
        with pytest.raises(CacheClosed):
            call()
    with pytest.raises(CacheClosed):
        cache.namespace("users")
    cache.reopen()
    assert users["a"] == [1] and users["a"] is users["a"]
    cache.unlink()
    with pytest.raises(CacheNotFound):
        users.get("a")
    cache.reopen()
    assert users.get("a") is None
    users["a"] = 2
    assert cache.namespace("users")["a"] == 2
    cache.unlink()


def test_it_pickles_with_its_cache(cache: Cache) -> None:
    users = cache.namespace("users", list[int], ttl=50).namespace("nested", list[int])
    users["a"] = [1]
    again = pickle.loads(pickle.dumps(users))
    assert again["a"] == [1] and again.default_ttl == 50 and again.prefix == "nested"


def test_a_forked_child_uses_it(users: Namespace[Any], start: Callable[..., Worker]) -> None:
    users["a"] = 1
    child = start(_use_in_child, users, method="fork")
    assert child.recv() == 1
    users.invalidate()
    child.send("go on")
    child.result()
    assert users["b"] == 2 and users.get("a") is None


def _use_in_child(channel: Channel, users: Namespace[Any]) -> None:
    channel.send(users["a"])
    channel.recv()
    assert users.get("a") is None
    users["b"] = 2


def test_invalidation_beside_writers_never_shows_an_old_value(
    cache: Cache, start: Callable[..., Worker]
) -> None:
    """Each writer counts on; what was there before an invalidation is not read after it."""
    writers = [start(_count_on, cache.name, number) for number in range(2)]
    users = cache.namespace("users")
    for _ in range(300):
        for key in ("key 0", "key 1"):
            before = users.get(key, -1)
            users.invalidate()
            assert users.get(key, before + 1) > before  # stored since, if it is there
    cache["stop"] = True
    for writer in writers:
        writer.result()
    assert cache.verify() == []


def _count_on(channel: Channel, name: str, number: int) -> None:
    with Cache(name, create=False) as cache:
        users, turn = cache.namespace("users"), 0
        while "stop" not in cache:
            users[f"key {number}"] = turn
            turn += 1


def test_batches_beside_invalidations(cache: Cache) -> None:
    users = cache.namespace("users")
    stop = threading.Event()

    def invalidate() -> None:
        while not stop.is_set():
            cache.namespace("users").invalidate()

    thread = threading.Thread(target=invalidate)
    thread.start()
    try:
        for turn in range(200):
            users.set_many({f"key {number}": turn for number in range(50)})
            assert set(users.get_many([f"key {number}" for number in range(50)]).values()) <= {turn}
            users.delete_many([f"key {number}" for number in range(50)])
    finally:
        stop.set()
        thread.join(60)
    assert cache.verify() == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "delete", "get", "invalidate", "expire"]),
        st.integers(0, 3),
        st.sampled_from(["a", b"a", 1, True, None, ("a",)]),
    ),
    max_size=50,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_namespaces_behave_as_dicts(steps: list[Any]) -> None:
    with Cache(unique_name("spaces"), size="1MiB", shards=2, local_entries=5) as cache:
        outer = cache.namespace("outer")
        spaces: list[Any] = [outer, outer.namespace("inner"), cache.namespace("other"), cache]
        models: list[dict[Any, Any]] = [{}, {}, {}, {}]

        def key_of(key: Any) -> Any:
            return (type(key), key)

        for number, (call, which, key) in enumerate(steps):
            space, model = spaces[which], models[which]
            if call == "set":
                space[key] = model[key_of(key)] = [number]
            elif call == "delete":
                assert space.delete(key) == (model.pop(key_of(key), None) is not None)
            elif call == "get":
                assert space.get(key) == model.get(key_of(key))
            elif call == "expire":
                cache.expire()
                assert len(cache) == sum(map(len, models))
            elif which < 3:
                space.invalidate()
                model.clear()
                if which == 0:
                    models[1].clear()
            for handle, expected in zip(spaces, models, strict=True):
                assert {key_of(key): value for key, value in handle.items()} == expected
        assert cache.verify() == []


# --------------------------------------------------------------- every operation, here too

LEFT_TO_THE_CACHE = {
    *("close", "unlink", "reopen", "stats", "verify", "slot", "token", "latencies"),
    *("shards", "size", "policy", "codec", "persist"),
}
"""What concerns the segment, not keys."""


def test_it_has_every_operation_of_a_cache() -> None:
    public = {name for name in dir(Cache) if not name.startswith("_")}
    assert public - set(dir(Namespace)) == LEFT_TO_THE_CACHE


def test_the_try_variants_and_batches_keep_to_it(cache: Cache, users: Namespace[Any]) -> None:
    cache["a"] = "the cache's"
    users.try_set("a", 1)
    assert users.try_get("a") == 1 and users.try_get("b", 5) == 5
    assert users.try_add("a", 2) is False and users.try_add("b", 2) is True
    assert users.try_incr("a", 2) == 3 and users.decr("a") == 2
    assert users.try_pop("a") == 2 and users.try_pop("a", None) is None
    assert users.try_delete("b") is True and users.delete("b") is False
    users.update(a=1, b=2)
    assert users == {"a": 1, "b": 2} and users != {"a": 1}
    assert sorted(users.keys()) == ["a", "b"] and sorted(users.values()) == [1, 2]
    del users["a"]
    with pytest.raises(KeyError):
        del users["a"]
    users.clear()
    assert dict(cache) == {"a": "the cache's"}


def test_get_or_init_and_memoize_keep_to_it(cache: Cache, users: Namespace[Any]) -> None:
    cache["a"] = "the cache's"
    assert users.get_or_init("a", lambda: 1) == users.get_or_init("a", lambda: 2) == 1

    async def make() -> int:
        return 3

    assert asyncio.run(users.aget_or_init("b", make)) == 3
    calls: list[int] = []

    @users.memoize(100)
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    assert double(2) == double(2) == 4
    assert users == {"a": 1, "b": 3} and dict(cache) == {"a": "the cache's"}
    users.invalidate()
    assert double(2) == 4
    assert calls == [2, 2]
    assert cache.verify() == []


def test_expire_removes_what_has_expired_of_it_only(cache: Cache, users: Namespace[Any]) -> None:
    nested = users.namespace("nested")
    for space in (cache, users, nested):
        space.set("short", 1, 0.01)
        space.set("long", 2, 100)
        space.set("for ever", 3)
    users.set("also short", 1, 0.01)
    users.get_or_init("stale", lambda: 1, 0.01, stale=100)
    spaces = (cache, users, nested)
    brief = ("short", "also short", "stale")
    poll_until(lambda: not any(k in s for s in spaces for k in brief), what="they expired")
    assert cache.stats().entries == 11
    assert users.expire() == 2
    assert users.expire() == 0
    assert cache.stats().entries == 9
    assert set(users) == {"long", "for ever"}
    assert users.get_or_init("stale", lambda: 2) == 2
    assert cache.expire() == 2
    assert cache.verify() == []
