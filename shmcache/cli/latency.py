"""`shmcache latency`: how long things took, from the cache's latency rings."""

from __future__ import annotations

import json
import time

import click
from rich.console import Console
from rich.table import Table

from shmcache.cli.figures import bar, count_text, rate_text, seconds_text
from shmcache.cli.output import console, failing_clearly
from shmcache.metrics import RingReading, by_octaves, look, read_rings

BAR_COLUMNS = 40
WIDE_COLUMNS = 110


@click.command()
@click.argument("name")
@click.option("--ring", "rings", metavar="R", multiple=True, help="Only this ring; again for more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables and charts.")
@failing_clearly
def latency(name: str, rings: tuple[str, ...], as_json: bool) -> None:
    """Show the latency rings of the cache NAME: the cache's own and those of the application.

    shmcache.get and shmcache.set are samples of the cache's own calls, one in 256; all other
    rings are what the application recorded. Count, mean, max and the chart are over a ring's
    lifetime, percentiles and rate over the newest samples, which it keeps.

    \b
    Examples:
      shmcache latency app
      shmcache latency app --ring checkout --json
    """
    with look(name) as cache:
        found = read_rings(cache)
    unknown = set(rings) - {ring.name for ring in found}
    if unknown:
        raise click.ClickException(
            f"cache {name!r} has no latency ring {', '.join(map(repr, sorted(unknown)))}; it has "
            f"{', '.join(ring.name for ring in found)}"
        )
    shown = [ring for ring in found if not rings or ring.name in rings]
    if as_json:
        click.echo(json.dumps({"name": name, "latencies": [ring.as_dict() for ring in shown]}))
        return
    out = console()
    out.print(_table(shown, out.width))
    for ring in shown:
        if ring.histogram:
            _print_chart(out, ring)


def _table(rings: list[RingReading], width: int) -> Table:
    """A line for each ring; in less than `WIDE_COLUMNS` without what can be spared."""
    headings = ["count", "per s", "p50", "p90", "p99", "max"]
    if width >= WIDE_COLUMNS:
        headings = ["count", "per s", "mean", "p50", "p90", "p99", "p99.9", "max", "last"]
    table = Table(box=None, pad_edge=False)
    table.add_column("ring", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for ring in rings:
        of = ring.summary
        ago = "-" if of.last_at is None else f"{max(0.0, time.time() - of.last_at):,.0f} s ago"
        cells = {
            "count": count_text(of.count),
            "per s": rate_text(of.rate),
            "mean": seconds_text(of.mean),
            "p50": seconds_text(of.p50),
            "p90": seconds_text(of.p90),
            "p99": seconds_text(of.p99),
            "p99.9": seconds_text(of.p999),
            "max": seconds_text(of.max),
            "last": ago,
        }
        table.add_row(ring.name, *(cells[heading] for heading in headings))
    return table


def _print_chart(out: Console, ring: RingReading) -> None:
    """A ring's histogram as bars."""
    rows = by_octaves(ring.histogram)
    most = max(row.count for row in rows)
    out.print(f"\n{ring.name}", markup=False)
    chart = Table.grid(padding=(0, 1))
    chart.add_column(justify="right", no_wrap=True)
    chart.add_column(width=BAR_COLUMNS)
    chart.add_column(justify="right", no_wrap=True)
    for row in rows:
        chart.add_row(
            f"< {seconds_text(row.upper)}", bar(row.count / most, BAR_COLUMNS), f"{row.count:,}"
        )
    out.print(chart)
