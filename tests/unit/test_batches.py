"""get_many, set_many, delete_many and update: one lock per shard and batch, all checked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmcache import Cache, CacheFull, KeyTooLarge, ValueTooLarge

REFERENCE: dict[Any, Any] = {
    **{f"key {number}": number for number in range(300)},
    **{number: [number] for number in range(100)},
    **{("t", number): str(number) * 50 for number in range(100)},
}


@pytest.mark.parametrize("shards", [1, 8])
def test_many_is_as_one_by_one(open_cache: Callable[..., Cache], shards: int) -> None:
    cache = open_cache(shards=shards)
    cache.set_many(REFERENCE)
    assert cache == REFERENCE
    assert cache.get_many(REFERENCE) == REFERENCE
    assert cache.delete_many(list(REFERENCE)[:100]) == 100
    assert cache == dict(list(REFERENCE.items())[100:])
    assert cache.delete_many(REFERENCE) == len(REFERENCE) - 100
    assert cache.delete_many(REFERENCE) == 0
    assert not cache
    assert cache.verify() == []


def test_get_many_gives_the_present_in_the_order_asked(cache: Cache) -> None:
    cache.set_many({"a": 1, "b": None, "c": 3})
    assert list(cache.get_many(["c", "absent", "b", "a"]).items()) == [
        ("c", 3),
        ("b", None),
        ("a", 1),
    ]


def test_empty_batches_are_no_error(cache: Cache) -> None:
    assert cache.get_many([]) == {}
    assert cache.delete_many([]) == 0
    cache.set_many({})
    assert not cache


def test_batches_take_iterators(cache: Cache) -> None:
    cache.set_many({"a": 1, "b": 2})

    def keys() -> Iterator[str]:
        yield from ("a", "b")

    assert cache.get_many(keys()) == {"a": 1, "b": 2}
    assert cache.delete_many(keys()) == 2


def test_a_key_asked_for_twice_is_given_once(cache: Cache) -> None:
    cache["a"] = 1
    assert cache.get_many(["a", "a"]) == {"a": 1}
    assert cache.delete_many(["a", "a"]) == 1


@pytest.mark.parametrize("pair", [(1, True), (0, False), (1, 1.0), (True, 1.0), ((1,), (True,))])
def test_keys_that_python_holds_equal_are_an_error_in_one_batch(cache: Cache, pair: Any) -> None:
    """A dict could hold only one of the two answers."""
    for key in pair:
        cache[key] = repr(key)
    with pytest.raises(ValueError, match="equal"):
        cache.get_many(pair)
    assert cache.get_many(pair[:1]) == {pair[0]: repr(pair[0])}
    assert cache.get_many(pair[1:]) == {pair[1]: repr(pair[1])}


def test_a_ttl_counts_for_the_whole_batch(cache: Cache) -> None:
    cache.set_many({"a": 1, "b": 2}, 100)
    for key in "ab":
        assert 90 < (cache.ttl(key) or 0) <= 100
    cache.set_many({"a": 1})
    assert cache.ttl("a") is None


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("bad", object(), TypeError),
        ("bad", bytes(10 << 20), ValueTooLarge),
        (object(), 1, TypeError),
        ("k" * 65536, 1, KeyTooLarge),
        (2**64, 1, OverflowError),
    ],
    ids=["value type", "value size", "key type", "key size", "key range"],
)
def test_a_bad_pair_stores_nothing_of_its_batch(
    cache: Cache, key: Any, value: Any, error: type[Exception]
) -> None:
    cache["old"] = "value"
    batch = {f"good {number}": number for number in range(50)} | {key: value, "old": "changed"}
    with pytest.raises(error):
        cache.set_many(batch)
    assert dict(cache) == {"old": "value"}


@pytest.mark.parametrize("bad", [object(), [], 2**64, "k" * 65536], ids=["o", "l", "i", "s"])
def test_a_bad_key_deletes_nothing_of_its_batch(cache: Cache, bad: Any) -> None:
    cache["a"] = 1
    with pytest.raises((TypeError, OverflowError, KeyTooLarge)):
        cache.delete_many(["a", bad])
    with pytest.raises((TypeError, OverflowError, KeyTooLarge)):
        cache.get_many(["a", bad])
    assert dict(cache) == {"a": 1}


def test_set_many_takes_a_mapping(cache: Cache) -> None:
    for wrong in (["a", "b"], "ab", 5, None):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            cache.set_many(wrong)  # type: ignore[arg-type]
    assert not cache


@pytest.mark.parametrize("text", ["abc", b"abc"])
def test_a_single_key_is_no_batch_of_letters(cache: Cache, text: Any) -> None:
    """One str where an iterable of keys belongs is a slip, or it means its letters: never a hit."""
    cache[text] = 1
    try:
        found = cache.get_many(text)
    except TypeError:
        return
    assert found == {}


@pytest.mark.parametrize("shards", [1, 4])
def test_a_full_cache_names_what_it_did_not_store(
    open_cache: Callable[..., Cache], shards: int
) -> None:
    cache = open_cache(size="1MiB", policy="keep", shards=shards)
    batch = {number: bytes([number % 256]) * 2000 for number in range(2000)}
    with pytest.raises(CacheFull) as caught:
        cache.set_many(batch)
    missing = set(caught.value.keys)
    assert 0 < len(missing) < len(batch)
    assert len(missing) == len(list(caught.value.keys))
    assert missing == {key for key in batch if key not in cache}
    assert dict(cache) == {key: value for key, value in batch.items() if key not in missing}
    assert cache.verify() == []


def test_each_shards_lock_is_taken_once_per_batch(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(shards=4)
    batch = {number: number for number in range(1000)}

    def acquisitions_of(call: Callable[[], object]) -> int:
        before = cache.stats().lock_acquisitions
        call()
        return cache.stats().lock_acquisitions - before

    assert acquisitions_of(lambda: cache.set_many(batch)) == 4
    assert acquisitions_of(lambda: cache.get_many(batch)) == 0
    assert acquisitions_of(lambda: cache.delete_many(batch)) == 4
    assert acquisitions_of(lambda: cache.set("k", 1)) == 1
    assert acquisitions_of(lambda: cache.get("k")) == 0


def test_a_batch_larger_than_the_cache_evicts_its_way_through(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(size="1MiB")
    batch = {number: bytes([number % 256]) * 1000 for number in range(5000)}
    cache.set_many(batch)
    kept = dict(cache)
    assert 100 < len(kept) < 5000
    assert all(batch[key] == value for key, value in kept.items())
    assert 4999 in kept or 4998 in kept or 4997 in kept
    assert cache.verify() == []


def test_batches_count_hits_misses_sets_and_deletes(cache: Cache) -> None:
    cache.set_many({"a": 1, "b": 2})
    cache.get_many(["a", "b", "absent"])
    cache.delete_many(["a", "absent"])
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.sets, stats.deletes) == (2, 1, 2, 1)
