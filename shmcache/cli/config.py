"""`shmcache config NAME get|set|edit|watch`: the swap slot `config`, as TOML or JSON.

Every change is one swap: readers see the whole old value or the whole new one, and one key is set
by read-copy-update, so that two people who set two keys at once lose neither.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shmcache.cli import documents
from shmcache.cli.output import failing_clearly
from shmcache.cli.params import CacheName, opened
from shmcache.cli.values import from_plain, json_text, print_text, shown, to_plain
from shmcache.swap import slot_names

if TYPE_CHECKING:
    from shmcache.cache import Cache

__all__ = ["config"]

SLOT = "config"
"""The swap slot that the owner daemon and applications keep the configuration in."""

_LOOK_SECONDS = 0.2
"""How often `watch` looks whether there is a configuration now, where there was none."""

_format_option = click.option(
    "--format",
    "format_name",
    type=click.Choice(documents.FORMATS),
    help="TOML or JSON.",
)


@click.group(subcommand_metavar="COMMAND")
@click.argument("name", type=CacheName())
@click.pass_context
def config(context: click.Context, name: str) -> None:
    """Get, set, edit or watch the configuration of cache NAME.

    That is the value of its swap slot `config`, where `serve` puts the table [config] of its
    file, and which applications read by cache.slot().load().

    \b
    Examples:
      shmcache config app get
      shmcache config app set limits.rps 100
      shmcache config app edit
    """
    context.obj = name


def _has_config(cache: Cache) -> bool:
    """Return whether the slot is there; asking for it by `slot` would take one."""
    return SLOT in slot_names(cache._held)


def _load(cache: Cache) -> tuple[Any, int]:
    """Return configuration and version; (None, 0) where there is none."""
    return cache.slot(SLOT).load_versioned() if _has_config(cache) else (None, 0)


@config.command("get")
@click.argument("path", required=False, metavar="[KEY.PATH]")
@_format_option
@click.option("--json", "format_name", flag_value="json", help="The same as --format json.")
@click.pass_obj
@failing_clearly
def get(name: str, path: str | None, format_name: str | None) -> None:
    """Print the configuration, or what lies at KEY.PATH in it.

    All of it as JSON, unless --format says otherwise. One key's text as it is, anything else as
    JSON. Exits 1 if there is no configuration, or no such key.

    \b
    Examples:
      shmcache config app get --format toml
      shmcache config app get limits.rps
      shmcache config app get 'servers.0.host'
    """
    with opened(name) as cache:
        value, version = _load(cache)
    if not version:
        raise click.ClickException(
            f"cache {name!r} has no configuration yet: `shmcache config {name} set FILE` stores one"
        )
    if path is None:
        print_text(documents.render(value, format_name or "json"), newline=False)
        return
    try:
        found = documents.at_path(value, documents.path_of(path))
    except LookupError as error:
        raise click.ClickException(str(error.args[0])) from None
    if format_name is None:
        print_text(shown(found))
    else:
        print_text(documents.render(found, format_name), newline=False)


def _read_file(file: str, format_name: str | None) -> Any:
    """Return what a file (`-`: standard input) says."""
    if file == "-":
        source, content = "standard input", sys.stdin.buffer.read()
    else:
        source, content = file, Path(file).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source}:{line}: it is no UTF-8") from None
    return documents.parse(text, format_name or documents.guess_format(file, text), source)


def _read_value(text: str, value_type: str | None) -> Any:
    """Return what a single value on the command line means."""
    if value_type == "str":
        return text
    try:
        return from_plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        if value_type is None:
            return text
        raise click.BadParameter(f"no JSON: {error}", param_hint="VALUE") from None


@config.command(
    "set",
    short_help="Replace the configuration, or one key of it.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("target", metavar="FILE|-|KEY.PATH")
@click.argument("value", required=False)
@click.option(
    "--type",
    "value_type",
    type=click.Choice(["str", "json"]),
    help="What VALUE is. Default: JSON where it is some, else text.",
)
@_format_option
@click.pass_obj
@failing_clearly
def set_(
    name: str, target: str, value: str | None, value_type: str | None, format_name: str | None
) -> None:
    """Store a whole configuration from FILE (-: standard input), or VALUE at KEY.PATH.

    FILE is TOML or JSON, as --format, its suffix or its beginning says; a file that does not
    parse is reported with line and column, and changes nothing. With VALUE only that key is
    replaced, atomically, and tables on the way to it are made; the rest stays as it is at that
    moment. Prints the new version.

    \b
    Examples:
      shmcache config app set /etc/app.toml
      shmcache config app set limits.rps 100
      shmcache config app set greeting 123 --type str
    """
    if value is None:
        stored = _read_file(target, format_name)
        with opened(name) as cache:
            click.echo(f"version {cache.slot(SLOT).store(stored)}")
        return
    path, new = documents.path_of(target), _read_value(value, value_type)
    with opened(name) as cache:
        slot = cache.slot(SLOT)
        while True:  # rcu, for its version
            old, version = slot.load_versioned()
            if slot.compare_and_swap(version, documents.with_path(old, path, new)):
                break
    click.echo(f"version {version + 1}")


@config.command("edit", short_help="Edit the configuration in an editor.")
@_format_option
@click.pass_obj
@failing_clearly
def edit(name: str, format_name: str | None) -> None:
    """Edit the configuration with $VISUAL or $EDITOR, and store what comes out of it.

    As TOML where that can hold it, else as JSON. What does not parse is shown with line and
    column, and may be edited again. It is stored only if nobody stored since it was loaded; else
    it is kept in a file that is named. Comments are not kept: a slot holds values.

    \b
    Example:
      EDITOR=nano shmcache config app edit
    """
    with opened(name) as cache:
        value, version = _load(cache)
        if format_name is None:
            format_name, text = _editable(value)
        else:
            text = documents.render({} if value is None else value, format_name)
        edited, new = _edit(text, format_name, name)
        if edited is None or (version and new == value and to_plain(new) == to_plain(value)):
            click.echo("nothing changed, nothing stored", err=True)
            return
        if cache.slot(SLOT).compare_and_swap(version, new):
            click.echo(f"version {version + 1}")
            return
    kept = _keep(edited, format_name, name)
    raise click.ClickException(
        f"somebody stored another configuration meanwhile, and yours was not stored: it is in "
        f"{kept}; compare it with `shmcache config {name} get --format {format_name}`, and store "
        f"it with `shmcache config {name} set {kept}`"
    )


def _editable(value: Any) -> tuple[str, str]:
    """Return format and text to edit a configuration in."""
    try:
        return "toml", documents.render({} if value is None else value, "toml")
    except ValueError:
        return "json", documents.render(value, "json")


def _edit(text: str, format_name: str, name: str) -> tuple[str | None, Any]:
    """Let the user edit, until it parses or they give up; (None, None) where nothing was saved."""
    while True:
        edited = click.edit(text, extension=f".{format_name}")
        if edited is None:
            return None, None
        try:
            return edited, documents.parse(edited, format_name, "the configuration")
        except ValueError as error:
            click.echo(f"Error: {error}", err=True)
            text = edited
        try:
            again = click.confirm("Edit again?", default=True, err=True)
        except click.Abort:  # no terminal to ask on
            again = False
        if not again:
            raise click.ClickException(
                f"nothing was stored; your text is in {_keep(edited, format_name, name)}"
            )


def _keep(text: str, format_name: str, name: str) -> str:
    """Return the name of a new file, for this user only, that holds the text."""
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"shmcache-{name}-", suffix=f".{format_name}", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    return file.name


@config.command("watch", short_help="Print each change as a line of JSON.")
@click.option("--now", is_flag=True, help="Print the present configuration first.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N lines.")
@click.pass_obj
@failing_clearly
def watch(name: str, now: bool, count: int | None) -> None:
    """Print each change as a line of JSON: {"version": 4, "value": {...}}; until interrupted.

    A change is seen within milliseconds. Where several come at once, the last of them is
    printed. Ends with exit 1 when the cache is unlinked.

    \b
    Example:
      shmcache config app watch | while read -r change; do echo "$change"; done
    """
    lines = 0
    try:
        with opened(name) as cache:
            seen = 0 if now else _load(cache)[1]
            while not _has_config(cache):  # waiting in the slot would take it
                len(cache)  # raises CacheNotFound once it is gone
                time.sleep(_LOOK_SECONDS)
            slot = cache.slot(SLOT)
            while count is None or lines < count:
                slot.wait(seen)
                value, seen = slot.load_versioned()
                print_text(json_text({"version": seen, "value": value}))
                lines += 1
    except KeyboardInterrupt:
        click.echo("", err=True)
