"""A cache's figures as Prometheus metrics.

Place: level 5, on `metrics.read`; the exporter serves what is collected here. The only module
that needs prometheus_client (the extra `metrics`), and nothing imports it before metrics are
asked for.

Label sets are bounded: every series has `cache`; those by shard have `shard`, at most
`SHARD_LABELS` of them; those of latency rings have `ring`, of which a cache has 18 at most. What
processes counted is in the totals, of ended ones too: none has a label, and no counter falls when
one dies. Counters start anew with a cache that was made anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shmcache.cache import Cache
from shmcache.errors import ShmcacheError
from shmcache.metrics import Reading, fold, fold_durations, read

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "metrics need the package prometheus_client: pip install 'shmcache[metrics]'",
        name=error.name,
    ) from error

__all__ = ["LATENCY_BOUNDS", "SHARD_LABELS", "CacheCollector", "registry_of"]

logger = logging.getLogger("shmcache")

SHARD_LABELS: Final = 64
"""Values that the label `shard` takes at most. Of a cache with more shards, neighbours are summed:
the label is then a range such as ``0-15``."""

LATENCY_BOUNDS: Final = tuple(2**power / 1e9 for power in range(6, 36))
"""Upper bounds of the buckets of latencies, in seconds: 64 ns to 34 s, each twice the one before.
They are bounds of the rings' own buckets, so that folding those is exact."""


@dataclass(frozen=True, slots=True)
class _Single:
    """A family with one series a cache."""

    name: str
    unit: str
    text: str
    value: Callable[[Reading], float]


@dataclass(frozen=True, slots=True)
class _ByShard:
    """A family with a series for each shard: a field of `ShardStats`."""

    name: str
    unit: str
    text: str
    field: str


def _stat(field: str) -> Callable[[Reading], float]:
    def value(reading: Reading) -> float:
        return float(getattr(reading.stats, field))

    return value


def _sum(field: str) -> Callable[[Reading], float]:
    def value(reading: Reading) -> float:
        return float(sum(getattr(shard, field) for shard in reading.stats.shards))

    return value


def _most(field: str) -> Callable[[Reading], float]:
    def value(reading: Reading) -> float:
        return float(max(getattr(shard, field) for shard in reading.stats.shards))

    return value


GAUGES: Final = (
    _Single("entries", "", "Stored entries, expired ones included until swept.", _stat("entries")),
    _Single("leases", "", "Values being computed by get_or_init right now.", _sum("leases")),
    _Single("used_bytes", "bytes", "Live entries with their headers.", _stat("bytes_used")),
    _Single("capacity_bytes", "bytes", "What the logs can hold.", _stat("bytes_total")),
    _Single("size_bytes", "bytes", "Shared memory in all.", lambda reading: reading.size),
    _Single(
        "hit_ratio",
        "",
        "Hits by gets over the cache's lifetime; of an interval: rate() of hits and misses.",
        _stat("hit_ratio"),
    ),
    _Single("clients", "", "Living processes that have the cache open.", _stat("clients")),
    _Single(
        "owner_pid",
        "",
        "Process id of the owner daemon in its own namespace; 0: none is alive.",
        lambda reading: reading.stats.owner_pid or 0,
    ),
    _Single(
        "uptime_seconds",
        "seconds",
        "Time since the cache was created, suspended time left out.",
        _stat("uptime_seconds"),
    ),
    _Single(
        "worst_write_bytes",
        "bytes",
        "The most that a single write has walked over to make room.",
        _most("worst_write_bytes"),
    ),
    _Single(
        "probe_limit_buckets",
        "",
        "Index buckets that a miss looks at in the worst shard; 1 until one overflowed.",
        _most("probe_limit"),
    ),
)

