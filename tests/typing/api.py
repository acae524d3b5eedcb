"""The public promises of the types.  Only mypy reads this file; it is never run.

Each ``# type: ignore[code]`` is an assertion too: with ``warn_unused_ignores`` (part of
``--strict``) mypy complains when the mistake on that line is no longer found.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, assert_type

from shmcache import (
    Cache,
    CacheFull,
    CacheNotFound,
    Codec,
    HistogramBucket,
    Key,
    LatencyRing,
    LatencySummary,
    LockTimeout,
    Namespace,
    ShardStats,
    ShmcacheError,
    Stats,
    Versioned,
    WouldBlock,
    list_caches,
)


def opening() -> None:
    cache = Cache("app")
    assert_type(cache, Cache)
    Cache("app", create=False, wait=1.5, size="512MiB", shards=8, avg_entry_size=100)
    Cache("app", size=1 << 20, policy="keep", codec="json", persist=True, mode=0o660, group="www")
    Cache("app", group=33, lock_timeout=0, local_entries=10, slots=4, slot_capacity="1MiB")
    with Cache("app") as opened:
        assert_type(opened, Cache)
    Cache()  # type: ignore[call-arg]
    Cache("app", True)  # type: ignore[call-arg, misc, unused-ignore]
    Cache(1)  # type: ignore[arg-type]
    Cache("app", sise="1MiB")  # type: ignore[call-arg]
    Cache("app", shards="4")  # type: ignore[arg-type]


def describing(cache: Cache) -> None:
    assert_type(cache.name, str)
    assert_type(cache.closed, bool)
    assert_type(cache.size, int)
    assert_type(cache.shards, int)
    assert_type(cache.policy, str)
    assert_type(cache.codec, str)
    assert_type(cache.persist, bool)
    assert_type(cache.max_value_size, int)
    cache.size = 5  # type: ignore[misc]


def ending(cache: Cache) -> None:
    cache.close()
    cache.unlink()
    cache.reopen()


def as_a_mapping(cache: Cache) -> None:
    mapping: MutableMapping[Any, Any] = cache
    read_only: Mapping[Any, Any] = cache
    assert_type(cache["k"], Any)
    assert_type(cache.get("k"), Any)
    assert_type(len(cache), int)
    assert_type("k" in cache, bool)
    cache["k"] = object()
    del cache["k"]
    cache.update({"a": 1}, b=2)
    for key in cache:
        assert_type(key, Any)
    keys: KeysView[Any] = cache.keys()
    values: ValuesView[Any] = cache.values()
    items: ItemsView[Any, Any] = cache.items()
    names: Iterator[Any] = cache.scan("prefix")
    print(mapping, read_only, keys, values, items, names)


def every_key(cache: Cache) -> None:
    keys: list[Key] = ["text", b"bytes", 1, True, None, 1.5, uuid.uuid4(), ("a", 1, (None, b"x"))]
    for key in keys:
        cache.set(key, 1)
    cache.set([], 1)  # type: ignore[arg-type]
    cache.set({"a": 1}, 1)  # type: ignore[arg-type]
    cache.get(object())  # type: ignore[arg-type]


def operations(cache: Cache) -> None:
    assert_type(cache.add("k", 1), bool)
    assert_type(cache.replace("k", 1, 5), bool)
    assert_type(cache.delete("k"), bool)
    assert_type(cache.pop("k"), Any)
    assert_type(cache.pop("k", None), Any)
    assert_type(cache.incr("k"), int)
    assert_type(cache.decr("k", 2, initial=5, ttl=1.5), int)
    assert_type(cache.gets("k"), Versioned | None)
    assert_type(cache.cas("k", 1, 7), bool)
    assert_type(cache.touch("k", 5), bool)
    assert_type(cache.ttl("k"), float | None)
    assert_type(cache.retain(lambda key, value: True), int)
    assert_type(cache.expire(), int)
    assert_type(cache.try_add("k", 1), bool)
    assert_type(cache.try_delete("k"), bool)
    assert_type(cache.try_incr("k"), int)
    cache.set("k", 1, dt.timedelta(seconds=5))
    cache.alter("k", lambda value: value + 1, default=0, ttl=5)
    cache.get_field("k", "a", 0, default=None)
    cache.set("k", 1, "5")  # type: ignore[arg-type]
    cache.incr("k", "1")  # type: ignore[arg-type]
    cache.incr("k", 1, 5)  # type: ignore[call-arg, misc, unused-ignore]


def versions(cache: Cache) -> None:
    seen = cache.gets("k")
    if seen is not None:
        value, version = seen
        assert_type(seen.version, int)
        assert_type(version, int)
        print(value)
    seen.version  # type: ignore[union-attr]


def batches(cache: Cache) -> None:
    assert_type(cache.get_many(["a", "b"]), dict[str, Any])
    assert_type(cache.get_many(iter([1, 2])), dict[int, Any])
    assert_type(cache.get_many({uuid.uuid4()}), dict[uuid.UUID, Any])
    cache.set_many({"a": 1})
    cache.set_many({1: "x"}, ttl=5)
    assert_type(cache.delete_many(["a"]), int)
    cache.get_many([["a"]])  # type: ignore[type-var, list-item, unused-ignore]
    cache.set_many([("a", 1)])  # type: ignore[arg-type]


def watching(cache: Cache) -> None:
    stats = cache.stats()
    assert_type(stats, Stats)
    assert_type(stats.entries, int)
    assert_type(stats.hit_ratio, float)
    assert_type(stats.lock_wait_seconds, float)
    assert_type(stats.owner_pid, int | None)
    assert_type(stats.shards, tuple[ShardStats, ...])
    assert_type(stats.as_dict(), dict[str, Any])
    stats.hits = 1  # type: ignore[misc]
    for found in list_caches():
        assert_type(found.name, str)
        assert_type(found.size, int)


def errors(cache: Cache) -> None:
    try:
        cache.set_many({"a": 1})
    except WouldBlock as error:
        timeout: LockTimeout = error
        print(timeout)
    except LockTimeout as error:
        os_error: TimeoutError = error
        print(os_error, error.keys)
    except CacheFull as error:
        print(error.keys)
    except CacheNotFound as error:
        missing: FileNotFoundError = error
        print(missing)
    except ShmcacheError as error:
        print(error)


class Plain:
    """A codec as a user writes one: it satisfies the protocol by shape alone."""

    name = "plain"

    def encode(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, data: memoryview) -> Any:
        return bytes(data).decode()


class Incomplete:
    name = "incomplete"

    def encode(self, value: Any) -> bytes:
        return b""


def codecs() -> None:
    codec: Codec = Plain()
    Cache("app", codec=codec)
    Cache("app", codec=Plain())
    Cache("app", codec=Incomplete())  # type: ignore[arg-type]


def latencies(cache: Cache) -> None:
    ring = cache.latencies()
    assert_type(ring, LatencyRing)
    cache.latencies("db", capacity=100)
    cache.latencies("db", 100)  # type: ignore[call-arg]
    ring.record(0.5)
    ring.record_ns(500)
    ring.record_ns(0.5)  # type: ignore[arg-type]
    assert_type(ring.recent(3), list[float])
    assert_type(ring.drain(3), list[float])
    assert_type(ring.average(), float)
    assert_type(ring.rate(), float)
    assert_type(ring.percentile(99.9), float)
    assert_type(ring.summary(), LatencySummary)
    assert_type(ring.summary().last_at, float | None)
    assert_type(ring.histogram(), list[HistogramBucket])
    with ring.time() as timing:
        pass
    assert_type(timing.seconds, float | None)

    @ring.timed
    def plain(a: int, *, b: str = "") -> bytes:
        return b""

    @ring.timed
    async def later(a: int) -> str:
        return ""

    assert_type(plain(1, b="x"), bytes)
    plain("1")  # type: ignore[arg-type]
    later("1")  # type: ignore[arg-type, unused-coroutine]
    cache.latency_sampling = 0
    assert_type(cache.latency_sampling, int)


@dataclasses.dataclass
class User:
    """What the namespaces below hold."""

    id: int


async def once(cache: Cache, users: Namespace[User]) -> None:
    async def make() -> bytes:
        return b""

    async def make_user() -> User:
        return User(1)

    assert_type(cache.get_or_init("k", lambda: 5), int)
    assert_type(cache.get_or_init("k", lambda: "x", 60, timeout=1, stale=5, negative_ttl=0), str)
    assert_type(await cache.aget_or_init("k", make), bytes)
    cache.get_or_init("k", 5)  # type: ignore[arg-type]
    cache.get_or_init("k", lambda: 5, 60, 1.0)  # type: ignore[call-arg, misc, unused-ignore]
    await cache.aget_or_init("k", lambda: 5)  # type: ignore[arg-type, return-value, unused-ignore]
    assert_type(users.get_or_init("k", lambda: User(1), ttl=60), User)
    assert_type(await users.aget_or_init("k", make_user), User)
    users.get_or_init("k", lambda: 5)  # type: ignore[arg-type, return-value, unused-ignore]
    await users.aget_or_init("k", make)  # type: ignore[arg-type]


async def memoizing(cache: Cache, users: Namespace[User]) -> None:
    @cache.memoize
    def load(name: str, page: int = 0) -> bytes:
        return b""

    @cache.memoize(60, key=lambda number: number, version=2, timeout=1, stale=5, negative_ttl=0)
    async def later(number: int) -> str:
        return ""

    class Reader:
        @cache.memoize(ttl=dt.timedelta(minutes=1), key=lambda self, field: field)
        def read(self, field: str) -> int:
            return 0

        @users.memoize(key=lambda self, field: field)
        async def fetch(self, field: str) -> float:
            return 0.0

    assert_type(load("a"), bytes)
    assert_type(load("a", page=1), bytes)
    assert_type(load.invalidate("a", page=1), bool)
    assert_type(load.key("a"), Key)
    assert_type(load.cache_clear(), None)
    assert_type(load.cache_info().hits, int)
    assert_type(load.cache_info().currsize, int)
    assert_type(load.__wrapped__("a"), bytes)
    load(1)  # type: ignore[arg-type]
    load("a", pages=1)  # type: ignore[call-arg]
    load.invalidate(1)  # type: ignore[arg-type]
    load.key()  # type: ignore[call-arg]
    load("a").upper().missing()  # type: ignore[attr-defined]
    assert_type(await later(1), str)
    assert_type(later.invalidate(1), bool)
    await later("1")  # type: ignore[arg-type]
    later(1).upper()  # type: ignore[attr-defined]
    assert_type(Reader().read("a"), int)
    assert_type(await Reader().fetch("a"), float)
    assert_type(Reader.read(Reader(), "a"), int)
    assert_type(Reader.read.invalidate(Reader(), "a"), bool)
    Reader().read(1)  # type: ignore[arg-type]
    Reader().read("a", 1)  # type: ignore[call-arg]
    cache.memoize(ttl="60")  # type: ignore[call-overload]
    cache.memoize(60, 5)  # type: ignore[call-overload]
    assert_type(users.expire(), int)


def namespaces(cache: Cache) -> None:
    users = cache.namespace("users", User, ttl=60)
    assert_type(users, Namespace[User])
    mapping: MutableMapping[Any, User] = users
    assert_type(mapping["a"], User)
    assert_type(users.get("a"), User | None)
    assert_type(users.get("a", User(1)), User)
    assert_type(users.get("a", 5), User | int)
    assert_type(users["a"], User)
    assert_type(users.get_many(["a"]), dict[str, User])
    assert_type(users.pop("a"), User)
    assert_type(users.pop("a", None), User | None)
    assert_type(users.popitem(), tuple[Any, User])
    assert_type(users.setdefault("a", User(1)), User)
    assert_type(users.setdefault("a"), User | None)
    assert_type(users.gets("a"), Versioned[User] | None)
    if seen := users.gets("a"):
        assert_type(seen.value, User)
        users.cas("a", seen.value, seen.version)
    assert_type(users.values(), ValuesView[User])
    assert_type(users.items(), ItemsView[Any, User])
    assert_type(users.alter("a", lambda user: User(user.id + 1)), User)
    assert_type(users.add("a", User(1)), bool)
    assert_type(users.invalidate(), None)
    users.set("a", User(1), dt.timedelta(seconds=5))
    users["a"] = User(2)
    users.set_many({"a": User(1)}, ttl=5)
    assert_type(users.namespace("admins", User), Namespace[User])
    assert_type(users.namespace("plain"), Namespace[Any])
    assert_type(cache.namespace("plain"), Namespace[Any])
    assert_type(cache.namespace("plain").get("a"), Any | None)
    assert_type(cache.namespace("ids", list[int])["a"], list[int])
    users.set("a", 5)  # type: ignore[arg-type]
    users.setdefault("a", "text")  # type: ignore[call-overload]
    users["a"] = "text"  # type: ignore[assignment]
    users.set_many({"a": 1})  # type: ignore[dict-item]
    cache.namespace(5)  # type: ignore[call-overload]
