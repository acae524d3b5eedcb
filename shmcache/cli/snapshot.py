"""`shmcache snapshot`: a cache's entries in a file, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn

from shmcache import snapshot as snapshots
from shmcache.cli.output import failing_clearly, size_text
from shmcache.cli.params import cache_argument
from shmcache.cli.progress import Display
from shmcache.observer import observe
from shmcache.snapshot import SnapshotProgress

_FILE = click.Path(dir_okay=False)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


@click.group()
def snapshot() -> None:
    """Save a cache's entries to a file, and load them again.

    Entries keep what is left of their ttl. Workers read and write on meanwhile.

    \b
    Examples:
      shmcache snapshot save app app.snapshot
      shmcache snapshot load app app.snapshot
    """


@snapshot.command()
@cache_argument
@click.argument("file", type=_FILE)
@_JSON
@failing_clearly
def save(name: str, file: str, as_json: bool) -> None:
    """Save the entries of cache NAME to FILE, while clients use it.

    Each entry is saved whole, as it was at some moment of the save. FILE is replaced only when the
    new one is complete, checksummed and on the disk; it gets the permissions of the cache.

    \b
    Example:
      shmcache snapshot save app /var/lib/shmcache/app.snapshot
    """
    with observe(name, decode=False) as cache, _Display() as display:
        report = snapshots.save(cache, file, on_progress=display.show)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
        return
    click.echo(
        f"saved {_count(report.entries, report.slots)} of cache {name} to {file}: "
        f"{size_text(report.bytes)} in {report.seconds:.2f} s"
    )
    if report.damaged:
        click.echo(
            f"{report.damaged:,} damaged entries and slots were left out: run `shmcache verify "
            f"{name}`",
            err=True,
        )


@snapshot.command(short_help="Load the entries in FILE into cache NAME.")
@cache_argument
@click.argument("file", type=_FILE)
@click.option(
    "--size", metavar="SIZE", help="Of a cache that is created, such as 64MiB. Default: as saved."
)
@click.option(
    "--mode",
    metavar="0660",
    default="0600",
    show_default=True,
    help="Permissions of one, in octal.",
)
@click.option("--group", metavar="G", help="Group of one, by name or number.")
@_JSON
@failing_clearly
def load(
    name: str, file: str, size: str | None, mode: str, group: str | None, as_json: bool
) -> None:
    """Load the entries in FILE into cache NAME, which is created where it is absent.

    All of FILE is checked first: if it is damaged, nothing of it is loaded. An entry of it
    replaces the one under its key; entries under other keys stay. A cache that is created has the
    size, policy and codec of the saved one, and persists until `shmcache unlink NAME`, since nobody
    has it open yet.

    \b
    Example:
      shmcache snapshot load app /var/lib/shmcache/app.snapshot
    """
    try:
        bits = int(mode, 8)
    except ValueError:
        raise click.BadParameter(f"{mode!r} is no octal number", param_hint="--mode") from None
    with _Display() as display:
        report = snapshots.restore(
            name,
            file,
            size=size,
            mode=bits,
            group=int(group) if group is not None and group.isdigit() else group,
            on_progress=display.show,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
        return
    made = ", created for it: it persists until it is unlinked" if report.created else ""
    click.echo(
        f"loaded {_count(report.entries, report.slots)} from {file} into cache {name}{made}; "
        f"{size_text(report.bytes)} in {report.seconds:.2f} s"
    )
    if report.evicted or report.too_large:
        click.echo(
            f"not all fit: {report.evicted:,} entries were evicted meanwhile, {report.too_large:,} "
            "are larger than this cache takes",
            err=True,
        )


@snapshot.command()
@click.argument("file", type=_FILE)
@_JSON
@failing_clearly
def info(file: str, as_json: bool) -> None:
    """Say what FILE is a snapshot of, after checking every byte of it.

    \b
    Example:
      shmcache snapshot info /var/lib/shmcache/app.snapshot
    """
    with _Display() as display:
        found = snapshots.verify(file, on_progress=display.show)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    saved = datetime.fromtimestamp(found.created_at).astimezone().isoformat(" ", "seconds")
    click.echo(
        f"cache {found.name}, saved {saved}: {_count(found.entries, found.slots)}, "
        f"{size_text(found.bytes)}; size {size_text(found.size)}, {found.shards} shards, "
        f"policy {found.policy}, codec {found.codec}"
    )


def _count(entries: int, slots: int) -> str:
    text = f"{entries:,} {'entry' if entries == 1 else 'entries'}"
    return f"{text} and {slots} swap slot{'s' if slots > 1 else ''}" if slots else text


class _Display(Display):
    """Progress of a save or a load."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[entries]:,} entries"),
            description="",
            total=1.0,
            entries=0,
        )

    def show(self, progress: SnapshotProgress) -> None:
        """Draw how far it has got."""
        self._draw(
            f"{progress.phase}: {progress.fraction:.0%}, {progress.entries:,} entries",
            description=progress.phase,
            completed=progress.fraction,
            entries=progress.entries,
        )
