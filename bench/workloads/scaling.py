"""Operations per second of one, two and four processes on a mixed load."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Figure, Options, Result
from bench.processes import Crew, Loop, Window, chunked
from bench.workloads._mixed import STATEMENT, loaded

PROCESSES = (1, 2, 4)
MIXES = {"95/5": 0.05, "50/50": 0.50}
PIECE = 500
"""Operations between two looks at the clock."""

TARGETS: dict[tuple[str, int, int], tuple[float | None, float | None]] = {
    ("95/5", 2, 1): (1.85, 1.92),
    ("95/5", 4, 2): (0.95, 0.99),
    ("50/50", 2, 1): (1.5, None),
    ("50/50", 4, 2): (None, None),
}
"""Target and prototype's figure of each ratio of throughputs."""


def run(options: Options) -> Result:
    """Measure throughput; process counts take turns, medians over the rounds."""
    result = Result(
        "scaling",
        "throughput of several processes",
        STATEMENT + " 95/5: 95% get, 5% set; 50/50: half and half.  `private dict` is the same "
        "loop on a dict in each process: what the machine can give.  `By CPU time` divides by the "
        "CPU time that the workers got: what is left to compare when others use the machine; it "
        "hides waiting.",
        "More CPUs than this machine has; processes that also do other work.",
    )
    with loaded(options.seed) as load:
        name = load.cache.name

        def shared(share: float) -> Callable[[int], Loop]:
            def prepare(worker: int) -> Loop:
                from shmcache import Cache

                cache = Cache(name, create=False)
                return _loop(cache.get, cache.set, load.operations(worker, share))

            return prepare

        def private(share: float) -> Callable[[int], Loop]:
            def prepare(worker: int) -> Loop:
                store = dict.fromkeys(load.keys, b"\0" * 100)
                return _loop(store.get, store.__setitem__, load.operations(worker, share))

            return prepare

        contestants = {f"shmcache {mix}": shared(share) for mix, share in MIXES.items()}
        contestants["private dict 95/5"] = private(MIXES["95/5"])
        windows: dict[tuple[str, int], list[Window]] = {}
        with contextlib.ExitStack() as stack:
            crews = {
                (label, workers): stack.enter_context(Crew(prepare, workers))
                for label, prepare in contestants.items()
                for workers in PROCESSES
            }
            for _ in range(options.windows):
                for at, crew in crews.items():
                    windows.setdefault(at, []).append(crew.window(options.window_s, options.redo))
        load.check()
        stats = load.cache.stats()
        result.details["lock"] = {
            "acquisitions": stats.lock_acquisitions,
            "contended": stats.lock_contended,
            "wait_seconds": stats.lock_wait_seconds,
            "read_retries": stats.read_retries,
        }
    rates = {at: _median_rate(taken) for at, taken in windows.items()}
    cpu_rates = {at: statistics.median(w.cpu_rate for w in t) for at, t in windows.items()}
    result.details["operations_per_second"] = {
        f"{label}, {workers} processes": {
            "median": round(rates[label, workers]),
            "by_cpu_time": round(cpu_rates[label, workers]),
            "windows": len(taken),
            "disturbed": sum(window.disturbed for window in taken),
            "least_granted": round(min(window.granted for window in taken), 3),
        }
        for (label, workers), taken in windows.items()
    }
    for (mix, many, few), (target, prototype) in TARGETS.items():
        label = f"shmcache {mix}"
        paired = [
            a.rate / b.rate for a, b in zip(windows[label, many], windows[label, few], strict=True)
        ]
        low, _, high = statistics.quantiles(paired, n=4)
        result.figures.append(
            Figure(
                f"{mix}: {many} processes / {few}",
                rates[label, many] / rates[label, few],
                target,
                at_most=False,
                prototype=prototype,
                low=low,
                high=high,
            )
        )
        result.figures.append(
            Figure(
                f"{mix}: {many} processes / {few}, by CPU time",
                cpu_rates[label, many] / cpu_rates[label, few],
            )
        )
    ceiling = "private dict 95/5"
    result.figures.append(
        Figure("private dict 95/5: 2 processes / 1", rates[ceiling, 2] / rates[ceiling, 1])
    )
    result.figures.append(
        Figure(
            "private dict 95/5: 2 processes / 1, by CPU time",
            cpu_rates[ceiling, 2] / cpu_rates[ceiling, 1],
        )
    )
    return result


def _median_rate(windows: list[Window]) -> float:
    """The median of the undisturbed windows, of all where there is none."""
    calm = [window.rate for window in windows if not window.disturbed]
    return statistics.median(calm or [window.rate for window in windows])


def _loop(get: Any, put: Any, operations: list[tuple[str, bytes | None]]) -> Loop:
    pieces = itertools.cycle(chunked(operations, PIECE))

    def loop(deadline: int) -> tuple[int, Any]:
        now = time.perf_counter_ns
        done = 0
        for piece in pieces:
            for key, value in piece:
                if value is None:
                    get(key)
                else:
                    put(key, value)
            done += PIECE
            if now() >= deadline:
                break
        return done, None

    return loop