COUNTERS: Final = (
    _Single("hits", "", "Gets that found a value.", _stat("hits")),
    _Single("misses", "", "Gets that found none.", _stat("misses")),
    _Single("sets", "", "Values stored, by any call.", _stat("sets")),
    _Single("deletes", "", "Entries removed by a caller.", _stat("deletes")),
    _Single("evictions", "", "Entries dropped to make room.", _stat("evictions")),
    _Single("expirations", "", "Entries removed as their ttl was over.", _stat("expirations")),
    _Single(
        "read_retries",
        "",
        "Reads that began anew as the entry was replaced meanwhile.",
        _stat("read_retries"),
    ),
    _Single("lock_acquisitions", "", "Times that a shard was taken.", _stat("lock_acquisitions")),
    _Single(
        "lock_contended",
        "",
        "Times that a shard was had only after waiting a slice of its semaphore at least.",
        _stat("lock_contended"),
    ),
    _Single(
        "lock_timeouts",
        "",
        "Calls that gave up waiting for a shard.",
        _stat("lock_timeouts"),
    ),
    _Single("try_attempts", "", "Calls of try_ methods.", _stat("try_attempts")),
    _Single(
        "try_blocked",
        "",
        "Calls of try_ methods that would have had to wait.",
        _stat("try_blocked"),
    ),
    _Single(
        "recoveries",
        "",
        "Shards taken over from a process that died holding them.",
        _stat("recoveries"),
    ),
    _Single(
        "store_failures",
        "",
        "Values that get_or_init returned but could not store.",
        _stat("store_failures"),
    ),
    _Single("moved_bytes", "bytes", "Bytes copied to make room.", _sum("moved_bytes")),
    _Single(
        "written_bytes",
        "bytes",
        "Bytes that writes stored; moved by written is the write amplification.",
        _sum("written_bytes"),
    ),
    _Single(
        "ghost_hits",
        "",
        "Keys stored again soon after their eviction.",
        _sum("ghost_hits"),
    ),
    _Single(
        "promotions",
        "",
        "Entries kept on their way out of the probation log, as they were read again.",
        _sum("promotions"),
    ),
)

SHARD_GAUGES: Final = (
    _ByShard("shard_entries", "", "Entries by shard.", "entries"),
    _ByShard("shard_used_bytes", "bytes", "Bytes of live entries by shard.", "bytes_used"),
)

SHARD_COUNTERS: Final = (
    _ByShard("shard_evictions", "", "Evictions by shard.", "evictions"),
    _ByShard(
        "shard_lock_acquisitions", "", "Times that each shard was taken.", "lock_acquisitions"
    ),
    _ByShard("shard_lock_wait_seconds", "seconds", "Time waited by shard.", "lock_wait_seconds"),
    _ByShard("shard_recoveries", "", "Recoveries by shard.", "recoveries"),
)


