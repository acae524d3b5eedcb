"""What all commands print alike: errors, sizes, durations, and where to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import click

from shmcache.errors import ShmcacheError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

PLAIN_COLUMNS = 500
"""Width of output that goes to no terminal."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on what standard output (or error) is now, so that tests can capture it.

    Without a terminal it is wide enough for any table: a log or a pipe has no width to be cut to,
    whatever `COLUMNS` says (a parent that has loaded readline sets it to 80).
    """
    from rich.console import Console  # a tenth of a second, for commands that draw

    out = Console(stderr=stderr, highlight=False)
    if not out.is_terminal:
        out.width = PLAIN_COLUMNS
    return out


def failing_clearly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that the package explains into its message on stderr and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # `| head` has seen enough: click ends without a word
            raise
        except (ShmcacheError, OSError, ValueError, OverflowError) as error:
            raise click.ClickException(str(error)) from error

    return wrapped


def size_text(size_bytes: int) -> str:
    """Return a size for reading, such as `64.0 MiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def duration_text(nanoseconds: int) -> str:
    """Return a duration for reading, such as `1.24 µs`."""
    duration = float(nanoseconds)
    for unit in ("ns", "µs", "ms"):
        if duration < 1000:
            return f"{duration:.0f} {unit}" if unit == "ns" else f"{duration:.2f} {unit}"
        duration /= 1000
    return f"{duration:.2f} s"
