"""`shmcache stats`, `latency` and `ls`: what they show is what the package says."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from support.attachments import leave
from support.crowded import HUGE, crowded
from support.names import segment_path
from support.processes import Channel, Worker

from shmcache import Cache, list_caches, metrics
from shmcache.cli import figures
from shmcache.errors import CacheExists
from shmcache.segment import unlink_segment

# by name: the package's attribute may be the command
stats = importlib.import_module("shmcache.cli.stats")
latency = importlib.import_module("shmcache.cli.latency")

SHMCACHE = [sys.executable, "-m", "shmcache"]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; it must exit with that status, without a traceback."""
    done = subprocess.run(
        [*SHMCACHE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not CONTROL.search(done.stdout)
    return done


def rows(text: str) -> dict[str, list[str]]:
    """The lines of a table: the cells by the first one."""
    split = (re.split(r"  +", line.strip()) for line in text.splitlines() if line.strip())
    return {cells[0]: cells[1:] for cells in split}


def used(cache: Cache) -> Cache:
    """A cache with some of everything counted."""
    cache.latency_sampling = 1
    cache.update({number: bytes(100) for number in range(1500)})
    for number in range(2000):
        cache.get(number)
    del cache[0]
    cache.latencies("web").record(0.25)
    return cache


# ------------------------------------------------------------------------------------ stats
def test_the_table_says_what_stats_says(open_cache: Callable[..., Cache]) -> None:
    cache = used(open_cache(shards=4, persist=False))
    shown = rows(run("stats", cache.name).stdout)
    assert shown["cache"] == [cache.name]
    assert shown["entries"] == ["1,499"]
    assert shown["hits"] == ["1,500"]
    assert shown["misses"] == ["500"]
    assert shown["sets"] == ["1,500"]
    assert shown["deletes"] == ["1"]
    assert shown["hit ratio"] == ["75.00%"]
    assert shown["clients"] == ["1"]
    assert shown["owner daemon"] == ["none"]
    assert "4 shards" in shown["created with"][0]


def test_json_is_the_reading(open_cache: Callable[..., Cache]) -> None:
    cache = used(open_cache(shards=4))
    shown = json.loads(run("stats", cache.name, "--json").stdout)
    expected = json.loads(json.dumps(metrics.read(cache).as_dict()))
    changing = ("uptime_seconds", "latencies")
    assert shown.keys() == expected.keys()
    assert {k: v for k, v in shown.items() if k not in changing} == {
        k: v for k, v in expected.items() if k not in changing
    }
    assert [ring["name"] for ring in shown["latencies"]] == ["shmcache.get", "shmcache.set", "web"]


def test_shards_have_a_line_each(open_cache: Callable[..., Cache]) -> None:
    cache = used(open_cache(shards=4))
    table = run("stats", cache.name, "--shards").stdout.split("\nshard ")[1]
    lines = [line.split() for line in table.splitlines()[1:]]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert sum(int(line[1]) for line in lines) == 1499


def test_watching_prints_again_with_rates(cache: Cache) -> None:
    used(cache)
    done = run("stats", cache.name, "--watch", "-i", "0.05", "--count", "3")
    assert done.stdout.count("hit ratio") == 3
    assert done.stdout.count("per second") == 2
    lines = run("stats", cache.name, "--watch", "-i", "0.05", "--count", "3", "--json").stdout
    assert [json.loads(line)["entries"] for line in lines.splitlines()] == [1499] * 3


def test_watching_waits_for_a_cache_that_is_gone(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="1MiB")
    process = subprocess.Popen(
        [*SHMCACHE, "stats", cache_name, "--watch", "-i", "0.05", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["entries"] == 0
    cache.unlink()
    assert process.stderr.readline() == f"waiting for cache {cache_name!r}\n"
    with open_cache(cache_name, size="1MiB") as successor:
        successor["k"] = 1
        while json.loads(process.stdout.readline())["entries"] != 1:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert set(errors.splitlines()) <= {f"waiting for cache {cache_name!r}"}


def test_looking_changes_nothing(cache: Cache) -> None:
    used(cache)
    before = cache.stats()
    for command in (("stats",), ("stats", "--shards"), ("latency",)):
        shown = run(command[0], cache.name, *command[1:], *(["--json"] * (command[0] == "stats")))
        if command[0] == "stats":
            assert json.loads(shown.stdout)["clients"] == 1
    after = cache.stats()
    assert (before.hits, before.misses, before.lock_acquisitions, before.clients) == (
        *(after.hits, after.misses, after.lock_acquisitions, after.clients),
    )
    assert len(metrics.read_rings(cache)) == 3


@pytest.mark.parametrize("command", ["stats", "latency", "top"])
def test_a_missing_cache_is_a_failure_and_wrong_usage_another(
    command: str, cache_name: str
) -> None:
    assert cache_name in run(command, cache_name, status=1).stderr
    assert not segment_path(cache_name).exists()
    run(command, "no/name", status=1)
    run(command, status=2)
    run(command, cache_name, "--nonsense", status=2)


@pytest.mark.parametrize("option", ["--count", "--interval"])
def test_what_goes_with_watch_is_wrong_usage_without(cache_name: str, option: str) -> None:
    assert "--watch" in run("stats", cache_name, option, "2", status=2).stderr


def test_watch_takes_no_number(cache: Cache) -> None:
    assert cache.name in run("stats", "--watch", cache.name, "-n", "1").stdout


@pytest.mark.parametrize("command", ["stats", "latency", "top", "ls"])
def test_help_shows_an_example(command: str) -> None:
    assert re.search(rf"^ +shmcache {command} ?", run(command, "--help").stdout, re.MULTILINE)


@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal(cache: Cache, width: int) -> None:
    """With the longest names and numbers: no line over the width, no figure cut."""
    reading = crowded(metrics.read(used(cache)), shards=16)
    out = Console(width=width, file=io.StringIO(), record=True, highlight=False)
    rates = metrics.Rates.between(None, reading)
    out.print(stats._tables(reading, rates, shards=True))
    out.print(latency._table(list(reading.latencies), width))
    latency._print_chart(out, reading.latencies[0])
    text = out.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert f"{HUGE:,}" in text
    assert "988 G" in text
    assert reading.latencies[-1].name.replace("x", "") in text


# ---------------------------------------------------------------------------------- latency
def test_latency_shows_figures_and_a_chart(cache: Cache) -> None:
    ring = cache.latencies("checkout")
    for milliseconds in range(1, 101):
        ring.record(milliseconds / 1e3)
    text = run("latency", cache.name).stdout
    table, _, chart = text.partition("\n\n")
    heading, *lines = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    checkout = dict(
        zip(heading, next(line for line in lines if line[0] == "checkout"), strict=True)
    )
    assert checkout["count"] == "100"
    assert checkout["p50"].endswith(" ms")
    assert abs(float(checkout["p50"].split()[0]) - 50.5) < 1
    assert checkout["max"] == "100.00 ms"
    bars = [line.rsplit(None, 1) for line in chart.splitlines()[1:]]
    assert sum(int(count) for _, count in bars) == 100
    assert "█" in chart


def test_latency_as_json_and_one_ring_only(cache: Cache) -> None:
    used(cache)
    shown = json.loads(run("latency", cache.name, "--json").stdout)
    assert shown["name"] == cache.name
    assert [ring["name"] for ring in shown["latencies"]] == ["shmcache.get", "shmcache.set", "web"]
    (web,) = json.loads(run("latency", cache.name, "--ring", "web", "--json").stdout)["latencies"]
    assert (web["count"], web["max"], web["histogram"][0]["count"]) == (1, 0.25, 1)
    assert web["p50"] == pytest.approx(0.25, rel=1e-3)
    refused = run("latency", cache.name, "--ring", "absent", status=1)
    assert "'absent'" in refused.stderr
    assert "web" in refused.stderr


# --------------------------------------------------------------------------------------- ls
def listed(name: str) -> dict[str, Any]:
    """The cache as `ls --json` shows it."""
    (found,) = [info for info in json.loads(run("ls", "--json").stdout) if info["name"] == name]
    assert isinstance(found, dict)
    return found


def own(channel: Channel, name: str) -> None:
    cache = Cache(name, create=False)
    cache._held.mark_owner()
    channel.sync()


def test_ls_shows_the_user_and_the_owner_daemon(cache: Cache, start: Callable[..., Worker]) -> None:
    cache["k"] = 1
    assert listed(cache.name)["owner_pid"] is None
    worker = start(own, cache.name)
    assert worker.recv() == "ready"
    found = listed(cache.name)
    assert (found["owner_pid"], found["clients"], found["entries"]) == (worker.pid, 2, 1)
    (line,) = [row for row in run("ls").stdout.splitlines() if row.startswith(cache.name)]
    assert line.split()[-3:] == [found["owner"], "pid", str(worker.pid)]
    with pytest.raises(CacheExists):
        cache._held.mark_owner()
    worker.kill()
    assert listed(cache.name)["owner_pid"] is None
    (line,) = [row for row in run("ls").stdout.splitlines() if row.startswith(cache.name)]
    assert line.split()[-1] == "-"


def test_ls_says_why_a_cache_cannot_be_read(cache_name: str) -> None:
    path = leave(cache_name)
    os.truncate(path, 4096)
    try:
        found = listed(cache_name)
        assert (found["entries"], found["clients"], found["owner_pid"]) == (None, None, None)
        assert cache_name in found["problem"]
        lines = run("ls").stdout.splitlines()
        assert next(line for line in lines if line.startswith(cache_name)).count("?") == 3
        assert f"{cache_name}: {found['problem']}" in lines
    finally:
        unlink_segment(cache_name)
    assert cache_name not in {info.name for info in list_caches()}


# ---------------------------------------------------------------------------------- figures
def test_counts_and_rates_are_short() -> None:
    assert figures.count_text(999_999) == "999,999"
    assert figures.count_text(1_234_567) == "1.23 M"
    assert figures.count_text(45_600_000_000) == "45.6 G"
    assert figures.count_text(12_345_600_000_000) == "12 T"
    assert [figures.rate_text(rate) for rate in (0, 0.256, 9.99, 812.4, 45_210, 1_350_000)] == [
        *("0", "0.26", "9.99", "812", "45,210", "1.35 M"),
    ]


def test_bars_and_strips_fill_their_width() -> None:
    assert figures.bar(0.0, 10) == " " * 10
    assert figures.bar(1.0, 10) == figures.bar(7.5, 10) == "█" * 10
    assert figures.bar(0.55, 10) == "█████▌    "
    assert figures.heat([0.0, 1.0, 2.0], 3).plain == "·▅█"
    assert figures.heat([0.0, 1.0], 20).plain == "·" * 8 + "█" * 8
    assert len(figures.heat([1.0] * 1024, 71).plain) <= 71
    assert figures.heat([0.0, 0.0], 2).plain == "··"
