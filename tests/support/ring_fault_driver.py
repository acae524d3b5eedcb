"""Kill a process at each step of naming, recording, draining and clearing; what do others find?

How it is run, and what it prints: support/dying.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from shmcache import Cache, LatencyRing, _core
from support.dying import SURVIVOR_S, Fork, require, run
from support.names import leftovers, remove, unique_name

PASSAGES = (1, 2, 20)
OURS = ("ring_",)
CAPACITY = 16
BEFORE = range(100, 110)  # nanoseconds, exact: recorded before the child
BY_CHILD = range(200, 240)  # by the child, until it dies; more than two laps
AFTER = range(300, 330)
TOTALS = {  # what the last sample of one who dies at a point has reached: words, count, sum
    "ring_placed": (0, 0, 0),
    "ring_stored": (1, 0, 0),
    "ring_counted": (1, 1, 0),
    "ring_summed": (1, 1, 1),
    "ring_done": (1, 1, 1),
}


@dataclass
class Path:
    """What the child does, and what must hold when it was killed at a passage of a point."""

    act: Callable[[Cache], object]
    check: Callable[[Cache, str, int], None]


def ns_of(samples: list[float]) -> list[int]:
    return [round(seconds * 1e9) for seconds in samples]


def record(cache: Cache) -> None:
    ring = cache.latencies()
    for ns in BY_CHILD:
        ring.record_ns(ns)


def check_record(cache: Cache, point: str, passage: int) -> None:
    ring = cache.latencies()
    word, counted, summed = TOTALS[point]
    whole = list(BY_CHILD)[: passage - 1]
    last = list(BY_CHILD)[passage - 1]
    kept = ([*BEFORE, *whole, last])[-CAPACITY:]
    if not word:
        kept = kept[:-1]
    require(ns_of(ring.recent(1000)) == kept, f"kept {ns_of(ring.recent(1000))}, not {kept}")
    summary = ring.summary()
    count = len(BEFORE) + len(whole) + counted
    require(summary.count == count, f"{summary.count} counted, not {count}")
    total = sum(BEFORE) + sum(whole) + (last if summed else 0)
    require(round(summary.mean * count * 1e9) == total, f"a sum of {summary.mean * count}")
    # the missing one is passed over, and drain goes on behind it
    require(ns_of(ring.drain(3)) == kept[:3], "drain took something else")
    go_on(ring)


def drain(cache: Cache) -> None:
    cache.latencies().drain(5)
    cache.latencies().drain(5)


def check_drain(cache: Cache, point: str, passage: int) -> None:
    ring = cache.latencies()
    kept = list(BEFORE)[passage:]
    require(ns_of(ring.recent(100)) == kept, f"kept {ns_of(ring.recent(100))}, not {kept}")
    require(ns_of(ring.drain(2)) == kept[:2], "a sample was handed out twice, or lost")
    require(ring.summary().count == len(BEFORE), "totals changed")
    go_on(ring)


def clear(cache: Cache) -> None:
    for _ in range(20):
        cache.latencies().clear()


def check_clear(cache: Cache, point: str, passage: int) -> None:
    ring = cache.latencies()
    require(ring.recent(100) == [] and ring.drain(100) == [], "samples from before the clear")
    ring.clear()
    require(ring.summary().count == 0 and ring.summary().mean == 0.0, "totals are left")
    go_on(ring)


def go_on(ring: LatencyRing) -> None:
    """The ring serves on, for laps."""
    before = ring.summary().count
    for ns in AFTER:
        ring.record_ns(ns)
    require(ns_of(ring.recent(1000)) == list(AFTER)[-CAPACITY:], "new samples are not kept")
    require(ring.summary().count == before + len(AFTER), "new samples are not counted")
    require(ns_of(ring.drain(1000)) == list(AFTER)[-CAPACITY:], "new samples cannot be taken")
    require(ring.drain(1000) == [], "taken twice")


def name_rings(cache: Cache) -> None:
    for number in range(20):
        cache.latencies(f"new {number}" if number < 15 else "new 0", capacity=100)


def check_names(cache: Cache, point: str, passage: int) -> None:
    """Every name still fits, and the one that was half named is as good as any other."""
    began = time.monotonic()
    rings = [cache.latencies(f"new {number}", capacity=50) for number in range(15)]
    took = time.monotonic() - began
    require(took < SURVIVOR_S, f"naming took {took:.2f} s")
    named = passage if point == "ring_named" else passage - 1
    for number, ring in enumerate(rings):
        require(ring.capacity == (100 if number < named else 50), f"ring {number}'s capacity")
        ring.clear()
        for _ in range(200):
            ring.record_ns(number)
    for number, ring in enumerate(rings):
        require(set(ns_of(ring.recent(1000))) == {number}, f"ring {number} overlaps another")
    require(ns_of(cache.latencies().recent(1000)) == list(BEFORE), "another ring has changed")
    go_on(cache.latencies())


PATHS: dict[str, Path] = {
    "record": Path(record, check_record),
    "drain": Path(drain, check_drain),
    "clear": Path(clear, check_clear),
    "name": Path(name_rings, check_names),
}


def one_death(path: Path, name: str, passage: int) -> bool:
    """Whether the point was reached; Failure if a survivor found anything wrong."""
    cache_name = unique_name("ring-fault")
    cache = Cache(cache_name, size="1MiB", shards=1)
    cache.latency_sampling = 0
    fork = None
    try:
        ring = cache.latencies(capacity=CAPACITY)
        for ns in BEFORE:
            ring.record_ns(ns)
        fork = Fork(cache, _core.FAULT_POINTS[name], passage, path.act)
        ended = fork.ended()
        require(ended in (0, signal.SIGKILL), f"the child raised or exited with {ended}")
        if ended == 0:
            return False
        path.check(cache, name, passage)
        require(cache.verify() == [], f"verify: {cache.verify()}")
        return True
    finally:
        if fork is not None:
            fork.reap()
        cache.close()
        remove(leftovers(cache_name))


if __name__ == "__main__":
    ours = [point for point in _core.FAULT_POINTS if point.startswith(OURS)]
    run(PATHS, ours, PASSAGES, one_death)
