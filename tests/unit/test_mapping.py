"""Cache as a MutableMapping: CPython's own mapping tests, and what they leave out."""

from __future__ import annotations

import unittest
from collections.abc import Callable, ItemsView, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

import pytest
from support.names import unique_name

from shmcache import Cache, CacheClosed

mapping_tests = pytest.importorskip(
    "test.mapping_tests", reason="this Python was installed without its own test suite"
)


class FreshCache(Cache):
    """A cache that needs no name, as the mapping tests make their subjects: ``type2test()``."""

    made: list[Cache] = []  # noqa: RUF012 - emptied after every test

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(unique_name("mapping"), size="1MiB", shards=1)
        self.made.append(self)
        self.update(*args, **kwargs)


class CloseMade(unittest.TestCase):
    """Closes what a test has made."""

    def tearDown(self) -> None:
        while FreshCache.made:
            FreshCache.made.pop().close()


class TestBasicMappingProtocol(CloseMade, mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc,name-defined]
    """All of CPython's tests of the mapping protocol proper."""

    type2test = FreshCache


class TestHashMappingProtocol(CloseMade, mapping_tests.TestHashMappingProtocol):  # type: ignore[misc,name-defined]
    """CPython's further tests, but for those of what only a dict in one process can promise."""

    type2test = FreshCache

    # A MutableMapping has neither.
    test_fromkeys = None
    test_copy = None
    # The value handed back is a copy: appending to it changes nothing shared.
    test_setdefault = None
    # Two dicts that were filled alike pop alike; two caches have different hash seeds.
    test_popitem = None
    # Iteration goes on beside writers; a cache's repr names the cache, not its content.
    test_mutatingiteration = None
    test_repr = None
    test_repr_deep = None
    # The part for hash tables stores objects whose __eq__ or __hash__ raises: no keys of a cache.
    test_getitem = mapping_tests.TestMappingProtocol.test_getitem
    test_pop = mapping_tests.TestMappingProtocol.test_pop
    test_eq = None


def test_is_a_mutable_mapping(cache: Cache) -> None:
    assert isinstance(cache, MutableMapping)
    assert isinstance(cache, Mapping)
    assert isinstance(cache.keys(), KeysView)
    assert isinstance(cache.values(), ValuesView)
    assert isinstance(cache.items(), ItemsView)
    with pytest.raises(TypeError):
        hash(cache)


def test_every_iterator_has_the_same_order(cache: Cache) -> None:
    cache.update({f"key {number}": number for number in range(300)})
    assert list(cache) == list(cache.keys()) == [key for key, _ in cache.items()]
    assert list(cache.values()) == [value for _, value in cache.items()]
    assert dict(zip(cache, cache.values(), strict=True)) == dict(cache)


def test_views_follow_the_cache(cache: Cache) -> None:
    keys, values, items = cache.keys(), cache.values(), cache.items()
    cache["k"] = "v"
    assert (list(keys), list(values), list(items)) == (["k"], ["v"], [("k", "v")])
    assert (len(keys), len(values), len(items)) == (1, 1, 1)
    assert "k" in keys
    assert "v" in values
    assert ("k", "v") in items
    assert ("k", "other") not in items
    assert ("absent", None) not in items
    del cache["k"]
    assert (list(keys), list(values), list(items)) == ([], [], [])


def test_views_are_sets_where_a_dicts_are(cache: Cache) -> None:
    cache.update({"a": 1, "b": 2})
    assert cache.keys() & {"a", "c"} == {"a"}
    assert cache.keys() | {"c"} == {"a", "b", "c"}
    assert cache.keys() - {"a"} == {"b"}
    assert cache.keys() == {"a", "b"}
    assert cache.items() == {("a", 1), ("b", 2)}


def test_update_takes_all_that_dict_takes(cache: Cache) -> None:
    cache.update({"mapping": 1})
    cache.update([("pair", 2)])
    cache.update(iter([("iterator", 3)]))
    cache.update(keyword=4)
    cache.update({"both": 5}, keyword=6)
    cache.update()
    assert cache == {"mapping": 1, "pair": 2, "iterator": 3, "keyword": 6, "both": 5}


def test_equality_is_of_content(cache: Cache, open_cache: Any) -> None:
    reference = {"a": 1, "b": [1, 2]}
    cache.update(reference)
    assert cache == reference
    assert reference == cache
    assert cache != {"a": 1}
    assert cache != {"a": 1, "b": [1, 3]}
    assert cache != {"a": 1, "b": [1, 2], "c": 3}
    assert cache != [("a", 1)]
    other = open_cache()
    assert cache != other
    other.update(reference)
    assert cache == other


def test_bool_is_emptiness(cache: Cache) -> None:
    assert not cache
    cache["k"] = None
    assert cache


def test_popitem_takes_no_arguments(cache: Cache) -> None:
    with pytest.raises(TypeError):
        cache.popitem(True)  # type: ignore[call-arg]


def test_unpacking_and_merging(cache: Cache) -> None:
    cache.update({"a": 1})
    assert {**cache, "b": 2} == {"a": 1, "b": 2}
    assert dict(cache) == {"a": 1}


def test_matches_mapping_patterns(cache: Cache) -> None:
    cache["kind"] = "event"
    match cache:
        case {"kind": kind}:
            assert kind == "event"
        case _:
            pytest.fail("a Cache must match a mapping pattern")


def test_views_of_a_closed_cache_are_refused(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    namespace = cache.namespace("n")
    views = cache.keys()
    cache.close()
    for one in (cache, namespace):
        for make in (one.keys, one.values, one.items):
            with pytest.raises(CacheClosed):
                make()
    with pytest.raises(CacheClosed):
        list(views)
