"""What `shmcache serve` is told: a TOML file, the environment and flags, as one checked value.

Place: level 5. The daemon and its command ask `load` for `Settings`; what they do with them is
theirs. This module opens one file and decides nothing about caches.

Three sources, the later the stronger: the file, `SHMCACHE_*` variables of the environment, flags
of the command line. Every setting but the application's own table can come from each of them,
under one name: the key `sweep_interval` of the file's [daemon] is `SHMCACHE_SWEEP_INTERVAL` and
`--sweep-interval` (`listen` of [metrics] is `SHMCACHE_METRICS` and `--metrics`). A file wins
nothing by being half right: all that is wrong with it is reported at once, each with file, line
and key, and nothing of it counts.

Lines. tomllib says where a syntax error is and nothing about keys. But TOML is read top down, so a
key stands in the first statement after which the text so far holds it: `_line_of` cuts the text
where it parses, and asks tomllib itself. Dotted keys, quoted keys, inline tables and arrays of
tables need no rules of their own then.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from shmcache import codec, geometry

__all__ = [
    "CacheSettings",
    "DaemonSettings",
    "MetricsSettings",
    "Option",
    "OPTIONS",
    "Settings",
    "load",
    "new_cache_needed",
]

CONFIG_MAX_BYTES: Final = 16 << 20
"""A larger file is a mistake (a log, a device), and is not read: the daemon has other work."""

INTERVAL_MIN_S: Final = 0.05
INTERVAL_MAX_S: Final = 86_400.0
_NAME_OF_TABLE = {"cache", "daemon", "metrics", "config"}


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """[cache]: arguments of a new cache; None leaves one to `Cache`. None of them can change while
    the cache exists."""

    size: int | None = None
    shards: int | None = None
    avg_entry_size: int | None = None
    policy: str | None = None
    codec: str | None = None
    slots: int | None = None
    slot_capacity: int | None = None
    mode: int | None = None
    group: str | int | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments for `Cache`: what was set, and mode 0660 for a cache that has a group."""
        chosen = {key: value for key, value in asdict(self).items() if value is not None}
        if self.group is not None:
            chosen.setdefault("mode", 0o660)
        return chosen


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """[daemon]: what the daemon does; all of it can change at a reload.

    Attributes:
        sweep_interval: seconds from the start of one round over all shards to the next.
        snapshot: file that a new cache is filled from, saved to on stop and every so often.
        snapshot_interval: seconds between two saves; 0 saves on stop only.
        unlink: whether the cache is removed when the daemon stops.
    """

    sweep_interval: float = 1.0
    snapshot: Path | None = None
    snapshot_interval: float = 300.0
    unlink: bool = False


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """[metrics]: host and port to listen on, None: no metrics; can change at a reload."""

    listen: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the daemon was told; `config` is the application's own table, None: none given."""

    cache: CacheSettings = field(default_factory=CacheSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    config: dict[str, Any] | None = None


# --------------------------------------------------------------------------- values, one by one
# Each takes what TOML or a text of the environment or command line gave, and returns the setting.
# ValueError or TypeError say what is wrong with it; `load` adds where it stands.
def _size(value: object) -> int:
    size = geometry.parse_size(value)  # type: ignore[arg-type]  # it checks
    if size < geometry.MIN_SIZE_BYTES:
        raise ValueError(f"{value!r} is too small: a cache takes 1MiB or more")
    return size


def _shards(value: object) -> int:
    shards = _integer(value, 1, geometry.MAX_SHARDS)
    if shards & (shards - 1):
        raise ValueError(f"{shards} is no power of two: pass 1, 2, 4 ... {geometry.MAX_SHARDS}")
    return shards


def _avg_entry_size(value: object) -> int:
    return _integer(value, geometry.MIN_AVG_ENTRY_BYTES, geometry.MAX_AVG_ENTRY_BYTES)


def _slots(value: object) -> int:
    return _integer(value, 0, 1 << 20)


def _slot_capacity(value: object) -> int:
    capacity = geometry.parse_size(value, "slot_capacity")  # type: ignore[arg-type]  # it checks
    if not 1 <= capacity <= geometry.MAX_SLOT_BYTES:
        raise ValueError(f"{value!r} is out of range: 1 byte to {geometry.MAX_SLOT_BYTES}")
    return capacity


def _policy(value: object) -> str:
    return _one_of(value, ("evict", "keep"))


def _codec(value: object) -> str:
    name = _text(value)
    codec.resolve(name)
    return name


def _mode(value: object) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"(0o)?[0-7]{3,4}", value):
            raise ValueError(f"{value!r} is no mode: write permission bits such as 0660")
        value = int(value.removeprefix("0o"), 8)
    mode = _integer(value, 0, 1 << 31)
    if mode > 0o777 or mode & 0o600 != 0o600:
        raise ValueError(
            f"mode {mode:#o} makes no sense: write permission bits that let the owner read and "
            'write, in octal: "0660" or 0o660'
        )
    return mode


