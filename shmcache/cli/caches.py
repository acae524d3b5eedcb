"""`shmcache ls`: the caches on this host."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from shmcache.cli.output import console, failing_clearly, size_text
from shmcache.segment import CacheInfo, list_caches


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@failing_clearly
def ls(as_json: bool) -> None:
    """List the caches on this host: size, entries, attached processes, owner.

    USER is whose the shared memory is; OWNER the process id of the daemon that owns the cache,
    where one runs (`shmcache serve`). Looking changes nothing: no cache is attached to. A cache
    that cannot be read is listed with the reason.

    \b
    Example:
      shmcache ls --json
    """
    caches = list_caches()
    if as_json:
        click.echo(json.dumps([asdict(cache) for cache in caches]))
        return
    out = console()
    if not caches:
        out.print("no caches")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for heading in ("size", "entries", "clients", "user", "owner"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cache in caches:
        table.add_row(
            cache.name,
            size_text(cache.size),
            _count(cache.entries),
            _count(cache.clients),
            cache.owner,
            _daemon(cache),
        )
    out.print(table)
    for cache in caches:
        if cache.problem:
            out.print(f"\n{cache.name}: {cache.problem}", markup=False, style="yellow")


def _count(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _daemon(cache: CacheInfo) -> str:
    if cache.entries is None:
        return "?"
    return "-" if cache.owner_pid is None else f"pid {cache.owner_pid}"
