"""Several processes that work for the same window of time.

Each is forked, opens what it needs by name, makes its sequence of operations, and waits at a
barrier; then all run until the window is over and send back what they counted.  Worker `i` is
bound to CPU `i` modulo the CPUs there are, so that two processes never share one while another
is idle.

A window in which the workers did not get the CPU time that was theirs (because others used the
machine) was disturbed and is taken again; after `REDO_LIMIT` attempts the least disturbed one is
kept, and says so.
"""

from __future__ import annotations

import bisect
import gc
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

STOLEN_SHARE = 0.03
"""A window is disturbed when workers missed this share of the CPU time that was theirs."""

REDO_LIMIT = 4

START_TIMEOUT = 120.0
"""Seconds for all workers to get ready."""


@dataclass(frozen=True)
class Work:
    """What one worker did in its window."""

    operations: int
    elapsed_ns: int
    cpu_ns: int
    result: Any
    """What the worker's function returned besides."""


@dataclass(frozen=True)
class Window:
    """All workers of one window."""

    works: list[Work]
    cpus: int
    """CPUs that the workers had between them."""

    @property
    def granted(self) -> float:
        """Share of the CPU time due to the workers that they got."""
        due = sum(work.elapsed_ns for work in self.works) * self.cpus / len(self.works)
        return sum(work.cpu_ns for work in self.works) / due

    @property
    def disturbed(self) -> bool:
        """Whether others took CPU time that was due to the workers."""
        return self.granted < 1 - STOLEN_SHARE

    @property
    def rate(self) -> float:
        """Operations per second of all workers together."""
        return sum(work.operations * 1e9 / work.elapsed_ns for work in self.works)

    @property
    def cpu_rate(self) -> float:
        """The same by the CPU time that they got: what `rate` would be if nobody else ran.

        It hides waiting; it is a stand-in for a machine that is never quiet."""
        each = sum(work.operations * 1e9 / work.cpu_ns for work in self.works)
        return each * self.cpus / len(self.works)


Loop = Callable[[int], tuple[int, Any]]
"""Works until `perf_counter_ns` passes the deadline given; returns operations done, and more."""

Prepare = Callable[[int], Loop]
"""Runs in the worker, gets its number, and makes its loop."""


def run_window(prepare: Prepare, workers: int, window_s: float) -> Window:
    """Run `workers` processes for `window_s` seconds, again if the window was disturbed."""
    attempts: list[Window] = []
    while len(attempts) < REDO_LIMIT:
        attempts.append(_run_once(prepare, workers, window_s))
        if not attempts[-1].disturbed:
            break
    return max(attempts, key=lambda window: window.granted)


def _run_once(prepare: Prepare, workers: int, window_s: float) -> Window:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(workers + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    cpus = sorted(os.sched_getaffinity(0))
    processes = [
        context.Process(
            target=_worker,
            args=(number, {cpus[number % len(cpus)]}, prepare, barrier, pipes[number][1], window_s),
        )
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        barrier.wait(START_TIMEOUT)
        works = [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join()
    return Window(works, min(workers, len(cpus)))


def _worker(
    number: int,
    cpus: set[int],
    prepare: Prepare,
    barrier: Any,
    sender: Connection,
    window_s: float,
) -> None:
    os.sched_setaffinity(0, cpus)
    try:
        loop = prepare(number)
    except BaseException:
        barrier.abort()
        raise
    gc.collect()
    gc.disable()
    barrier.wait(START_TIMEOUT)
    cpu = time.process_time_ns()
    start = time.perf_counter_ns()
    operations, result = loop(start + int(window_s * 1e9))
    elapsed = time.perf_counter_ns() - start
    cpu = time.process_time_ns() - cpu
    sender.send(Work(operations, elapsed, cpu, result))
    sender.close()


class Zipf:
    """Draws numbers below `count` with probability proportional to 1 / rank ** `skew`.

    Ranks are dealt to the numbers at random, so that popular keys do not lie side by side.
    """

    def __init__(self, count: int, skew: float, seed: int) -> None:
        weights = (1 / rank**skew for rank in range(1, count + 1))
        self._bounds = list(itertools.accumulate(weights))
        self._numbers = random.Random(seed).sample(range(count), count)

    def draw(self, size: int, seed: int) -> list[int]:
        """`size` draws, the same ones for the same seed."""
        uniform = random.Random(seed).random
        bounds, numbers, total = self._bounds, self._numbers, self._bounds[-1]
        find = bisect.bisect_left
        return [numbers[find(bounds, uniform() * total)] for _ in range(size)]


def chunked(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` in pieces of `size`; a worker looks at the clock once a piece."""
    return [items[at : at + size] for at in range(0, len(items), size)]
