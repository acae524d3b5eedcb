"""Decoded values kept by a handle: who gets the same object, when it is given up, how many stay."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.names import unique_name
from support.processes import Channel, Worker, poll_until

from shmcache import Cache, CacheClosed, CacheNotFound

VALUE = {"id": 1, "tags": ["a", "b"]}


@pytest.fixture
def local(open_cache: Callable[..., Cache]) -> Cache:
    """A cache that keeps eight decoded values."""
    return open_cache(local_entries=8)


@pytest.mark.parametrize("key", ["a", "\u00e4\ud800", b"a", 5, True, 1.5, None, ("a", 1)], ids=repr)
def test_a_second_get_hands_out_the_same_object(local: Cache, key: Any) -> None:
    local[key] = VALUE
    first = local.get(key)
    assert first == VALUE and first is not VALUE
    assert local.get(key) is first
    assert local[key] is first
    assert local.get_many([key])[key] is first


def test_without_local_entries_every_get_decodes(cache: Cache) -> None:
    cache["a"] = VALUE
    assert cache.get("a") is not cache.get("a")


def test_keys_that_python_holds_equal_keep_apart(local: Cache) -> None:
    keys = (1, True, 1.0, "1", b"1", (1,), (True,))
    for number, key in enumerate(keys):
        local[key] = [number]
    for _ in range(2):
        assert [local[key] for key in keys] == [[number] for number in range(len(keys))]


def test_calls_that_hand_a_value_to_be_changed_give_a_copy(local: Cache) -> None:
    local["a"] = [1]
    kept = local["a"]
    local.alter("a", lambda value: [*value, value.append(9)])
    assert kept == [1], "alter worked on a copy of its own"
    local["a"] = [2]
    kept = local["a"]
    seen = local.gets("a")
    assert seen is not None and seen.value == kept and seen.value is not kept
    assert local.pop("a") is not kept


WRITES: dict[str, tuple[Callable[[Cache], Any], Any]] = {
    "set": (lambda cache: cache.set("a", [2]), [2]),
    "the same value again": (lambda cache: cache.set("a", VALUE), VALUE),
    "delete": (lambda cache: cache.delete("a"), None),
    "pop": (lambda cache: cache.pop("a"), None),
    "alter": (lambda cache: cache.alter("a", lambda _: [3]), [3]),
    "cas": (lambda cache: cache.cas("a", [4], cache.gets("a").version), [4]),  # type: ignore[union-attr]
    "replace": (lambda cache: cache.replace("a", [5]), [5]),
    "set_many": (lambda cache: cache.set_many({"a": [6]}), [6]),
    "delete_many": (lambda cache: cache.delete_many(["a"]), None),
    "clear": (lambda cache: cache.clear(), None),
    "retain": (lambda cache: cache.retain(lambda *_: False), None),
    "popitem": (lambda cache: cache.popitem(), None),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("who", ["this handle", "another handle", "another process"])
def test_a_write_by_anybody_is_seen_at_once(
    local: Cache, start: Callable[..., Worker], write: str, who: str
) -> None:
    call, expected = WRITES[write]
    local["a"] = VALUE
    before = local["a"]
    if who == "this handle":
        call(local)
    elif who == "another handle":
        with Cache(local.name, create=False) as other:
            call(other)
    else:
        start(_write, local.name, write).result()
    after = local.get("a")
    assert after == expected
    assert after is not before


def _write(channel: Channel, name: str, write: str) -> None:
    with Cache(name, create=False) as cache:
        WRITES[write][0](cache)


def test_an_expired_value_is_not_handed_out(local: Cache) -> None:
    local.set("a", VALUE, 0.05)
    assert local["a"] is local["a"]
    poll_until(lambda: local.get("a") is None, 5, what="the value expires")
    assert "a" not in local


def test_a_shorter_ttl_given_by_touch_counts(local: Cache) -> None:
    local["a"] = VALUE
    assert local["a"] == VALUE
    local.touch("a", 0.02)
    poll_until(lambda: local.get("a") is None, 5, what="the touched value expires")


def test_hits_and_misses_are_counted(local: Cache) -> None:
    local["a"] = VALUE
    before = local.stats()
    for _ in range(10):
        local.get("a")
    local.get("nothing")
    after = local.stats()
    assert (after.hits - before.hits, after.misses - before.misses) == (10, 1)


def test_local_hits_keep_an_entry_from_being_evicted(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB", shards=1, local_entries=4)
    cache["hot"] = VALUE
    for number in range(40_000):
        cache[number] = bytes(100)
        assert cache.get("hot") == VALUE, f"evicted after {number} others"
    assert cache.stats().evictions > 10_000


class Kept:
    """What the codec below makes of every value: objects that can be counted."""

    made: ClassVar[weakref.WeakSet[Kept]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.made.add(self)


class CountingCodec:
    """Decodes to objects that tell when they are gone."""

    name = "counting"

    def encode(self, value: Any) -> bytes:
        return b"x"

    def decode(self, payload: memoryview) -> Any:
        return Kept()


@pytest.fixture
def counted(open_cache: Callable[..., Cache]) -> Cache:
    """A cache that keeps eight values which can be counted."""
    gc.collect()
    Kept.made.clear()
    return open_cache(local_entries=8, codec=CountingCodec())


def test_no_more_values_are_kept_than_asked_for(counted: Cache) -> None:
    for number in range(100):
        counted[number] = ()
    for _ in range(2):
        for number in range(100):
            counted.get(number)
            assert len(Kept.made) <= 8
    assert len(Kept.made) == 8


def test_what_is_used_outlives_what_is_not(counted: Cache) -> None:
    for number in range(1000):
        counted[number] = ()
    hot = counted.get("hot", None)
    counted["hot"] = ()
    hot = counted["hot"]
    for number in range(1000):
        counted.get(number)
        assert counted.get("hot") is hot


@pytest.mark.parametrize("how", ["delete", "close", "reopen", "unlink"])
def test_what_cannot_be_handed_out_any_more_is_let_go(counted: Cache, how: str) -> None:
    counted["a"] = ()
    counted.get("a")
    assert len(Kept.made) == 1
    if how == "delete":
        counted.delete("a")
        assert counted.get("a") is None
    elif how == "close":
        counted.close()
        with pytest.raises(CacheClosed):
            counted.get("a")
    elif how == "reopen":
        counted.unlink()
        counted.reopen()
        assert counted.get("a") is None
        counted.unlink()
    else:
        counted.unlink()
        with pytest.raises(CacheNotFound):
            counted.get("a")
        counted.close()
    assert len(Kept.made) == 0


def test_a_pickled_handle_keeps_as_many(local: Cache) -> None:
    local["a"] = VALUE
    with pickle.loads(pickle.dumps(local)) as other:
        assert other["a"] is other["a"]


def test_a_forked_child_sees_writes_and_keeps_values_of_its_own(
    local: Cache, start: Callable[..., Worker]
) -> None:
    local["a"] = VALUE
    local["b"] = VALUE
    assert local["a"] == local["b"] == VALUE
    child = start(_read_in_child, local, method="fork")
    assert child.recv() == (VALUE, True)
    local["a"] = [2]
    child.send("look again")
    assert child.recv() == ([2], VALUE)
    child.result()
    assert local["a"] == [2]


def _read_in_child(channel: Channel, cache: Cache) -> None:
    channel.send((cache["a"], cache["a"] is cache["a"]))
    channel.recv()
    channel.send((cache["a"], cache["b"]))


def test_threads_that_read_and_write_get_current_values(local: Cache) -> None:
    """Each thread writes its own keys and reads all: its own must be what it wrote last."""
    wrong: list[Any] = []

    def use(thread: int) -> None:
        for number in range(3000):
            mine = f"key {thread} {number % 5}"
            local[mine] = [thread, number]
            for _ in range(2):
                if (seen := local.get(mine)) != [thread, number]:
                    wrong.append((mine, number, seen))
            other = f"key {(thread + 1) % 4} {number % 5}"
            if (theirs := local.get(other)) is not None and theirs[0] != (thread + 1) % 4:
                wrong.append((other, theirs))

    threads = [threading.Thread(target=use, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


KEYS = st.sampled_from(["a", "b", b"a", 1, True, 2, ("a",), None, 1.0])
VALUES = st.one_of(
    st.integers(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.booleans(), max_size=2),
    st.builds(lambda byte: bytes([byte]) * 3000, st.integers(0, 3)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("touch"), KEYS, st.sampled_from([None, 1000])),
        st.tuples(st.sampled_from(["get", "delete", "pop"]), KEYS, st.none()),
        st.tuples(st.just("churn"), st.none(), st.none()),
        st.tuples(st.just("clear"), st.none(), st.none()),
    ),
    max_size=60,
)


@given(steps=STEPS, writers=st.lists(st.booleans(), min_size=60, max_size=60))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_answers_as_a_cache_without(steps: list[Any], writers: list[bool]) -> None:
    """The same calls to a cache with local entries, some through another handle, and to one
    without: the same answers."""
    with (
        Cache(unique_name("local"), size="1MiB", shards=1, local_entries=3, policy="keep") as local,
        Cache(unique_name("plain"), size="1MiB", shards=1, policy="keep") as plain,
        Cache(local.name, create=False) as other,
    ):
        for (name, key, argument), elsewhere in zip(steps, writers, strict=False):
            ours = other if elsewhere else local
            for cache in (ours, plain):
                if name == "set":
                    cache.set(key, argument)
                elif name == "touch":
                    cache.touch(key, argument)
                elif name == "delete":
                    cache.delete(key)
                elif name == "pop":
                    cache.pop(key, None)
                elif name == "clear":
                    cache.clear()
                elif name == "churn":  # the log wraps: entries move, their slots change
                    for number in range(12):
                        cache["filler"] = bytes(10_000 + number)
            for probe in ("a", "b", b"a", 1, True, 2, ("a",), None, 1.0):
                expected = plain.get(probe, "absent")
                found = local.get(probe, "absent")
                assert (type(found), found) == (type(expected), expected)
