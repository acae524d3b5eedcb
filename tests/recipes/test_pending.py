"""PendingEvents: one winner, ages, time-outs, and what dead workers leave."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, release

from shmcache import Cache, DecodeError
from shmcache.recipes import Pending, PendingEvents


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events(keep: Cache, clock: Clock) -> PendingEvents[Any]:
    return PendingEvents(keep, "hooks", timeout=30, clock=clock)


def test_an_event_is_tracked_and_completed_once(events: PendingEvents[Any], clock: Clock) -> None:
    assert events.track("a", {"n": 1})
    assert not events.track("a", {"n": 2}), "it is pending already"
    assert events.pending_count() == 1 and "a" in events
    clock.now += 5
    assert events.complete("a") == Pending("a", {"n": 1}, 1000.0, 5.0, 1)
    assert events.complete("a") is None and events.complete("b") is None
    assert events.pending_count() == 0 and events.get("a") is None
    assert events.poll("a"), "the id is free again, and poll is track"
    done = events.complete("a")
    assert done is not None and done.payload is None


def test_ages_and_timeouts(events: PendingEvents[Any], clock: Clock) -> None:
    assert events.oldest_age() is None and events.ages() == {} and events.expired() == []
    events.track("old", 1)
    clock.now += 20
    events.track("young", 2)
    clock.now += 10
    assert events.ages() == {"old": 30.0, "young": 10.0} and events.oldest_age() == 30.0
    assert events.expired() == [], "30 s are not more than 30 s"
    clock.now += 25
    assert [event.id for event in events.expired()] == ["old", "young"]
    assert events.pending_count() == 2, "expired events stay until they are completed"
    clock.now -= 100
    assert events.oldest_age() == 0.0, "a clock that was set back makes no negative age"


def test_without_a_timeout_nothing_expires(keep: Cache) -> None:
    events = PendingEvents[Any](keep, "hooks", clock=lambda: 1e12)
    PendingEvents[Any](keep, "hooks").track("a")
    assert events.oldest_age() and events.expired() == []
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            PendingEvents(keep, "hooks", timeout=wrong)


def test_the_living_keep_their_events(events: PendingEvents[Any]) -> None:
    events.track("a")
    assert events.reclaim() == []
    with pytest.raises(ValueError, match="limit"):
        events.reclaim(-1)


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_any_codec_that_encodes_lists_will_do(open_cache: Any, codec: str) -> None:
    events = PendingEvents[Any](open_cache(policy="keep", codec=codec), "hooks")
    events.track("a", {"k": [1]})
    [event] = events.pending()
    assert event.payload == {"k": [1]}
    assert events.complete("a")


def test_raw_is_refused(open_cache: Any) -> None:
    with pytest.raises(ValueError, match=r"codec 'raw'.*msgpack"):
        PendingEvents(open_cache(policy="keep", codec="raw"), "hooks")


def test_bytes_that_are_no_event_are_told(events: PendingEvents[Any]) -> None:
    events.track("a")
    for damage in ("x", [1], ["x", 1, 1, 1, 1], [1, 1, "then", 1, 1]):
        events._ledger.entries["a"] = damage
        with pytest.raises(DecodeError, match=r"'a'.*damaged"):
            events.get("a")


def test_counting_scans_nothing(events: PendingEvents[Any]) -> None:
    for number in range(100):
        events.track(number)
    steps = arm(events, 1000)
    assert events.pending_count() == 100 and 1000 - steps() == 8


# ------------------------------------------------------------------------------- many processes


def track_and_wait(channel: Channel, name: str, ids: list[int]) -> None:
    with Cache(name, create=False) as cache:
        events = PendingEvents[Any](cache, "hooks")
        for id in ids:
            events.track(id, f"of {id}")
        channel.send("tracked")
        channel.recv()


def complete_all(channel: Channel, name: str, seed: int) -> list[int]:
    with Cache(name, create=False) as cache:
        events = PendingEvents[Any](cache, "hooks")
        ids = list(range(300))
        random.Random(seed).shuffle(ids)
        channel.sync()
        return [id for id in ids if events.complete(id) is not None]


def test_each_event_has_one_winner(keep: Cache, start: Any) -> None:
    events = PendingEvents[Any](keep, "hooks")
    for id in range(300):
        events.track(id)
    workers = [start(complete_all, keep.name, seed) for seed in range(4)]
    release(workers)
    won = [worker.result() for worker in workers]
    assert sorted(itertools.chain(*won)) == list(range(300))
    assert events.pending_count() == 0


def reclaim_all(channel: Channel, name: str, keep_them: bool) -> list[Any]:
    with Cache(name, create=False) as cache:
        events = PendingEvents[Any](cache, "hooks")
        channel.sync()
        mine = [(event.id, event.payload, event.attempts) for event in events.reclaim()]
        channel.send(mine)
        if keep_them:
            channel.recv()
        return mine


def test_what_the_dead_left_is_handed_to_one_caller(keep: Cache, start: Any) -> None:
    events = PendingEvents[Any](keep, "hooks")
    events.track("mine")
    victim = start(track_and_wait, keep.name, list(range(100)))
    assert victim.recv() == "tracked"
    assert events.reclaim() == [], "its worker lives"
    victim.kill()
    workers = [start(reclaim_all, keep.name, True) for _ in range(3)]
    release(workers)
    handed = [worker.recv() for worker in workers]
    assert sorted(itertools.chain(*handed)) == [(id, f"of {id}", 2) for id in range(100)]
    assert events.reclaim() == [] and events.pending_count() == 101
    for worker in workers:  # what they did not complete goes on to the next
        worker.kill()
    again = events.reclaim(limit=60)
    assert len(again) == 60 and all(event.attempts == 3 for event in again)
    assert len(events.reclaim()) == 40 and events.reclaim() == []
    done = [events.complete(id) for id in range(100)]
    assert all(event is not None for event in done)
    assert events.pending_count() == 1


def die_at(channel: Channel, name: str, action: str, step: int) -> str:
    with Cache(name, create=False) as cache:
        events = PendingEvents[Any](cache, "hooks")
        cache.get("attached")
        arm(events, step)
        match action:
            case "track":
                events.track("new", 1)
            case "complete":
                events.complete("old")
            case "reclaim":
                events.reclaim()
    return "survived"


@pytest.mark.parametrize("action", ["track", "complete"])
def test_no_death_at_any_step_makes_the_count_drift(keep: Cache, action: str) -> None:
    events = PendingEvents[Any](keep, "hooks")
    deaths = 0
    for step in range(40):
        events.track("old", "payload")
        died = dies(die_at, keep.name, action, step)
        assert events.pending_count() == len(list(events.pending())), f"step {step}"
        events.complete("new")
        if not died:
            break
        deaths += 1
    assert deaths >= 5


def test_no_death_of_a_reclaimer_loses_an_event(keep: Cache) -> None:
    events = PendingEvents[Any](keep, "hooks")
    assert not dies(die_at, keep.name, "track", 100)  # an exit leaves it as a death does
    for step in range(2):
        assert dies(die_at, keep.name, "reclaim", step)
        assert events.pending_count() == 1
    [event] = events.reclaim()
    assert event.payload == 1 and events.complete("new") is not None


def churn(channel: Channel, name: str, seed: int) -> None:
    rng = random.Random(seed)
    events = PendingEvents[Any](Cache(name, create=False), "hooks")
    channel.send("at it")
    number = 0
    while True:
        number += 1
        events.track((seed, number), number)
        if rng.random() < 0.9:
            events.complete((seed, number))
        if rng.random() < 0.1:
            for event in events.reclaim():
                events.complete(event.id)
        if events.pending_count() > 500:
            for event in list(events.pending()):
                events.complete(event.id)


@pytest.mark.stress
def test_a_storm_of_kills_loses_no_event(keep: Cache, start: Any) -> None:
    rng = random.Random(2)
    events = PendingEvents[Any](keep, "hooks")
    workers = [start(churn, keep.name, seed) for seed in range(3)]
    for number in range(20):
        victim = rng.randrange(3)
        assert workers[victim].recv() == "at it"
        threading.Event().wait(rng.random() * 0.02)  # the moment of the death is to be random
        workers[victim].kill()
        workers[victim] = start(churn, keep.name, 10 + number)
        events.pending_count()
    for worker in workers:
        worker.kill()
    left = list(events.pending())
    assert events.pending_count() == len(left) == events.recount()
    handed = events.reclaim()
    assert sorted(event.id for event in handed) == sorted(event.id for event in left)
    for event in handed:
        assert events.complete(event.id) is not None
    assert events.pending_count() == 0 and keep.verify() == []
