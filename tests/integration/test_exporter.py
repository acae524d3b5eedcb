"""Metrics as a scraper gets them: over HTTP, parsed by prometheus_client's own parsers."""

from __future__ import annotations

import gzip
import http.client
import math
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import openmetrics
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.processes import Channel, Worker, poll_until
from support.segments import mapped, shard_offset

from shmcache import Cache, CacheNotFound, _core, metrics
from shmcache.collector import LATENCY_BOUNDS, SHARD_LABELS, CacheCollector, registry_of
from shmcache.exporter import Exporter

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def serve() -> Iterator[Callable[..., Exporter]]:
    """Starts exporters on free ports, stopped when the test is over."""
    started: list[Exporter] = []

    def start(source: Any, **arguments: Any) -> Exporter:
        started.append(Exporter(source, **arguments))
        started[-1].start()
        return started[-1]

    yield start
    for exporter in started:
        exporter.stop()


class Answer:
    """What a GET returned."""

    def __init__(self, exporter: Exporter, path: str, **headers: str) -> None:
        connection = http.client.HTTPConnection(*exporter.address, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            self.status = response.status
            self.headers = response.headers
            self.body = response.read()
        finally:
            connection.close()
        self.text = "" if "Content-Encoding" in self.headers else self.body.decode()


def families(exporter: Exporter, accept: str = "") -> list[Metric]:
    """Scrape and parse."""
    answer = Answer(exporter, "/metrics", Accept=accept)
    assert answer.status == 200
    if "openmetrics" in accept:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        return list(openmetrics_parser.text_string_to_metric_families(answer.text))
    assert answer.headers["Content-Type"].startswith("text/plain")
    return list(parse_text(answer.text))


def samples(found: list[Metric]) -> Samples:
    """Every sample by name and labels."""
    flat = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in found
        for sample in family.samples
    }
    assert len(flat) == sum(len(family.samples) for family in found), "a series came twice"
    return flat


def used(cache: Cache) -> Cache:
    """A cache with some of everything."""
    cache.latency_sampling = 1
    for number in range(3000):
        cache[number] = bytes(1000)
    for number in range(3000):
        cache.get(number)
    del cache[2999]
    ring = cache.latencies("web")
    for power in range(40):
        ring.record_ns(1 << power)
    return cache


def waited(cache: Cache) -> Cache:
    """A cache whose first shard has been waited for (written into its counters)."""
    with mapped(cache.name) as data:
        at = shard_offset(data, 0) + _core.LAYOUT["shm_shard.wait_histogram"]
        for bucket in (0, 3, 3, 9, 15):
            data[at + 4 * bucket] += 1
        at = shard_offset(data, 0) + _core.LAYOUT["shm_shard.lock_wait_ns"]
        data[at : at + 8] = (123_456_789).to_bytes(8, "little")
    return cache


# ---------------------------------------------------------------------------------- figures
@pytest.mark.parametrize("accept", ["", "text/plain", "text/plain;version=0.0.4", OPENMETRICS])
def test_counts_equal_the_caches_stats(
    cache: Cache, serve: Callable[..., Exporter], accept: str
) -> None:
    exporter = serve(waited(used(cache)))
    found = samples(families(exporter, accept))
    stats = cache.stats()
    label = (("cache", cache.name),)
    for name in ("entries", "hit_ratio", "clients"):
        assert found[f"shmcache_{name}", label] == getattr(stats, name), name
    assert found["shmcache_used_bytes", label] == stats.bytes_used
    assert found["shmcache_capacity_bytes", label] == stats.bytes_total
    assert found["shmcache_size_bytes", label] == cache.size
    assert found["shmcache_owner_pid", label] == 0
    assert found["shmcache_up", label] == 1
    assert 0 < found["shmcache_uptime_seconds", label] <= stats.uptime_seconds
    for name in (
        *("hits", "misses", "sets", "deletes", "evictions", "expirations", "read_retries"),
        *("lock_acquisitions", "lock_contended", "lock_timeouts", "try_attempts", "try_blocked"),
        *("recoveries", "store_failures"),
    ):
        assert found[f"shmcache_{name}_total", label] == getattr(stats, name), name
    assert found["shmcache_lock_wait_seconds_sum", label] == stats.lock_wait_seconds == 0.123456789
    assert found["shmcache_lock_wait_seconds_count", label] == stats.lock_wait.count == 5
    for shard in stats.shards:
        labels = (*label, ("shard", str(shard.index)))
        assert found["shmcache_shard_entries", labels] == shard.entries
        assert found["shmcache_shard_lock_acquisitions_total", labels] == shard.lock_acquisitions
        assert found["shmcache_shard_lock_wait_seconds_total", labels] == shard.lock_wait_seconds


