"""Several processes that work for the same windows of time.

The workers of a crew are forked once, open what they need by name, make their sequences of
operations, and then sleep on a pipe.  For each window all of them wait at a barrier, run until the
window is over, and send back what they counted.  Worker `i` is bound to CPU `i` modulo the CPUs
there are, so that two processes never share one while another is idle.

A window in which the workers did not get the CPU time that was theirs (because others used the
machine) was disturbed and is taken again; after `REDO_LIMIT` attempts the least disturbed one is
kept, and says so.  Windows are short, so that there is a chance of undisturbed ones.
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
from typing import Any, Self

STOLEN_SHARE = 0.03
"""A window is disturbed when workers missed this share of the CPU time that was theirs."""

REDO_LIMIT = 10

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
"""Works until `perf_counter_ns` passes the deadline given; returns operations done, and more.
It is called once for each window."""

Prepare = Callable[[int], Loop]
"""Runs in the worker, gets its number, and makes its loop."""


class Crew:
    """Workers that are ready to run windows; a context manager, which ends them."""

    def __init__(self, prepare: Prepare, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._barrier = context.Barrier(workers)
        self._cpus = sorted(os.sched_getaffinity(0))
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(workers):
            ours, theirs = context.Pipe()
            cpu = self._cpus[number % len(self._cpus)]
            process = context.Process(
                target=_work,
                args=(number, {cpu}, prepare, self._barrier, theirs, [*self._pipes, ours]),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        for pipe in self._pipes:
            if not pipe.poll(START_TIMEOUT):
                raise TimeoutError(f"a worker was not ready within {START_TIMEOUT:g} s")
            pipe.recv()  # EOFError: it died; its traceback is on stderr
        return self

    def __exit__(self, *exception: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # the workers read the end of it, and return
        for process in self._processes:
            process.join()

    def window(self, seconds: float, limit: int = REDO_LIMIT) -> Window:
        """Run all workers for `seconds`, again if the window was disturbed, `limit` times at most.

        Workers that wait for other processes are off the CPU by nature: `limit` 1 for these."""
        attempts: list[Window] = []
        while len(attempts) < limit:
            for pipe in self._pipes:
                pipe.send(seconds)
            works = [pipe.recv() for pipe in self._pipes]
            attempts.append(Window(works, min(len(works), len(self._cpus))))
            if not attempts[-1].disturbed:
                break
        return max(attempts, key=lambda window: window.granted)


def _work(
    number: int,
    cpus: set[int],
    prepare: Prepare,
    barrier: Any,
    pipe: Connection,
    inherited: list[Connection],
) -> None:
    for other in inherited:
        other.close()
    os.sched_setaffinity(0, cpus)
    loop = prepare(number)
    gc.collect()
    gc.disable()
    pipe.send("ready")
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        barrier.wait(START_TIMEOUT)
        cpu = time.process_time_ns()
        start = time.perf_counter_ns()
        operations, result = loop(start + int(seconds * 1e9))
        elapsed = time.perf_counter_ns() - start
        cpu = time.process_time_ns() - cpu
        pipe.send(Work(operations, elapsed, cpu, result))


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
