"""Read a trace through a cache, in one process: get, and on a miss set.

Place in the flow: the inner loop of `replay`, which runs it in many processes.  It uses a cache
through `get` and `set` only, so that anything with these two can be measured beside `Cache`.
Knows no process and prints nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shmcache.errors import CacheFull, LockTimeout, ValueTooLarge
from shmcache.trace import Trace, is_intact, make_value

__all__ = ["Latency", "ReadThrough", "Tally", "WorkerResult", "read_through"]

STRIDE = 512
"""Rows between two looks at the stop request: about a millisecond."""
MAX_WRONG_KEYS = 10
"""Keys of wrong values that are remembered by name; all are counted."""


class ReadThrough(Protocol):
    """What a replay needs of a cache; `Cache` has it, and so may anything it is compared with."""

    def get(self, key: str, /) -> object:
        """Return the value, or None on a miss."""

    def set(self, key: str, value: bytes, ttl: float | None, /) -> None:
        """Store the value for `ttl` seconds, or for good."""


@dataclass(slots=True)
class Tally:
    """What one worker has counted so far."""

    requests: int = 0
    hits: int = 0
    request_bytes: int = 0
    """Bytes of the values asked for, as the trace tells them."""
    hit_bytes: int = 0
    sets: int = 0
    """Values stored."""
    refused: int = 0
    """Values larger than the cache takes (`ValueTooLarge`): not an error, and not stored."""
    full: int = 0
    """Values for which a cache with the policy `keep` had no room (`CacheFull`)."""
    timeouts: int = 0
    """Values not stored because a living process held the shard too long (`LockTimeout`)."""
    wrong: int = 0
    """Hits whose value was not the key's own, whole and unchanged."""
    wrong_keys: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add another worker's counts to this one."""
        self.requests += other.requests
        self.hits += other.hits
        self.request_bytes += other.request_bytes
        self.hit_bytes += other.hit_bytes
        self.sets += other.sets
        self.refused += other.refused
        self.full += other.full
        self.timeouts += other.timeouts
        self.wrong += other.wrong
        self.wrong_keys += other.wrong_keys

    @property
    def operations(self) -> int:
        """Calls made to the cache: a get for each request, and a set for each miss."""
        return self.requests + self.sets + self.refused + self.full + self.timeouts

    @property
    def hit_ratio(self) -> float:
        """Hits per request, 0 to 1."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def byte_hit_ratio(self) -> float:
        """Bytes of hits per byte asked for, 0 to 1."""
        return self.hit_bytes / self.request_bytes if self.request_bytes else 0.0


@dataclass(slots=True)
class WorkerResult:
    """What `read_through` measured: the counts, the time, and every call's duration.

    The histograms are exact: how many calls took how many nanoseconds.
    """

    tally: Tally
    started_ns: int = 0
    """On the clock of `time.perf_counter_ns`, which all processes of a host share."""
    ended_ns: int = 0
    get_ns: Counter[int] = field(default_factory=Counter)
    set_ns: Counter[int] = field(default_factory=Counter)
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the duration of a call, in nanoseconds, its Python call and clock included."""

    count: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int

    @classmethod
    def of(cls, histogram: Counter[int]) -> Latency:
        """Take exact percentiles (nearest rank) of a histogram of nanoseconds."""
        count = histogram.total()
        ranks = iter([-(-count * per_mille // 1000) for per_mille in (500, 900, 990, 999, 1000)])
        found: list[int] = []
        rank, seen = next(ranks), 0
        for duration in sorted(histogram):
            seen += histogram[duration]
            while seen >= rank and len(found) < 5:
                found.append(duration)
                rank = next(ranks, count + 1)
        return cls(count, *found) if count else cls(0, 0, 0, 0, 0, 0)


def read_through(
    cache: ReadThrough,
    trace: Trace,
    *,
    first: int = 0,
    step: int = 1,
    passes: int = 1,
    stop: Callable[[], bool] = lambda: False,
    on_stride: Callable[[Tally], None] = lambda tally: None,
) -> WorkerResult:
    """Replay rows `first`, `first + step`, ... of a trace over a cache, in this process.

    Each row is one get, checked; on a miss the key's value is set, with the row's size and ttl.
    `stop` is asked between strides; `on_stride` sees the counts there.  Only the calls to `get`
    and `set` are inside the measured durations; making and checking values is inside the elapsed
    time.  Raises what the cache raises, but for the refusals that `Tally` counts.
    """
    tally = Tally()
    result = WorkerResult(tally, started_ns=time.perf_counter_ns())
    clock, get, put = time.perf_counter_ns, cache.get, cache.set
    keys, idents = trace.keys, trace.idents
    rows, sizes, ttls = trace.rows, trace.sizes, trace.ttls
    get_ns: list[int] = []
    set_ns: list[int] = []
    for start in _strides(first, len(trace), step, passes):
        if stop():
            result.interrupted = True
            break
        requests = hits = request_bytes = hit_bytes = 0
        for row in range(start, min(start + STRIDE * step, len(trace)), step):
            number, size = rows[row], sizes[row]
            key, ident = keys[number], idents[number]
            requests += 1
            request_bytes += size
            before = clock()
            value = get(key)
            get_ns.append(clock() - before)
            if value is not None:
                hits += 1
                hit_bytes += size
                right = is_intact(value, ident) and (len(value) == size or number in trace.varying)
                if not right:
                    tally.wrong += 1
                    if len(tally.wrong_keys) < MAX_WRONG_KEYS:
                        tally.wrong_keys.append(key)
                continue
            fresh, ttl = make_value(ident, size), ttls[row] or None
            before = clock()
            try:
                put(key, fresh, ttl)
                set_ns.append(clock() - before)
                tally.sets += 1
            except ValueTooLarge:
                tally.refused += 1
            except CacheFull:
                tally.full += 1
            except LockTimeout:
                tally.timeouts += 1
        tally.requests += requests
        tally.hits += hits
        tally.request_bytes += request_bytes
        tally.hit_bytes += hit_bytes
        result.get_ns.update(get_ns)
        result.set_ns.update(set_ns)
        get_ns.clear()
        set_ns.clear()
        on_stride(tally)
    result.ended_ns = clock()
    return result


def _strides(first: int, length: int, step: int, passes: int) -> Iterator[int]:
    """Yield the first row of each stride, over all passes."""
    for _ in range(passes):
        yield from range(first, length, STRIDE * step)