def test_every_field_of_stats_is_exported(cache: Cache) -> None:
    """So that a new one is not forgotten: what has another name here is listed."""
    renamed = {
        "bytes_used": "used_bytes",
        "bytes_total": "capacity_bytes",
        "shards": "shard_entries",
        "lock_wait": "lock_wait_seconds",
    }
    exported = {family.name for family in CacheCollector(cache).collect()}
    for field in cache.stats().as_dict():
        assert f"shmcache_{renamed.get(field, field)}" in exported, field


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_histograms_are_cumulative_and_bounded(
    cache: Cache, serve: Callable[..., Exporter], accept: str
) -> None:
    exporter = serve(waited(used(cache)))
    histograms = [f for f in families(exporter, accept) if f.type == "histogram"]
    assert {f.name for f in histograms} == {
        "shmcache_lock_wait_seconds",
        "shmcache_latency_seconds",
    }
    for family in histograms:
        series: dict[str, list[tuple[float, float]]] = {}
        counts: dict[str, float] = {}
        for sample in family.samples:
            ring = sample.labels.get("ring", "")
            if sample.name.endswith("_bucket"):
                series.setdefault(ring, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[ring] = sample.value
        assert series.keys() == counts.keys()
        for ring, buckets in series.items():
            assert len(buckets) <= 32
            assert buckets == sorted(buckets), "bounds rise, and so do counts"
            assert [n for _, n in buckets] == sorted(n for _, n in buckets)
            assert buckets[-1] == (math.inf, counts[ring])
            assert counts[ring] > 0


def test_lock_waits_fall_into_their_buckets(cache: Cache, serve: Callable[..., Exporter]) -> None:
    found = samples(families(serve(waited(cache))))
    below = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "shmcache_lock_wait_seconds_bucket"
    }
    assert below[1e-6] == 1
    assert below[4e-6] == 1
    assert below[8e-6] == 3
    assert below[512e-6] == 4
    assert below[2**14 / 1e6] == 4
    assert below[math.inf] == 5


def test_latencies_fall_into_their_buckets(cache: Cache, serve: Callable[..., Exporter]) -> None:
    exporter = serve(used(cache))
    found = samples(families(exporter))
    of_web = (("cache", cache.name), ("ring", "web"))
    assert found["shmcache_latency_seconds_count", of_web] == 40
    assert found["shmcache_latency_seconds_sum", of_web] == pytest.approx((2**40 - 1) / 1e9)
    assert found["shmcache_latency_max_seconds", of_web] == pytest.approx(2**39 / 1e9)
    below = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "shmcache_latency_seconds_bucket" and ("ring", "web") in labels
    }
    # Of the durations 2**0, 2**1... each bound has those below it, itself left out.
    assert [below[bound] for bound in LATENCY_BOUNDS] == [float(n) for n in range(6, 36)]
    of_get = (("cache", cache.name), ("ring", "shmcache.get"))
    assert found["shmcache_latency_seconds_count", of_get] == 3000


