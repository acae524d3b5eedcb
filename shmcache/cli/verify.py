"""`shmcache verify`: every invariant of a cache, checked beside its writers."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from shmcache.cli.output import failing_clearly
from shmcache.cli.params import cache_argument, opened

__all__ = ["verify"]


@click.command()
@cache_argument
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@failing_clearly
def verify(name: str, as_json: bool) -> None:
    """Check every invariant of cache NAME, beside its writers. Exits 1 with findings.

    Each shard is locked while it is checked, about 200 ns an entry; a shard whose holder died is
    repaired first, as any write would. A finding means that bytes were damaged (a stray write, a
    copied file, a bug): what shmcache promises does not hold for that part any more. What each
    name means is in docs/invariants.md.

    \b
    Example:
      shmcache verify app
    """
    with opened(name, decode=False) as cache:
        shards = cache.shards
        findings = cache.verify()
    if as_json:
        report = {
            "cache": name,
            "sound": not findings,
            "shards": shards,
            "findings": [{**asdict(finding), "message": str(finding)} for finding in findings],
        }
        click.echo(json.dumps(report))
    elif findings:
        for finding in findings:
            click.echo(str(finding))
        click.echo(
            f"{len(findings)} findings: cache {name!r} is damaged. What is read from elsewhere in "
            "it is still checked and right; to be rid of the damage, stop its users, "
            f"`shmcache unlink {name}`, and let it be made anew. Please report it, with this list.",
            err=True,
        )
    else:
        click.echo(f"cache {name!r} is sound: every invariant holds in all of {shards} shards")
    if findings:
        sys.exit(1)
