"""Live progress on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from typing import Any, Final, Self

import click
from rich.progress import Progress, ProgressColumn

from shmcache.cli.output import console

__all__ = ["Display"]

LINE_SECONDS: Final = 2.0
"""Time between two lines of progress where there is no terminal to draw a bar on."""


class Display:
    """A bar of these columns, with one task: its description, and its first fields.

    It draws when it is told to and, with `auto_refresh`, also from a thread of its own.
    """

    def __init__(
        self, *columns: ProgressColumn, description: str, auto_refresh: bool = True, **fields: Any
    ) -> None:
        out = console(stderr=True)
        self._bar = Progress(
            *columns,
            console=out,
            auto_refresh=auto_refresh,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task = self._bar.add_task(description, **fields)
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def _draw(self, line: str, **update: Any) -> None:
        """Update the bar; without a terminal print `line`, if the last one is long enough ago."""
        self._bar.update(self._task, **update)
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            click.echo(line, err=True)
