"""ResourcePool: all or nothing, time-outs, and reservations that die with their process."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.deaths import arm, dies
from support.processes import Channel, poll_until

from shmcache import Cache, DecodeError, LockTimeout, ShmcacheError
from shmcache.recipes import PoolExhausted, ResourcePool
from shmcache.recipes import pool as module
from shmcache.recipes._machine import capacities


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
def pool(keep: Cache) -> ResourcePool:
    return ResourcePool(keep, "gpus", {"gpus": 4, "memory": 100.0})


def test_amounts_are_taken_and_given_back(pool: ResourcePool) -> None:
    with pool.allocate(gpus=3, memory=40) as held:
        assert held.amounts == {"gpus": 3, "memory": 40} and held.held
        assert pool.available() == {"gpus": 1, "memory": 60}
    assert not held.held and not held.release()
    assert pool.available() == {"gpus": 4, "memory": 100}
    other = pool.allocate(gpus=4)
    assert other.release() and not other.release()


def test_what_is_not_there_is_refused(pool: ResourcePool) -> None:
    held = pool.allocate(gpus=3)
    with pytest.raises(PoolExhausted, match=r"'gpus' has gpus: 1 of 4 left, and 2 asked.*release"):
        pool.allocate(gpus=2)
    with pytest.raises(PoolExhausted, match="more than it will ever have"):
        pool.allocate(gpus=5, timeout=None)  # does not wait for what cannot be
    assert issubclass(PoolExhausted, ShmcacheError)
    held.release()
    assert pool.available()["gpus"] == 4


def test_a_batch_is_all_or_nothing(pool: ResourcePool) -> None:
    with pytest.raises(PoolExhausted):
        pool.allocate_batch([{"gpus": 2}, {"gpus": 2}, {"memory": 101}])
    assert pool.available() == {"gpus": 4, "memory": 100}
    first, second = pool.allocate_batch([{"gpus": 2}, {"gpus": 2, "memory": 50}])
    assert pool.available() == {"gpus": 0, "memory": 50}
    second.release()
    assert first.held and pool.available() == {"gpus": 2, "memory": 100}
    assert pool.allocate_batch([]) == []


def test_fractions_fill_a_whole(keep: Cache) -> None:
    pool = ResourcePool(keep, "cpus", {"cpus": 1})
    held = [pool.allocate(cpus=0.1) for _ in range(10)]
    assert pool.available() == {"cpus": 0}
    with pytest.raises(PoolExhausted):
        pool.allocate(cpus=0.01)
    for one in held:
        one.release()
    assert pool.available() == {"cpus": 1}


@pytest.mark.parametrize(
    ("amounts", "match"),
    [
        ({}, "nothing to allocate"),
        ({"disks": 1}, r"no 'disks'.*gpus, memory"),
        *(({"gpus": wrong}, "finite number") for wrong in (0, -1, float("nan"), True, "1")),
    ],
)
def test_amounts_that_make_no_sense(pool: ResourcePool, amounts: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pool.allocate(**amounts)


@pytest.mark.parametrize("wrong", [{}, {"a": -1}, {"a": float("inf")}, {"a": True}])
def test_capacities_that_make_no_sense(keep: Cache, wrong: Any) -> None:
    with pytest.raises(ValueError, match="capacit"):
        ResourcePool(keep, "p", wrong)
    with pytest.raises(TypeError, match="name must be a str"):
        ResourcePool(keep, "p", {1: 1})  # type: ignore[dict-item]


def test_times_that_make_no_sense(pool: ResourcePool) -> None:
    for arguments in ({"timeout": -1}, {"lease": 0}, {"lease": -1}, {"lease": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            pool.allocate(gpus=1, **arguments)  # type: ignore[arg-type]


def test_a_lease_ends_a_reservation(keep: Cache) -> None:
    clock = Clock()
    pool = ResourcePool(keep, "gpus", {"gpus": 1}, clock=clock)
    held = pool.allocate(gpus=1, lease=10)
    clock.now += 9
    assert held.held and held.renew(10)
    clock.now += 9
    with pytest.raises(PoolExhausted):
        pool.allocate(gpus=1)
    clock.now += 1
    assert not held.held and not held.renew(10) and pool.available() == {"gpus": 1}
    other = pool.allocate(gpus=1)
    assert not held.release(), "what was lost is somebody else's"
    assert other.held and other.renew(None)
    clock.now += 1e9
    assert other.release()


def test_the_newest_capacities_count_for_all(keep: Cache) -> None:
    one = ResourcePool(keep, "gpus", {"gpus": 4})
    one.allocate(gpus=3)
    other = ResourcePool(keep, "gpus", {"gpus": 2})
    assert one.capacities == other.capacities == {"gpus": 2}
    assert one.available() == {"gpus": 0}, "what is reserved stays so"
    assert ResourcePool(keep, "gpus").capacities == {"gpus": 2}


def test_waiting_ends_with_a_release_or_the_time(pool: ResourcePool) -> None:
    held = pool.allocate(gpus=4)
    began = time.monotonic()
    with pytest.raises(PoolExhausted):
        pool.allocate(gpus=1, timeout=0.05)
    assert time.monotonic() - began >= 0.05
    timer = threading.Timer(0.05, held.release)
    timer.start()
    with pool.allocate(gpus=4, timeout=30):
        pass
    timer.join()


def test_an_outage_at_the_end_of_a_with_is_put_right_later(
    pool: ResourcePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, id: int) -> bool:
        raise LockTimeout("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(ResourcePool, "_release", refuse)
        with pool.allocate(gpus=4):
            pass
    with pool.allocate(gpus=4):
        assert pool.available()["gpus"] == 0
    assert pool.available()["gpus"] == 4


def test_reservations_that_were_evicted_are_forgotten(cache: Cache) -> None:
    pool = ResourcePool(cache, "gpus", {"gpus": 1})
    held = pool.allocate(gpus=1)
    cache.clear()
    assert pool.available() == {"gpus": 1}
    other = pool.allocate(gpus=1)
    assert not held.release() and other.held, "an old reservation gives back nobody else's"


def test_a_damaged_record_is_told(pool: ResourcePool) -> None:
    for damage in (b"\xc1", b"\x01", b"\x93\x01\x02\x03", "text"):
        pool._room.set("reservations", damage)
        with pytest.raises(DecodeError, match=r"'reservations'.*damaged"):
            pool.available()


# ---------------------------------------------------------------------------------- the machine


def test_the_machine_is_the_default(keep: Cache) -> None:
    pool = ResourcePool(keep, "machine")
    found = pool.capacities
    assert set(found) == {"cpus", "memory"}
    assert 0 < found["cpus"] <= len(os.sched_getaffinity(0)) and found["memory"] > 1 << 20
    with pool.allocate(cpus=found["cpus"] / 2, memory=1 << 20):
        assert pool.available()["memory"] == found["memory"] - (1 << 20)


def machine(root: Path, files: dict[str, str]) -> dict[str, float]:
    base = {"proc/meminfo": "MemTotal:        1000 kB\nMemFree: 1 kB\n"}
    for name, text in {**base, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return capacities(root)


CASES = {
    "no groups": ({}, 8, 1_024_000),
    "no limits": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
        },
        8,
        1_024_000,
    ),
    "the group's own": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "1000\n",
        },
        1.5,
        1000,
    ),
    "one above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/a/memory.max": "2000\n",
        },
        2,
        2000,
    ),
    "a container's root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        0.5,
        1_024_000,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/x\n1:name=systemd:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "3000\n",
        },
        3,
        3000,
    ),
    "version 1, no limits": (
        {
            "proc/self/cgroup": "4:cpu:/x\n3:memory:/x\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
        },
        8,
        1_024_000,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_limits_of_groups_count(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    files, cpus, memory = CASES[case]
    assert machine(tmp_path, files) == {"cpus": cpus, "memory": memory}


# --------------------------------------------------------------------------------------- deaths


def hold(channel: Channel, name: str, amounts: dict[str, float]) -> None:
    with Cache(name, create=False) as cache:
        held = ResourcePool(cache, "gpus").allocate(**amounts)
        channel.send(held.amounts)
        channel.recv()


def test_what_the_dead_had_is_there_at_once(keep: Cache, pool: ResourcePool, start: Any) -> None:
    victim = start(hold, keep.name, {"gpus": 3})
    assert victim.recv() == {"gpus": 3}
    with pytest.raises(PoolExhausted):
        pool.allocate(gpus=2)
    victim.kill()
    assert pool.available()["gpus"] == 4
    assert pool.allocate(gpus=4).held


def test_a_waiter_sees_a_death(keep: Cache, pool: ResourcePool, start: Any) -> None:
    victim = start(hold, keep.name, {"gpus": 4})
    victim.recv()
    timer = threading.Timer(0.05, victim.kill)
    timer.start()
    assert pool.allocate(gpus=1, timeout=30).held
    timer.join()


def test_a_reservation_may_outlive_nobody_but_its_process(
    keep: Cache, pool: ResourcePool, start: Any
) -> None:
    stopped = start(hold, keep.name, {"gpus": 4})
    stopped.recv()
    stopped.stop()
    with pytest.raises(PoolExhausted):  # it lives
        pool.allocate(gpus=1, timeout=0.02)
    stopped.resume()


def die_at(channel: Channel, name: str, action: str, step: int) -> str:
    with Cache(name, create=False) as cache:
        pool = ResourcePool(cache, "gpus")
        held = pool.allocate(gpus=1)
        arm(pool, step)
        if action == "batch":
            pool.allocate_batch([{"gpus": 1}, {"gpus": 1}])
        else:
            held.release()
    return "survived"


@pytest.mark.parametrize("action", ["batch", "release"])
def test_no_death_at_any_step_leaks(keep: Cache, pool: ResourcePool, action: str) -> None:
    deaths = 0
    while dies(die_at, keep.name, action, deaths):
        deaths += 1
        assert pool.available() == {"gpus": 4, "memory": 100}
        pool.allocate(gpus=4).release()
    assert deaths >= 2


def churn(channel: Channel, name: str, seed: int) -> None:
    """Take, count what all hold by a counter of the test's own, and give back, until killed."""
    rng = random.Random(seed)
    cache = Cache(name, create=False)
    pool = ResourcePool(cache, "gpus")
    channel.send("at it")
    while True:
        try:
            made = pool.allocate_batch([{"gpus": rng.choice([1, 2])}, {"gpus": 1}])
        except PoolExhausted:
            continue
        used = 4 - pool.available()["gpus"]
        if not 2 <= used <= 4:
            cache.set("wrong", used)
        for one in made:
            one.release()


@pytest.mark.stress
def test_a_storm_of_kills_leaks_nothing(keep: Cache, pool: ResourcePool, start: Any) -> None:
    rng = random.Random(3)
    workers = [start(churn, keep.name, seed) for seed in range(3)]
    for number in range(20):
        victim = rng.randrange(3)
        assert workers[victim].recv() == "at it"
        threading.Event().wait(rng.random() * 0.02)  # the moment of the death is to be random
        workers[victim].kill()
        workers[victim] = start(churn, keep.name, 10 + number)
    for worker in workers:
        worker.kill()
    assert pool.available() == {"gpus": 4, "memory": 100}
    assert pool.allocate(gpus=4).release()
    assert "wrong" not in keep and keep.verify() == []


def test_waiters_do_not_spin(pool: ResourcePool, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    real = time.sleep

    def nap(seconds: float) -> None:
        naps.append(seconds)
        real(seconds)

    monkeypatch.setattr(module.time, "sleep", nap)
    held = pool.allocate(gpus=4)
    with pytest.raises(PoolExhausted):
        pool.allocate(gpus=1, timeout=0.2)
    assert 10 < len(naps) < 60
    held.release()
    poll_until(lambda: pool.available()["gpus"] == 4, what="all is given back")
