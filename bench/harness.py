"""Timing: interleaved samples of small statements, and ratios between them.

A contestant is a statement, timed like `timeit` does it: compiled into a `for` loop of its own,
so that the interpreter's inline caches belong to it alone.  All contestants of a workload take
turns within one run, in an order that changes from round to round; a figure is the median over
the rounds, and a ratio is that of two medians of the same run.  Whatever moves the machine as a
whole (clock rate, neighbours) moves both sides of a ratio.

A sample during which the kernel took the CPU away (an involuntary context switch), or whose
wall time exceeds its CPU time by more than `STOLEN_SHARE`, was disturbed: it is thrown away and
taken again.  Nothing is thrown away for being slow: that would flatter whatever is erratic.

Times include the `for` loop around the statement.  The loop alone (statement `pass`) is a
contestant too, and is stated beside every figure; `net` figures have it subtracted.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import resource
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_NS = 2_000_000
"""Wall time that one sample aims at: long against a timer read, short against a time slice."""

MOVE_AFTER = 3
"""Disturbed attempts in a row after which the process moves to the CPU that is idlest then."""

STOLEN_SHARE = 0.03
"""A sample is disturbed when this share of its wall time was not spent on the CPU."""

REDO_LIMIT = 20
"""Attempts at an undisturbed sample before a disturbed one is kept (and counted as such)."""

LOOP = "empty loop"
"""Name of the contestant that times the loop around the statements."""


@dataclass
class Contestant:
    """One statement to time.

    Args:
        name: shown in the reports; unique within its workload.
        statement: Python source; the loop variable is `key`.  `pass` times the loop itself.
        names: objects that the statement uses; they become locals of the timed function.
        batches: lists of what `key` runs over.  One list is used for all samples; of several,
            each sample takes the next one, so that it meets keys that are cold by now.
        operations: operations that one execution of the statement counts for.
        warm: run the batch once, untimed, before the sample.
        settle: called before each sample, untimed.
        sample_ns: nanoseconds that a sample aims at, where there is one list only.
        waits: the statement waits for another process, so that time off the CPU is part of what
            it costs and nothing tells a disturbed sample: none is taken again.
    """

    name: str
    statement: str
    names: Mapping[str, Any]
    batches: Sequence[Sequence[Any]]
    operations: int = 1
    warm: bool = True
    settle: Callable[[], None] | None = None
    sample_ns: int = SAMPLE_NS
    waits: bool = False
    _run: Callable[[int, Sequence[Any]], int] = field(init=False, repr=False)
    _next: Iterator[int] = field(init=False, repr=False)
    passes: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self._run = _compile(self.statement, self.names)
        self._next = itertools.cycle(range(len(self.batches)))

    @property
    def shape(self) -> tuple[int, int, bool]:
        """What the cost of the loop itself depends on: contestants alike in this share one."""
        return len(self.batches), len(self.batches[0]), self.warm

    def start_at(self, share: float) -> None:
        """Begin with the batch at `share` (0 to 1) of the list, so that contestants which walk
        the same batches do not warm them for each other."""
        first = int(share * len(self.batches))
        self._next = itertools.cycle([*range(first, len(self.batches)), *range(first)])

    def calibrate(self) -> None:
        """Choose how often a sample repeats its batch, so that it takes about `sample_ns`."""
        if len(self.batches) > 1:
            self.passes = 1
            return
        batch = self.batches[0]
        self._run(1, batch)
        fastest = min(self._run(1, batch) for _ in range(3))
        self.passes = max(1, round(self.sample_ns / max(fastest, 1)))

    def sample(self) -> tuple[float, bool]:
        """Take one sample: nanoseconds per operation, and whether it was disturbed."""
        batch = self.batches[next(self._next)]
        if self.settle is not None:
            self.settle()
        if self.warm:
            self._run(1, batch)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        cpu = time.thread_time_ns()
        wall = self._run(self.passes, batch)
        cpu = time.thread_time_ns() - cpu
        switched = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw != before
        # thread_time_ns() itself costs some 200 ns around the sample, which errs towards calm.
        disturbed = switched or wall - cpu > STOLEN_SHARE * wall
        return wall / (self.passes * len(batch) * self.operations), disturbed and not self.waits


@dataclass(frozen=True)
class Measurement:
    """What the samples of one contestant came to, in nanoseconds per operation."""

    name: str
    median_ns: float
    low_ns: float
    """First quartile of the samples."""
    high_ns: float
    """Third quartile of the samples."""
    loop_ns: float
    """Of which the loop around the statement."""
    samples: int
    redone: int
    """Samples thrown away because they were disturbed."""
    kept_disturbed: int
    """Samples kept although disturbed, after `REDO_LIMIT` attempts."""

    @property
    def net_ns(self) -> float:
        """The median without the loop."""
        return self.median_ns - self.loop_ns


@dataclass(frozen=True)
class Figure:
    """One number that has (or could have) a target.

    Args:
        name: what it is, e.g. "get 100 B / dict.get".
        value: measured.
        target: the bound, or None where the figure is for information.
        at_most: whether `target` is an upper (True) or a lower bound.
        prototype: what a prototype of the design reached on its own machine, None if unknown.
        net: the same ratio with loop overhead subtracted from both sides, where there is one.
        unit: "" for a ratio.
        low, high: first and third quartile of the ratio (or value) over the rounds.
    """

    name: str
    value: float
    target: float | None = None
    at_most: bool = True
    prototype: float | None = None
    net: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Table:
    """A table as people read it: cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class Result:
    """All that one workload measured."""

    name: str
    title: str
    statement: str
    """The workload in words: keys, values, sizes, what is timed."""
    cannot_see: str
    measurements: list[Measurement] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Contestants or parts that could not run, and why."""
    data: dict[str, Any] = field(default_factory=dict)
    """Figures for the JSON and the plots that are too many for `details`."""


@dataclass(frozen=True)
class Options:
    """How thorough a run is."""

    quick: bool = False
    repeats: int = 41
    """Rounds; every contestant gives one sample a round."""
    windows: int = 25
    """Windows of time that each number of processes runs."""
    window_s: float = 0.2
    """Seconds of such a window."""
    redo: int = 10
    """Attempts at an undisturbed window."""
    seed: int = 20_240_607
    large: bool = False
    """Also what needs gigabytes and minutes: see the workload `growth`."""
    traces: Path | None = None
    """Directory of traces for `hit_ratio`; None: where bench.policy looks."""

    @classmethod
    def quickly(cls) -> Options:
        """A look: fewer rounds and windows; noisier figures."""
        return cls(quick=True, repeats=9, windows=4, redo=2)


class Rounds:
    """Samples of interleaved contestants, and the ratios between them."""

    def __init__(self, samples: Mapping[str, list[float]], measurements: list[Measurement]) -> None:
        self._samples = samples
        self.measurements = measurements
        self._by_name = {measurement.name: measurement for measurement in measurements}

    def __getitem__(self, name: str) -> Measurement:
        return self._by_name[name]

    def ratio(
        self,
        name: str,
        above: str,
        below: str | tuple[str, ...],
        *,
        target: float | None = None,
        prototype: float | None = None,
    ) -> Figure:
        """The ratio of two contestants' medians, as a figure with an upper bound.

        `below` may name several contestants, whose times are added: what a peer needs two
        statements for.  Quartiles are those of the ratios within each round.
        """
        parts = (below,) if isinstance(below, str) else below
        upper = self._by_name[above]
        lower_ns = sum(self._by_name[part].median_ns for part in parts)
        lower_net = sum(self._by_name[part].net_ns for part in parts)
        paired = [
            a / sum(bs)
            for a, *bs in zip(
                self._samples[above], *(self._samples[part] for part in parts), strict=True
            )
        ]
        low, _, high = statistics.quantiles(paired, n=4)
        return Figure(
            name,
            upper.median_ns / lower_ns,
            target,
            prototype=prototype,
            net=upper.net_ns / lower_net if lower_net > 0 else None,
            low=low,
            high=high,
        )


def interleave(contestants: Sequence[Contestant], options: Options) -> Rounds:
    """Time all contestants in turns.

    For every shape of loop the empty loop is timed too, and is reported as `LOOP`, or
    `LOOP (name of its first contestant)` where there are several.
    """
    field_ = list(contestants)
    loops: dict[tuple[int, int, bool], Contestant] = {}
    for contestant in contestants:
        if contestant.shape not in loops:
            name = LOOP if not loops else f"{LOOP} ({contestant.name})"
            loops[contestant.shape] = Contestant(
                name, "pass", {}, contestant.batches, warm=contestant.warm
            )
    loop_of = {contestant.name: loops[contestant.shape].name for contestant in contestants}
    operations = {c.name: c.operations for c in contestants}
    field_ += loops.values()
    for place, contestant in enumerate(field_):
        contestant.start_at(place / len(field_))
        contestant.calibrate()

    order = random.Random(options.seed)
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in field_}
    redone = dict.fromkeys(samples, 0)
    kept = dict.fromkeys(samples, 0)
    with quiet() as allowed:
        for _ in range(options.repeats):
            for contestant in order.sample(field_, len(field_)):
                for attempt in range(REDO_LIMIT):
                    nanoseconds, disturbed = contestant.sample()
                    if not disturbed:
                        break
                    redone[contestant.name] += 1
                    if attempt % MOVE_AFTER == MOVE_AFTER - 1:
                        move(allowed)
                else:
                    kept[contestant.name] += 1
                samples[contestant.name].append(nanoseconds)

    medians = {name: statistics.median(values) for name, values in samples.items()}
    measurements = []
    for name, values in samples.items():
        low, _, high = statistics.quantiles(values, n=4)
        loop = medians[loop_of[name]] / operations[name] if name in loop_of else 0.0
        measurements.append(
            Measurement(name, medians[name], low, high, loop, len(values), redone[name], kept[name])
        )
    return Rounds(samples, measurements)


@contextlib.contextmanager
def quiet() -> Iterator[set[int]]:
    """Keep the collector out, and this process on one CPU, while samples are taken.

    Gives the CPUs that it was allowed before, and is again afterwards."""
    allowed = os.sched_getaffinity(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    move(allowed)
    try:
        yield allowed
    finally:
        os.sched_setaffinity(0, allowed)
        if collecting:
            gc.enable()


def move(allowed: set[int], look_s: float = 0.05) -> None:
    """Bind this process to the CPU of `allowed` that is idlest while it sleeps `look_s`."""
    before = _idle_ticks()
    time.sleep(look_s)
    after = _idle_ticks()
    os.sched_setaffinity(0, {max(allowed, key=lambda cpu: (after[cpu] - before[cpu], cpu))})


def _idle_ticks() -> dict[int, int]:
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return {
        int(row[0][3:]): int(row[4]) + int(row[5])
        for row in rows
        if row[0].startswith("cpu") and row[0] != "cpu"
    }


def single_calls(
    statement: str, names: Mapping[str, Any], batch: Sequence[Any], limit_ns: int
) -> array[int]:
    """Time every execution of `statement` by itself, for `key` in `batch`; nanoseconds.

    Ends early once `limit_ns` have passed.  Each span includes one reading of the clock: time
    the statement `pass` to know what that costs."""
    parameters = "".join(f", {name}={name}" for name in names)
    source = f"""
