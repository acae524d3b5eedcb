"""`shmcache replay`: a recorded trace over one shared cache, every hit checked."""

from __future__ import annotations

import json
import os
import sys
from typing import Literal

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from shmcache import trace as traces
from shmcache.cli.output import console, duration_text, failing_clearly, size_text
from shmcache.cli.params import TraceName
from shmcache.cli.progress import Display
from shmcache.readthrough import Latency
from shmcache.replay import Progress, ReplayReport
from shmcache.replay import replay as run_replay


@click.command()
@click.argument("trace", type=TraceName(), default=traces.BUNDLED[0])
@click.option(
    "--workers",
    "-w",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="one for each CPU",
    help="Processes that share the cache.",
)
@click.option(
    "--name", metavar="NAME", help="Cache to use, created if absent. Default: one of its own."
)
@click.option(
    "--size", metavar="SIZE", help="Shared memory of a new cache, such as 64MiB (at least 1MiB)."
)
@click.option("--policy", type=click.Choice(["evict", "keep"]), help="Policy of a new cache.")
@click.option("--shards", metavar="N", type=int, help="Shards of a new cache, a power of two.")
@click.option(
    "--avg-entry-size", metavar="BYTES", type=int, help="Bytes of key and value, sizes the index."
)
@click.option(
    "--repeat",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Times over the trace.",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="Only the first N rows of the trace."
)
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn"]),
    default="fork",
    show_default=True,
    help="How worker processes are made.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@failing_clearly
def replay(
    trace: str,
    workers: int,
    name: str | None,
    size: str | None,
    policy: Literal["evict", "keep"] | None,
    shards: int | None,
    avg_entry_size: int | None,
    repeat: int,
    limit: int | None,
    start_method: Literal["fork", "spawn"],
    as_json: bool,
) -> None:
    """Replay TRACE over one cache from many processes, as a read-through cache would be used.

    TRACE is a CSV file, gzipped or not, with the columns key and size and perhaps ttl, or the
    name of a trace that ships with shmcache (web12, the default: an online shop's product
    pages). Of N workers, worker i takes rows i, i+N, i+2N, ...: each row is a get, and on a miss
    a set. Every value carries a checksum, and every hit is verified. A ttl counts in real
    seconds. Exits 1 if a value was wrong or a worker did not finish.

    \b
    Examples:
      shmcache replay --workers 4 --size 2MiB
      shmcache replay orm_busy.csv.gz --size 16MiB --json
    """
    loaded = traces.load(trace, limit=limit)
    with _Display() as display:
        report = run_replay(
            loaded,
            workers=workers,
            name=name,
            size=size,
            policy=policy,
            shards=shards,
            avg_entry_size=avg_entry_size,
            passes=repeat,
            start_method=start_method,
            on_progress=display.show,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        _print_report(report)
    if not report.ok:
        sys.exit(1)


class _Display(Display):
    """Progress of a replay. It starts no thread: workers are forked meanwhile."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("replay"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            description="replay",
            auto_refresh=False,
            total=None,
            status="starting",
        )

    def show(self, progress: Progress) -> None:
        """Draw where the replay stands."""
        tally = progress.tally
        rate = tally.operations / progress.seconds if progress.seconds else 0.0
        status = f"{rate:,.0f} ops/s, hit ratio {tally.hit_ratio:.2%}, {tally.wrong} wrong values"
        self._draw(
            f"replay: {tally.requests / max(1, progress.total_requests):.0%}, {status}",
            total=progress.total_requests,
            completed=tally.requests,
            status=status,
            refresh=True,
        )


def _print_report(report: ReplayReport) -> None:
    """Print the report for a person: what was asked, each worker, durations, the verdict."""
    out, total = console(), report.total
    passes = "" if report.passes == 1 else f", {report.passes} times over"
    out.print(
        f"{report.trace}{passes}: {total.requests:,} requests, "
        f"{len(report.workers)} workers on one cache of {size_text(report.size)} "
        f"({report.policy})\n",
        soft_wrap=True,
    )

    workers = Table(box=None, pad_edge=False)
    for heading in ("worker", "requests", "hit ratio", "byte hit ratio", "ops/s", "wrong"):
        workers.add_column(heading, justify="right")
    workers.add_column("ended")
    for worker in report.workers:
        tally = worker.tally
        workers.add_row(
            str(worker.worker),
            f"{tally.requests:,}",
            f"{tally.hit_ratio:.2%}",
            f"{tally.byte_hit_ratio:.2%}",
            f"{worker.operations_per_second:,.0f}",
            f"{tally.wrong:,}",
            worker.failure or "finished",
        )
    workers.add_row(
        "all",
        f"{total.requests:,}",
        f"{report.hit_ratio:.2%}",
        f"{report.byte_hit_ratio:.2%}",
        f"{report.operations_per_second:,.0f}",
        f"{total.wrong:,}",
        style="bold",
    )
    out.print(workers)
    out.print()

    durations = Table(box=None, pad_edge=False)
    for heading in ("call", "count", "p50", "p90", "p99", "p99.9", "max"):
        durations.add_column(heading, justify="right")
    durations.add_row("get", *_latency_cells(report.get))
    durations.add_row("set", *_latency_cells(report.set))
    out.print(durations)
    out.print()

    out.print(
        f"evictions {report.evictions:,}, expirations {report.expirations:,}, "
        f"entries {report.entries:,}, "
        f"{size_text(report.bytes_used)} of {size_text(report.bytes_total)} in use"
    )
    for count, what in (
        (total.refused, "values larger than the cache takes were not stored"),
        (total.full, "values found no room (policy keep) and were not stored"),
        (total.timeouts, "values were not stored: their shard was held too long"),
    ):
        if count:
            out.print(f"{count:,} {what}")
    if report.interrupted:
        out.print("interrupted", style="yellow")
    if total.wrong_keys:
        out.print(f"wrong: keys {', '.join(total.wrong_keys[:10])}", style="red", markup=False)
    out.print(f"{total.wrong:,} wrong values", style="bold red" if total.wrong else "bold green")


def _latency_cells(latency: Latency) -> list[str]:
    """Return the cells of one row of durations."""
    percentiles = (
        latency.p50_ns,
        latency.p90_ns,
        latency.p99_ns,
        latency.p999_ns,
        latency.max_ns,
    )
    return [f"{latency.count:,}", *(duration_text(value) for value in percentiles)]
