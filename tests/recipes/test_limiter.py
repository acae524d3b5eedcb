"""Limiter: never more than the limit, in turn, and no place lost to a death or a stop."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, poll_until, release

from shmcache import Cache, DecodeError, LockTimeout, ShmcacheError
from shmcache.recipes import Limiter, LimiterTimeout
from shmcache.recipes import limiter as module
from shmcache.recipes._aimd import Aimd


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


def test_so_many_and_no_more(keep: Cache) -> None:
    limiter = Limiter(keep, "api", 2)
    with limiter.acquire(), limiter.acquire(timeout=0):
        assert limiter.in_flight == 2
        with pytest.raises(LimiterTimeout, match=r"no place in limiter 'api' within 0 s: 2 of 2"):
            limiter.acquire(timeout=0)
        began = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            limiter.acquire(timeout=0.05)
        assert time.monotonic() - began >= 0.05
        assert isinstance(caught.value, ShmcacheError)
        assert limiter.waiting == 0, "who gives up is out of the queue"
    assert limiter.in_flight == 0 and limiter.limit == 2


def test_a_permit_is_given_back_once(keep: Cache) -> None:
    limiter = Limiter(keep, "api", 1)
    permit = limiter.acquire()
    permit.release()
    with limiter.acquire():
        permit.release()
        assert limiter.in_flight == 1
    with pytest.raises(KeyError), limiter.acquire():
        raise KeyError
    assert limiter.in_flight == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": 1.5}, TypeError),
        ({"limit": 5, "minimum": 6}, ValueError),
        ({"limit": 5, "maximum": 4}, ValueError),
        ({"limit": 5, "target": 0}, ValueError),
        ({"limit": 5, "target": -1}, ValueError),
    ],
)
def test_arguments_that_make_no_sense(keep: Cache, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        Limiter(keep, "api", **arguments)
    with pytest.raises(ValueError, match="timeout"):
        Limiter(keep, "api", 1).acquire(timeout=-1)


def test_the_newest_limit_counts_for_all(keep: Cache) -> None:
    one = Limiter(keep, "api", 1)
    with one.acquire():
        Limiter(keep, "api", 2)
        assert one.limit == 2
        with one.acquire(timeout=0):
            pass


def test_threads_are_served_in_turn(keep: Cache) -> None:
    limiter = Limiter(keep, "api", 1)
    order: list[int] = []
    first = limiter.acquire()

    def work(number: int) -> None:
        with limiter.acquire():
            order.append(number)

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        poll_until(lambda: limiter.waiting == len(threads), what="it waits")
    first.release()
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_nobody_goes_in_out_of_turn(keep: Cache) -> None:
    """Also not by a look that was true a moment ago."""
    limiter = Limiter(keep, "api", 1)
    permit = limiter.acquire()
    (first, _), (second, _) = limiter._enter(True), limiter._enter(True)
    assert not limiter._go_in(first)
    permit.release()
    assert not limiter._go_in(second)
    assert limiter._go_in(first) and not limiter._go_in(second)
    assert limiter.in_flight == 1 and limiter.waiting == 1


def test_a_waiter_is_woken_within_milliseconds(keep: Cache, start: Any) -> None:
    """The median over 30 hand-overs between processes: 0.5 ms between looks, and some."""
    limiter = Limiter(keep, "api", 1)
    worker = start(take_turns, keep.name, 30)
    woken = []
    for _ in range(30):
        permit = limiter.acquire()
        worker.send("wait")
        poll_until(lambda: limiter.waiting == 1, what="it waits")
        at = time.monotonic()
        permit.release()
        woken.append(worker.recv() - at)
    assert sorted(woken)[15] < 0.05, woken


def take_turns(channel: Channel, name: str, rounds: int) -> None:
    with Cache(name, create=False) as cache:
        limiter = Limiter(cache, "api", 1)
        for _ in range(rounds):
            channel.recv()
            with limiter.acquire():
                now = time.monotonic()
            channel.send(now)


def test_who_waits_far_back_looks_seldom(keep: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = Limiter(keep, "api", 1)
    with limiter.acquire():
        first = limiter._wait(10)
        pauses = [next(first)]
        others = [limiter._wait(10) for _ in range(40)]
        pauses += [next(other) for other in others]  # type: ignore[misc]
        assert pauses[0] == module.LOOK_S and pauses[-1] == module.LONGEST_LOOK_S
        assert pauses == sorted(pauses) and limiter.waiting == 41
        for waiter in (first, *others):
            waiter.close()
        assert limiter.waiting == 0


def test_tasks_wait_without_blocking_the_loop(keep: Cache) -> None:
    limiter = Limiter(keep, "api", 1)
    most = 0

    async def work() -> None:
        nonlocal most
        with await limiter.aacquire(timeout=30):
            most = max(most, limiter.in_flight)
            await asyncio.sleep(0)

    async def run() -> None:
        with await limiter.aacquire():
            task = asyncio.ensure_future(limiter.aacquire())
            while not limiter.waiting:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert limiter.waiting == 0
            with pytest.raises(LimiterTimeout):
                await limiter.aacquire(timeout=0.01)
        await asyncio.gather(*(work() for _ in range(10)))

    asyncio.run(run())
    assert most == 1 and limiter.in_flight == 0


def test_an_outage_at_the_end_of_a_with_is_put_right_later(
    keep: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter(keep, "api", 1)

    def refuse(*args: Any) -> None:
        raise LockTimeout("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Limiter, "_release", refuse)
        with limiter.acquire():
            pass
    assert limiter.in_flight == 0
    with limiter.acquire(timeout=0):
        assert limiter.in_flight == 1
    assert limiter._left == set()


def test_places_that_were_evicted_are_forgotten(cache: Cache) -> None:
    limiter = Limiter(cache, "api", 1)
    old = limiter.acquire()
    cache.clear()
    with limiter.acquire(timeout=0):
        old.release()
        assert limiter.in_flight == 1, "an old permit frees nobody else's place"


def test_a_damaged_record_is_told(keep: Cache) -> None:
    limiter = Limiter(keep, "api", 1)
    for damage in (b"\xc1", b"\x01", b"\x91\x01", "text"):
        limiter._room.set("places", damage)
        with pytest.raises(DecodeError, match=r"'places'.*damaged"):
            limiter.acquire(timeout=0)


# ------------------------------------------------------------------------------------- adapting


def feed(aimd: Aimd, seconds: float, count: int, **named: Any) -> None:
    named = {"ok": True, "in_flight": 100, "bounds": (1, 100), "target_s": None, **named}
    for _ in range(count):
        ticket = named.get("ticket", aimd.cooled + 1)
        aimd.learn(seconds, newest=aimd.cooled + 1, **{**named, "ticket": ticket})


def test_good_latency_adds_one_a_round() -> None:
    aimd = Aimd(10.0)
    feed(aimd, 0.01, 10)
    assert 10.9 < aimd.limit < 11.01
    feed(aimd, 0.01, 10_000)
    assert aimd.limit == 100


def test_an_unused_limit_does_not_grow() -> None:
    aimd = Aimd(10.0)
    feed(aimd, 0.01, 100, in_flight=4)
    assert aimd.limit == 10
    feed(aimd, 0.01, 100, ok=False)
    assert aimd.limit == 10, "a quick failure speaks for nothing"


def test_bad_latency_takes_a_tenth_once_a_round() -> None:
    aimd = Aimd(10.0)
    feed(aimd, 0.05, 1, target_s=0.02)
    assert aimd.limit == pytest.approx(9.0)
    feed(aimd, 0.05, 50, target_s=0.02, ticket=aimd.cooled)  # they began before the decrease
    assert aimd.limit == pytest.approx(9.0)
    feed(aimd, 0.05, 100, target_s=0.02)
    assert aimd.limit == 1, "and not below the minimum"


def test_an_outlier_changes_nothing_and_a_level_does() -> None:
    aimd = Aimd(50.0)
    feed(aimd, 0.01, 50)
    before = aimd.limit
    feed(aimd, 0.09, 1)
    assert aimd.limit >= before
    feed(aimd, 0.01, 50)
    feed(aimd, 0.09, 20)
    assert aimd.limit < before / 2


def test_what_is_slow_for_good_becomes_normal() -> None:
    aimd = Aimd(50.0)
    feed(aimd, 0.01, 50)
    feed(aimd, 0.05, 2000)
    assert aimd.floor_s > 0.025 and aimd.limit > 50


def test_an_adaptive_limiter_follows_what_it_is_told(keep: Cache) -> None:
    now = [0.0]
    limiter = Limiter(keep, "api", 8, adaptive=True, maximum=12, clock=lambda: now[0])
    fixed = Limiter(keep, "fixed", 8, clock=lambda: now[0])

    def rounds(count: int, seconds: float) -> None:
        for _ in range(count):
            for one in (limiter, fixed):
                permits = [one.acquire(timeout=0) for _ in range(one.limit)]
                now[0] += seconds
                for permit in permits:
                    permit.release()

    rounds(10, 0.01)
    assert limiter.limit == 12
    rounds(20, 0.5)
    assert limiter.limit < 4
    rounds(60, 0.01)
    assert limiter.limit == 12 and fixed.limit == 8


# ------------------------------------------------------------------------------- many processes


def work(channel: Channel, name: str, rounds: int) -> int:
    """Enter again and again; the most that were in at once, by a counter of the test's own."""
    with Cache(name, create=False) as cache:
        limiter = Limiter(cache, "api", 2)
        most = 0
        channel.sync()
        for _ in range(rounds):
            with limiter.acquire(timeout=60):
                most = max(most, cache.incr("inside"))
                cache.decr("inside")
        return most


