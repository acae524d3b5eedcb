"""`shmcache top`: a cache at work, live in a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shmcache.cli.figures import bar, heat, rate_text, ratio_text, seconds_text, uptime_text
from shmcache.cli.output import console, failing_clearly, size_text
from shmcache.errors import CacheNotFound
from shmcache.metrics import Follower, Rates, Reading

WIDE_COLUMNS = 140
"""From here on rates and latencies stand side by side."""

PLAIN_FRAME_COLUMNS = 100
"""Width of a frame that goes to no terminal, unless `COLUMNS` says another."""

_HEAD_LINES = 7  # name, who, memory, strips and what is said of them
_EVENT_LINES = 11
_LABEL_COLUMNS = 9  # of "memory", "writes", "waits" before bars and strips


@click.command()
@click.argument("name")
@click.option(
    "--interval",
    "-i",
    metavar="S",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame, after one interval, and stop.")
@click.option("--count", "-n", metavar="N", type=click.IntRange(1), help="Stop after N frames.")
@failing_clearly
def top(name: str, interval: float, once: bool, count: int | None) -> None:
    """Watch the cache NAME at work: rates, hit ratio, latencies, shards, clients.

    Press q or ctrl-c to stop. Without a terminal, frames are printed one below the other. Where
    the cache is unlinked it waits for the next one of that name. Watching changes nothing: it
    counts as no client, and never waits for a writer.

    \b
    Examples:
      shmcache top app
      shmcache top app --interval 5 --count 12 > log
    """
    frames = 1 if once else count
    out = console()
    if not out.is_terminal:
        out.width = int(os.environ.get("COLUMNS") or PLAIN_FRAME_COLUMNS)
    with Follower(name) as follower, contextlib.suppress(KeyboardInterrupt):
        first = follower.read()  # where there is none, say so instead of waiting for a typing error
        if out.is_terminal and not once:
            _live(out, follower, first, interval, frames)
        else:
            _plain(out, follower, first, interval, frames)


def _plain(
    out: Console, follower: Follower, first: Reading, interval: float, frames: int | None
) -> None:
    """Print a frame an interval, each with an empty line after it."""
    latest: Reading | None = first
    while frames is None or frames > 0:
        time.sleep(interval)
        latest, shown = _next(follower, latest, out.width, None)
        out.print(shown)
        frames = None if frames is None else frames - 1
        if frames != 0:
            out.print()


def _live(
    out: Console, follower: Follower, first: Reading, interval: float, frames: int | None
) -> None:
    """Draw on the whole terminal, over and over, until a key or so many frames."""
    latest: Reading | None = first
    shown: RenderableType = frame(first, Rates.between(None, first), out.width, out.height - 1)
    with _Keys() as keys, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(shown, Text("q quits", style="dim")), refresh=True)
            frames = None if frames is None else frames - 1
            if frames == 0 or keys.quit_within(interval):
                return
            latest, shown = _next(follower, latest, out.width, out.height - 1)


def _next(
    follower: Follower, latest: Reading | None, width: int, lines: int | None
) -> tuple[Reading | None, RenderableType]:
    """Read once more; the reading to compare the next one with, and what to show."""
    try:
        reading = follower.read()
    except CacheNotFound:
        return latest, Text(f"waiting for cache {follower.name!r}: there is none now")
    return reading, frame(reading, Rates.between(latest, reading), width, lines)


# ------------------------------------------------------------------------------- one frame
def frame(reading: Reading, rates: Rates, width: int, lines: int | None = None) -> Group:
    """What is shown of one interval, in at most `width` columns (from about 70 on).

    lines: leave out latency rings, the last ones first, so that it takes no more than these.
    """
    rings = len(reading.latencies)
    top_part = [_head(reading, rates, width), "", _memory(reading, width), *_strips(rates, width)]
    if width >= WIDE_COLUMNS:
        if lines is not None:
            rings = max(3, lines - _HEAD_LINES - 2)
        below = Table.grid(padding=(0, 6), expand=False)
        below.add_row(_events(reading, rates), _latencies(reading, rates, rings))
        return Group(*top_part, "", below)
    if lines is not None:
        rings = max(2, lines - _HEAD_LINES - _EVENT_LINES - 2)
    latencies = _latencies(reading, rates, rings)
    return Group(*top_part, "", _events(reading, rates), "", latencies)


def _head(reading: Reading, rates: Rates, width: int) -> RenderableType:
    """The name, what it is, who is there, and what the rates are of."""
    stats = reading.stats
    title = Text.assemble((reading.name, "bold"), overflow="ellipsis", no_wrap=True)
    made = Text(
        f"{reading.policy}, {reading.codec}, {len(stats.shards)} shards, "
        f"up {uptime_text(stats.uptime_seconds)}"
    )
    first = Table.grid(expand=True)
    first.add_column(ratio=1)
    first.add_column(justify="right", no_wrap=True)
    first.add_row(title, made)
    owner = "no owner daemon" if stats.owner_pid is None else f"owner pid {stats.owner_pid}"
    since = "since creation" if rates.since_creation else f"over {rates.seconds:.1f} s"
    recoveries = Text(f"{stats.recoveries:,} recoveries")
    if rates.recoveries:
        recoveries.append(f" (+{rates.recoveries:,})")
        recoveries.stylize("bold red")
    second = Text(", ").join(
        [
            Text(f"{stats.clients:,} {'client' if stats.clients == 1 else 'clients'}"),
            Text(f"user {reading.user}"),
            Text(owner),
            recoveries,
            Text(f"rates {since}"),
        ]
    )
    second.truncate(width, overflow="ellipsis")
    return Group(first, second)


def _memory(reading: Reading, width: int) -> RenderableType:
    """How full the logs are."""
    stats = reading.stats
    share = stats.bytes_used / stats.bytes_total if stats.bytes_total else 0.0
    text = (
        f" {share:6.1%}  {size_text(stats.bytes_used)} of {size_text(stats.bytes_total)}, "
        f"{stats.entries:,} entries"
    )
    room = max(10, width - _LABEL_COLUMNS - 2 - len(text))
    line = Text("memory".ljust(_LABEL_COLUMNS))
    line.append("[")
    line.append(bar(share, room), style="green" if share < 0.9 else "yellow")
    line.append("]" + text)
    line.truncate(width, overflow="ellipsis")
    return line


def _events(reading: Reading, rates: Rates) -> Table:
    """What happened: per second, and in all."""
    stats = reading.stats
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("per second", justify="right", no_wrap=True, min_width=12)
    table.add_column("in all", justify="right", no_wrap=True, min_width=16)
    table.add_row("gets", rate_text(rates.gets), f"{stats.hits + stats.misses:,}")
    for field in ("hits", "misses", "sets", "deletes", "evictions", "expirations"):
        table.add_row(field, rate_text(getattr(rates, field)), f"{getattr(stats, field):,}")
    table.add_row("lock waits", rate_text(rates.lock_waits), f"{stats.lock_wait.count:,}")
    lifetime = ratio_text(stats.hit_ratio if stats.hits + stats.misses else None)
    table.add_row("hit ratio", ratio_text(rates.hit_ratio), lifetime, style="bold")
    return table


def _latencies(reading: Reading, rates: Rates, most: int) -> Table:
    """Each ring in the interval, `most` of them, and its longest ever."""
    table = Table(box=None, pad_edge=False)
    table.add_column("latency", overflow="ellipsis", no_wrap=True, min_width=12)
    for heading in ("samples/s", "p50", "p99", "max", "max ever"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    for ring in reading.latencies[:most]:
        now = rates.latency(ring.name)
        if now is None:
            continue
        table.add_row(
            ring.name,
            rate_text(now.rate),
            *map(seconds_text, (now.p50, now.p99, now.max, ring.summary.max)),
        )
    return table


def _strips(rates: Rates, width: int) -> Iterator[RenderableType]:
    """The shards as strips of heat: how often they are taken, and how long they are waited for."""
    room = width - _LABEL_COLUMNS
    taken, waited = rates.shard_writes, rates.shard_waits
    yield Text.assemble("taken".ljust(_LABEL_COLUMNS), heat(taken, room))
    yield Text.assemble("waited".ljust(_LABEL_COLUMNS), heat(waited, room))
    hottest = max(range(len(taken)), key=taken.__getitem__)
    slowest = max(range(len(waited)), key=waited.__getitem__)
    legend = f"{len(taken)} shards: how often taken by writers, how long waited for"
    if taken[hottest] > 0:
        legend = f"shard {hottest} of {len(taken)} taken {rate_text(taken[hottest])} times a second"
        if waited[slowest] > 0:
            legend += f", shard {slowest} waited for {waited[slowest] * 1e3:.1f} ms a second"
    yield Text(" " * _LABEL_COLUMNS + legend, style="dim", overflow="ellipsis", no_wrap=True)


# -------------------------------------------------------------------------------- the keys
class _Keys:
    """Single keys from the terminal while it is entered; none where input is no terminal."""

    def __init__(self) -> None:
        self._fd = -1
        self._was: list[Any] = []

    def __enter__(self) -> _Keys:
        with contextlib.suppress(ValueError, OSError):  # a closed or replaced standard input
            if os.isatty(sys.stdin.fileno()):
                self._fd = sys.stdin.fileno()
                self._was = termios.tcgetattr(self._fd)
                tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._was:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._was)

    def quit_within(self, seconds: float) -> bool:
        """Wait that long; whether q was pressed meanwhile."""
        if not self._was:
            time.sleep(seconds)
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._fd], [], [], left)[0]:
                return False
            pressed = os.read(self._fd, 64)
            if not pressed or b"q" in pressed.lower():  # nothing: the terminal is gone
                return True
        return False