class CacheCollector(Collector):
    """Collects one cache's metrics when it is scraped; register it, or see `registry_of`.

    Args:
        source: the cache, or what is called at each scrape and returns it open. Raising an error
            of the package, or OSError, means that there is none: `shmcache_up` is 0 then, and
            the only series.
        name: the label `cache`; None: the name of the cache itself, and "" for one that is called
            for and was never there.

    A scrape takes no shard's lock, and attaches to nothing by itself.
    """

    def __init__(self, source: Cache | Callable[[], Cache], *, name: str | None = None) -> None:
        self._source = source
        self._named = name is not None
        self.name = name or (source.name if isinstance(source, Cache) else "")

    def read(self) -> Reading:
        """Read the cache, as a scrape does. Raises what the source or `metrics.read` raises."""
        cache = self._source if isinstance(self._source, Cache) else self._source()
        if not self._named:
            self.name = cache.name
        return read(cache)

    def collect(self) -> Iterator[Metric]:
        """The metrics as prometheus_client wants them."""
        try:
            reading = self.read()
        except (ShmcacheError, OSError) as error:
            logger.debug("cache %r: nothing to scrape: %s", self.name, error)
            yield self._up(0)
            return
        yield self._up(1)
        yield from self._info(reading)
        yield from self._singles(reading)
        yield from self._by_shard(reading)
        yield self._lock_waits(reading)
        yield from self._latencies(reading)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering reads no cache."""
        return ()

    def _up(self, up: int) -> Metric:
        family = GaugeMetricFamily(
            "shmcache_up",
            "1: the cache could be read; 0: there is none, or it is of no use.",
            labels=["cache"],
        )
        family.add_metric([self.name], up)
        return family

    def _info(self, reading: Reading) -> Iterator[Metric]:
        family = InfoMetricFamily(
            "shmcache_cache", "What the cache was created with.", labels=["cache"]
        )
        family.add_metric(
            [self.name],
            {
                "policy": reading.policy,
                "codec": reading.codec,
                "shards": str(len(reading.stats.shards)),
                "user": reading.user,
            },
        )
        yield family

    def _singles(self, reading: Reading) -> Iterator[Metric]:
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for one in table:
                family = kind(f"shmcache_{one.name}", one.text, labels=["cache"], unit=one.unit)
                family.add_metric([self.name], one.value(reading))
                yield family

    def _by_shard(self, reading: Reading) -> Iterator[Metric]:
        shards = reading.stats.shards
        labels = _shard_labels(len(shards))
        for kind, table in (
            (GaugeMetricFamily, SHARD_GAUGES),
            (CounterMetricFamily, SHARD_COUNTERS),
        ):
            for one in table:
                family = kind(
                    f"shmcache_{one.name}", one.text, labels=["cache", "shard"], unit=one.unit
                )
                values = fold([getattr(shard, one.field) for shard in shards], SHARD_LABELS)
                for label, value in zip(labels, values, strict=True):
                    family.add_metric([self.name, label], value)
                yield family

    def _lock_waits(self, reading: Reading) -> Metric:
        family = HistogramMetricFamily(
            "shmcache_lock_wait_seconds",
            "How long callers waited for a shard, where spinning for some microseconds was not "
            "enough.",
            labels=["cache"],
            unit="seconds",
        )
        # The last of the counts takes everything longer: it has no bound but infinity.
        waits = reading.stats.lock_wait.buckets
        below, running = [], 0
        for count in waits[:-1]:
            running += count
            below.append(running)
        bounds = [2**power / 1e6 for power in range(len(waits) - 1)]
        family.add_metric(
            [self.name],
            _buckets(bounds, below, running + waits[-1]),
            reading.stats.lock_wait_seconds,
        )
        return family

    def _latencies(self, reading: Reading) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "shmcache_latency_seconds",
            "Durations recorded in the cache's latency rings. shmcache.get and shmcache.set are "
            "samples of the cache's own calls (one in 256), others are the application's.",
            labels=["cache", "ring"],
            unit="seconds",
        )
        longest = GaugeMetricFamily(
            "shmcache_latency_max_seconds",
            "The longest duration of each ring since it was made or cleared.",
            labels=["cache", "ring"],
            unit="seconds",
        )
        for ring in reading.latencies:
            below, count = fold_durations(ring.histogram, LATENCY_BOUNDS)
            family.add_metric(
                [self.name, ring.name],
                _buckets(LATENCY_BOUNDS, below, count),
                ring.total_seconds,
            )
            longest.add_metric([self.name, ring.name], ring.summary.max)
        yield family
        yield longest


def registry_of(collector: CacheCollector) -> CollectorRegistry:
    """A registry with this collector and nothing else: the process's own metrics stay out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _shard_labels(count: int) -> list[str]:
    """The values of the label `shard`: numbers, or ranges where there are too many."""
    each = -(-count // SHARD_LABELS)
    if each == 1:
        return [str(shard) for shard in range(count)]
    return [f"{start}-{min(start + each, count) - 1}" for start in range(0, count, each)]


def _buckets(bounds: Sequence[float], below: Sequence[int], count: int) -> list[tuple[str, float]]:
    """Cumulative buckets as prometheus_client takes them, the one without a bound last."""
    texts = [str(floatToGoString(bound)) for bound in bounds]  # type: ignore[no-untyped-call]
    return [*zip(texts, map(float, below), strict=True), ("+Inf", float(count))]
