"""PortPool: O(1), no port twice, and ports of the dead."""

from __future__ import annotations

import itertools
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, release

from shmcache import Cache, DecodeError
from shmcache.recipes import PoolExhausted, PortPool, is_bindable

START, STOP = 9000, 9010


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


@pytest.fixture
def ports(keep: Cache) -> PortPool:
    return PortPool(keep, "ports", START, STOP)


def sound(ports: PortPool, free: int) -> None:
    """Exactly so many are free: they can be taken, each once, and given back."""
    assert ports.available() == free
    taken = [ports.take() for _ in range(free)]
    assert len(set(taken)) == free
    with pytest.raises(PoolExhausted):
        ports.take()
    for port in taken:
        ports.give(port)


def test_ports_come_in_turn(ports: PortPool) -> None:
    assert [ports.take() for _ in range(3)] == [9000, 9001, 9002]
    ports.give(9001)
    assert ports.available() == 8 and ports.owned() == [9000, 9002]
    assert [ports.take() for _ in range(8)] == [*range(9003, 9010), 9001], "the last is the newest"
    with pytest.raises(PoolExhausted, match=r"all 10 ports of pool 'ports' \(9000 to 9009\)"):
        ports.take()
    for port in range(START, STOP):
        ports.give(port)
    sound(ports, 10)


def test_a_port_is_given_back_once(ports: PortPool) -> None:
    port = ports.take()
    ports.give(port)
    for wrong in (port, 9009):
        with pytest.raises(ValueError, match="is not taken"):
            ports.give(wrong)
    for wrong in (8999, 9010, -1):
        with pytest.raises(ValueError, match="is not of pool"):
            ports.give(wrong)
    sound(ports, 10)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (10, 10), (10, 5), (1, 65537), (-5, 5)])
def test_ranges_that_make_no_sense(keep: Cache, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="1 <= start < stop <= 65536"):
        PortPool(keep, "p", start, stop)
    with pytest.raises(TypeError, match="must be ints"):
        PortPool(keep, "p", 1.0, 5)  # type: ignore[arg-type]


def test_the_range_is_the_pools(keep: Cache, ports: PortPool) -> None:
    ports.take()
    assert PortPool(keep, "ports", START, STOP).available() == 9
    with pytest.raises(ValueError, match=r"has ports 9000 to 9009, not 9000 to 9010.*another name"):
        PortPool(keep, "ports", START, STOP + 1)


def test_taking_and_giving_cost_the_same_in_any_pool(keep: Cache) -> None:
    """O(1) by counting what is asked of the cache."""
    costs = []
    for number, size in enumerate((10, 100, 60_000)):
        ports = PortPool(keep, f"of {size}", 1000, 1000 + size)
        taken = [ports.take() for _ in range(5)]
        left = arm(ports, 10_000)
        ports.take()
        ports.give(taken[number])
        costs.append(10_000 - left())
    assert max(costs) - min(costs) <= 2 and max(costs) < 30, costs


def test_unusable_ports_are_passed_by(keep: Cache) -> None:
    ports = PortPool(keep, "odd", START, STOP, usable=lambda port: port % 2)
    assert [ports.take() for _ in range(5)] == [9001, 9003, 9005, 9007, 9009]
    with pytest.raises(PoolExhausted, match="none of the 5 free ports"):
        ports.take()
    assert ports.available() == 5


def test_a_bound_port_is_not_bindable() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not is_bindable(port, "127.0.0.1")
    assert is_bindable(port, "127.0.0.1")


def test_records_that_were_evicted_are_built_anew(cache: Cache) -> None:
    ports = PortPool(cache, "ports", START, STOP)
    taken = {ports.take() for _ in range(4)}
    ports.give(9001)
    taken.remove(9001)
    ports._queue.delete("ends")  # as if it had been evicted
    assert ports.available() == 7
    more = {ports.take() for _ in range(7)}
    assert len(more) == 7 and not more & taken


def test_damage_is_told(ports: PortPool) -> None:
    ports.take()
    ports._owners.set(9000, b"\xc1")
    with pytest.raises(DecodeError, match="damaged"):
        ports.give(9000)
    ports._queue.set(1, 7)
    with pytest.raises(DecodeError, match="damaged"):
        for _ in range(2):
            ports._take()
    ports._queue.set("ends", b"\x01")
    with pytest.raises(DecodeError, match=r"'ends'.*damaged"):
        ports.available()


