"""What the recipes promise to type checkers. Read by mypy, never run."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, assert_type

from shmcache import Cache
from shmcache.recipes import (
    CircuitBreaker,
    ClientHub,
    Limiter,
    Pending,
    PendingEvents,
    Permit,
    PortPool,
    Reservation,
    ResourcePool,
    ResourceTracker,
)


def tracker(cache: Cache) -> None:
    jobs: ResourceTracker[dict[str, str]] = ResourceTracker(
        cache, "jobs", is_running=lambda job: job["state"] == "running"
    )
    assert_type(jobs.get("a"), dict[str, str] | None)
    assert_type(jobs.get("a", 0), dict[str, str] | int)
    assert_type(jobs.update("a", lambda job: {**job}), dict[str, str])
    assert_type(jobs.running(), Iterator[tuple[Any, dict[str, str]]])
    assert_type(jobs.count(), int)
    jobs.register("a", 7)  # type: ignore[arg-type]


def pending(cache: Cache) -> None:
    events = PendingEvents[str](cache, "events", timeout=1)
    assert_type(events.track("a", "payload"), bool)
    assert_type(events.complete("a"), Pending[str] | None)
    assert_type([event.payload for event in events.reclaim()], list[str])
    assert_type(events.oldest_age(), float | None)
    events.track("a", 7)  # type: ignore[arg-type]


def pools(cache: Cache) -> None:
    pool = ResourcePool(cache, "pool", {"gpus": 1})
    with pool.allocate(timeout=1, gpus=0.5) as held:
        assert_type(held, Reservation)
    assert_type(pool.allocate_batch([{"gpus": 1}]), list[Reservation])
    assert_type(pool.available(), dict[str, float])
    pool.allocate(gpus="1")  # type: ignore[arg-type]
    assert_type(PortPool(cache, "ports", 1, 2).take(), int)


async def limiter(cache: Cache) -> None:
    one = Limiter(cache, "api", 1, adaptive=True)
    with one.acquire(timeout=1) as permit:
        assert_type(permit, Permit)
    with await one.aacquire():
        assert_type(one.limit, int)


async def breaker(cache: Cache) -> None:
    circuit = CircuitBreaker(cache, "partner", failures=(OSError,))

    @circuit
    def plain(n: int, *, flag: bool = False) -> str:
        return str(n)

    @circuit
    async def later(n: int) -> str:
        return str(n)

    assert_type(plain(1, flag=True), str)
    assert_type(await later(1), str)
    assert_type(circuit.call(plain, 1), str)
    coroutine: Coroutine[Any, Any, str] = circuit.call(later, 1)
    assert_type(await coroutine, str)
    plain("1")  # type: ignore[arg-type]
    circuit.call(plain, "1")  # type: ignore[call-overload]


class Client:
    def __init__(self, config: int = 0) -> None:
        self.config = config


def hub(cache: Cache) -> None:
    clients = ClientHub(cache, "clients")
    assert_type(clients.get("a", Client), Client)
    assert_type(clients.get("b", lambda config: [config], setup=lambda: 7), list[int])
    clients.get("c", lambda: Client("no"))  # type: ignore[arg-type]
