"""Configuration as text: TOML or JSON to a value and back, and single keys of it by their path.

What neither format knows is written as values.py says; dates and times are TOML's own there.
A path is keys with dots between them, a key that has dots (or blanks, or quotes) in double
quotes, and a number for an item of a list: `limits."api.v1".rps`, `servers.0.host`.
"""

from __future__ import annotations

import json
import re
import tomllib
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final

import tomli_w

from shmcache.cli.values import from_plain, json_text, needs_tag, to_plain

__all__ = ["FORMATS", "at_path", "guess_format", "parse", "path_of", "render", "with_path"]

FORMATS: Final = ("json", "toml")

_STEP: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|([^".]+)')


# ------------------------------------------------------------------------------------- text
def guess_format(file_name: str, text: str) -> str:
    """Return "json" or "toml": by the file's suffix, else by how the text begins."""
    suffix = Path(file_name).suffix.lower().lstrip(".")
    if suffix in FORMATS:
        return suffix
    start = text.lstrip()
    if start.startswith(("{", '"')) or not start:
        return "json"
    if start.startswith("["):  # a list, or the first table of a TOML file
        try:
            json.loads(text)
        except ValueError:
            return "toml"
        return "json"
    return "toml"


def parse(text: str, format_name: str, source: str) -> Any:
    """Return what a document says.

    source: where it is from, for the message.  Raises ValueError with source, line and column.
    """
    try:
        plain = json.loads(text) if format_name == "json" else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}:{error.lineno}:{error.colno}: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{source}:{place[1]}:{place[2]}" if place else f"{source}:{_lines(text)}"
        raise ValueError(f"{where}: {re.sub(r' [(]at .*[)]$', '', str(error))}") from None
    except RecursionError:
        raise ValueError(f"{source}: it is nested too deep") from None
    try:
        return from_plain(plain)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def render(value: Any, format_name: str) -> str:
    """Return a value as a document that ends in a line break.

    Raises ValueError where TOML cannot hold it: no table, or a null in it (with its path).
    """
    if format_name == "json":
        return json_text(value, indent=2) + "\n"
    if not isinstance(value, dict):
        raise ValueError(
            f"a TOML document is a table, and the configuration is of type {type(value).__name__}: "
            "use --format json"
        )
    return tomli_w.dumps(_tomlable(value, ""))


def _tomlable(value: Any, path: str, tagged: bool = False) -> Any:
    """Return a value with only such types as TOML knows.

    tagged: it was written as values.py says already.
    """
    if value is None:
        raise ValueError(f"TOML has no null, and {path} is one: use --format json")
    if isinstance(value, datetime | date | bool | int | float | str):
        return value
    if isinstance(value, time) and value.tzinfo is None:
        return value
    if isinstance(value, list):
        return [_tomlable(item, f"{path}.{i}".lstrip("."), tagged) for i, item in enumerate(value)]
    if isinstance(value, dict) and (tagged or not needs_tag(value)):
        return {
            key: _tomlable(item, f"{path}.{key}".lstrip("."), tagged) for key, item in value.items()
        }
    return _tomlable(to_plain(value), path, True)


def _lines(text: str) -> int:
    return text.count("\n") + 1


# ------------------------------------------------------------------------------------- paths
def path_of(text: str) -> tuple[str, ...]:
    """Return the keys of a path; ValueError where it is none."""
    steps, place = [], 0
    while True:
        match = _STEP.match(text, place)
        if match is None:
            raise ValueError(
                f'{text!r} is no path: write keys with dots between, such as limits."api.v1".rps'
            )
        steps.append(re.sub(r"\\(.)", r"\1", match[1]) if match[2] is None else match[2])
        place = match.end()
        if place == len(text):
            return tuple(steps)
        if text[place] != ".":
            raise ValueError(f"{text!r} is no path: a dot is missing after {text[:place]!r}")
        place += 1


def at_path(value: Any, path: tuple[str, ...]) -> Any:
    """Return what lies at a path; LookupError naming the part that is missing."""
    for i, step in enumerate(path):
        value = _step_into(value, step, path[:i])
    return value


def with_path(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """Return a copy of `value` (None: nothing yet) with `new` at a path; tables on the way to it
    are made.  The rest is shared with `value`, which stays as it is.

    Raises ValueError where the way leads through something that is neither table nor list.
    """
    return _with_path(value, path, 0, new)


def _with_path(value: Any, path: tuple[str, ...], depth: int, new: Any) -> Any:
    if depth == len(path):
        return new
    step = path[depth]
    if value is None:
        value = {}
    if isinstance(value, dict):
        key = _key_in(value, step)
        return {**value, key: _with_path(value.get(key), path, depth + 1, new)}
    if isinstance(value, list):
        try:
            old = _step_into(value, step, path[:depth])
        except LookupError as error:
            raise ValueError(error.args[0]) from None
        at = int(step)
        return [*value[:at], _with_path(old, path, depth + 1, new), *value[at + 1 :]]
    raise ValueError(
        f"{'.'.join(path[:depth]) or 'the configuration'} is of type {type(value).__name__}, no "
        f"table: it has no {step!r}"
    )


def _step_into(value: Any, step: str, before: tuple[str, ...]) -> Any:
    where = ".".join(before) or "the configuration"
    if isinstance(value, dict):
        key = _key_in(value, step)
        if key in value:
            return value[key]
        raise LookupError(f"{where} has no {step!r}")
    if isinstance(value, list):
        if step.isascii() and step.isdigit() and int(step) < len(value):
            return value[int(step)]
        raise LookupError(f"{where} is a list of {len(value)}, and has no item {step!r}")
    raise LookupError(f"{where} is of type {type(value).__name__}, and has no {step!r}")


def _key_in(value: dict[Any, Any], step: str) -> Any:
    """Return the key that a step means: text, or the int that is written so."""
    if step not in value and re.fullmatch(r"-?\d+", step) and int(step) in value:
        return int(step)
    return step
