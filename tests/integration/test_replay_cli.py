"""`shmcache replay` as a person or a script runs it: real processes, real cache, real trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import names

import shmcache

SHMCACHE = [sys.executable, "-m", "shmcache"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*SHMCACHE, *arguments], capture_output=True, text=True, timeout=90, check=False
    )


def replayed(*arguments: str, status: int = 0) -> dict[str, Any]:
    """Replay with `--json` and return the report."""
    done = run("replay", *arguments, "--json")
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def trace_file(path: Path, *rows: tuple[str, int]) -> str:
    """Write a trace of (key, size)."""
    path.write_text("key,size\n" + "".join(f"{key},{size}\n" for key, size in rows))
    return str(path)


def test_one_worker_with_room_for_all_misses_each_key_once(cache_name: str) -> None:
    report = replayed("web12", "--workers", "1", "--name", cache_name)
    total = report["total"]
    assert total["requests"] == 95_607
    assert total["sets"] == report["entries"] == 13_756
    assert total["hits"] == 95_607 - 13_756
    assert total["wrong"] == report["evictions"] == 0
    assert report["get"]["count"] == 95_607
    assert report["set"]["count"] == 13_756
    assert 0 < report["get"]["p50_ns"] <= report["get"]["p999_ns"] <= report["get"]["max_ns"]
    assert report["ok"]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_share_one_small_cache(start_method: str, cache_name: str) -> None:
    report = replayed(
        *("--workers", "3", "--size", "1MiB", "--limit", "30000", "--name", cache_name),
        *("--start-method", start_method),
    )
    assert report["ok"]
    assert report["total"]["requests"] == 30_000
    assert [worker["tally"]["requests"] for worker in report["workers"]] == [10_000] * 3
    assert len({worker["pid"] for worker in report["workers"]}) == 3
    assert all(worker["operations_per_second"] > 0 for worker in report["workers"])
    assert report["evictions"] > 0
    assert report["total"]["wrong"] == 0
    # Alone, a worker would find only what it stored itself: far less than half of the requests.
    assert report["hit_ratio"] > 0.5


def test_the_report_is_readable_and_says_0_wrong_values(cache_name: str) -> None:
    done = run("replay", "--workers", "2", "--limit", "4000", "--name", cache_name)
    assert done.returncode == 0, done.stderr
    assert "0 wrong values" in done.stdout.splitlines()
    for words in ("hit ratio", "byte hit ratio", "ops/s", "p99.9", "evictions"):
        assert words in done.stdout


def test_a_foreign_value_under_a_key_is_a_wrong_value(cache_name: str, tmp_path: Path) -> None:
    path = trace_file(tmp_path / "t.csv", ("a", 100), ("b", 100), ("a", 100))
    with shmcache.Cache(cache_name, size="1MiB") as cache:
        cache["a"] = b"nobody made this for a"
        report = replayed(path, "--workers", "1", "--name", cache_name, status=1)
        assert report["total"]["wrong"] == 2
        assert report["total"]["wrong_keys"] == ["a", "a"]
        assert not report["ok"]
        told = run("replay", path, "--workers", "1", "--name", cache_name)
        assert told.returncode == 1
        assert "2 wrong values" in told.stdout


def test_values_too_large_for_the_cache_are_counted_as_refused(
    cache_name: str, tmp_path: Path
) -> None:
    path = trace_file(tmp_path / "t.csv", ("big", 5_000_000), ("small", 10), ("big", 5_000_000))
    report = replayed(path, "--workers", "1", "--size", "1MiB", "--name", cache_name)
    assert report["total"]["refused"] == 2
    assert report["total"]["sets"] == 1
    assert report["ok"]


def test_a_full_cache_that_keeps_takes_no_more_and_loses_nothing(
    cache_name: str, tmp_path: Path
) -> None:
    path = trace_file(tmp_path / "t.csv", *((str(n), 1000) for n in range(2000)))
    report = replayed(
        *(path, "--workers", "2", "--size", "1MiB", "--policy", "keep", "--name", cache_name)
    )
    assert report["policy"] == "keep"
    assert report["evictions"] == 0
    assert report["total"]["full"] > 0
    assert report["total"]["full"] + report["total"]["sets"] == 2000
    assert report["entries"] == report["total"]["sets"]


def test_a_killed_worker_is_reported_and_the_others_finish(cache_name: str) -> None:
    script = """
import json, multiprocessing, os, signal, sys
from shmcache import replay, trace

killed = []

def on_progress(progress):
    for child in multiprocessing.active_children():
        if child.name == "shmcache-replay-1" and progress.tally.requests and not killed:
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)

report = replay.replay(trace.load("web12"), workers=3, name=sys.argv[1], size="1MiB", passes=10,
                       on_progress=on_progress)
print(json.dumps(report.as_dict()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, cache_name],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    first, second, third = report["workers"]
    assert second["failure"].startswith("killed by SIGKILL")
    assert first["failure"] is third["failure"] is None
    assert first["tally"]["requests"] == third["tally"]["requests"] == 318_690
    assert second["tally"]["requests"] < 318_690
    assert report["total"]["wrong"] == 0
    assert not report["ok"]


def endless(name: str) -> subprocess.Popen[str]:
    """Start a replay that would take hours, and wait until it is under way."""
    process = subprocess.Popen(
        [*SHMCACHE, "replay", "--workers", "2", "--repeat", "100000", "--name", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background of a shell has SIGINT ignored, and so have we
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert "0 wrong values" in process.stderr.readline()
    return process


def test_an_interrupt_stops_all_and_reports_what_was_done(cache_name: str) -> None:
    process = endless(cache_name)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted" in out
    assert "0 wrong values" in out
    assert "Traceback" not in err
    assert not names.leftovers(cache_name)


def test_workers_end_and_clean_up_when_their_parent_is_killed(cache_name: str) -> None:
    process = endless(cache_name)
    process.kill()
    # The workers hold the other end of these pipes: the end of file says that all have ended.
    process.communicate(timeout=30)
    assert not names.leftovers(cache_name)


def test_usage_errors_exit_2_and_failures_exit_1(tmp_path: Path) -> None:
    assert run("replay", "--workers", "0").returncode == 2
    assert run("replay", "--policy", "random").returncode == 2
    absent = run("replay", str(tmp_path / "absent.csv"))
    assert absent.returncode == 1
    assert "absent.csv" in absent.stderr
    assert "web12" in absent.stderr
    small = run("replay", "--size", "1KiB")
    assert small.returncode == 1
    assert "Traceback" not in small.stderr


@pytest.mark.parametrize("command", ["replay", "ls"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"  shmcache {command}" in done.stdout


def test_ls_shows_a_cache_and_changes_nothing(new_name: Callable[[], str]) -> None:
    name = new_name()
    with shmcache.Cache(name, size="2MiB") as cache:
        cache["a"] = 1
        listed = json.loads(run("ls", "--json").stdout)
        (found,) = [item for item in listed if item["name"] == name]
        assert (found["size"], found["entries"], found["clients"]) == (2 << 20, 1, 1)
        assert name in run("ls").stdout
        assert cache.stats().clients == 1
        assert os.path.exists(names.segment_path(name))
    assert name not in run("ls").stdout