def test_names_follow_prometheus_conventions(cache: Cache) -> None:
    for family in CacheCollector(used(cache)).collect():
        assert re.fullmatch(r"shmcache_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        for unit in ("seconds", "bytes"):
            assert (family.unit == unit) == (unit in family.name.split("_")), family.name
        assert not re.search(r"_(ms|ns|us|kb|mb|milliseconds|percent|count)(_|$)", family.name)
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


# ------------------------------------------------------------------------------ label sets
def test_many_shards_share_labels(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="32MiB", shards=256)
    for number in range(2000):
        cache[number] = 1
    found = samples(list(CacheCollector(cache).collect()))
    shards = {
        dict(labels)["shard"]: value
        for (name, labels), value in found.items()
        if name == "shmcache_shard_entries"
    }
    assert len(shards) == SHARD_LABELS
    assert list(shards)[:2] == ["0-3", "4-7"]
    assert list(shards)[-1] == "252-255"
    assert sum(shards.values()) == 2000
    assert shards["4-7"] == sum(shard.entries for shard in cache.stats().shards[4:8])


def count_and_wait(channel: Channel, name: str) -> None:
    cache = Cache(name, create=False)
    for _ in range(10):
        cache["k"] = 1
        cache.get("k")
        cache.get("absent")
    channel.sync()


def test_killed_clients_lower_no_counter_and_leave_no_series(
    cache: Cache, start: Callable[..., Worker], serve: Callable[..., Exporter]
) -> None:
    exporter = serve(cache)
    idle = samples(families(exporter, OPENMETRICS)).keys()
    workers = [start(count_and_wait, cache.name) for _ in range(3)]
    for worker in workers:
        assert worker.recv() == "ready"
    alive = families(exporter, OPENMETRICS)
    for worker in workers:
        worker.kill()
    poll_until(lambda: cache.stats().clients == 1, 5, what="clients follow a death")
    dead = samples(families(exporter, OPENMETRICS))
    label = (("cache", cache.name),)
    assert samples(alive)["shmcache_clients", label] == 4
    assert dead["shmcache_clients", label] == 1
    assert dead["shmcache_hits_total", label] == dead["shmcache_misses_total", label] == 30
    assert dead.keys() == idle, "series do not grow with clients"
    for family in alive:
        if family.type in ("counter", "histogram"):
            for key, value in samples([family]).items():
                assert dead[key] >= value, key


def hold_shard(channel: Channel, name: str) -> None:
    """Stop for good with every shard held, as a stopped writer looks to others."""
    cache = Cache(name, create=False)
    word = _core.identity(cache)
    with mapped(name) as data:
        for shard in range(cache.shards):
            at = shard_offset(data, shard) + _core.LAYOUT["shm_shard.holder"]
            data[at : at + 8] = word.to_bytes(8, "little")
        channel.sync()


def test_a_scrape_waits_for_no_shard(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    serve: Callable[..., Exporter],
) -> None:
    cache = open_cache(lock_timeout=0.0)
    cache["k"] = 1
    exporter = serve(cache)
    worker = start(hold_shard, cache.name)
    assert worker.recv() == "ready"
    assert samples(families(exporter))["shmcache_entries", (("cache", cache.name),)] == 1
    assert Answer(exporter, "/healthz").status == 200
    worker.kill()


# ------------------------------------------------------------------------------ the server
def test_paths_and_statuses(cache: Cache, serve: Callable[..., Exporter]) -> None:
    exporter = serve(cache)
    host, port = exporter.address
    assert host == "127.0.0.1"
    assert port > 0
    healthy = Answer(exporter, "/healthz")
    assert (healthy.status, cache.name in healthy.text) == (200, True)
    assert Answer(exporter, "/metrics?name[]=x").status == 200
    for path in ("/", "/metricsx", "/healthz/..", "/../etc/passwd"):
        assert Answer(exporter, path).status == 404


def test_answers_are_compressed_where_accepted(
    cache: Cache, serve: Callable[..., Exporter]
) -> None:
    exporter = serve(cache)
    zipped = Answer(exporter, "/metrics", **{"Accept-Encoding": "gzip"})
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert b"shmcache_entries" in gzip.decompress(zipped.body)
    assert "Content-Encoding" not in Answer(exporter, "/metrics").headers


def test_a_missing_cache_is_down_without_a_traceback(
    cache: Cache, serve: Callable[..., Exporter], capfd: pytest.CaptureFixture[str]
) -> None:
    exporter = serve(cache)
    cache.unlink()
    for accept in ("", OPENMETRICS):
        found = samples(families(exporter, accept))
        assert found == {("shmcache_up", (("cache", cache.name),)): 0.0}
    health = Answer(exporter, "/healthz")
    assert health.status == 503
    assert "unlinked" in health.text
    assert capfd.readouterr() == ("", "")


def test_a_source_that_is_called_may_find_another_cache_each_time(
    open_cache: Callable[..., Cache], cache_name: str, serve: Callable[..., Exporter]
) -> None:
    current: list[Cache] = []

    def source() -> Cache:
        if not current:
            raise CacheNotFound("there is none yet")
        return current[-1]

    exporter = serve(source, name=cache_name)
    label = (("cache", cache_name),)
    assert samples(families(exporter)) == {("shmcache_up", label): 0.0}
    for entries in (1, 2):
        cache = open_cache(cache_name, size="1MiB")
        cache.update({key: key for key in range(entries)})
        current.append(cache)
        assert samples(families(exporter))["shmcache_entries", label] == entries
        cache.unlink()
        assert samples(families(exporter)) == {("shmcache_up", label): 0.0}


def test_health_is_what_the_caller_says(cache: Cache, serve: Callable[..., Exporter]) -> None:
    verdict = [(True, "all shards visited")]
    exporter = serve(cache, healthy=lambda: verdict[0])
    assert (Answer(exporter, "/healthz").status, Answer(exporter, "/healthz").text) == (
        200,
        "all shards visited\n",
    )
    verdict[0] = (False, "the loop hangs")
    assert (Answer(exporter, "/healthz").status, Answer(exporter, "/healthz").text) == (
        503,
        "the loop hangs\n",
    )


def test_an_error_of_the_callers_is_answered(cache: Cache, serve: Callable[..., Exporter]) -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("no idea")

    answer = Answer(serve(cache, healthy=broken), "/healthz")
    assert (answer.status, answer.text) == (500, "RuntimeError: no idea\n")


def test_many_scrapers_at_once(cache: Cache, serve: Callable[..., Exporter]) -> None:
    exporter = serve(cache)
    statuses: list[int] = []

    def scrape() -> None:
        statuses.extend(Answer(exporter, "/metrics").status for _ in range(5))

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 40


def test_a_client_that_says_nothing_keeps_nobody_waiting(
    cache: Cache, serve: Callable[..., Exporter]
) -> None:
    exporter = serve(cache)
    with socket.create_connection(exporter.address):
        assert Answer(exporter, "/metrics").status == 200
        exporter.stop()


def test_stop_frees_the_port_and_may_be_called_twice(
    cache: Cache, serve: Callable[..., Exporter]
) -> None:
    exporter = serve(cache)
    port = exporter.address[1]
    exporter.start()  # serves already
    assert exporter.address[1] == port
    exporter.stop()
    exporter.stop()
    again = serve(cache, port=port)
    assert again.address == ("127.0.0.1", port)
    with pytest.raises(OSError, match=f"127.0.0.1:{port}.*choose another address"):
        serve(cache, port=port)


def test_ipv6(cache: Cache, serve: Callable[..., Exporter]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert Answer(serve(cache, host="::1"), "/healthz").status == 200


# ------------------------------------------------------------------------------ the package
def test_the_package_works_without_prometheus_client() -> None:
    """An import of it fails in this process, as where it is not installed."""
    script = """
import sys
sys.modules["prometheus_client"] = None
import shmcache, shmcache.metrics, shmcache.exporter, shmcache.cli
try:
    shmcache.exporter.Exporter(lambda: None)
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == (
        "metrics need the package prometheus_client: pip install 'shmcache[metrics]'\n"
    )


def test_nothing_imports_prometheus_client_unasked() -> None:
    script = "import sys, shmcache, shmcache.metrics; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_a_registry_of_the_applications_takes_the_collector(cache: Cache) -> None:
    text = openmetrics.exposition.generate_latest(registry_of(CacheCollector(cache))).decode()
    assert f'shmcache_up{{cache="{cache.name}"}} 1.0' in text


def test_stats_and_scrape_come_from_one_reading(cache: Cache) -> None:
    assert CacheCollector(cache).read().as_dict().keys() == metrics.read(cache).as_dict().keys()
