"""`shmcache get`, `set`, `del`, `incr`, `ttl`, `keys`: single entries, by key.

How keys and values are written is in values.py.  Each of them looks through `observe`, so none
creates a cache, keeps one alive, or ends one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ParamSpec

import click

from shmcache.cli.output import failing_clearly
from shmcache.cli.params import cache_argument, key_of, key_options, opened_entries
from shmcache.cli.values import (
    KEY_TYPES,
    bytes_from_text,
    bytes_text,
    from_plain,
    json_text,
    print_text,
    shown,
)
from shmcache.keys import Key
from shmcache.limits import ttl_to_ms

__all__ = ["delete", "get", "incr", "keys", "set_", "ttl"]

P = ParamSpec("P")

_LINES_AT_ONCE = 500
"""Keys that are printed with one system call; the first of them come after as many look-ups."""

_TYPES = {"str": str, "int": int, "bytes": bytes}


def _on_entries(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of keys and values, too, into one line: no `TypeError` here is a bug."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except TypeError as error:
            raise click.ClickException(str(error)) from error

    return failing_clearly(wrapped)


def _missing(name: str, namespaces: tuple[str, ...], key: str) -> click.ClickException:
    where = "".join(f", namespace {prefix!r}" for prefix in namespaces)
    return click.ClickException(
        f"no key {key!r} in cache {name!r}{where} (of this --key-type; `shmcache keys` lists them)"
    )


@click.command()
@cache_argument
@click.argument("key")
@key_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, text too.")
@click.option("--raw", is_flag=True, help="Print bytes and text only, without a line break.")
@_on_entries
def get(
    name: str, key: str, namespaces: tuple[str, ...], key_type: str, as_json: bool, raw: bool
) -> None:
    """Print the value of KEY in cache NAME: text as it is, anything else as JSON.

    What JSON lacks is an object that names the type, such as {"$bytes": "..."} or {"$set":
    [...]}; `set --type json` takes it back. Exits 1 if there is no such key.

    \b
    Examples:
      shmcache get app user:1
      shmcache get app 17 --key-type int --namespace sessions
      shmcache get app logo.png --raw > logo.png
    """
    if as_json and raw:
        raise click.UsageError("--json and --raw exclude each other")
    absent = object()
    with opened_entries(name, namespaces) as entries:
        value = entries.get(key_of(key, key_type), absent)
    if value is absent:
        raise _missing(name, namespaces, key)
    if not raw:
        print_text(json_text(value) if as_json else shown(value))
    elif isinstance(value, bytes):
        click.echo(value, nl=False)
    elif isinstance(value, str):
        print_text(value, newline=False)
    else:
        raise click.ClickException(
            f"the value is of type {type(value).__name__}, and --raw prints bytes and text: "
            "leave it out"
        )


def _value(text: str, value_type: str) -> Any:
    """Return the value that a text on the command line means."""
    try:
        if value_type == "json":
            return from_plain(json.loads(text))
        if value_type == "bytes":
            return bytes_from_text(text)
        return int(text) if value_type == "int" else text
    except RecursionError:
        raise click.BadParameter("it is nested too deep", param_hint="VALUE") from None
    except ValueError as error:
        raise click.BadParameter(f"no {value_type}: {error}", param_hint="VALUE") from None


def _lifetime(
    context: click.Context, parameter: click.Parameter, ttl: float | None
) -> float | None:
    """A ttl that the cache would refuse is a mistake on the command line."""
    try:
        ttl_to_ms(ttl)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return ttl


@click.command("set")
@cache_argument
@click.argument("key")
@click.argument("value")
@click.option(
    "--ttl",
    type=float,
    callback=_lifetime,
    metavar="S",
    help="Seconds that it lives, more than 0; without it, for ever.",
)
@click.option(
    "--type",
    "value_type",
    type=click.Choice(["str", "json", "int", "bytes"]),
    default="str",
    show_default=True,
    help="What VALUE is. bytes: text with escapes such as \\x00.",
)
@key_options()
@_on_entries
def set_(
    name: str,
    key: str,
    value: str,
    ttl: float | None,
    value_type: str,
    namespaces: tuple[str, ...],
    key_type: str,
) -> None:
    """Store VALUE under KEY in cache NAME, which must be there. Prints nothing.

    A value that starts with a dash comes after `--`.

    \b
    Examples:
      shmcache set app greeting hello --ttl 60
      shmcache set app user:1 '{"name": "Ada", "of": {"$set": [1]}}' --type json
      shmcache set app offset --type int -- -5
    """
    stored = _value(value, value_type)
    with opened_entries(name, namespaces) as entries:
        entries.set(key_of(key, key_type), stored, ttl)


@click.command("del")
@cache_argument
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@key_options()
@_on_entries
def delete(name: str, keys: tuple[str, ...], namespaces: tuple[str, ...], key_type: str) -> None:
    """Remove KEYs from cache NAME; print how many of them were there.

    A key that is not there is no error: afterwards it is gone either way.

    \b
    Example:
      shmcache del app user:1 user:2
    """
    with opened_entries(name, namespaces, decode=False) as entries:
        click.echo(entries.delete_many([key_of(key, key_type) for key in keys]))


@click.command(context_settings={"ignore_unknown_options": True})
@cache_argument
@click.argument("key")
@click.argument("delta", type=int, default=1)
@key_options()
@_on_entries
def incr(name: str, key: str, delta: int, namespaces: tuple[str, ...], key_type: str) -> None:
    """Add DELTA (1; may be negative) to the int under KEY, atomically; print the new one.

    Where the key is absent it counts from 0. The entry's expiry stays as it is.

    \b
    Examples:
      shmcache incr app hits
      shmcache incr app stock -3
    """
    with opened_entries(name, namespaces, decode=False) as entries:
        click.echo(entries.incr(key_of(key, key_type), delta))


@click.command()
@cache_argument
@click.argument("key")
@key_options()
@click.option("--json", "as_json", is_flag=True, help="Print a number, or null for never.")
@_on_entries
def ttl(name: str, key: str, namespaces: tuple[str, ...], key_type: str, as_json: bool) -> None:
    """Print the seconds until KEY expires, or `never`. Exits 1 if there is no such key.

    \b
    Example:
      shmcache ttl app greeting
    """
    with opened_entries(name, namespaces, decode=False) as entries:
        try:
            left = entries.ttl(key_of(key, key_type))
        except KeyError:
            raise _missing(name, namespaces, key) from None
    if left is None:
        click.echo("null" if as_json else "never")
    else:
        click.echo(f"{left:.3f}")


@click.command()
@cache_argument
@click.option("--prefix", metavar="P", help="Only keys that begin with it (text or bytes).")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N keys.")
@key_options(default=None)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, an item a line.")
@_on_entries
def keys(
    name: str,
    prefix: str | None,
    limit: int | None,
    namespaces: tuple[str, ...],
    key_type: str | None,
    as_json: bool,
) -> None:
    """List the keys of cache NAME, one a line, in no order, as they are found.

    Text as it is, keys of another type as JSON; with --key-type only those of that type, as
    that option writes them elsewhere. Entries of a namespace show only with --namespace. --json
    also tells keys with line breaks in them apart. It takes no lock; keys that come or go
    meanwhile may be in the list or not.

    \b
    Examples:
      shmcache keys app --prefix user: | head
      shmcache keys app --json | jq length
    """
    if prefix is not None and key_type == "int":
        raise click.UsageError("ints have no prefix: leave out --prefix, or --key-type int")
    with opened_entries(name, namespaces, decode=False) as entries:
        if prefix is not None:
            found = entries.scan(key_of(prefix, key_type or "str"))
        else:
            found = iter(entries)
        if key_type is not None:
            wanted = _TYPES[key_type]
            found = (key for key in found if type(key) is wanted)
        found = islice(found, limit)
        if as_json:
            _print_json(found)
        else:
            _print_lines(found, key_type)


def _key_text(key: Key, key_type: str | None) -> str:
    """Return a key as it is written on the command line where its type is said, else as `get`
    prints a value."""
    if key_type == "bytes" and isinstance(key, bytes):
        return bytes_text(key)
    return shown(key)


def _print_lines(found: Iterator[Key], key_type: str | None) -> None:
    while lines := [_key_text(key, key_type) for key in islice(found, _LINES_AT_ONCE)]:
        print_text("\n".join(lines))


def _print_json(found: Iterator[Key]) -> None:
    """Print a JSON list as it grows: a million keys are never held at once."""
    before = "["
    while items := [json_text(key) for key in islice(found, _LINES_AT_ONCE)]:
        print_text(before + ",\n".join(items), newline=False)
        before = ",\n"
    print_text("[]" if before == "[" else "]")


assert set(_TYPES) == set(KEY_TYPES)
