"""Latency of single gets and sets while one, two or four processes work."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from array import array

from bench.harness import Figure, Options, Result, percentile
from bench.processes import Crew, Loop, chunked
from bench.workloads._mixed import STATEMENT, loaded

PROCESSES = (1, 2, 4)
WRITES = 0.05
PIECE = 500
PERCENTILES = (50.0, 99.0, 99.9, 99.99, 100.0)


def run(options: Options) -> Result:
    """Time every call by itself; percentiles over all processes, medians over the rounds."""
    result = Result(
        "tail",
        "latency percentiles",
        STATEMENT + " 95% get, 5% set; every call is timed by itself with perf_counter_ns, whose "
        "own cost is part of each figure (`timer`).  Percentiles are over the calls of all "
        "processes of a window; figures are medians over the windows.",
        "What is rarer than one call in ten thousand: with more processes than CPUs that is "
        "mostly the scheduler.",
    )
    with loaded(options.seed) as load:
        name = load.cache.name

        def prepare(worker: int) -> Loop:
            from shmcache import Cache

            cache = Cache(name, create=False)
            pieces = itertools.cycle(chunked(load.operations(worker, WRITES), PIECE))

            def loop(deadline: int) -> tuple[int, tuple[array[int], array[int]]]:
                get, put, now = cache.get, cache.set, time.perf_counter_ns
                gets, sets = array("Q"), array("Q")
                got, stored = gets.append, sets.append
                for piece in pieces:
                    for key, value in piece:
                        if value is None:
                            start = now()
                            get(key)
                            got(now() - start)
                        else:
                            start = now()
                            put(key, value)
                            stored(now() - start)
                    if now() >= deadline:
                        break
                return len(gets) + len(sets), (gets, sets)

            return loop

        taken: dict[int, dict[str, list[list[float]]]] = {
            workers: {"get": [], "set": []} for workers in PROCESSES
        }
        disturbed = dict.fromkeys(PROCESSES, 0)
        with contextlib.ExitStack() as stack:
            crews = {workers: stack.enter_context(Crew(prepare, workers)) for workers in PROCESSES}
            for _ in range(options.windows):
                for workers, crew in crews.items():
                    window = crew.window(options.window_s, options.redo)
                    disturbed[workers] += window.disturbed
                    for place, call in enumerate(("get", "set")):
                        every = sorted(itertools.chain(*(w.result[place] for w in window.works)))
                        taken[workers][call].append([percentile(every, p) for p in PERCENTILES])
        load.check()

    medians = {
        (workers, call): [statistics.median(column) for column in zip(*rows, strict=True)]
        for workers, calls in taken.items()
        for call, rows in calls.items()
    }
    result.details["timer_ns"] = _timer()
    result.details["nanoseconds"] = {
        f"{call}, {workers} processes": dict(
            zip((f"p{p:g}" for p in PERCENTILES), values, strict=True)
        )
        for (workers, call), values in medians.items()
    }
    result.details["disturbed_windows"] = disturbed
    at = PERCENTILES.index(99.9)
    paired = [
        four[at] / one[at] for four, one in zip(taken[4]["get"], taken[1]["get"], strict=True)
    ]
    low, _, high = statistics.quantiles(paired, n=4)
    result.figures = [
        Figure(
            "get p99.9: 4 processes / 1",
            medians[4, "get"][at] / medians[1, "get"][at],
            2.0,
            prototype=1.2,
            low=low,
            high=high,
        ),
        Figure("set p99.9: 4 processes / 1", medians[4, "set"][at] / medians[1, "set"][at]),
        Figure("get p99.9, 1 process", medians[1, "get"][at] / 1_000, unit="µs"),
        Figure("get p99.9, 4 processes", medians[4, "get"][at] / 1_000, unit="µs"),
        Figure("set p99.9, 4 processes", medians[4, "set"][at] / 1_000, unit="µs"),
    ]
    return result


def _timer() -> float:
    now = time.perf_counter_ns
    spans = []
    for _ in range(10_000):
        start = now()
        spans.append(now() - start)
    return statistics.median(spans)
