"""docs/metrics.md, its alert rules and the dashboard name what is exported, and nothing else."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path

from shmcache import Cache
from shmcache.collector import CacheCollector

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def exported(cache: Cache) -> dict[str, tuple[str, set[str], str]]:
    """Type, labels and help of each metric, by the name that documents it."""
    suffix = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffix.get(family.type, ""): (
            family.type,
            set(family.samples[0].labels) - {"le"},
            family.documentation,
        )
        for family in CacheCollector(cache).collect()
    }


def test_the_document_names_every_metric(cache: Cache) -> None:
    """docs/metrics.md has a row for each: name, type, labels, and the help text."""
    rows: dict[str, tuple[str, set[str], str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `shmcache_") and len(cells) == 4:
            rows[cells[0].strip("`")] = (
                cells[1],
                set(re.findall(r"`(\w+)`", cells[2])),
                cells[3],
            )
    assert rows == exported(cache)


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression, a definition of a variable, or a rule names."""
    return set(re.findall(r"\bshmcache_\w+", expression))


def series_of(cache: Cache) -> set[str]:
    """Every name that a query can select."""
    cache.latencies("web").record(1.0)
    return {sample.name for family in CacheCollector(cache).collect() for sample in family.samples}


def test_the_dashboard_asks_for_exported_metrics_only(cache: Cache) -> None:
    path = importlib.resources.files("shmcache") / "data" / "grafana-dashboard.json"
    dashboard = json.loads(path.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["cache"]["definition"] == "label_values(shmcache_up, cache)"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    targets = [target for panel in panels for target in panel["targets"]]
    known = series_of(cache)
    assert len(targets) >= 20
    for target in targets:
        named = names_in(target["expr"])
        assert named, target["expr"]
        assert named <= known, target["expr"]
        assert 'cache=~"$cache"' in target["expr"]
        assert target["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert 0 <= grid["x"] < grid["x"] + grid["w"] <= 24


def test_the_alerts_of_the_document_ask_for_exported_metrics_only(cache: Cache) -> None:
    rules = DOCUMENT.read_text().partition("## Alerts")[2]
    expressions = re.findall(r"expr: (?:\|\n)?((?:.|\n)+?)\n        for|expr: (.+)", rules)
    named = names_in(" ".join("".join(pair) for pair in expressions))
    assert len(named) >= 7
    assert named <= series_of(cache)
