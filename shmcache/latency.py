"""`LatencyRing`: how long things took, recorded by all processes of a cache together.

Place: level 4; what a worker uses. Recording, reading and taking samples is the core's business
(`_core/src/ring.h` tells the protocol); here are the figures that are made of samples, and what
wraps code to be timed.

A ring has two memories. What is *kept* is the newest `capacity` samples: `recent`, `average`,
`rate`, `percentile` and the percentiles of `summary` are about them. The *totals* are over the
ring's lifetime, or since `clear`: `histogram`, and count, mean and max of `summary`.

Precision. A kept duration is off by 0.1% at most, and exact below 1,024 ns; its range is 0 to
104 days. Totals are exact. A bucket of the histogram is 1/16 as wide as its lower bound (in a
cache below 4 MiB, where rings get less room: 1/8 or 1/4). Times are those of the clock that expiry
uses, 1 to 4 ms coarse, in milliseconds since the cache was created, modulo 2.2 years.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

from shmcache import _core, limits
from shmcache._core import Timing

__all__ = ["HistogramBucket", "LatencyRing", "LatencySummary", "Timing"]

P = ParamSpec("P")
R = TypeVar("R")

CAPACITY_MAX: Final = 1 << 30
"""Samples that may be asked for; how many a ring gets is what its cache can spare."""

_RESERVED: Final = "shmcache."
_OWN: Final = (_core.RING_OWN_GET, _core.RING_OWN_SET)
_TICK_SECONDS: Final = 0.004  # the coarsest clock that samples are stamped with


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """A ring in figures; durations in seconds.

    `count`, `mean` and `max` are over the ring's lifetime (or since `clear`), `p50` to `p999` over
    what is kept, `rate` is `LatencyRing.rate()`. `last_at` is the Unix time of the newest sample,
    to the clock's tick, and None before the first. Without samples all others are 0.
    """

    count: int
    rate: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    last_at: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The same as a plain dict, ready for JSON."""
        return dataclasses.asdict(self)


class HistogramBucket(NamedTuple):
    """`count` durations of `lower` seconds or more, and less than `upper`."""

    lower: float
    upper: float
    count: int  # type: ignore[assignment]  # as in LatencySummary; hides tuple.count


class LatencyRing(_core.Ring):
    """A bounded ring of durations that every process of the cache records to; see
    `Cache.latencies`, which makes them.

    Recording is wait-free and takes about as long as a get. Nothing here takes a lock, and nobody
    waits for a process that is stopped or was killed while it recorded: what it has not stored is
    left out. A ring is safe to use from many threads and after a fork, and pickles together with
    its cache. Where the cache was reopened the ring goes on in the new segment.

    Every call raises `CacheClosed` or `CacheNotFound` as the cache's own calls do. What times a
    piece of code (`time`, `timed`) does not: where the ring is gone the sample is dropped, and the
    code's own outcome stands.
    """

    __slots__ = ("_cache", "_capacity")

    _cache: _core.Handle
    _capacity: int

    def __init__(self, cache: _core.Handle, name: str = "default", capacity: int = 4096) -> None:
        name = limits.check_label("latency ring", name).rstrip(b"\0").decode()
        if name.startswith(_RESERVED) and name not in _OWN:
            raise ValueError(
                f"names of latency rings that begin with {_RESERVED!r} are the cache's own "
                f"({', '.join(_OWN)}), and {name!r} is none of them; choose another name"
            )
        self._cache = cache
        self._capacity = limits.check_count("capacity", capacity, CAPACITY_MAX, 1)
        super().__init__(cache, name, self._capacity)

    def __reduce__(self) -> tuple[Any, ...]:
        return LatencyRing, (self._cache, self.name, self._capacity)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._cache!r}>"

    # ------------------------------------------------------------------------ timing of code

    def timed(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorator: records how long each call takes, also where it raises; of an ``async``
        function, from the first await to its end. Keeps the signature."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self.time():
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", awaited)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.time():
                return function(*args, **kwargs)

        return called

    # ------------------------------------------------------------------------------- figures

    def average(self, n: int | None = None) -> float:
        """The mean of the newest `n` samples that are kept (None: of all), in seconds; 0.0 where
        there is none. O(n)."""
        samples = self.recent(CAPACITY_MAX if n is None else n)
        return sum(samples) / len(samples) if samples else 0.0

    def rate(self, n: int = 100) -> float:
        """Events per second over the newest `n` samples that are kept: their number less one, by
        the time between the oldest and the newest of them. 0.0 for fewer than two.

        It says how fast they came when they came, not how long ago that was (`summary().last_at`
        does). Samples within one tick of the clock (4 ms) count as one tick apart. O(n).
        """
        found, oldest_ms, newest_ms = self._ages_ms(n)
        if found < 2:
            return 0.0
        return (found - 1) / max((oldest_ms - newest_ms) / 1e3, _TICK_SECONDS)

    def percentile(self, p: float) -> float:
        """The duration in seconds that `p` percent of the samples that are kept stay below.

        Args:
            p: 0 (the shortest) to 100 (the longest). Between two samples it is interpolated, as
                numpy does by default.

        Returns:
            Seconds; 0.0 where there is no sample. O(capacity log capacity).

        Raises:
            ValueError: `p` is below 0, above 100 or NaN.
        """
        if not 0 <= p <= 100:
            raise ValueError(f"a percentile must be from 0 to 100, not {p!r}")
        return _interpolate(sorted(self.recent(CAPACITY_MAX)), p)

    def summary(self) -> LatencySummary:
        """The ring in figures, see `LatencySummary`. Beside recorders the numbers are each whole,
        but not of one instant. O(capacity log capacity)."""
        kept = sorted(self.recent(CAPACITY_MAX))
        count, sum_ns, max_ns = self._totals()
        age_ms = self._last_age_ms()
        return LatencySummary(
            count=count,
            rate=self.rate(),
            mean=sum_ns / count / 1e9 if count else 0.0,
            p50=_interpolate(kept, 50),
            p90=_interpolate(kept, 90),
            p99=_interpolate(kept, 99),
            p999=_interpolate(kept, 99.9),
            max=max_ns / 1e9,
            last_at=None if age_ms is None else time.time() - age_ms / 1e3,
        )

    def histogram(self) -> list[HistogramBucket]:
        """How many durations fell into which range, over the ring's lifetime: the buckets that
        count anything, shortest first.

        Below 16 ns buckets are 1 ns wide; above, each power of two of nanoseconds has 16 of them,
        so the middle of a bucket is off by 3.1% at most (8 or 4 in a cache below 4 MiB: 6.3% or
        12.5%). Counts add up to `summary().count`.
        """
        return [HistogramBucket(low / 1e9, high / 1e9, n) for low, high, n in self._buckets()]


def _interpolate(ordered: list[float], p: float) -> float:
    """The p-th percentile of sorted numbers; 0.0 of none."""
    if not ordered:
        return 0.0
    whole, part = divmod((len(ordered) - 1) * p / 100, 1)
    at = int(whole)
    if part == 0:
        return ordered[at]
    return ordered[at] + (ordered[at + 1] - ordered[at]) * part
