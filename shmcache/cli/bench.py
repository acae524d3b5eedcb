"""`shmcache bench`: what a get, a set and an incr cost on this machine."""

from __future__ import annotations

import json

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from shmcache.cli.output import console, duration_text, failing_clearly
from shmcache.measure import BLIND_SPOTS, Measured
from shmcache.measure import measure as run_measure

__all__ = ["bench"]


@click.command()
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0.0, max=600.0),
    default=3.0,
    show_default=True,
    help="How long to measure, about.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@failing_clearly
def bench(seconds: float, as_json: bool) -> None:
    """Measure get, set and incr on this machine, beside a dict and an lru_cache.

    It makes a cache of its own (8 MiB) and removes it. Trust the ratios more than the times:
    both sides of a ratio are measured in turns, so that a busy machine slows both.

    \b
    Example:
      shmcache bench --seconds 10
    """
    err = console(stderr=True)
    with Progress(
        TextColumn("bench"),
        BarColumn(),
        TaskProgressColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task("bench", total=1.0)
        measured = run_measure(seconds, on_progress=lambda done: bar.update(task, completed=done))
    if as_json:
        click.echo(json.dumps({**measured.as_dict(), "blind_spots": BLIND_SPOTS}))
    else:
        _print(measured)


def _print(measured: Measured) -> None:
    """Print a table of the figures, and what they do not say."""
    out = console()
    table = Table("operation", "in", box=None, pad_edge=False)
    table.add_column("time", justify="right")
    table.add_column("x dict", justify="right")
    before = ""
    for figure in measured.figures:
        ours = figure.contestant == "shmcache"
        table.add_row(
            figure.operation if figure.operation != before else "",
            figure.contestant,
            duration_text(round(figure.nanoseconds)),
            f"{figure.ratio:.2f}",
            style="bold" if ours else None,
        )
        before = figure.operation
    out.print(table)
    out.print(
        f"\n1,000 keys, values of 100 bytes and ints; medians of {measured.rounds} rounds in "
        f"{measured.seconds:.1f} s on one of {measured.cpus} CPUs, the loop subtracted.",
        soft_wrap=not out.is_terminal,
    )
    out.print("What this cannot see:")
    for spot in BLIND_SPOTS:
        out.print(f"  - {spot}", soft_wrap=not out.is_terminal)
