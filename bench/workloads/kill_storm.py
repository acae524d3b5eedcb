"""What a reader and a surviving writer see while other writers are killed, for every peer."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bench.adapters import PEERS, Peer, opened
from bench.harness import Options, Result, Table, percentile, require
from bench.peers import hot_keys
from bench.report import span

KEYS = 1_000
SIZE = 100
VICTIMS = 2
"""Writers that are killed and replaced, beside one reader and one writer that are not."""

LIFE_S = (0.0002, 0.008)
"""Between what a victim's time to live is drawn, from its first write on."""

PATIENCE_S = 3.0
"""What is waited for an answer beyond its due time before a process counts as hung."""

PERCENTILES = (50.0, 99.0, 99.9, 100.0)
MOST_SPANS = 4_000_000

_fork = multiprocessing.get_context("fork")


@dataclass
class Phase:
    """What came of one system with (`storm`) or without (`calm`) killing."""

    peer: str
    storm: bool
    kills: int = 0
    reader: dict[str, Any] = field(default_factory=dict)
    writer: dict[str, Any] = field(default_factory=dict)
    hung: list[str] = field(default_factory=list)
    """Who did not come back within `PATIENCE_S`."""
    recoveries: int | None = None
    """Shards that shmcache repaired meanwhile."""


def run(options: Options) -> Result:
    """Calm and storm for each system that processes share."""
    seconds = 0.4 if options.quick else 2.0
    kinds = [kind for kind in PEERS if kind.shared and kind.name != "warp_cache"]
    if options.quick:
        kinds = [kind for kind in kinds if kind.name in {"shmcache", "py-lmdb", "UltraDict"}]
    result = Result(
        "kill_storm",
        "writers killed with SIGKILL while others read and write",
        f"{KEYS:,} keys, values of {SIZE} B; one process reads on a CPU of its own; on the other "
        f"CPU one process writes, and {VICTIMS} more write until they are killed, each "
        f"{1e3 * LIFE_S[0]:g} to {1e3 * LIFE_S[1]:g} ms after its first write, and are replaced. "
        f"`calm` is the same {seconds:g} s with nobody killed.  Every call of reader and surviving "
        "writer is timed by itself (the clock included); the reader checks that each value is "
        f"whole.  Who does not return {PATIENCE_S:g} s after the end counts as hung, and is "
        "killed.  Not compared by throughput: the writers share a CPU.",
        "Which instruction a victim was at (the tests kill at each point; this counts what "
        "happens at random moments); writers' tails are mostly the scheduler's, three processes "
        "being on one CPU: compare calm and storm.",
    )
    phases = []
    for kind in kinds:
        for storm in (False, True):
            with opened([kind], 8 << 20, result.skipped if storm else []) as peers:
                for peer in peers:
                    phases.append(_phase(peer, storm, seconds, options.seed))
    result.data["phases"] = [vars(phase) for phase in phases]
    result.tables = _tables(phases)
    return result


def _phase(peer: Peer, storm: bool, seconds: float, seed: int) -> Phase:
    phase = Phase(peer.name, storm)
    keys = hot_keys(KEYS)
    peer.fill({key: _whole(0) for key in keys})
    order = random.Random(seed)
    allowed = os.sched_getaffinity(0)
    quiet_cpu, busy_cpu = min(allowed), max(allowed)
    before = _recoveries(peer)
    os.sched_setaffinity(0, {busy_cpu})  # the killing is done beside the writers
    try:
        with contextlib.ExitStack() as stack:
            deadline = time.monotonic() + seconds
            roles = {
                "reader": stack.enter_context(_Worker(peer, _read, keys, quiet_cpu, deadline)),
                "writer": stack.enter_context(_Worker(peer, _write, keys, busy_cpu, deadline)),
            }
            victims = [
                stack.enter_context(_Worker(peer, _write_on, keys, busy_cpu, None))
                for _ in range(VICTIMS)
            ]
            for place in itertools.cycle(range(VICTIMS)):
                if time.monotonic() >= deadline:
                    break
                if not storm:
                    time.sleep(0.01)
                    continue
                if not victims[place].started(PATIENCE_S):
                    phase.hung.append("a new writer")
                    break
                time.sleep(order.uniform(*LIFE_S))
                victims[place].kill()
                phase.kills += 1
                victims[place] = stack.enter_context(_Worker(peer, _write_on, keys, busy_cpu, None))
            for name, worker in roles.items():
                left = max(0.0, deadline - time.monotonic())
                answer = worker.answer(left + PATIENCE_S)
                if answer is None:
                    phase.hung.append(name)
                else:
                    setattr(phase, name, answer)
    finally:
        os.sched_setaffinity(0, allowed)
    if before is not None:
        _check_ours(peer, phase, keys)
        after = _recoveries(peer)
        assert after is not None
        phase.recoveries = after - before
    return phase


def _check_ours(peer: Peer, phase: Phase, keys: Sequence[str]) -> None:
    """Nothing hangs, nothing is torn, nothing is lost, and the segment is sound."""
    cache = peer.cache  # type: ignore[attr-defined]
    require(not phase.hung, f"nobody waits for the dead ({phase.hung})")
    require(phase.reader["wrong"] == 0, "every value is whole")
    require(phase.reader["errors"] == phase.writer["errors"] == {}, "no call raises")
    for key in keys:
        value = cache.get(key)
        require(value == value[:1] * SIZE, "every key has a whole value at the end")
    require(cache.verify() == [], "the segment is sound")


