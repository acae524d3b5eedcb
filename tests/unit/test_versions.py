"""Versions of namespaced keys, which lie in another shard with each epoch."""

from __future__ import annotations

from collections.abc import Callable

from shmcache import Cache


def test_a_version_does_not_come_back_with_another_epoch(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="2MiB", shards=16)
    space = cache.namespace("space")
    seen: set[int] = set()
    for turn in range(100):
        space["k"] = turn
        found = space.gets("k")
        assert found is not None
        assert found.version not in seen
        assert not any(space.cas("k", "older", version) for version in seen)
        seen.add(found.version)
        space.invalidate()


def test_versions_of_a_namespace_serve_what_they_are_for(cache: Cache) -> None:
    space = cache.namespace("space")
    space["k"] = 1
    found = space.gets("k")
    assert found is not None
    assert space.cas("k", 2, found.version)
    assert not space.cas("k", 3, found.version)
    assert space.alter("k", lambda value: value + 1) == 3
    space["other"] = 4
    assert space.retain(lambda key, value: value == 3) == 1
    assert dict(space.items()) == {"k": 3}
    assert space.pop("k") == 3
    space["k"] = 5
    assert space.popitem() == ("k", 5)
    assert cache.verify() == []