def _group(value: object) -> str | int:
    if isinstance(value, str):
        if not value:
            raise ValueError("a group has a name or a number")
        return int(value) if value.isascii() and value.isdigit() else value
    return _integer(value, 0, 2**32 - 2)


def _sweep_interval(value: object) -> float:
    return _seconds(value, INTERVAL_MIN_S)


def _snapshot_interval(value: object) -> float:
    return 0.0 if _number(value) == 0 else _seconds(value, 1.0)


def _path(value: object) -> Path | None:
    text = _text(value)
    return Path(text) if text else None


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off", ""):
            return False
    raise ValueError(f"{value!r} is neither true nor false")


def _listen(value: object) -> tuple[str, int] | None:
    """HOST:PORT, [IPv6]:PORT or :PORT (127.0.0.1); an empty text: no metrics."""
    text = _text(value)
    if not text:
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]\s]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError(
            f"{text!r} is no address: write HOST:PORT, such as 127.0.0.1:9419 or [::1]:9419 "
            "(port 0 picks one)"
        )
    return match[1] or match[2] or "127.0.0.1", int(match[3])


def _integer(value: object, least: int, most: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    if not least <= value <= most:
        raise ValueError(f"{value} is out of range: {least} to {most}")
    return value


def _number(value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is no number of seconds") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number of seconds")
    return float(value)


def _seconds(value: object, least: float) -> float:
    seconds = _number(value)
    if math.isnan(seconds) or not least <= seconds <= INTERVAL_MAX_S:
        raise ValueError(f"{value} is out of range: {least:g} to {INTERVAL_MAX_S:g} seconds")
    return seconds


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text: put it in quotation marks")
    if "\0" in value:
        raise ValueError("it has a NUL in it")
    return value


def _one_of(value: object, words: tuple[str, ...]) -> str:
    text = _text(value)
    if text not in words:
        raise ValueError(f"{text!r} is unknown: {_listing(words)}{_nearest(text, words)}")
    return text


# ------------------------------------------------------------------------------- all settings
class Option(NamedTuple):
    """One setting: where the file has it, how the environment and flags call it, what it takes."""

    table: str
    key: str
    read: Callable[[object], Any]
    name: str = ""  # of the flag and the variable, where it is not the key's

    @property
    def flag(self) -> str:
        """As the command line calls it, such as `--sweep-interval`."""
        return "--" + (self.name or self.key).replace("_", "-")

    @property
    def variable(self) -> str:
        """As the environment calls it, such as `SHMCACHE_SWEEP_INTERVAL`."""
        return "SHMCACHE_" + (self.name or self.key).upper()


OPTIONS: Final = (
    Option("cache", "size", _size),
    Option("cache", "shards", _shards),
    Option("cache", "avg_entry_size", _avg_entry_size),
    Option("cache", "policy", _policy),
    Option("cache", "codec", _codec),
    Option("cache", "slots", _slots),
    Option("cache", "slot_capacity", _slot_capacity),
    Option("cache", "mode", _mode),
    Option("cache", "group", _group),
    Option("daemon", "sweep_interval", _sweep_interval),
    Option("daemon", "snapshot", _path),
    Option("daemon", "snapshot_interval", _snapshot_interval),
    Option("daemon", "unlink", _switch),
    Option("metrics", "listen", _listen, "metrics"),
)
_BY_KEY = {(option.table, option.key): option for option in OPTIONS}


def load(
    path: Path | None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Read the settings from all three sources.

    Args:
        path: of the TOML file; None: there is none. A relative `snapshot` in it is relative to the
            file's directory, elsewhere to the working directory.
        environment: variables, `os.environ` by default. `SHMCACHE_*` variables that are no
            setting's are not looked at: other programs of the family have theirs.
        flags: values by the options' `name` or `key`; None for what was not given.

    Returns:
        The settings, every one checked by itself. What only the system can say (is there such a
        group, is there room) is found out when the cache is made.

    Raises:
        ValueError: a line for each thing that is wrong, ``FILE:LINE: KEY: what``; variables and
            flags are named instead of file and line.
        OSError: the file cannot be read.

    Cost: reads the file once; milliseconds, more where something is wrong in a long file.
    """
    problems: list[str] = []
    chosen: dict[str, dict[str, Any]] = {"cache": {}, "daemon": {}, "metrics": {}}
    config: dict[str, Any] | None = None
    if path is not None:
        config = _read_file(path, chosen, problems)
    variables = os.environ if environment is None else environment
    for option in OPTIONS:
        for where, value in (
            (option.variable, variables.get(option.variable)),
            (option.flag, (flags or {}).get(option.name or option.key)),
        ):
            if value is None:
                continue
            try:
                chosen[option.table][option.key] = option.read(value)
            except (TypeError, ValueError) as error:
                problems.append(f"{where}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return Settings(
        CacheSettings(**chosen["cache"]),
        DaemonSettings(**chosen["daemon"]),
        MetricsSettings(**chosen["metrics"]),
        config,
    )


def new_cache_needed(old: CacheSettings, new: CacheSettings) -> list[str]:
    """What differs between two [cache] tables, as ``key: old -> new``: a cache that exists keeps
    all of it, so each of these takes effect only when it is made anew."""
    changes = []
    for name in (each.name for each in fields(CacheSettings)):
        was, is_now = getattr(old, name), getattr(new, name)
        if was != is_now:
            changes.append(f"{name}: {_shown(name, was)} -> {_shown(name, is_now)}")
    return changes


def _shown(name: str, value: object) -> str:
    if value is None:
        return "default"
    return f"{value:04o}" if name == "mode" else str(value)


# ------------------------------------------------------------------------------------ the file
def _read_file(
    path: Path, chosen: dict[str, dict[str, Any]], problems: list[str]
) -> dict[str, Any] | None:
    """Put the file's settings into `chosen`, what is wrong into `problems`; returns [config]."""
    text = _read_text(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_syntax_error(path, text, error)) from None

    def complain(keys: tuple[str, ...], what: object) -> None:
        problems.append(f"{path}:{_line_of(text, keys)}: {_dotted(keys)}: {what}")

    config: dict[str, Any] | None = None
    for table, content in document.items():
        if table not in _NAME_OF_TABLE:
            complain((table,), _unknown_table(table))
        elif not isinstance(content, dict):
            complain((table,), f"must be a table, written [{table}], not {_kind(content)}")
        elif table == "config":
            config = content
        else:
            for key, value in content.items():
                option = _BY_KEY.get((table, key))
                if option is None:
                    complain((table, key), _unknown_key(table, key))
                    continue
                try:
                    chosen[table][key] = option.read(value)
                except (TypeError, ValueError) as error:
                    complain((table, key), error)
    snapshot = chosen["daemon"].get("snapshot")
    if snapshot is not None:
        chosen["daemon"]["snapshot"] = path.absolute().parent / snapshot
    return config


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(CONFIG_MAX_BYTES + 1)
    if len(data) > CONFIG_MAX_BYTES:
        raise ValueError(f"{path}: is larger than {CONFIG_MAX_BYTES} bytes: is it the right file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8, which TOML is written in"
        ) from None
    return text.replace("\r\n", "\n")


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """``FILE:LINE: what, in `the line` `` of a file that is no TOML."""
    lines = text.split("\n")
    match = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    number = int(match[1]) if match else len(text.rstrip("\n").split("\n"))
    what = re.sub(r" \(at [^)]*\)$", "", str(error))
    line = lines[number - 1].strip() if number <= len(lines) else ""
    column = f", column {match[2]}" if match else ", at the end of the file"
    return f"{path}:{number}: {line[:120]!r} is no TOML: {what}{column}"


def _line_of(text: str, keys: tuple[str, ...]) -> int:
    """The line, from 1, in which the statement begins that first mentions the path `keys`.

    `text` parses and has the key. A prefix of lines that parses ends where a statement ends: one
    that is cut inside an array or a string of several lines does not parse. So the statement that
    brings the key ends with the first such prefix that has the key, and begins right after the
    prefix before it (blank lines and comments are prefixes of their own).
    """
    lines = text.split("\n")

    def parsed(count: int) -> dict[str, Any] | None:
        try:
            return tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:
            return None

    low, high = 0, len(lines)  # `low` lines lack the key, `high` lines have it; both parse
    while high - low > 1:
        middle = cut = (low + high) // 2
        while cut < high and (document := parsed(cut)) is None:
            cut += 1
        if cut == high:  # all within one statement from `middle` on: look before it
            cut = middle - 1
            while cut > low and (document := parsed(cut)) is None:
                cut -= 1
            if cut == low:
                break
        assert document is not None
        if _holds(document, keys):
            high = cut
        else:
            low = cut
    return low + 1


def _holds(document: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(document, dict) or key not in document:
            return False
        document = document[key]
    return True


def _unknown_table(table: str) -> str:
    if places := [option.table for option in OPTIONS if option.key == table]:
        return f"belongs into [{places[0]}]"
    return f"is no table of this file: {_listing(sorted(_NAME_OF_TABLE))}" + _nearest(
        table, sorted(_NAME_OF_TABLE)
    )


def _unknown_key(table: str, key: str) -> str:
    if places := [option.table for option in OPTIONS if option.key == key]:
        return f"is no key of [{table}]; it belongs into [{places[0]}]"
    known = [option.key for option in OPTIONS if option.table == table]
    return f"is no key of [{table}], which has {', '.join(known)}{_nearest(key, known)}"


def _nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listing(words: list[str] | tuple[str, ...]) -> str:
    return f"write {', '.join(words[:-1])} or {words[-1]}"


def _dotted(keys: tuple[str, ...]) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
    return ".".join(key if bare.fullmatch(key) else repr(key) for key in keys)


def _kind(value: object) -> str:
    return {
        "str": "a string",
        "bool": "true or false",
        "int": "a number",
        "float": "a number",
        "list": "an array",
    }.get(type(value).__name__, f"a {type(value).__name__}")
