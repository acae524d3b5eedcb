"""Results as JSON (everything) and Markdown (what people read)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from bench.harness import Figure, Measurement, Result, Table

SCHEMA = 2
"""Bumped when a field of the JSON changes its meaning or goes away."""


def as_json(machine: dict[str, Any], results: list[Result]) -> str:
    """All results, with the machine they come from."""
    workloads = []
    for result in results:
        record = asdict(result)
        record["figures"] = [asdict(f) | {"met": f.met} for f in result.figures]
        record["measurements"] = [asdict(m) | {"net_ns": m.net_ns} for m in result.measurements]
        workloads.append(record)
    document = {"schema": SCHEMA, "machine": machine, "workloads": workloads}
    return json.dumps(document, indent=1) + "\n"


def as_markdown(machine: dict[str, Any], results: list[Result]) -> str:
    """A table of targets, then each workload with its own measurements."""
    lines = ["# shmcache beside its peers", "", *_machine(machine), ""]
    lines += ["## Targets", "", *_figures([f for r in results for f in r.figures if f.target])]
    for result in results:
        lines += ["", f"## {result.title} (`{result.name}`)", "", result.statement, ""]
        if result.figures:
            lines += [*_figures(result.figures), ""]
        if result.measurements:
            lines += [*_measurements(result.measurements), ""]
        for table in result.tables:
            lines += [*as_rows(table), ""]
        for name, value in result.details.items():
            lines.append(f"* {name}: {_plain(value)}")
        lines += [f"* Skipped: {reason}" for reason in result.skipped]
        lines.append(f"* It cannot see: {result.cannot_see}")
    return "\n".join(lines) + "\n"


def as_text(result: Result) -> str:
    """A few lines for the terminal while the run goes on."""
    rows = [f"{result.name}: {result.title}"]
    rows += [
        f"  {m.name:<38} {m.median_ns:>10,.1f} ns  net {m.net_ns:>10,.1f}  "
        f"[{m.low_ns:,.1f}, {m.high_ns:,.1f}]  redone {m.redone}"
        + (f", kept disturbed {m.kept_disturbed}" if m.kept_disturbed else "")
        for m in result.measurements
    ]
    for figure in result.figures:
        bound = _bound(figure)
        verdict = {True: "ok", False: "MISSED", None: ""}[figure.met]
        net = f"net {_number(figure.net)}" if figure.net is not None else ""
        rows.append(
            f"  {figure.name:<50} {_number(figure.value)} {figure.unit:<3} {bound:<7} "
            f"{verdict:<7} {net}"
        )
    for table in result.tables:
        rows += ["", *_aligned(table)]
    rows += [f"  skipped: {reason}" for reason in result.skipped]
    return "\n".join(rows)


def _aligned(table: Table) -> list[str]:
    cells = [table.columns, *table.rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(table.columns))]
    lines = [
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    return [f"  {table.title}", *lines]


def as_rows(table: Table) -> list[str]:
    """A table in Markdown, under its title; the first column is text, all others are numbers."""
    rows = [f"**{table.title}**", "", "| " + " | ".join(table.columns) + " |"]
    rows.append("|---" + "|---:" * (len(table.columns) - 1) + "|")
    rows += ["| " + " | ".join(row) + " |" for row in table.rows]
    return [*rows, "", table.note] if table.note else rows


def span(nanoseconds: float | None) -> str:
    """A duration with three digits and the unit that suits it; a dash for None."""
    if nanoseconds is None:
        return "-"
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if nanoseconds < 0.9995 * limit:
            value = nanoseconds / (limit / 1e3)
            return (
                f"{value:.0f} {unit}" if value >= 99.95 or unit == "ns" else f"{value:.3g} {unit}"
            )
    return f"{nanoseconds / 1e9:.3g} s"


def _machine(machine: dict[str, Any]) -> list[str]:
    versions = machine["packages"] | machine["programs"] | {"SQLite": machine["sqlite"]}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return [
        f"{machine['processor']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, "
        f"Python {machine['python']} ({machine['compiler']}), {packages}; revision "
        f"{machine['revision']}.  Command: `{machine['command']}`.  "
        f"{machine['load']}",
        "",
        "Figures are medians; ratios come from one run in which all contestants took turns; "
        "in brackets the quartiles over its rounds.  Times include the loop around the "
        "statement; `net` has it subtracted.  Samples that the kernel interrupted were redone.",
    ]


def _figures(figures: list[Figure]) -> list[str]:
    rows = [
        "| figure | measured | quartiles | net of loop | target | | prototype |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        unit = f" {figure.unit}" if figure.unit else ""
        quartiles = (
            f"[{_number(figure.low)}, {_number(figure.high)}]" if figure.low is not None else ""
        )
        verdict = {True: "met", False: "**missed**", None: ""}[figure.met]
        rows.append(
            f"| {figure.name} | {_number(figure.value)}{unit} | {quartiles} | "
            f"{_number(figure.net)} | {_bound(figure)} | {verdict} | "
            f"{_number(figure.prototype)} |"
        )
    return rows


def _measurements(measurements: list[Measurement]) -> list[str]:
    rows = [
        "| contestant | ns per operation | quartiles | of which loop | redone |",
        "|---|---|---|---|---|",
    ]
    for m in measurements:
        redone = str(m.redone) + (f" ({m.kept_disturbed} kept)" if m.kept_disturbed else "")
        rows.append(
            f"| {m.name} | {m.median_ns:,.1f} | [{m.low_ns:,.1f}, {m.high_ns:,.1f}] | "
            f"{m.loop_ns:,.1f} | {redone} |"
        )
    return rows


def _bound(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return ("≤ " if figure.at_most else "≥ ") + f"{figure.target:g}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    return str(value)
