"""What holds for all recipes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import Channel

from shmcache import Cache, CacheClosed, ShmcacheError, recipes, snapshot
from shmcache.recipes import (
    CircuitBreaker,
    ClientHub,
    Limiter,
    PendingEvents,
    PortPool,
    ResourcePool,
    ResourceTracker,
)
from shmcache.recipes._worker import Worker

MAKERS: dict[str, Callable[[Cache], Any]] = {
    "breaker": lambda cache: CircuitBreaker(cache, "r", 1, reset_timeout=60),
    "hub": lambda cache: ClientHub(cache, "r"),
    "limiter": lambda cache: Limiter(cache, "r", 1),
    "pending": lambda cache: PendingEvents[Any](cache, "r", timeout=1),
    "pool": lambda cache: ResourcePool(cache, "r", {"a": 1}),
    "ports": lambda cache: PortPool(cache, "r", 10, 20),
    "tracker": lambda cache: ResourceTracker[Any](cache, "r"),
}


def use(recipe: Any) -> None:
    """One call that writes."""
    match recipe:
        case CircuitBreaker():
            recipe.trip()
        case ClientHub():
            recipe.get(f"client {id(recipe)}", lambda config: [config], setup=lambda: 1)
        case Limiter():
            recipe.acquire(timeout=0)
        case PendingEvents():
            assert recipe.track("a")
        case ResourcePool():
            recipe.allocate(a=1)
        case PortPool():
            recipe.take()
        case ResourceTracker():
            recipe.register("a", 1)


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


def test_the_package_exports_what_its_modules_do() -> None:
    for name in recipes.__all__:
        assert getattr(recipes, name).__module__.startswith("shmcache.recipes.")
    errors = [thing for thing in vars(recipes).values() if isinstance(thing, type)]
    errors = [error for error in errors if issubclass(error, Exception)]
    assert len(errors) == 4 and all(issubclass(error, ShmcacheError) for error in errors)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_recipe_stores_shows_nowhere(keep: Cache, kind: str) -> None:
    keep["mine"] = 1
    use(MAKERS[kind](keep))
    assert list(keep) == ["mine"] and len(keep) > 1


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_every_recipe_works_with_any_codec(open_cache: Any, kind: str, codec: str) -> None:
    use(MAKERS[kind](open_cache(policy="keep", codec=codec)))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_closed_cache_is_said_to_be_closed(open_cache: Any, kind: str) -> None:
    cache = open_cache(policy="keep")
    recipe = MAKERS[kind](cache)
    cache.close()
    with pytest.raises(CacheClosed):
        use(recipe)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_recipe_follows_a_cache_that_is_opened_anew(open_cache: Any, kind: str) -> None:
    cache = open_cache(policy="keep")
    recipe = MAKERS[kind](cache)
    use(recipe)
    cache.unlink()
    cache.reopen()
    use(recipe)  # everything was free again


@pytest.mark.parametrize("kind", MAKERS)
def test_a_recipe_says_what_it_is(keep: Cache, kind: str) -> None:
    recipe = MAKERS[kind](keep)
    assert type(recipe).__name__ in repr(recipe) and "'r'" in repr(recipe)


def inherit(channel: Channel, recipe: Any) -> str:
    use(recipe)
    return repr(recipe)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_recipe_pickles_to_the_one_of_that_name(keep: Cache, kind: str) -> None:
    recipe = MAKERS[kind](keep)
    again = pickle.loads(pickle.dumps(recipe))
    assert type(again) is type(recipe) and repr(again) == repr(recipe)
    use(again)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_recipe_is_an_argument_of_a_process(keep: Cache, start: Any, method: str) -> None:
    ports = PortPool(keep, "r", 10, 20)
    assert start(inherit, ports, method=method).result() == repr(ports)
    assert [ports.take() for _ in range(10)], "what the child took died with it"


@pytest.mark.parametrize("kind", MAKERS)
def test_what_comes_from_a_snapshot_is_nobodys(
    keep: Cache, open_cache: Any, tmp_path: Path, kind: str
) -> None:
    """Places, ports and reservations of processes that held another segment are free."""
    use(MAKERS[kind](keep))
    snapshot.save(keep, tmp_path / "snapshot")
    restored = open_cache(policy="keep")
    snapshot.load(restored, tmp_path / "snapshot")
    recipe = MAKERS[kind](restored)
    match recipe:
        case CircuitBreaker():
            assert recipe.state == "open"
        case PendingEvents():
            assert recipe.pending_count() == 1
            assert [event.id for event in recipe.reclaim()] == ["a"]
        case ResourceTracker():
            assert recipe.count() == 1 and recipe.get("a") == 1
        case PortPool():
            assert len({recipe.take() for _ in range(10)}) == 10
        case _:
            use(recipe)


def test_a_count_that_a_snapshot_took_at_another_time_is_put_right(
    keep: Cache, open_cache: Any, tmp_path: Path
) -> None:
    tracker, ports = ResourceTracker[Any](keep, "r"), PortPool(keep, "r", 10, 20)
    for number in range(40):
        tracker.register(number, 1)
    ports.take()
    for number in range(30):  # as if these went, or came, between the record and the entries
        tracker._ledger.entries.delete(number)
    tracker._ledger.entries.set(100, 1)
    ports._owners.delete(10)
    snapshot.save(keep, tmp_path / "snapshot")
    restored = open_cache(policy="keep")
    snapshot.load(restored, tmp_path / "snapshot")
    assert tracker.count() == 40
    assert ResourceTracker[Any](restored, "r").count() == 11
    assert PortPool(restored, "r", 10, 20).available() == 10


# ----------------------------------------------------------------------------------- who is who


def who(channel: Channel, cache: Cache) -> tuple[int, int]:
    token = Worker(cache).token()
    channel.send(token)
    channel.recv()
    return token


def test_a_token_is_alive_as_long_as_its_process(keep: Cache, start: Any) -> None:
    me = Worker(keep)
    other = start(who, keep)
    token = other.recv()
    assert token != me.token() and me.is_alive(token) and me.is_alive(me.token())
    other.stop()
    assert me.is_alive(token)
    other.kill()
    assert not me.is_alive(token)


def test_a_token_of_another_segment_is_nobodys(keep: Cache, open_cache: Any) -> None:
    me, other = Worker(keep), Worker(open_cache())
    assert me.token() != other.token()
    assert not me.is_alive(other.token())
    for damaged in ((me.token()[0], 0), (me.token()[0], 7), (0, me.token()[1])):
        assert not me.is_alive(damaged)


def test_a_process_that_has_closed_is_not_alive(keep: Cache, open_cache: Any) -> None:
    second = open_cache(keep.name, create=False)
    worker = Worker(keep)
    token = worker.token()
    second.close()
    assert worker.is_alive(token), "it has another handle"
    keep.close()
    with pytest.raises(CacheClosed):
        worker.token()
    with pytest.raises(CacheClosed):
        worker.is_alive(token)
