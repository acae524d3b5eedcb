"""A group of commands that imports a command's file when that command is run.

A command that prints one number should not pay for importing tables, progress bars, a metrics
library and a daemon: that is most of what `shmcache get` would take.  So the group knows where
each command lives and what to say of it in one line, and imports nothing but the one that is
asked for.  `shmcache --help` and the completion of command names import none at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

__all__ = ["LazyGroup", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is, and what is said of it in a list of commands.

    Attributes:
        section: the heading that it stands under in the group's help.
        module: the module's full name.
        attribute: the command's name in that module.
        summary: one line, without a full stop at the end, short enough for 80 columns.
    """

    section: str
    module: str
    attribute: str
    summary: str


class LazyGroup(click.Group):
    """A `click.Group` over a table of places; `add_command` works as ever beside it."""

    def __init__(self, *args: Any, places: Mapping[str, Place] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.places = dict(places or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the alphabet."""
        return sorted({*self.commands, *self.places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, imported now if it was not yet."""
        if cmd_name not in self.commands and cmd_name in self.places:
            place = self.places[cmd_name]
            self.add_command(getattr(import_module(place.module), place.attribute), cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, in the order of the table."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, place in self.places.items():
            sections.setdefault(place.section, []).append((name, place.summary))
        others = [name for name in self.list_commands(ctx) if name not in self.places]
        for name in others:
            command = self.commands[name]
            if not command.hidden:
                sections.setdefault("More", []).append((name, command.get_short_help_str()))
        width = max((len(name) for rows in sections.values() for name, _ in rows), default=0)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in rows])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete the names of commands without importing them; options as click does."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=place.summary)
            for name, place in self.places.items()
            if name.startswith(incomplete)
        ]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*found, *options]
