"""`shmcache ls`: the caches on this host."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from shmcache.cli.output import console, failing_clearly, size_text
from shmcache.segment import list_caches


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@failing_clearly
def ls(as_json: bool) -> None:
    """List the caches on this host: size, entries, attached processes, owner.

    Looking changes nothing: no cache is attached to.

    \b
    Example:
      shmcache ls --json
    """
    caches = list_caches()
    if as_json:
        click.echo(json.dumps([asdict(cache) for cache in caches]))
        return
    table = Table("name", box=None)
    for heading in ("size", "entries", "clients", "owner"):
        table.add_column(heading, justify="right")
    for cache in caches:
        table.add_row(
            cache.name, size_text(cache.size), str(cache.entries), str(cache.clients), cache.owner
        )
    console().print(table if caches else "no caches")
