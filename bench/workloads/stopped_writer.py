"""Latency of gets in a shard whose writer is stopped inside it, beside the same shard at rest."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import (
    Figure,
    Options,
    PremiseError,
    Result,
    percentile,
    quiet,
    require,
)
from bench.machine import ROOT
from bench.peers import hot_keys, shmcache_open, value_of

SIZE = 100
BLOCK = 50_000
"""Gets timed at rest, and again while the writer is stopped, in each round."""

FAULT_BUILD = ROOT / "build" / "fault"
PERCENTILES = (50.0, 99.0, 99.9)


def run(options: Options) -> Result:
    """Alternate between a writer at rest and one that is stopped inside the shard."""
    result = Result(
        "stopped_writer",
        "gets in the shard of a stopped writer",
        "One shard, 1,000 hot keys, values of 100 B, every get timed by itself with "
        "perf_counter_ns (its cost included).  The writer, of the build with fault points, gets "
        "SIGSTOP between taking the shard and releasing it; the reader is the normal build.  "
        f"Blocks of {BLOCK:,} gets at rest and stopped take turns.",
        "A key that the writer was just moving, when it is not among those that are read.",
    )
    if not FAULT_BUILD.is_dir():
        result.skipped.append(f"no build with fault points in {FAULT_BUILD}: see `make help`")
        return result
    keys = hot_keys()
    with shmcache_open(shards=1) as cache:
        for number, key in enumerate(keys):
            cache.set(key, value_of(number, SIZE))
        for number, key in enumerate(keys):
            require(cache.get(key) == value_of(number, SIZE), "every get is a hit")
        misses = cache.stats().misses
        points = _points()
        result.details["points"] = points
        blocks: dict[str, list[list[float]]] = {"idle": [], "stopped": []}
        rounds = 2 if options.quick else 5
        with quiet():
            for point in points:
                with _writer(cache.name, point) as writer:
                    for _ in range(rounds):
                        blocks["idle"].append(_timed_gets(cache, keys))
                        with _stopped(writer, cache):
                            blocks["stopped"].append(_timed_gets(cache, keys))
        require(cache.stats().misses == misses, "every get was a hit")
    medians = {
        state: [statistics.median(column) for column in zip(*rows, strict=True)]
        for state, rows in blocks.items()
    }
    result.details["nanoseconds"] = {
        state: dict(zip((f"p{p:g}" for p in PERCENTILES), values, strict=True))
        for state, values in medians.items()
    }
    targets = {50.0: (1.2, 1.0), 99.0: (2.0, 1.8), 99.9: (None, None)}
    for place, p in enumerate(PERCENTILES):
        paired = [
            stopped[place] / idle[place]
            for stopped, idle in zip(blocks["stopped"], blocks["idle"], strict=True)
        ]
        low, _, high = statistics.quantiles(paired, n=4)
        target, prototype = targets[p]
        result.figures.append(
            Figure(
                f"get p{p:g}: writer stopped / idle",
                medians["stopped"][place] / medians["idle"][place],
                target,
                prototype=prototype,
                low=low,
                high=high,
            )
        )
    return result


def _points() -> list[str]:
    """The fault points that a plain set of an existing key passes inside a shard."""
    script = (
        "from shmcache import _core\n"
        "print(*sorted(_core.FAULT_POINTS, key=_core.FAULT_POINTS.__getitem__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=_environment(),
        cwd=ROOT / "bench",
        check=True,
        capture_output=True,
        text=True,
    )
    every = done.stdout.split()
    found = []
    for point in every:
        with shmcache_open(size="1MiB", shards=1) as cache:
            cache.set("stopper", b"first")
            with _writer(cache.name, point) as writer:
                _order(writer)
                if not _wait_until_stopped(writer):
                    continue  # the set returned: it does not pass this point
                if _shard_is_held(cache):
                    found.append(point)
                _go_on(writer)
    require(bool(found), "a plain set stops inside the shard at some fault point")
    # The first, one in the middle, and the last: held with nothing changed, half done, done.
    return sorted({found[0], found[len(found) // 2], found[-1]}, key=found.index)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(FAULT_BUILD)}


@contextlib.contextmanager
def _writer(name: str, point: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("_stopper.py")), name, point],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None and writer.stdin is not None
            require(writer.stdout.readline() == "ready\n", "the writer has attached")
            yield writer
        finally:
            writer.send_signal(signal.SIGCONT)
            writer.stdin.close()
            try:
                writer.wait(10)
            except subprocess.TimeoutExpired:
                writer.kill()


@contextlib.contextmanager
def _stopped(writer: subprocess.Popen[str], cache: Any) -> Iterator[None]:
    _order(writer)
    require(_wait_until_stopped(writer), "the writer was stopped")
    require(_shard_is_held(cache), "the writer was stopped inside the shard")
    yield
    require(_shard_is_held(cache), "the writer stayed inside the shard")
    _go_on(writer)


def _order(writer: subprocess.Popen[str]) -> None:
    assert writer.stdin is not None
    writer.stdin.write("value\n")
    writer.stdin.flush()


def _wait_until_stopped(writer: subprocess.Popen[str], seconds: float = 10.0) -> bool:
    """Whether the writer was stopped (state T, by the kernel's word) before its set returned."""
    assert writer.stdout is not None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{writer.pid}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] == "T":
            return True
        if select.select([writer.stdout], [], [], 0.0005)[0]:
            return False
    raise PremiseError(f"the writer neither stopped nor returned within {seconds:g} s")


def _go_on(writer: subprocess.Popen[str]) -> None:
    assert writer.stdout is not None
    writer.send_signal(signal.SIGCONT)
    require(writer.stdout.readline() == "returned\n", "the writer finished its set")


def _shard_is_held(cache: Any) -> bool:
    from shmcache import WouldBlock

    try:
        cache.try_set("probe", b"")
    except WouldBlock:
        return True
    return False


def _timed_gets(cache: Any, keys: list[str]) -> list[float]:
    get, now = cache.get, time.perf_counter_ns
    spans: list[int] = []
    append = spans.append
    for key in keys:
        get(key)
    for _ in range(BLOCK // len(keys)):
        for key in keys:
            start = now()
            get(key)
            append(now() - start)
    spans.sort()
    return [percentile(spans, p) for p in PERCENTILES]
