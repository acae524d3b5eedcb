"""CircuitBreaker: its states, one probe at a time, and probes that die."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, release

from shmcache import Cache, CacheFull, DecodeError, LockTimeout, ShmcacheError
from shmcache.recipes import CircuitBreaker, CircuitOpen
from shmcache.recipes._state import Cell


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Down(Exception):
    """The partner does not answer."""


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(keep: Cache, clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(keep, "partner", 3, 30.0, clock=clock)


def fail() -> None:
    raise Down


def fail_times(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Down):
            breaker.call(fail)


def test_calls_go_through(breaker: CircuitBreaker) -> None:
    assert breaker.call(int, "11", base=2) == 3
    assert breaker.state == "closed" and breaker.failure_count == 0


def test_failures_in_a_row_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail_times(breaker, 2)
    assert breaker.call(int, "1") == 1 and breaker.failure_count == 0, "a success ends the row"
    fail_times(breaker, 2)
    assert breaker.state == "closed"
    fail_times(breaker, 1)
    assert breaker.state == "open"
    clock.now += 10
    called: list[int] = []
    with pytest.raises(CircuitOpen, match=r"'partner' is open after 3 failures.*in 20 s") as caught:
        breaker.call(called.append, 1)
    assert caught.value.retry_after == 20.0 and called == []
    assert isinstance(caught.value, ShmcacheError)


def test_a_probe_that_succeeds_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail_times(breaker, 3)
    clock.now += 30
    assert breaker.state == "half-open", "the next call will be a probe"
    seen = []

    def probe() -> int:
        seen.append(breaker.state)
        with pytest.raises(CircuitOpen, match="one call probes"):
            breaker.call(int, "1")
        return 7

    assert breaker.call(probe) == 7 and seen == ["half-open"]
    assert breaker.state == "closed" and breaker.failure_count == 0


def test_a_probe_that_fails_opens_it_again(breaker: CircuitBreaker, clock: Clock) -> None:
    fail_times(breaker, 3)
    clock.now += 31
    fail_times(breaker, 1)
    assert breaker.state == "open"
    clock.now += 29
    with pytest.raises(CircuitOpen):
        breaker.call(int, "1")
    clock.now += 1
    assert breaker.call(int, "1") == 1 and breaker.state == "closed"


def test_late_outcomes_of_calls_from_before_change_nothing(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    def slow(ok: bool) -> None:
        fail_times(breaker, 3)  # others', meanwhile
        clock.now += 5
        if not ok:
            raise Down

    breaker.call(slow, True)
    assert breaker.state == "open", "a success from before it opened does not close it"
    breaker.reset()
    with pytest.raises(Down):
        breaker.call(slow, False)
    with pytest.raises(CircuitOpen) as caught:
        breaker.call(int, "1")
    assert caught.value.retry_after == 25.0, "a failure from before does not open it for longer"


def test_only_failures_count(keep: Cache) -> None:
    breaker = CircuitBreaker(keep, "partner", 1, failures=(Down, OSError))
    with pytest.raises(ValueError, match="invalid literal"):
        breaker.call(int, "no number")
    assert breaker.state == "closed"
    fail_times(breaker, 1)
    assert breaker.state == "open"


def test_an_interrupt_is_no_verdict(breaker: CircuitBreaker, clock: Clock) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaker.call(interrupt)
    assert breaker.failure_count == 0
    fail_times(breaker, 3)
    clock.now += 30
    with pytest.raises(KeyboardInterrupt):
        breaker.call(interrupt)
    assert breaker.state == "half-open"
    assert breaker.call(int, "1") == 1, "the next call probes"
    assert breaker.state == "closed"


def test_by_hand(breaker: CircuitBreaker) -> None:
    breaker.reset()
    breaker.trip()
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        breaker.call(int, "1")
    breaker.reset()
    assert breaker.state == "closed" and breaker.call(int, "1") == 1


def test_a_verdict_from_before_a_change_by_hand_counts_for_nothing(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    def probe_and_reset() -> None:
        breaker.reset()
        raise Down

    fail_times(breaker, 3)
    clock.now += 30
    with pytest.raises(Down):
        breaker.call(probe_and_reset)
    assert breaker.state == "closed"
    fail_times(breaker, 3)
    clock.now += 30
    breaker.call(breaker.trip)
    assert breaker.state == "open"


def test_times_of_another_clock_do_not_keep_it_open(breaker: CircuitBreaker, clock: Clock) -> None:
    fail_times(breaker, 3)
    clock.now -= 900  # the host was started anew, and the state comes from a snapshot
    assert breaker.state == "half-open" and breaker.call(int, "1") == 1


def test_a_reset_timeout_without_end(keep: Cache, clock: Clock) -> None:
    breaker = CircuitBreaker(keep, "ever", 1, float("inf"), clock=clock)
    fail_times(breaker, 1)
    clock.now += 1e9
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        breaker.call(int, "1")


def test_a_decorator_keeps_the_function(breaker: CircuitBreaker) -> None:
    @breaker
    def double(n: int) -> int:
        """Twice."""
        return 2 * n

    assert double(4) == 8 and double.__name__ == "double" and double.__doc__ == "Twice."
    fail_times(breaker, 3)
    with pytest.raises(CircuitOpen):
        double(4)


def test_async_functions(breaker: CircuitBreaker, clock: Clock) -> None:
    @breaker
    async def ask(ok: bool) -> str:
        await asyncio.sleep(0)
        if not ok:
            raise Down
        return "fine"

    async def run() -> None:
        assert await ask(True) == "fine" and await breaker.call(ask, True) == "fine"
        for _ in range(3):
            with pytest.raises(Down):
                await ask(False)
        with pytest.raises(CircuitOpen):
            await ask(True)
        clock.now += 30
        never = asyncio.ensure_future(breaker.call(wait_for_ever))
        await asyncio.sleep(0.001)
        with pytest.raises(CircuitOpen, match="probes"):
            await ask(True)
        never.cancel()
        with pytest.raises(asyncio.CancelledError):
            await never
        assert await ask(True) == "fine"

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    asyncio.run(run())
    assert breaker.state == "closed"


def test_a_closed_breaker_writes_nothing(breaker: CircuitBreaker) -> None:
    breaker.call(int, "1")
    left = arm(breaker, 1000)
    for _ in range(10):
        breaker.call(int, "1")
    assert 1000 - left() == 20, "two gets a call"


@pytest.mark.parametrize("outage", [CacheFull, LockTimeout])
def test_an_outage_of_the_cache_lets_calls_through(
    breaker: CircuitBreaker, outage: Any, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    def refuse(*args: Any) -> None:
        raise outage("no")

    fail_times(breaker, 3)
    clock.now += 30
    with monkeypatch.context() as patch:
        patch.setattr(Cell, "alter", refuse)
        assert breaker.call(int, "1") == 1
        fail_times(breaker, 1)
    assert breaker.call(int, "1") == 1 and breaker.state == "closed"
    with monkeypatch.context() as patch:  # the verdict of a probe is lost
        fail_times(breaker, 3)
        clock.now += 30

        def probe() -> None:
            patch.setattr(Cell, "alter", refuse)

        breaker.call(probe)
    assert breaker.call(int, "1") == 1 and breaker.state == "closed", "the next one probes"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), ValueError),
        ((1.5,), TypeError),
        ((5, -1), ValueError),
        ((5, float("nan")), ValueError),
    ],
)
def test_arguments_that_make_no_sense(keep: Cache, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        CircuitBreaker(keep, "partner", *arguments)


def test_the_exception_pickles() -> None:
    error = CircuitOpen("no", retry_after=7.0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "no" and again.retry_after == 7.0


def test_a_damaged_record_is_told(breaker: CircuitBreaker) -> None:
    for damage in (b"\xc1", b"\x01", b"\x96\x07\x00\x00\x00\x00\x00", "text"):
        breaker._room.set("state", damage)
        with pytest.raises(DecodeError, match=r"'state'.*damaged"):
            breaker.call(int, "1")


def test_one_that_was_evicted_is_closed(cache: Cache) -> None:
    breaker = CircuitBreaker(cache, "partner", 1)
    fail_times(breaker, 1)
    cache.clear()
    assert breaker.state == "closed" and breaker.call(int, "1") == 1


# ------------------------------------------------------------------------------- many processes


def fail_here(channel: Channel, name: str, times: int) -> str:
    with Cache(name, create=False) as cache:
        breaker = CircuitBreaker(cache, "partner", 3)
        fail_times(breaker, times)
        return breaker.state


def test_failures_of_all_workers_count(keep: Cache, start: Any) -> None:
    assert start(fail_here, keep.name, 1).result() == "closed"
    assert start(fail_here, keep.name, 2).result() == "open"
    with pytest.raises(CircuitOpen):
        CircuitBreaker(keep, "partner", 3).call(int, "1")


def race(channel: Channel, name: str, rounds: int) -> int:
    """Be the probe of as many rounds as may be; a probe waits until all have tried."""
    with Cache(name, create=False) as cache:
        breaker = CircuitBreaker(cache, "partner", 1, 0.0)
        won = 0
        for _ in range(rounds):
            channel.sync()

            def probe() -> None:
                cache.incr("probes")
                channel.send("probing")
                channel.recv()
                raise Down  # so that it is open again

            try:
                breaker.call(probe)
            except CircuitOpen:
                channel.send("refused")
                channel.recv()
            except Down:
                won += 1
        return won


def test_one_worker_probes_at_a_time(keep: Cache, start: Any) -> None:
    breaker = CircuitBreaker(keep, "partner", 1, 0.0)
    fail_times(breaker, 1)
    workers = [start(race, keep.name, 10) for _ in range(4)]
    for _ in range(10):
        release(workers)
        assert sorted(worker.recv() for worker in workers) == ["probing", *["refused"] * 3]
        for worker in workers:
            worker.send("go on")
    assert sum(worker.result() for worker in workers) == 10 == keep["probes"]


def probe_for_ever(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:

        def hang() -> None:
            channel.send("probing")
            channel.recv()

        CircuitBreaker(cache, "partner", 1, 0.0).call(hang)


def test_a_probe_that_dies_is_replaced_at_once(keep: Cache, start: Any) -> None:
    breaker = CircuitBreaker(keep, "partner", 1, 0.0)
    fail_times(breaker, 1)
    victim = start(probe_for_ever, keep.name)
    assert victim.recv() == "probing"
    with pytest.raises(CircuitOpen) as caught:
        breaker.call(int, "1")
    assert caught.value.retry_after == 0.0
    victim.stop()
    with pytest.raises(CircuitOpen):  # stopped is not dead
        breaker.call(int, "1")
    victim.kill()
    assert breaker.call(int, "1") == 1 and breaker.state == "closed"


def die_at(channel: Channel, name: str, step: int) -> str:
    with Cache(name, create=False) as cache:
        breaker = CircuitBreaker(cache, "partner", 1, 0.0)
        arm(breaker, step)
        breaker.call(int, "1")
    return "survived"


def test_no_death_at_any_step_keeps_it_open(keep: Cache) -> None:
    breaker = CircuitBreaker(keep, "partner", 1, 0.0)
    for step in range(100):
        fail_times(breaker, 1)
        died = dies(die_at, keep.name, step)
        assert breaker.call(int, "1") == 1 and breaker.state == "closed"
        if not died:
            break
    assert step >= 4


def test_threads_probe_one_at_a_time(keep: Cache) -> None:
    breaker = CircuitBreaker(keep, "partner", 1, 0.0)
    fail_times(breaker, 1)
    go, inside, refused = threading.Barrier(6), [0], [0]
    done = threading.Event()

    def probe() -> None:
        inside[0] += 1
        assert done.wait(30)

    def ask() -> None:
        go.wait()
        try:
            breaker.call(probe)
        except CircuitOpen:
            refused[0] += 1
            if refused[0] == 5:
                done.set()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [1] and refused == [5] and breaker.state == "closed"
