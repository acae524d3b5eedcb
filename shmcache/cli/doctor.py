"""`shmcache doctor`: what is wrong, why it matters, and the command that mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from shmcache.cli.output import console, failing_clearly
from shmcache.cli.params import CacheName
from shmcache.doctor import CHECKS, Diagnosis, examine
from shmcache.registry import list_caches

__all__ = ["doctor"]

_STYLES = {"error": "bold red", "warning": "bold yellow", "hint": "bold cyan"}


@click.command()
@click.argument("name", type=CacheName(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@failing_clearly
def doctor(name: str | None, as_json: bool) -> None:
    """Find what is wrong with the caches of this host, or with cache NAME, and with the host.

    Each finding says what was found, what it does to you, and the command that mends it. Looking
    changes nothing. Exits 1 when it finds an error or a warning; hints alone (what could be
    better) exit 0.

    \b
    Examples:
      shmcache doctor
      shmcache doctor app --json
    """
    found = examine(name)
    ok = all(diagnosis.severity == "hint" for diagnosis in found)
    if as_json:
        report = {"ok": ok, "checked": CHECKS, "findings": [asdict(item) for item in found]}
        click.echo(json.dumps(report))
    else:
        for diagnosis in found:
            _print(diagnosis)
        _print_verdict(name, found, ok)
    if not ok:
        sys.exit(1)


def _print(diagnosis: Diagnosis) -> None:
    """Print one finding: three paragraphs, hung in from their headings on a terminal."""
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    head = Text.assemble(
        (diagnosis.severity, _STYLES[diagnosis.severity]), f" [{diagnosis.code}] {diagnosis.what}"
    )
    wide = not out.is_terminal
    out.print(head, soft_wrap=wide)
    for heading, text in (("why", diagnosis.why), ("mend", diagnosis.remedy)):
        line = Text.assemble((f"{heading}: ", "bold"), text)
        if wide:
            out.print(Text("  ") + line, soft_wrap=True)
        else:
            out.print(Padding(line, (0, 0, 0, 2)))
    out.print()


def _print_verdict(name: str | None, found: list[Diagnosis], ok: bool) -> None:
    """Print what was looked at, and how many findings there are."""
    out = console()
    if found:
        counts = [
            f"{count} {severity}{'s' if count > 1 else ''}"
            for severity in ("error", "warning", "hint")
            if (count := sum(item.severity == severity for item in found))
        ]
        out.print(", ".join(counts), style="bold green" if ok else "bold red")
        return
    caches = len(list_caches()) if name is None else 1
    which = f"cache {name!r}" if name else f"{caches} cache{'' if caches == 1 else 's'}"
    out.print(
        f"nothing found. Checked {which} and this host: {', '.join(CHECKS)}",
        soft_wrap=not out.is_terminal,
    )
