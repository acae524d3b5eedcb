"""Settings from file, environment and flags: what is strongest, and what a mistake is told like."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import settings
from shmcache.settings import OPTIONS, CacheSettings, DaemonSettings, Settings, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_one(text: str) -> Path:
        path = tmp_path / "app.toml"
        path.write_bytes(text.encode())
        return path

    return write_one


def refused(path: Path | None, env: dict[str, str] | None = None, **flags: object) -> list[str]:
    """The lines of the refusal, without the directory of the file."""
    with pytest.raises(ValueError) as caught:
        load(path, env or {}, flags)
    return [line.replace(f"{path}:", "app.toml:") for line in str(caught.value).splitlines()]


def test_nothing_said_is_the_defaults() -> None:
    assert load(None, {}) == Settings()
    assert Settings().cache.arguments() == {}
    assert Settings().metrics.listen is None


def test_every_setting_can_come_from_the_file(write: Callable[[str], Path]) -> None:
    path = write(
        """
[cache]
size = "64MiB"
shards = 4
avg_entry_size = 100
policy = "keep"
codec = "json"
slots = 4
slot_capacity = "8KiB"
mode = 0o660
group = "www-data"
[daemon]
sweep_interval = 0.5
snapshot = "warm/app.snapshot"
snapshot_interval = 60
unlink = true
[metrics]
listen = "127.0.0.1:9419"
[config]
rates = [1, 2]
[config.deep]
a = { b = 1979-05-27 }
"""
    )
    found = load(path, {})
    assert found.cache == CacheSettings(
        64 << 20, 4, 100, "keep", "json", 4, 8 << 10, 0o660, "www-data"
    )
    warm = path.parent / "warm" / "app.snapshot"
    assert found.daemon == DaemonSettings(0.5, warm, 60.0, True)
    assert found.metrics.listen == ("127.0.0.1", 9419)
    assert found.config is not None
    assert found.config["rates"] == [1, 2]
    assert str(found.config["deep"]["a"]["b"]) == "1979-05-27"


def test_flags_are_stronger_than_the_environment_and_that_than_the_file(
    write: Callable[[str], Path],
) -> None:
    path = write('[cache]\nsize = "1MiB"\nshards = 1\npolicy = "keep"\n')
    env = {"SHMCACHE_SIZE": "2MiB", "SHMCACHE_SHARDS": "2", "SHMCACHE_STRESS_SECONDS": "x"}
    found = load(path, env, {"size": "4MiB", "shards": None})
    assert (found.cache.size, found.cache.shards, found.cache.policy) == (4 << 20, 2, "keep")


TEXTS = {
    "size": ("64MB", 64_000_000),
    "shards": ("8", 8),
    "avg_entry_size": ("300", 300),
    "policy": ("keep", "keep"),
    "codec": ("raw", "raw"),
    "slots": ("0", 0),
    "slot_capacity": ("1KiB", 1024),
    "mode": ("0660", 0o660),
    "group": ("1000", 1000),
    "sweep_interval": ("0.1", 0.1),
    "snapshot": ("a.snapshot", Path("a.snapshot")),
    "snapshot_interval": ("0", 0.0),
    "unlink": ("yes", True),
    "metrics": ("[::1]:0", ("::1", 0)),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_every_setting_can_come_as_text(option: settings.Option) -> None:
    name = option.name or option.key
    text, value = TEXTS[name]
    for found in (load(None, {option.variable: text}), load(None, {}, {name: text})):
        assert getattr(getattr(found, option.table), option.key) == value


def test_a_cache_with_a_group_is_for_the_group() -> None:
    assert load(None, {}, {"group": "g"}).cache.arguments() == {"group": "g", "mode": 0o660}
    given_mode = load(None, {}, {"group": "g", "mode": "0640"}).cache.arguments()
    assert given_mode == {"group": "g", "mode": 0o640}


# (text of the file, line, key, word of the message)
MISTAKES = {
    "unknown key": ("[cache]\nsize = '1MiB'\nshard = 4\n", 3, "cache.shard", "'shards'"),
    "unknown table": ("# hm\n\n[cahce]\nsize = 1\n", 3, "cahce", "'cache'"),
    "key outside of its table": ("size = '1MiB'\n", 1, "size", "belongs into [cache]"),
    "key in another table": ("[cache]\nunlink = true\n", 2, "cache.unlink", "[daemon]"),
    "wrong type": ("[cache]\nshards = 'many'\n", 2, "cache.shards", "no whole number"),
    "float for int": ("[cache]\nshards = 4.0\n", 2, "cache.shards", "no whole number"),
    "bool for int": ("[cache]\nshards = true\n", 2, "cache.shards", "no whole number"),
    "out of range": ("[daemon]\nsweep_interval = 0\n", 2, "daemon.sweep_interval", "out of range"),
    "nan": ("[daemon]\nsweep_interval = nan\n", 2, "daemon.sweep_interval", "out of range"),
    "no power of two": ("[cache]\nshards = 3\n", 2, "cache.shards", "power of two"),
    "too small": ("[cache]\nsize = '1kB'\n", 2, "cache.size", "too small"),
    "no size": ("[cache]\nsize = '64M'\n", 2, "cache.size", "'64MiB'"),
    "decimal mode": ("[cache]\nmode = 660\n", 2, "cache.mode", "octal"),
    "no policy": ("[cache]\npolicy = 'evit'\n", 2, "cache.policy", "'evict'"),
    "no codec": ("[cache]\ncodec = 'yaml'\n", 2, "cache.codec", "msgpack"),
    "no address": ("[metrics]\nlisten = 'here'\n", 2, "metrics.listen", "HOST:PORT"),
    "no port": ("[metrics]\nlisten = 'here:99999'\n", 2, "metrics.listen", "HOST:PORT"),
    "number for table": ("\ncache = 3\n", 2, "cache", "[cache]"),
    "array of tables": ("[[cache]]\nsize = 1\n", 1, "cache", "must be a table"),
    "dotted key": ("a = 1\n# x\ncache.sice = 2\n", 3, "cache.sice", "'size'"),
    "inline table": ("cache = { size = '2MiB',\tshard = 2 }\n", 1, "cache.shard", "'shards'"),
    "quoted key": ('[cache]\n"si ze" = 1\n', 2, "cache.'si ze'", "'size'"),
    "after long values": (
        '[config]\na = """\n[cache]\nshard = 1\n"""\nb = [\n  1,\n\n]\n[cache]\nshard = [\n 2]\n',
        11,
        "cache.shard",
        "'shards'",
    ),
    "header with space": ("[ daemon ]\n\n  'unlnk' = 1", 3, "daemon.unlnk", "'unlink'"),
    "windows": ("[cache]\r\n\r\nshard = 1\r\n", 3, "cache.shard", "'shards'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_line_and_key(
    mistake: str, write: Callable[[str], Path]
) -> None:
    text, line, key, word = MISTAKES[mistake]
    told = [each for each in refused(write(text)) if each.startswith(f"app.toml:{line}: {key}: ")]
    assert len(told) == 1, refused(write(text))
    assert word in told[0]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("[cache]\nsize = \nshards = 2\n", 2, "size ="),
        ("[cache\n", 1, "[cache"),
        ("[cache]\nshards = 1\nshards = 2\n", 3, "shards = 2"),
        ("[cache]\nsize = '1MiB\n", 2, "size"),
        ('[config]\na = """\n\n', 2, '"""'),
        ("[cache]\n\n[cache]\n", 3, "[cache]"),
        ("a = [1,\n2", 2, "end of the file"),
    ],
)
def test_a_file_that_does_not_parse_is_told_with_its_line(
    text: str, line: int, word: str, write: Callable[[str], Path]
) -> None:
    (told,) = refused(write(text))
    assert told.startswith(f"app.toml:{line}: "), told
    assert word in told


def test_what_is_no_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_bytes(b"[config]\na = 'caf\xe9'\n")
    assert refused(path)[0].startswith("app.toml:2: byte 0xe9")


def test_all_mistakes_are_told_at_once(write: Callable[[str], Path]) -> None:
    path = write("[cache]\nshard = 1\nmode = '999'\n[daemon]\nunlink = 3\n")
    told = refused(path, {"SHMCACHE_SIZE": "big"}, metrics="x")
    starts = [line.split(": ")[0:2] for line in told]
    assert starts[:3] == [
        ["app.toml:2", "cache.shard"],
        ["app.toml:3", "cache.mode"],
        ["app.toml:5", "daemon.unlink"],
    ]
    assert [line.split(": ")[0] for line in told[3:]] == ["SHMCACHE_SIZE", "--metrics"]


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml", {})


KEYS = st.sampled_from(["a", "b", "c", "d e", "é", "f.g", "h"])
VALUES = st.sampled_from(
    ["1", "'x'", '"""\nx\n[a]\nb = 1\n"""', "'''\n\n'''", "[\n1,\n\n2\n]", "{}", "{ z = 1 }", "'#'"]
)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pair"), st.lists(KEYS, min_size=1, max_size=3), VALUES),
            st.tuples(st.sampled_from(["[", "[["]), st.lists(KEYS, min_size=1, max_size=2)),
            st.just(("blank",)),
        ),
        max_size=12,
    )
)
def test_the_line_of_a_key_is_where_its_statement_begins(statements: list[Any]) -> None:
    """Against a record kept while writing the text; statements that TOML refuses are left out."""
    text, table = "", ()
    lines: dict[tuple[str, ...], int] = {}
    for statement in statements:
        where: tuple[str, ...] = table
        if statement[0] == "blank":
            piece = "# a = 1\n\n"
        else:
            dotted = ".".join(f'"{key}"' for key in statement[1])
            path = tuple(statement[1])
            if statement[0] == "pair":
                piece, where = f" {dotted} = {statement[2]} # c\n", (*table, *path)
            else:
                close = "]" * len(statement[0])
                piece, where = f"{statement[0]}{dotted}{close}\n", path
        try:
            document = tomllib.loads(text + piece)
        except tomllib.TOMLDecodeError:
            continue
        if statement[0] not in ("pair", "blank"):
            table = where
        for end in range(1, len(where) + 1):
            if settings._holds(document, where[:end]):
                lines.setdefault(where[:end], text.count("\n") + 1)
        text += piece
    for path, line in lines.items():
        assert settings._line_of(text, path) == line, text


def test_the_example_is_valid_and_shows_every_key() -> None:
    example = ROOT / "systemd" / "example.toml"
    found = load(example, {})
    assert found.cache.size == 256 << 20
    assert found.config is not None
    text = example.read_text()
    for option in OPTIONS:
        assert f"{option.key} =" in text, f"{option.table}.{option.key}"
    uncommented = "".join(
        line.removeprefix("# ") if " = " in line else line for line in text.splitlines(True)
    )
    path = example.with_suffix(".toml")
    assert tomllib.loads(uncommented)["cache"].keys() == CacheSettings.__dataclass_fields__.keys()
    assert path.exists()


def test_what_needs_a_new_cache_is_named_with_both_values() -> None:
    old, new = CacheSettings(size=1 << 20, mode=0o600), CacheSettings(size=2 << 20, mode=0o660)
    assert settings.new_cache_needed(old, new) == ["size: 1048576 -> 2097152", "mode: 0600 -> 0660"]
    assert settings.new_cache_needed(old, old) == []
