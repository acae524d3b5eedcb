"""ResourceTracker: what it promises, among processes, and under kill -9 at every step."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, release

from shmcache import Cache, CacheFull, LockTimeout, ShmcacheError
from shmcache.recipes import ResourceExists, ResourceTracker
from shmcache.recipes import _guard as guards

RUNNING = {"state": "running"}


@dataclass
class Job:
    state: str


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


@pytest.fixture
def tracker(keep: Cache) -> ResourceTracker[Any]:
    return ResourceTracker(keep, "jobs")


def sound(tracker: ResourceTracker[Any]) -> bool:
    return tracker.count() == len(list(tracker.items()))


def test_a_resource_is_registered_once(tracker: ResourceTracker[Any]) -> None:
    tracker.register("a", {"state": "queued"})
    with pytest.raises(ResourceExists, match=r"'a' is registered in tracker 'jobs'.*update\(\)"):
        tracker.register("a", RUNNING)
    assert tracker.get("a") == {"state": "queued"}
    assert tracker.count() == 1 and "a" in tracker and "b" not in tracker


def test_the_exception_is_a_key_error_and_pickles() -> None:
    error = pickle.loads(pickle.dumps(ResourceExists("a is there")))
    assert isinstance(error, KeyError) and isinstance(error, ShmcacheError)
    assert str(error) == "a is there"


def test_get_update_and_remove(tracker: ResourceTracker[Any]) -> None:
    assert tracker.get("a") is None and tracker.get("a", 7) == 7
    with pytest.raises(KeyError):
        tracker.update("a", lambda value: value)
    assert not tracker.remove("a")
    tracker.register("a", 1)
    assert tracker.update("a", lambda value: value + 1) == 2
    assert tracker.get("a") == 2 and tracker.count() == 1
    assert tracker.remove("a") and not tracker.remove("a")
    assert tracker.count() == 0 and tracker.get("a") is None


def test_running_goes_by_the_state(tracker: ResourceTracker[Any]) -> None:
    for number in range(10):
        tracker.register(number, {"state": "running" if number % 2 else "queued"})
    tracker.register("no state", 5)
    assert sorted(id for id, _ in tracker.running()) == [1, 3, 5, 7, 9]
    assert tracker.count() == 11


def test_running_goes_by_the_given_predicate(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(policy="keep", codec="pickle")
    by_attribute: ResourceTracker[Job] = ResourceTracker(cache, "jobs")
    by_attribute.register("a", Job("running"))
    by_attribute.register("b", Job("done"))
    assert list(by_attribute.running()) == [("a", Job("running"))]
    done = ResourceTracker[Job](cache, "jobs", is_running=lambda job: job.state == "done")
    assert [id for id, _ in done.running()] == ["b"]


@pytest.mark.parametrize("key", ["a", b"a", 1, 1.5, None, ("a", 1)])
def test_every_key_is_an_id(tracker: ResourceTracker[Any], key: Any) -> None:
    tracker.register(key, None)
    assert list(tracker.items()) == [(key, None)] and tracker.count() == 1
    assert tracker.remove(key) and tracker.count() == 0


def test_what_is_no_key_is_refused(tracker: ResourceTracker[Any]) -> None:
    with pytest.raises(TypeError):
        tracker.register([], 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tracker.remove({})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (7, TypeError)])
def test_a_name_is_a_string(keep: Cache, name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="name of a recipe"):
        ResourceTracker(keep, name)
    with pytest.raises(TypeError, match="takes a Cache"):
        ResourceTracker({}, "jobs")  # type: ignore[arg-type]


def test_trackers_do_not_meet(keep: Cache) -> None:
    one, other = ResourceTracker[int](keep, "one"), ResourceTracker[int](keep, "other")
    one.register("a", 1)
    other.register("a", 2)
    assert (one.get("a"), other.get("a")) == (1, 2) and one.count() == other.count() == 1
    assert list(keep) == []
    assert ResourceTracker[int](keep, "one").count() == 1


def test_a_full_cache_refuses_and_keeps_count(open_cache: Callable[..., Cache]) -> None:
    tracker = ResourceTracker[bytes](open_cache(policy="keep", size="1MiB"), "big")
    with pytest.raises(CacheFull):
        for number in itertools.count():
            tracker.register(number, bytes(8000))
    assert tracker.count() == number and sound(tracker)
    tracker.remove(0)
    assert tracker.count() == number - 1


def test_what_frees_room_needs_none(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(policy="keep", size="1MiB")
    tracker = ResourceTracker[bytes](cache, "t")
    for number in range(50):
        tracker.register(number, bytes(100))
    for size in (5000, 500, 50, 1):
        for number in range(30_000):
            try:
                cache[size, number] = bytes(size)
            except CacheFull:
                if number > 20_000 or size > 100:
                    break
    for number in range(50):
        assert tracker.remove(number)
    assert tracker.count() == 0


def test_values_that_cannot_be_stored_leave_no_trace(tracker: ResourceTracker[Any]) -> None:
    with pytest.raises(TypeError):
        tracker.register("a", object())
    assert tracker.count() == 0 and tracker.get("a") is None


def test_counting_looks_at_no_resource(tracker: ResourceTracker[Any]) -> None:
    for number in range(200):
        tracker.register(number, RUNNING)
    steps = arm(tracker, 1000)
    assert tracker.count() == 200
    assert 1000 - steps() == 8  # one get for each stripe, however many resources there are


def test_a_cache_that_evicts_is_warned_of(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    tracker = ResourceTracker[Any](cache, "jobs")
    assert "policy='keep'" in caplog.text
    for number in range(50):
        tracker.register(number, RUNNING)
    for guard in tracker._ledger._guards:  # as if they had been evicted
        guard.room.delete(guard.key)
    assert tracker.count() == 50, "a record that is gone is built anew"
    tracker._ledger.entries.delete(7)  # as if it had been evicted
    assert tracker.count() == 50 and tracker.recount() == 49 and tracker.count() == 49


def test_a_thread_that_was_interrupted_leaves_nothing_locked(
    tracker: ResourceTracker[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(guards.Guard, "_leave", refuse)
        with pytest.raises(KeyboardInterrupt):
            tracker.register("a", 1)
    assert tracker.count() == len(list(tracker.items()))
    tracker.register("b", 1)
    assert sound(tracker)


def hold_and_hang(channel: Channel, name: str) -> None:
    """Stop for ever in the middle of a change."""
    with Cache(name, create=False) as cache:
        tracker = ResourceTracker[Any](cache, "jobs")
        guard = tracker._ledger._guards[0]

        def hang(note: Any) -> None:
            channel.send("inside")
            channel.recv()

        guard.change(tracker._ledger, lambda data: [1, b"x", 0], hang)


def test_a_living_holder_is_not_robbed(open_cache: Callable[..., Cache], start: Any) -> None:
    cache = open_cache(policy="keep", lock_timeout=0.05)
    tracker = ResourceTracker[Any](cache, "jobs")
    assert tracker.count() == 0
    worker = start(hold_and_hang, cache.name)
    assert worker.recv() == "inside"
    assert tracker.count() == 0, "counting waits for nobody who lives"
    with pytest.raises(LockTimeout, match=r"has held record '0'.*resume or kill"):
        for number in range(64):
            tracker.register(number, 1)
    worker.kill()
    for number in range(64, 128):
        tracker.register(number, 1)
    assert sound(tracker)


# ------------------------------------------------------------------------------- many processes


def register_all(channel: Channel, name: str, seed: int) -> int:
    """Try to register every id, in an order of its own; how many it won."""
    with Cache(name, create=False) as cache:
        tracker = ResourceTracker[Any](cache, "race")
        ids = list(range(300))
        random.Random(seed).shuffle(ids)
        won = 0
        channel.sync()
        for id in ids:
            try:
                tracker.register(id, seed)
                won += 1
            except ResourceExists:
                tracker.update(id, lambda value: value + 100)
        return won


def test_each_id_has_one_winner(keep: Cache, start: Any) -> None:
    workers = [start(register_all, keep.name, seed) for seed in range(4)]
    release(workers)
    assert sum(worker.result() for worker in workers) == 300
    tracker = ResourceTracker[Any](keep, "race")
    assert tracker.count() == 300
    assert all(value // 100 == 3 for _, value in tracker.items()), "no update was lost"


def test_threads_count_as_processes_do(tracker: ResourceTracker[Any]) -> None:
    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            id = rng.randrange(20)
            try:
                tracker.register(id, seed)
            except ResourceExists:
                tracker.remove(id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sound(tracker)


# --------------------------------------------------------------------------------------- deaths


def die_at(channel: Channel, name: str, action: str, step: int) -> str:
    """Perform one call and die before its step of that number, or say that it has fewer."""
    with Cache(name, create=False) as cache:
        tracker = ResourceTracker[Any](cache, "jobs")
        cache.get("attached")
        arm(tracker, step)
        match action:
            case "register":
                tracker.register("new", RUNNING)
            case "remove":
                tracker.remove("old")
            case "recount":
                tracker.recount()
            case "count":
                tracker.count()
    return "survived"


@pytest.mark.parametrize("action", ["register", "remove", "recount", "count"])
def test_no_death_at_any_step_makes_the_count_drift(keep: Cache, action: str) -> None:
    """INV-RECIPE-NOTE."""
    tracker = ResourceTracker[Any](keep, "jobs")
    tracker.register("old", RUNNING)
    deaths = 0
    for step in range(100):
        died = dies(die_at, keep.name, action, step)
        if action == "remove" and "old" not in tracker:
            assert tracker.count() == len(list(tracker.items())), f"step {step}"
            tracker.register("old", RUNNING)
        assert sound(tracker), f"{action} killed before step {step}"
        tracker.remove("new")
        tracker.register("other", RUNNING)
        assert sound(tracker) and tracker.remove("other")
        if not died:
            break
        deaths += 1
    assert deaths >= 5, "too few steps were tried"


def test_no_death_of_the_one_who_repairs_does_either(keep: Cache) -> None:
    tracker = ResourceTracker[Any](keep, "jobs")
    for first, second in itertools.product(range(3, 7), range(12)):
        tracker.remove("new")
        assert dies(die_at, keep.name, "register", first)
        dies(die_at, keep.name, "count", second)
        assert sound(tracker), f"killed before step {first}, and the repair before step {second}"


def churn(channel: Channel, name: str, seed: int) -> None:
    """Register, update and remove, until killed."""
    rng = random.Random(seed)
    tracker = ResourceTracker[Any](Cache(name, create=False), "jobs")
    channel.send("at it")
    while True:
        id = rng.randrange(40)
        try:
            tracker.register(id, RUNNING)
        except ResourceExists:
            if rng.random() < 0.7:
                tracker.remove(id)
            else:
                with contextlib.suppress(KeyError):
                    tracker.update(id, lambda value: {**value, "seen": 1})


@pytest.mark.stress
def test_a_storm_of_kills_leaves_the_count_right(keep: Cache, start: Any) -> None:
    rng = random.Random(1)
    tracker = ResourceTracker[Any](keep, "jobs")
    workers = [start(churn, keep.name, seed) for seed in range(3)]
    for number in range(25):
        victim = rng.randrange(3)
        assert workers[victim].recv() == "at it"
        threading.Event().wait(rng.random() * 0.02)  # the moment of the death is to be random
        workers[victim].kill()
        workers[victim] = start(churn, keep.name, 10 + number)
        assert 0 <= tracker.count() <= 40
    for worker in workers:
        worker.kill()
    assert sound(tracker)
    assert tracker.count() == tracker.recount()
    assert keep.verify() == []
