"""`shmcache clear` and `shmcache unlink`: all entries of a cache, and the cache itself."""

from __future__ import annotations

import click

from shmcache.cli.output import failing_clearly
from shmcache.cli.params import cache_argument, opened_entries
from shmcache.registry import list_caches
from shmcache.segment import unlink_segment

__all__ = ["clear", "unlink"]


@click.command()
@cache_argument
@click.option(
    "--namespace",
    "-n",
    "namespaces",
    multiple=True,
    metavar="N",
    help="Only this namespace (in O(1)); again for one within that one.",
)
@failing_clearly
def clear(name: str, namespaces: tuple[str, ...]) -> None:
    """Remove every entry of cache NAME, for all processes. Prints nothing.

    Processes that have it open go on with an empty cache; what they store meanwhile may stay.
    Configuration, latencies and tokens are no entries, and stay.

    \b
    Examples:
      shmcache clear app
      shmcache clear app --namespace sessions
    """
    with opened_entries(name, namespaces, decode=False) as entries:
        entries.clear()


@click.command()
@cache_argument
@click.option("--force", "-f", is_flag=True, help="Exit 0 too where there is no such cache.")
@failing_clearly
def unlink(name: str, force: bool) -> None:
    """Remove cache NAME from this host, usable or not, whoever has it open.

    Its memory goes with the last process that has it open; to those processes the cache is gone
    (CacheNotFound) until they reopen it, of which this warns. Like rm, it exits 1 if there is
    none, but with --force.

    \b
    Example:
      shmcache unlink app
    """
    living = next((cache.clients for cache in list_caches() if cache.name == name), None)
    if not unlink_segment(name):
        if force:
            return
        raise click.ClickException(f"there is no cache {name!r} on this host")
    if living:
        click.echo(
            f"warning: {living} living process{'es' if living > 1 else ''} had cache {name!r} "
            "open: further calls there raise CacheNotFound until reopen()",
            err=True,
        )
