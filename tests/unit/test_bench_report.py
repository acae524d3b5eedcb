"""What the bench makes of figures: tables, the summary and plots; and its simulated policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.harness import Contestant, Options, Table, interleave, percentile, single_calls
from bench.plots import draw
from bench.report import as_rows, span
from bench.simulate import POLICIES
from bench.summary import as_summary


def _document() -> dict[str, Any]:
    def peers(**medians: float) -> dict[str, Any]:
        return {name: {"median_ns": value} for name, value in medians.items()}

    both = peers(shmcache=40.0, dict=17.0)
    kinds = {
        "100 B": {"get": both, "set": both, "incr": peers(shmcache=90.0)},
        "small dict": {"get": both},
    }
    rates = {
        name: {str(count): {"operations_per_second": rate * count} for count in (1, 4)}
        for name, rate in {"shmcache": 2e6, "dict": 1e7, "Redis": 9e4}.items()
    }
    reader = {"wrong": 0, "errors": {}}
    phase = {"peer": "shmcache", "storm": True, "kills": 9, "hung": [], "reader": reader}
    outcomes = [
        {"trace": "web12", "percent": p, "policy": policy, "object_miss": miss + p}
        for p in (1.0, 5.0)
        for policy, miss in {"LRU": 40.0, "SIEVE": 38.0, "shmcache, 1 shard": 37.5}.items()
    ]
    data = {
        "peers_latency": {"kinds": kinds},
        "peers_scaling": {"mixes": {"95/5, Zipf": {"peers": rates}}},
        "kill_storm": {"phases": [{**phase, "writer": {"errors": {}}}]},
        "hit_ratio": {"outcomes": outcomes},
        "instructions": {"instructions": {"get, 100 B": {"probe": 160.0, "copy": 20.0}}},
        "growth": {"nanoseconds": {"shmcache, cold": {"1000": 50.0, "10000": 400.0}}},
    }
    return {
        "machine": {"cpus": 2, "processor": "a processor", "python": "3.11.7"},
        "workloads": [{"name": name, "data": value} for name, value in data.items()],
    }


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (None, "-"),
        (41.4, "41 ns"),
        (999.4, "999 ns"),
        (999.9, "1 µs"),
        (1_234, "1.23 µs"),
        (123_456, "123 µs"),
        (5e7, "50 ms"),
        (3e9, "3 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(nanoseconds: float | None, text: str) -> None:
    assert span(nanoseconds) == text


def test_a_table_is_markdown() -> None:
    assert as_rows(Table("Title", ["", "get"], [["dict", "17 ns"]], "A note.")) == [
        "**Title**", "", "|  | get |", "|---|---:|", "| dict | 17 ns |", "", "A note.",
    ]  # fmt: skip


def test_the_summary_has_a_row_for_each_peer_and_dashes_for_what_it_lacks() -> None:
    rows = as_summary(_document()).splitlines()
    ours = next(row for row in rows if row.startswith("| **shmcache**"))
    assert "**40 ns**" in ours and "**8.0 M**" in ours and "**goes on**" in ours
    theirs = next(row for row in rows if row.startswith("| dict"))
    assert [cell.strip() for cell in theirs.strip("|").split("|")][3] == "-"  # incr
    assert as_summary({"machine": {}, "workloads": []}) == ""


def test_every_plot_is_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = {path.name for path in draw(_document(), tmp_path)}
    plots = ("latency", "scaling", "hit_ratio", "instructions", "growth")
    assert names == {
        f"{plot}{theme}.{kind}"
        for plot in plots
        for theme in ("", "-dark")
        for kind in ("svg", "png")
    }
    assert all((tmp_path / name).stat().st_size > 1_000 for name in names)
    assert draw({"workloads": []}, tmp_path) == []


@pytest.mark.parametrize("name", POLICIES)
def test_a_simulated_policy_keeps_to_its_capacity(name: str) -> None:
    policy = POLICIES[name](3)
    assert [policy.access(key, 1) for key in (1, 2, 3)] == [False] * 3
    assert policy.access(3, 1), "three of one unit fit"
    assert not policy.access(9, 4), "larger than the whole cache"
    assert not policy.access(9, 4), "so it was not admitted"


def test_lru_and_fifo_differ_by_what_a_hit_does() -> None:
    trace = [1, 2, 1, 3, 1]
    hits = {}
    for name in ("LRU", "FIFO"):
        access = POLICIES[name](2).access
        hits[name] = [access(key, 1) for key in trace]
    assert hits == {
        "LRU": [False, False, True, False, True],
        "FIFO": [False, False, True, False, False],
    }


def test_percentiles_are_by_nearest_rank() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, p) for p in (50, 99, 99.9, 100)] == [50, 99, 100, 100]
    assert percentile([7], 50) == 7


def test_every_call_is_timed_by_itself() -> None:
    seen: list[int] = []
    spans = single_calls("call(key)", {"call": seen.append}, [1, 2, 3], 10**9)
    assert seen == [1, 2, 3] and len(spans) == 3
    assert len(single_calls("pass", {}, range(1_000_000), 0)) == 1, "the limit ends it"


def test_what_waits_for_others_is_never_taken_again() -> None:
    from time import sleep

    waiting = Contestant("waits", "sleep(0.001)", {"sleep": sleep}, [[1]], waits=True)
    rounds = interleave([waiting], Options(repeats=3))
    assert rounds["waits"].samples == 3 and rounds["waits"].redone == 0