def timed(batch, limit{parameters}):
    spans = array("Q")
    append = spans.append
    for key in batch:
        start = now()
        {statement}
        end = now()
        append(end - start)
        if end > limit:
            break
    return spans
"""
    space: dict[str, Any] = {**names, "now": time.perf_counter_ns, "array": array}
    exec(compile(source, f"<bench: {statement}>", "exec"), space)
    spans: array[int] = space["timed"](batch, time.perf_counter_ns() + limit_ns)
    return spans


def percentile(ordered: Sequence[float], p: float) -> float:
    """The `p`-th percentile (0 to 100) of an ordered sequence, nearest rank."""
    if not ordered:
        raise ValueError("no samples to take a percentile of")
    rank = min(len(ordered) - 1, max(0, -(-len(ordered) * p // 100) - 1))
    return ordered[int(rank)]


def require(condition: bool, premise: str) -> None:
    """Stop the workload when a premise does not hold: its figures would mean something else."""
    if not condition:
        raise PremiseError(f"the premise does not hold: {premise}")


class PremiseError(AssertionError):
    """A workload measures something other than it says."""


def _compile(statement: str, names: Mapping[str, Any]) -> Callable[[int, Sequence[Any]], int]:
    """Make the timed function of a statement, with `names` as its locals.

    Every call makes new code: a code object that is shared between contestants would be
    specialised by the interpreter for one of them and be slow for the others.
    """
    parameters = "".join(f", {name}={name}" for name in names)
    body = statement.replace("\n", "\n            ")
    source = f"""
def timed(passes, batch{parameters}):
    start = now()
    for _ in range(passes):
        for key in batch:
            {body}
    return now() - start
"""
    space: dict[str, Any] = {**names, "now": time.perf_counter_ns}
    exec(compile(source, f"<bench: {statement}>", "exec"), space)
    timed: Callable[[int, Sequence[Any]], int] = space["timed"]
    return timed
