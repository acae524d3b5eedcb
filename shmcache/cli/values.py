r"""How keys and values are written on a command line, both ways.

JSON knows fewer types than a cache.  What it lacks is written as an object with one member whose
name starts with `$` and names the type, so that nothing is lost: what `get` prints, `set --type
json` stores as what it was.

    {"$bytes": "a\\x00b"}              bytes: printable ASCII as it is, else \xNN, \n, \r, \t, \\
    {"$tuple": [1, 2]}                 also $set and $frozenset
    {"$datetime": "2026-01-02T03:04:05+00:00"}     ISO 8601; also $date and $time
    {"$timedelta": [1, 0, 500000]}     days, seconds, microseconds
    {"$decimal": "0.10"}, {"$uuid": "..."}
    {"$float": "nan"}                  also inf and -inf, which are no JSON
    {"$dict": [[key, value], ...]}     a dict with keys other than str, or one that looks like these
    {"$repr": "..."}                   anything else (codec pickle): for reading only

The same escapes stand for bytes wherever the command line has them: `--key-type bytes`, `--type
bytes`.  What is outside ASCII there counts as the UTF-8 that the terminal sent.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

import click

from shmcache.keys import Key

__all__ = [
    "KEY_TYPES",
    "bytes_from_text",
    "bytes_text",
    "from_plain",
    "json_text",
    "key_from_text",
    "needs_tag",
    "print_text",
    "shown",
    "to_plain",
]

KEY_TYPES: Final = ("str", "int", "bytes")

_DEPTH_MAX: Final = 200
"""Levels of nesting that are read or written; beyond, a message instead of a RecursionError."""

_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[nrt\\])|\\(.{0,3})|([^\\]+)", re.DOTALL)


# ----------------------------------------------------------------------------------- bytes
def bytes_text(content: bytes) -> str:
    """Return bytes as text with escapes; `bytes_from_text` turns it back."""
    return repr(b'"' + content)[3:-1].replace("\\'", "'")


def bytes_from_text(text: str) -> bytes:
    """Return the bytes that a text with escapes means.

    Raises ValueError for a backslash that begins no escape.
    """
    content = bytearray()
    for match in _ESCAPE.finditer(text):
        escape, wrong, plain = match.groups()
        if plain is not None:
            content += os.fsencode(plain)
        elif escape is None:
            raise ValueError(
                f"\\{wrong} is no escape: write \\xNN, \\n, \\r, \\t, or \\\\ for a backslash"
            )
        elif escape[0] == "x":
            content.append(int(escape[1:], 16))
        else:
            content += _ESCAPES[escape]
    return bytes(content)


# ------------------------------------------------------------------------------ to and from
def to_plain(value: Any, _depth: int = 0) -> Any:
    """Return a value as dicts, lists, text and numbers that JSON can hold, nothing lost."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if _depth > _DEPTH_MAX:
        raise ValueError(f"the value is nested more than {_DEPTH_MAX} deep: use Python to read it")
    deeper = _depth + 1
    if isinstance(value, dict):
        if not needs_tag(value):
            return {key: to_plain(item, deeper) for key, item in value.items()}
        return {
            "$dict": [
                [to_plain(key, deeper), to_plain(item, deeper)] for key, item in value.items()
            ]
        }
    if isinstance(value, list):
        return [to_plain(item, deeper) for item in value]
    if isinstance(value, tuple | set | frozenset):
        name = "tuple" if isinstance(value, tuple) else type(value).__name__
        return {f"${name}": [to_plain(item, deeper) for item in value]}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": bytes_text(bytes(value))}
    if isinstance(value, datetime | date | time):
        return {f"${type(value).__name__}": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, UUID):
        return {"$uuid": str(value)}
    return {"$repr": repr(value)}


def from_plain(value: Any, _depth: int = 0) -> Any:
    """Return the value that `to_plain` made this of.

    Raises ValueError for an object that names a type of the table above, and is none of it.
    """
    if _depth > _DEPTH_MAX:
        raise ValueError(f"the value is nested more than {_DEPTH_MAX} deep")
    if isinstance(value, list):
        return [from_plain(item, _depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if not _looks_tagged(value):
        return {key: from_plain(item, _depth + 1) for key, item in value.items()}
    ((tag, content),) = value.items()
    if isinstance(content, list) and tag != "$timedelta":
        content = [from_plain(item, _depth + 1) for item in content]
    try:
        return _MAKERS[tag](content)
    except (ValueError, TypeError, InvalidOperation) as error:
        raise ValueError(f'{{"{tag}": ...}} cannot be read: {error}') from None


def needs_tag(value: dict[Any, Any]) -> bool:
    """Return whether a dict is no JSON object: other keys than str, or taken for a tag."""
    return _looks_tagged(value) or not all(isinstance(key, str) for key in value)


def _looks_tagged(value: dict[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _MAKERS


def _no_repr(content: Any) -> Any:
    raise ValueError("what JSON cannot hold was only printed for reading")


_MAKERS: Final[dict[Any, Callable[[Any], Any]]] = {
    "$bytes": bytes_from_text,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda content: timedelta(*content),
    "$decimal": Decimal,
    "$uuid": UUID,
    "$float": float,
    "$dict": dict,
    "$repr": _no_repr,
}


# --------------------------------------------------------------------------------- as text
def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON: one line, unless `indent` says otherwise."""
    return json.dumps(to_plain(value), ensure_ascii=False, indent=indent)


def shown(value: Any) -> str:
    """Return a value as it is if it is text, else as JSON."""
    return str(value) if isinstance(value, str) else json_text(value)


def key_from_text(text: str, key_type: str) -> Key:
    """Return the key of that type that a text on the command line means; ValueError if none."""
    if key_type == "int":
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is no int, which --key-type int asks for") from None
    if key_type == "bytes":
        return bytes_from_text(text)
    return text


def print_text(text: str, *, newline: bool = True) -> None:
    """Print text that may hold what no encoding can: bytes of a command line that are no UTF-8
    come out as they went in, any other lone surrogate as an escape."""
    content = text + "\n" if newline else text
    try:
        click.echo(content.encode("utf-8", "surrogateescape"), nl=False)
    except UnicodeEncodeError:
        click.echo(content.encode("utf-8", "backslashreplace"), nl=False)