class _Worker:
    """A forked process with a pipe to it; killed at the end of the `with` statement."""

    def __init__(
        self, peer: Peer, work: Any, keys: Sequence[str], cpu: int, deadline: float | None
    ) -> None:
        self._pipe, theirs = _fork.Pipe(duplex=False)
        self._process = _fork.Process(
            target=_begin, args=(peer, work, keys, cpu, deadline, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def started(self, seconds: float) -> bool:
        """Whether the process has done its first operation within `seconds`."""
        if not self._pipe.poll(seconds):
            return False
        try:
            return bool(self._pipe.recv() == "started")
        except EOFError:
            return False

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """What the process measured, None if it does not say within `seconds`."""
        until = time.monotonic() + seconds
        with contextlib.suppress(EOFError):
            while self._pipe.poll(max(0.0, until - time.monotonic())):
                answer = self._pipe.recv()
                if isinstance(answer, dict):
                    return answer
        return None

    def kill(self) -> None:
        """End it with SIGKILL, and wait for that."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()


def _begin(
    peer: Peer, work: Any, keys: Sequence[str], cpu: int, deadline: float | None, pipe: Connection
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, {cpu})
    peer.attach()
    for answer in work(peer, keys, deadline):
        pipe.send(answer)
    pipe.close()
    os._exit(0)  # closing would end what the parent still uses


def _read(peer: Peer, keys: Sequence[str], deadline: float) -> Iterator[Any]:
    get, now = peer.get, time.perf_counter_ns
    assert get is not None
    spans, wrong, errors = array("Q"), 0, dict[str, int]()
    for key in itertools.cycle(keys):
        start = now()
        try:
            value = get(key)
        except Exception as error:
            errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
            value = None
        spans.append(now() - start)
        wrong += value is not None and value != value[:1] * SIZE
        if len(spans) % 64 == 0 and (time.monotonic() >= deadline or len(spans) > MOST_SPANS):
            break
    yield _summary(spans) | {"wrong": wrong, "errors": errors}


def _write(peer: Peer, keys: Sequence[str], deadline: float) -> Iterator[Any]:
    put, now = peer.set, time.perf_counter_ns
    assert put is not None
    spans, errors = array("Q"), dict[str, int]()
    values = [_whole(n) for n in range(100)]
    for n in itertools.count():
        start = now()
        try:
            put(keys[n * 7 % KEYS], values[n % 100])
        except Exception as error:
            errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
        spans.append(now() - start)
        if n % 64 == 0 and (time.monotonic() >= deadline or n > MOST_SPANS):
            break
    yield _summary(spans) | {"errors": errors}


def _write_on(peer: Peer, keys: Sequence[str], deadline: None) -> Iterator[Any]:
    put = peer.set
    assert put is not None
    values = [_whole(n) for n in range(100, 200)]
    with contextlib.suppress(Exception):
        put(keys[0], values[0])
    yield "started"
    for n in itertools.count(os.getpid()):
        with contextlib.suppress(Exception):
            put(keys[n * 11 % KEYS], values[n % 100])


def _whole(number: int) -> bytes:
    return bytes([number % 256]) * SIZE


def _summary(spans: array[int]) -> dict[str, Any]:
    ordered = sorted(spans)
    found: dict[str, Any] = {"calls": len(ordered)}
    for p in PERCENTILES:
        found["max" if p == 100 else f"p{p:g}"] = percentile(ordered, p)
    return found


def _recoveries(peer: Peer) -> int | None:
    if peer.name != "shmcache":
        return None
    return int(peer.cache.stats().recoveries)  # type: ignore[attr-defined]


def _tables(phases: list[Phase]) -> list[Table]:
    tables = []
    for role, title in (("reader", "gets of the reader"), ("writer", "sets of the survivor")):
        rows = []
        for phase in phases:
            figure = getattr(phase, role)
            told = [span(figure.get(p)) for p in ("p50", "p99", "p99.9", "max")]
            if role in phase.hung:
                told = ["**hung**"] * 4
            rows.append(
                [
                    phase.peer,
                    "storm" if phase.storm else "calm",
                    f"{phase.kills:,}",
                    *told,
                    f"{figure.get('calls', 0):,}",
                    _remarks(phase, figure, role),
                ]
            )
        columns = ["", "", "killed", "median", "p99", "p99.9", "max", "calls", "remarks"]
        tables.append(Table(f"While writers are killed: {title}", columns, rows))
    return tables


def _remarks(phase: Phase, figure: dict[str, Any], role: str) -> str:
    remarks = [f"{name} {count:,} times" for name, count in figure.get("errors", {}).items()]
    if figure.get("wrong"):
        remarks.append(f"{figure['wrong']:,} torn values")
    if role == "writer" and phase.recoveries:
        remarks.append(f"{phase.recoveries:,} recoveries")
    if "a new writer" in phase.hung:
        remarks.append("a new writer hung as well")
    return ", ".join(remarks)
