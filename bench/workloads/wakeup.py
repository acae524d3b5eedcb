"""How soon a waiter of get_or_init has the value, and what waiting costs."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from bench.harness import Figure, Options, Result, percentile, require
from bench.peers import shmcache_open

WAITERS = ("process, thread", "process, task", "same process, thread", "same process, task")
"""Where the waiter is, seen from the initialiser, and what it is."""

ROUNDS = 400
REST_S = 1.0
START_TIMEOUT = 30.0


def run(options: Options) -> Result:
    """Let one waiter at a time wait for a factory, and take the time from its return."""
    rounds = ROUNDS // 4 if options.quick else ROUNDS
    result = Result(
        "wakeup",
        "get_or_init: from the value to the waiter",
        f"{rounds} rounds for each waiter: a thread or an asyncio task, of another process or of "
        "the initialiser's.  The factory makes sure that the waiter is about to call, sleeps 2 to "
        "30 ms, and returns the time (CLOCK_MONOTONIC, which processes share): so the figure "
        "spans encoding, storing, waking, finding and decoding.  CPU time is the waiting "
        f"process's while it waits {REST_S:g} s.",
        "Many waiters at once, who queue for the CPU; a machine that does something else.",
    )
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(shmcache_open(size=4 << 20))
        pipes = {who: stack.enter_context(_waiter(cache.name, who)) for who in WAITERS}
        taken: dict[str, list[float]] = {who: [] for who in WAITERS}
        for number in range(rounds):
            for who, pipe in pipes.items():
                hold_s = 0.002 + 0.028 * (number * 0.618 % 1)
                taken[who].append(_round(cache, pipe, f"{who} {number}", hold_s)[0] / 1e3)
        burnt = {
            who: _round(cache, pipe, f"{who} rest", REST_S)[1] / REST_S * 100
            for who, pipe in pipes.items()
        }
    result.details["microseconds"] = {
        who: {f"p{p:g}": round(percentile(sorted(spans), p), 1) for p in (50.0, 90.0, 99.0, 100.0)}
        for who, spans in taken.items()
    }
    result.details["percent_of_a_core_while_waiting"] = {
        who: round(share, 3) for who, share in burnt.items()
    }
    for who, spans in taken.items():
        ordered = sorted(spans)
        result.figures += [
            Figure(f"{who}: p99", percentile(ordered, 99.0) / 1e3, 2.0, unit="ms"),
            Figure(f"{who}: median", percentile(ordered, 50.0) / 1e3, unit="ms"),
        ]
    result.figures += [
        Figure(f"{who}: CPU while waiting", share, 2.0, unit="%") for who, share in burnt.items()
    ]
    return result


def _round(cache: Any, pipe: Connection, key: str, hold_s: float) -> tuple[int, float]:
    """(nanoseconds from the factory's return to the waiter's, CPU seconds of the waiter)."""

    def make() -> int:
        pipe.send(key)
        require(pipe.poll(START_TIMEOUT) and pipe.recv() == "going", "the waiter is there")
        time.sleep(hold_s)
        return time.monotonic_ns()

    value = cache.get_or_init(key, make)
    require(pipe.poll(START_TIMEOUT), "the waiter has returned")
    seen, returned, cpu_s = pipe.recv()
    require(seen == value, "the waiter got the value")
    return returned - value, cpu_s


@contextlib.contextmanager
def _waiter(name: str, who: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    start: Callable[..., Any] = threading.Thread if "same" in who else context.Process
    waiter = start(target=_serve, args=(name, theirs, "task" in who), daemon=True)
    waiter.start()
    try:
        require(ours.poll(START_TIMEOUT) and ours.recv() == "ready", "the waiter has attached")
        yield ours
    finally:
        ours.send(None)
        waiter.join(START_TIMEOUT)


def _serve(name: str, pipe: Connection, task: bool) -> None:
    from shmcache import Cache

    def sync_refused() -> int:
        raise AssertionError("the waiter never initialises")

    async def async_refused() -> int:
        raise AssertionError("the waiter never initialises")

    with Cache(name, create=False) as cache, asyncio.Runner() as runner:
        pipe.send("ready")
        while (key := pipe.recv()) is not None:
            cpu_s = time.process_time()
            pipe.send("going")
            if task:
                value = runner.run(cache.aget_or_init(key, async_refused))
            else:
                value = cache.get_or_init(key, sync_refused)
            returned = time.monotonic_ns()
            pipe.send((value, returned, time.process_time() - cpu_s))
