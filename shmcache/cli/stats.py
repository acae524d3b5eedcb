"""`shmcache stats`: the counters of a cache, once or again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from shmcache.cli.figures import count_text, rate_text, ratio_text, seconds_text, uptime_text
from shmcache.cli.output import console, failing_clearly, size_text
from shmcache.errors import CacheNotFound
from shmcache.metrics import Follower, Rates, Reading

COUNTED = (
    ("hits", "hits"),
    ("misses", "misses"),
    ("sets", "sets"),
    ("deletes", "deletes"),
    ("evictions", "evictions"),
    ("expirations", "expirations"),
    ("lock acquisitions", "lock_acquisitions"),
    ("lock contended", "lock_contended"),
)
"""Rows with a rate of their own: what is said, the field of `Stats` and of `Rates`."""

OTHERS = (
    ("read retries", "read_retries"),
    ("lock timeouts", "lock_timeouts"),
    ("try attempts", "try_attempts"),
    ("try blocked", "try_blocked"),
    ("recoveries", "recoveries"),
    ("store failures", "store_failures"),
)


@click.command()
@click.argument("name")
@click.option("--watch", is_flag=True, help="Print again and again, with rates, until ctrl-c.")
@click.option(
    "--interval",
    "-i",
    metavar="S",
    type=click.FloatRange(min=0.05),
    help="With --watch: seconds between two (2).",
)
@click.option(
    "--count", "-n", metavar="N", type=click.IntRange(1), help="With --watch: stop after N."
)
@click.option("--shards", is_flag=True, help="Add a line for each shard.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line each time.")
@failing_clearly
def stats(
    name: str,
    watch: bool,
    interval: float | None,
    count: int | None,
    shards: bool,
    as_json: bool,
) -> None:
    """Show what the cache NAME has counted since it was created, all processes together.

    Looking changes nothing: it counts as no client, and never waits for a writer.

    \b
    Examples:
      shmcache stats app
      shmcache stats app --watch --interval 5 --shards
      shmcache stats app --json
    """
    for option, value in (("--interval", interval), ("--count", count)):
        if value is not None and not watch:
            raise click.UsageError(f"{option} goes with --watch")
    out = console()
    with Follower(name) as follower:
        earlier: Reading | None = None
        reading = follower.read()
        _print(out, reading, None, shards, as_json)
        try:
            while watch and (count := _one_less(count)) != 0:
                time.sleep(interval or 2.0)
                earlier = reading
                try:
                    reading = follower.read()
                except CacheNotFound:
                    click.echo(f"waiting for cache {name!r}", err=True)
                    continue
                _print(out, reading, Rates.between(earlier, reading), shards, as_json)
        except KeyboardInterrupt:
            return


def _one_less(count: int | None) -> int | None:
    return None if count is None else count - 1


def _print(
    out: Console, reading: Reading, rates: Rates | None, shards: bool, as_json: bool
) -> None:
    """Print one reading for a program or a person."""
    if as_json:
        click.echo(json.dumps(reading.as_dict()))
        return
    if rates is not None:
        out.clear()  # a terminal; else nothing
        out.print(f"\n{datetime.now(UTC).astimezone():%H:%M:%S}")
    out.print(_tables(reading, rates, shards))


def _tables(reading: Reading, rates: Rates | None, shards: bool) -> RenderableType:
    """The reading as tables."""
    figures = reading.stats
    about = Table.grid(padding=(0, 2))
    about.add_row("cache", reading.name)
    about.add_row(
        "created with",
        f"policy {reading.policy}, codec {reading.codec}, {len(figures.shards)} shards, "
        f"{size_text(reading.size)} of shared memory",
    )
    about.add_row(
        "belongs to", f"user {reading.user}, {'persists' if reading.persist else 'not persistent'}"
    )
    owner = "none" if figures.owner_pid is None else f"pid {figures.owner_pid}"
    about.add_row("owner daemon", owner)
    about.add_row("clients", f"{figures.clients:,}")
    about.add_row("up", uptime_text(figures.uptime_seconds))
    share = figures.bytes_used / figures.bytes_total if figures.bytes_total else 0.0
    about.add_row(
        "in use",
        f"{size_text(figures.bytes_used)} of {size_text(figures.bytes_total)} ({share:.1%})",
    )
    about.add_row("entries", f"{figures.entries:,}")
    ratio = ratio_text(figures.hit_ratio if figures.hits + figures.misses else None)
    if rates is not None:
        ratio += f" ({ratio_text(rates.hit_ratio)} in the last {rates.seconds:.1f} s)"
    about.add_row("hit ratio", ratio)
    waits = figures.lock_wait
    about.add_row(
        "lock waits",
        f"{waits.count:,}, {figures.lock_wait_seconds:.3f} s in all"
        + (
            f", p50 {seconds_text(waits.p50)}, p99 {seconds_text(waits.p99)}, "
            f"max {seconds_text(waits.max)}"
            if waits.count
            else ""
        ),
    )

    counted = Table(box=None, pad_edge=False)
    counted.add_column("counted")
    counted.add_column("total", justify="right")
    if rates is not None:
        counted.add_column("per second", justify="right")
    for text, field in COUNTED:
        rate = [] if rates is None else [rate_text(getattr(rates, field))]
        counted.add_row(text, f"{getattr(figures, field):,}", *rate)
    for text, field in OTHERS:
        counted.add_row(text, f"{getattr(figures, field):,}")
    parts: list[RenderableType] = [about, "", counted]
    if shards:
        parts += ["", _shard_table(reading)]
    return Group(*parts)


def _shard_table(reading: Reading) -> Table:
    """A line for each shard, of less than 80 columns."""
    columns: tuple[tuple[str, Callable[[float], str], str], ...] = (
        ("shard", str, "index"),
        ("entries", count_text, "entries"),
        ("in use", _size, "bytes_used"),
        ("sets", count_text, "sets"),
        ("deletes", count_text, "deletes"),
        ("evicted", count_text, "evictions"),
        ("expired", count_text, "expirations"),
        ("taken", count_text, "lock_acquisitions"),
        ("waited", seconds_text, "lock_wait_seconds"),
        ("repairs", count_text, "recoveries"),
    )
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 1))
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for shard in reading.stats.shards:
        table.add_row(*(text(getattr(shard, field)) for _, text, field in columns))
    return table


def _size(value: float) -> str:
    return size_text(round(value))