# ------------------------------------------------------------------------------- many processes


def take_all(channel: Channel, name: str) -> list[int]:
    with Cache(name, create=False) as cache:
        ports = PortPool(cache, "race", 1000, 1300)
        channel.sync()
        taken = []
        while True:
            try:
                taken.append(ports.take())
            except PoolExhausted:
                channel.send(taken)
                channel.recv()  # who leaves gives up its ports
                return taken


def test_no_port_is_taken_twice(keep: Cache, start: Any) -> None:
    workers = [start(take_all, keep.name) for _ in range(4)]
    release(workers)
    taken = [worker.recv() for worker in workers]
    assert sorted(itertools.chain(*taken)) == list(range(1000, 1300))
    ports = PortPool(keep, "race", 1000, 1300)
    workers[0].kill()
    again = [ports.take() for _ in taken[0]]
    assert sorted(again) == sorted(taken[0]), "ports of the dead are there when none else is"
    with pytest.raises(PoolExhausted):
        ports.take()


def hold(channel: Channel, name: str, count: int) -> None:
    with Cache(name, create=False) as cache:
        ports = PortPool(cache, "ports", START, STOP)
        channel.send([ports.take() for _ in range(count)])
        channel.recv()


def test_ports_of_the_dead_come_back_before_they_are_needed(
    keep: Cache, ports: PortPool, start: Any
) -> None:
    victim = start(hold, keep.name, 4)
    assert len(victim.recv()) == 4
    assert ports.available() == 6
    victim.kill()
    for _ in range(5):  # two of ten are looked at with each
        ports.give(ports.take())
    assert ports.available() == 10
    sound(ports, 10)


def die_at(channel: Channel, name: str, action: str, step: int) -> str:
    with Cache(name, create=False) as cache:
        ports = PortPool(cache, "ports", START, STOP)
        if action == "give":
            port = ports.take()
        arm(ports, step)
        if action == "give":
            ports.give(port)
        else:
            ports.take()
    return "survived"


@pytest.mark.parametrize("action", ["take", "give"])
def test_no_death_at_any_step_leaks_a_port(keep: Cache, ports: PortPool, action: str) -> None:
    """INV-RECIPE-NOTE."""
    deaths = 0
    while dies(die_at, keep.name, action, deaths):
        deaths += 1
        taken = [ports.take() for _ in range(10)]
        assert sorted(taken) == list(range(START, STOP)), f"killed before step {deaths - 1}"
        for port in taken:
            ports.give(port)
    assert deaths >= 8


def churn(channel: Channel, name: str, seed: int) -> None:
    """Take and give until killed; a port that a living worker marked is never handed out."""
    rng = random.Random(seed)
    cache = Cache(name, create=False)
    ports = PortPool(cache, "ports", START, STOP)
    me = _worker_of(ports).token()
    mine: list[int] = []
    channel.send("at it")
    while True:
        if mine and (rng.random() < 0.5 or len(mine) == 3):
            port = mine.pop()
            cache.delete(("mark", port))
            ports.give(port)
        else:
            port = ports.take()
            mark = cache.get(("mark", port))
            if mark is not None and _worker_of(ports).is_alive(tuple(mark)):
                cache.set("twice", port)
            cache.set(("mark", port), list(me))
            mine.append(port)


def _worker_of(ports: PortPool) -> Any:
    return ports._worker


@pytest.mark.stress
def test_a_storm_of_kills_leaks_no_port(keep: Cache, ports: PortPool, start: Any) -> None:
    rng = random.Random(4)
    seeds = iter(range(1000))
    workers = [start(churn, keep.name, next(seeds)) for _ in range(3)]
    for _ in range(20):
        victim = rng.randrange(3)
        assert workers[victim].recv() == "at it"
        threading.Event().wait(rng.random() * 0.02)  # the moment of the death is to be random
        workers[victim].kill()
        workers[victim] = start(churn, keep.name, next(seeds))
    for worker in workers:
        worker.kill()
    taken = [ports.take() for _ in range(10)]
    assert sorted(taken) == list(range(START, STOP))
    assert "twice" not in keep and keep.verify() == []