def test_processes_keep_to_the_limit(keep: Cache, start: Any) -> None:
    workers = [start(work, keep.name, 100) for _ in range(4)]
    release(workers)
    assert max(worker.result() for worker in workers) <= 2
    limiter = Limiter(keep, "api", 2)
    assert limiter.in_flight == 0 and limiter.waiting == 0


def come_in(channel: Channel, name: str, number: int) -> None:
    with Cache(name, create=False) as cache, Limiter(cache, "api", 1).acquire():
        cache.set(("order", cache.incr("entered")), number)


def test_processes_are_served_in_turn(keep: Cache, start: Any) -> None:
    limiter = Limiter(keep, "api", 1)
    permit = limiter.acquire()
    workers = []
    for number in range(5):
        workers.append(start(come_in, keep.name, number))
        poll_until(lambda: limiter.waiting == len(workers), what="it waits")
    permit.release()
    with limiter.acquire(timeout=30):  # the last one to ask
        assert [keep["order", at] for at in range(1, 6)] == [0, 1, 2, 3, 4]
    for worker in workers:
        worker.result()


def hold(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:
        permit = Limiter(cache, "api", 1).acquire()
        channel.send("in")
        channel.recv()
        permit.release()
        channel.recv()


def test_a_dead_holder_is_noticed_at_once(keep: Cache, start: Any) -> None:
    limiter = Limiter(keep, "api", 1)
    victim = start(hold, keep.name)
    assert victim.recv() == "in"
    with pytest.raises(LimiterTimeout):
        limiter.acquire(timeout=0)
    victim.kill()
    assert limiter.in_flight == 0
    with limiter.acquire(timeout=0):
        pass
    victim = start(hold, keep.name)
    victim.recv()
    timer = threading.Timer(0.05, victim.kill)
    timer.start()
    with limiter.acquire(timeout=30):  # while waiting, too
        pass
    timer.join()


def test_dead_and_stopped_waiters_stop_nobody(keep: Cache, start: Any) -> None:
    limiter = Limiter(keep, "api", 1)
    permit = limiter.acquire()
    dead, stopped = start(hold, keep.name), None
    poll_until(lambda: limiter.waiting == 1, what="the first waits")
    stopped = start(hold, keep.name)
    poll_until(lambda: limiter.waiting == 2, what="the second waits")
    dead.kill()
    stopped.stop()
    permit.release()
    with limiter.acquire(timeout=30):
        assert limiter.waiting == 0, "the stopped one was passed by"
        stopped.resume()
        poll_until(lambda: limiter.waiting == 1, what="it waits again, at the end")
    assert stopped.recv() == "in"
    stopped.send("go")
    poll_until(lambda: limiter.in_flight == 0, what="it has released")


def die_at(channel: Channel, name: str, action: str, step: int) -> str:
    with Cache(name, create=False) as cache:
        limiter = Limiter(cache, "api", 1)
        permit = None if action == "acquire" else limiter.acquire()
        arm(limiter, step)
        if permit is None:
            limiter.acquire(timeout=0)
        else:
            permit.release()
    return "survived"


@pytest.mark.parametrize("action", ["acquire", "release"])
def test_no_death_at_any_step_costs_a_place(keep: Cache, action: str) -> None:
    limiter = Limiter(keep, "api", 1)
    deaths = 0
    while dies(die_at, keep.name, action, deaths):
        deaths += 1
        with limiter.acquire(timeout=0):
            pass
    assert deaths >= 2


def churn(channel: Channel, name: str) -> None:
    cache = Cache(name, create=False)
    limiter = Limiter(cache, "api", 2)
    me = limiter._worker.token()
    channel.send("at it")
    while True:
        with limiter.acquire():
            cache.set(("in", *me), True)
            inside = [key for key in cache.scan(("in",)) if limiter._worker.is_alive(key[1:])]
            if len(inside) > 2:
                cache.set("too many", len(inside))
            cache.delete(("in", *me))


@pytest.mark.stress
def test_a_storm_of_kills_costs_no_place(keep: Cache, start: Any) -> None:
    rng = random.Random(5)
    limiter = Limiter(keep, "api", 2)
    workers = [start(churn, keep.name) for _ in range(4)]
    for _ in range(20):
        victim = rng.randrange(4)
        assert workers[victim].recv() == "at it"
        threading.Event().wait(rng.random() * 0.02)  # the moment of the death is to be random
        workers[victim].kill()
        workers[victim] = start(churn, keep.name)
        with limiter.acquire(timeout=30):
            assert limiter.in_flight <= 2
    for worker in workers:
        worker.kill()
    with limiter.acquire(timeout=0), limiter.acquire(timeout=0):
        assert limiter.in_flight == 2 and limiter.waiting == 0
    assert "too many" not in keep and keep.verify() == []
