"""The one table for readers in a hurry: every peer, what a call costs, how it scales, who hangs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report import span

COLUMNS = (
    ("get, hit", "100 B", "get"),
    ("get, miss", "100 B", "get_miss"),
    ("set", "100 B", "set"),
    ("incr", "100 B", "incr"),
    ("get of a small dict", "small dict", "get"),
    ("get of 64 KiB", "64 KiB", "get"),
)
"""Title, kind of value and operation of the columns of `peers_latency`."""

SCALING = "95/5, Zipf"
PROCESSES = "4"


def as_summary(document: Mapping[str, Any]) -> str:
    """Markdown: a table of what the run has measured of every peer, and what it was run on.

    Empty where `peers_latency` was not run."""
    data = {workload["name"]: workload["data"] for workload in document["workloads"]}
    kinds = data.get("peers_latency", {}).get("kinds")
    if not kinds:
        return ""
    columns = [column for column in COLUMNS if column[2] in kinds.get(column[1], {})]
    rates = data.get("peers_scaling", {}).get("mixes", {}).get(SCALING, {}).get("peers", {})
    phases = data.get("kill_storm", {}).get("phases", [])
    heads = [title for title, _, _ in columns]
    if rates:
        heads.append(f"{PROCESSES} processes, {SCALING}: operations a second")
    if phases:
        heads.append("a writer is killed")
    lines = ["| | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    for name in kinds["100 B"]["get"]:
        cells = [
            span(kinds[kind][operation].get(name, {}).get("median_ns"))
            for _, kind, operation in columns
        ]
        if rates:
            row = rates.get(name, {}).get(PROCESSES)
            cells.append(_rate(row["operations_per_second"]) if row else "-")
        if phases:
            cells.append(_verdict([p for p in phases if p["peer"] == name and p["storm"]]))
        if name == "shmcache":
            name, cells = f"**{name}**", [f"**{cell}**" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    machine = document["machine"]
    lines += [
        "",
        f"Medians, all systems in turns in one run, on {machine['cpus']} CPUs "
        f"({machine['processor']}), Python {machine['python']}; hot keys of 20 characters, values "
        "of 100 B where nothing else is said.  A dash: the system has no such operation, or shares "
        "nothing between processes.  dict and lru_cache are private to one process: they are the "
        "limit.",
    ]
    return "\n".join(lines) + "\n"


def _rate(rate: float) -> str:
    return f"{rate / 1e6:.1f} M" if rate >= 999_500 else f"{rate / 1e3:,.0f} k"


def _verdict(phases: list[Mapping[str, Any]]) -> str:
    if not phases:
        return "-"
    (phase,) = phases
    if phase["hung"]:
        return f"others hang (after {phase['kills']})"
    torn = phase["reader"].get("wrong", 0)
    errors = sum(phase["reader"].get("errors", {}).values())
    errors += sum(phase["writer"].get("errors", {}).values())
    if torn:
        return f"{torn:,} torn values"
    return f"{errors:,} errors" if errors else "goes on"
