"""Expiry, exact to 10 ms for a reader; the memory of what has expired goes first.

Exactness is judged by clock readings around each call, never by how long something slept: a hit
that *began* more than 10 ms after expiry is wrong however slow the machine is, and so is a miss
that *ended* more than 10 ms before it.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.processes import Channel, Worker, poll_until

from shmcache import Cache, CacheFull

EXACT_S = 0.010


def expired(cache: Cache, *keys: Any) -> None:
    """Wait until every one of ``keys``, stored with a short ttl, has expired."""
    poll_until(lambda: all(cache.get(key) is None for key in keys), 10, what="keys expire")


READS: dict[str, Callable[[Cache], bool]] = {
    "get": lambda c: c.get("k") is not None,
    "contains": lambda c: "k" in c,
    "get_many": lambda c: "k" in c.get_many(["k"]),
    "gets": lambda c: c.gets("k") is not None,
    "get_field": lambda c: c.get_field("k", "f") is not None,
    "iteration": lambda c: "k" in list(c),
    "items": lambda c: "k" in dict(c.items()),
    "scan": lambda c: "k" in list(c.scan("k")),
    "ttl": lambda c: c.ttl("k") is not None if "k" in c else False,
}


def watch_expiry(
    cache: Cache, present: Callable[[Cache], bool], before: float, after: float
) -> None:
    """Poll ``present`` until the key is gone, and judge each answer by the clock.

    ``before`` and ``after`` are the earliest and the latest moment of its expiry.
    """
    while True:
        began = time.monotonic()
        try:
            seen = present(cache)
        except KeyError:  # ttl, where it expired after the look
            seen = False
        ended = time.monotonic()
        if seen:
            assert began <= after + EXACT_S, f"still there {began - after:.4f} s after its expiry"
        else:
            assert ended >= before - EXACT_S, f"gone {before - ended:.4f} s before its expiry"
            return


@pytest.mark.parametrize("name", READS)
def test_expiry_is_exact_for_every_read(cache: Cache, name: str) -> None:
    for ttl in (0.02, 0.05, dt.timedelta(milliseconds=30)):
        seconds = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else ttl
        before = time.monotonic() + seconds
        cache.set("k", {"f": 1}, ttl)
        after = time.monotonic() + seconds
        watch_expiry(cache, READS[name], before, after)


def watch_in_child(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        channel.send("attached")
        before, after = channel.recv()
        watch_expiry(cache, READS["get"], before, after)


def test_expiry_is_exact_in_another_process(
    open_cache: Callable[..., Cache], start: Callable[..., Worker]
) -> None:
    cache = open_cache()
    worker = start(watch_in_child, cache.name, method="spawn")
    assert worker.recv() == "attached"
    before = time.monotonic() + 0.2
    cache.set("k", 1, 0.2)
    worker.send((before, time.monotonic() + 0.2))
    worker.result()


STORING: dict[str, Callable[[Cache, float], object]] = {
    "set": lambda c, ttl: c.set("k", 1, ttl),
    "add": lambda c, ttl: c.add("k", 1, ttl),
    "replace": lambda c, ttl: (c.set("k", 0), c.replace("k", 1, ttl)),
    "set_many": lambda c, ttl: c.set_many({"k": 1}, ttl),
    "incr": lambda c, ttl: c.incr("k", ttl=ttl),
    "decr": lambda c, ttl: c.decr("k", ttl=ttl),
    "cas": lambda c, ttl: (c.set("k", 0), c.cas("k", 1, c.gets("k").version, ttl)),  # type: ignore[union-attr]
    "alter": lambda c, ttl: c.alter("k", lambda v: v + 1, default=0, ttl=ttl),
    "touch": lambda c, ttl: (c.set("k", 1), c.touch("k", ttl)),
    "try_set": lambda c, ttl: c.try_set("k", 1, ttl),
    "try_add": lambda c, ttl: c.try_add("k", 1, ttl),
    "try_incr": lambda c, ttl: c.try_incr("k", ttl=ttl),
}


@pytest.mark.parametrize("name", STORING)
def test_every_storing_call_takes_a_ttl(cache: Cache, name: str) -> None:
    before = time.monotonic() + 0.04
    STORING[name](cache, 0.04)
    after = time.monotonic() + 0.04
    watch_expiry(cache, READS["contains"], before, after)


@pytest.mark.parametrize("name", STORING)
@pytest.mark.parametrize("ttl", [0, -1, 0.0, -0.5, math.nan, -math.inf, dt.timedelta(0)], ids=repr)
def test_a_ttl_that_is_not_positive_is_an_error(cache: Cache, name: str, ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl"):
        STORING[name](cache, ttl)
    assert cache.get("k", 0) in (0, 1)
    if "k" in cache:
        assert cache.ttl("k") is None


@pytest.mark.parametrize("ttl", ["1", b"1", [1], object()], ids=lambda ttl: type(ttl).__name__)
def test_a_ttl_that_is_no_number_is_an_error(cache: Cache, ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        cache.set("k", 1, ttl)
    assert "k" not in cache


@pytest.mark.parametrize(
    "ttl", [None, math.inf, 1e300, 101 * 366 * 86400, 10**30, dt.timedelta.max], ids=repr
)
def test_what_is_past_a_century_never_expires(cache: Cache, ttl: Any) -> None:
    cache.set("k", 1, ttl)
    assert cache.ttl("k") is None
    assert cache["k"] == 1


@pytest.mark.parametrize("ttl", [0.5, 1, 60, 86400, 30 * 366 * 86400, dt.timedelta(days=40)])
def test_ttl_says_what_is_left(cache: Cache, ttl: Any) -> None:
    seconds = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else ttl
    before = time.monotonic()
    cache.set("k", 1, ttl)
    left = cache.ttl("k")
    passed = time.monotonic() - before
    assert left is not None
    assert seconds - passed - EXACT_S <= left <= seconds + EXACT_S


def test_a_tiny_ttl_is_no_error(cache: Cache) -> None:
    cache.set("k", 1, 1e-9)
    expired(cache, "k")


def test_which_writes_keep_the_expiry_and_which_do_not(cache: Cache) -> None:
    def lives_after(write: Callable[[], object]) -> bool:
        cache.set("k", 1, 1000)
        write()
        return cache.ttl("k") is None

    assert not lives_after(lambda: cache.incr("k"))
    assert not lives_after(lambda: cache.incr("k", ttl=5))
    assert (cache.ttl("k") or 0) > 900
    assert not lives_after(lambda: cache.decr("k"))
    assert not lives_after(lambda: cache.alter("k", lambda value: value + 1))
    assert not lives_after(lambda: cache.add("k", 2, None))
    assert not lives_after(lambda: cache.setdefault("k", 2))
    assert lives_after(lambda: cache.set("k", 2))
    assert lives_after(lambda: cache.replace("k", 2))
    assert lives_after(lambda: cache.set_many({"k": 2}))
    assert lives_after(lambda: cache.cas("k", 2, cache.gets("k").version))  # type: ignore[union-attr]
    assert lives_after(lambda: cache.touch("k"))
    assert lives_after(lambda: cache.alter("k", lambda value: value, ttl=math.inf))
    cache.alter("k", lambda value: value, ttl=50)
    assert 40 < (cache.ttl("k") or 0) <= 50


def test_to_every_operation_an_expired_entry_is_absent(cache: Cache) -> None:
    def expire_again() -> None:
        cache.set("k", 7, 0.005)
        expired(cache, "k")

    expire_again()
    assert "k" not in cache
    assert cache.get("k", "default") == "default"
    assert cache.try_get("k") is None
    assert cache.gets("k") is None
    assert cache.get_many(["k"]) == {}
    assert cache.get_field("k", default="default") == "default"
    for view in (cache, cache.keys(), cache.values(), cache.items(), cache.scan("k")):
        assert list(view) == []
    assert cache == {}
    with pytest.raises(KeyError):
        cache["k"]
    with pytest.raises(KeyError):
        del cache["k"]
    with pytest.raises(KeyError):
        cache.pop("k")
    with pytest.raises(KeyError):
        cache.ttl("k")
    with pytest.raises(KeyError):
        cache.popitem()
    with pytest.raises(KeyError):
        cache.alter("k", lambda value: value)
    expire_again()
    assert cache.delete("k") is False
    expire_again()
    assert cache.replace("k", 1) is False
    assert cache.touch("k", 10) is False
    assert cache.cas("k", 1, 0) is False
    assert cache.delete_many(["k"]) == 0
    assert "k" not in cache
    expire_again()
    assert cache.retain(lambda key, value: pytest.fail("retain showed an expired entry")) == 0
    expire_again()
    assert cache.pop("k", "default") == "default"
    expire_again()
    assert cache.add("k", 1) is True
    assert cache.ttl("k") is None
    expire_again()
    assert cache.incr("k", 5) == 5
    assert cache.ttl("k") is None
    expire_again()
    assert cache.setdefault("k", "new") == "new"
    expire_again()
    assert cache.alter("k", lambda value: value + 1, default=0) == 1


def test_cas_after_expiry_and_a_new_set_is_refused(cache: Cache) -> None:
    cache.set("k", 1, 0.01)
    seen = cache.gets("k")
    expired(cache, "k")
    if seen is not None:
        assert cache.cas("k", 2, seen.version) is False
        cache["k"] = 1
        assert cache.cas("k", 2, seen.version) is False
    cache["k"] = 1
    assert cache["k"] == 1


def test_len_counts_the_expired_until_they_are_removed(cache: Cache) -> None:
    for number in range(50):
        cache.set(f"short {number}", number, 0.005)
    cache["long"] = 1
    expired(cache, *(f"short {number}" for number in range(50)))
    assert list(cache) == ["long"]
    assert 1 <= len(cache) <= 51
    assert cache.stats().entries == len(cache)
    held = len(cache)
    assert cache.expire() == held - 1
    assert len(cache) == cache.stats().entries == 1
    assert cache.expire() == 0
    assert cache.stats().expirations == 50
    assert cache.verify() == []


def test_expire_frees_the_bytes(cache: Cache) -> None:
    empty = cache.stats().bytes_used
    cache.set("k", bytes(5000), 0.005)
    assert cache.stats().bytes_used >= empty + 5000
    expired(cache, "k")
    cache.expire()
    assert cache.stats().bytes_used == empty


@pytest.mark.parametrize("shards", [1, 4])
def test_the_expired_go_before_anything_live(open_cache: Callable[..., Cache], shards: int) -> None:
    """Fill a cache to 70%, half of it expired; as much again fits without one eviction."""
    cache = open_cache(size="4MiB", shards=shards)
    total = cache.stats().bytes_total
    count = int(0.35 * total / 1060)
    for number in range(count):
        cache[f"live {number}"] = bytes([number % 256]) * 1000
        cache.set(f"short {number}", bytes(1000), 0.005)
    expired(cache, *(f"short {number}" for number in range(count)))
    for number in range(count):
        cache[f"new {number}"] = bytes([number % 256]) * 1000
    for number in range(count):
        assert cache.get(f"live {number}") == bytes([number % 256]) * 1000
        assert cache.get(f"new {number}") == bytes([number % 256]) * 1000
    assert cache.stats().evictions == 0
    assert cache.verify() == []


def test_a_full_keep_cache_takes_writes_once_entries_expire(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(size="1MiB", policy="keep", shards=1)
    cache["forever"] = "here"
    stored = 0
    with pytest.raises(CacheFull):
        for stored in range(100_000):
            cache.set(stored, bytes(2000), 2.0)
    expired(cache, *range(stored))
    for number in range(stored):
        cache[f"new {number}"] = bytes(2000)
    assert len(list(cache)) == stored + 1
    assert cache["forever"] == "here"
    assert cache.verify() == []
