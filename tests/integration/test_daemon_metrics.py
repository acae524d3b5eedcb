"""The daemon's metrics, scraped as Prometheus does."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support import names
from support.daemons import Daemon

from shmcache import Cache

Serve = Callable[..., Daemon]


def url(daemon: Daemon) -> str:
    """Where the start line says that metrics are."""
    found = re.search(r"metrics on (http://127\.0\.0\.1:(\d+)/metrics)$", daemon.out(), re.M)
    assert found is not None, daemon.out()
    assert int(found[2]) > 0
    return found[1]


def get(address: str, accept: str = "*/*") -> str:
    request = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    assert isinstance(text, str)
    return text


def test_a_scrape_is_what_the_cache_says_in_both_formats(serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "2MiB", "--metrics", "127.0.0.1:0").ready()
    with Cache(cache_name, create=False) as cache:
        for number in range(100):
            cache[number] = "x"
            assert cache.get(number) == "x"
        cache.get("none")
        stats = cache.stats()
        openmetrics = "application/openmetrics-text; version=1.0.0"
        for families in (
            parse_text(get(url(daemon))),
            parse_openmetrics(get(url(daemon), openmetrics)),
        ):
            samples = {
                sample.name: sample.value
                for family in families
                for sample in family.samples
                if sample.labels == {"cache": cache_name}
            }
            assert samples["shmcache_entries"] == 100
            assert samples["shmcache_hits_total"] == stats.hits == 100
            assert samples["shmcache_misses_total"] == stats.misses == 1
        assert get(url(daemon).replace("/metrics", "/healthz")).strip() == "ok"
    assert daemon.stop() == 0


def test_a_scrape_goes_on_in_a_cache_that_was_made_anew(serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "2MiB", "--metrics", "127.0.0.1:0").ready()
    with Cache(cache_name, create=False) as cache:
        cache["a"] = 1
        cache.unlink()
    daemon.logged(": created", 2)
    text = get(url(daemon))
    assert f'shmcache_entries{{cache="{cache_name}"}} 0.0' in text


def test_there_are_none_unless_asked_for(serve: Serve, cache_name: str) -> None:
    daemon = serve(cache_name, "--size", "1MiB").ready()
    assert "http" not in daemon.out() + daemon.log()


def test_a_port_that_is_taken_is_a_failure_that_makes_no_cache(
    serve: Serve, cache_name: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = serve(cache_name, "--size", "1MiB", "--metrics", address)
        assert daemon.wait() == 1
    assert address in daemon.log()
    assert names.leftovers(cache_name) == []
