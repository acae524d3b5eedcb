"""`shmcache config NAME get|set|edit|watch`: the swap slot `config` as TOML and JSON."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.cli import SHMCACHE, invoke
from support.processes import poll_until

from shmcache.cli import documents
from shmcache.swap import slot_names

CONFIG = {
    "title": "shop",
    "limits": {"rps": 100, "api.v1": {"rps": 5}},
    "servers": [{"host": "a"}, {"host": "b"}],
    "since": datetime(2026, 1, 2, tzinfo=UTC),
}


@pytest.fixture
def configured(cache: Any) -> Any:
    """A cache with a configuration."""
    cache.slot().store(CONFIG)
    return cache


def editor(path: Path, *bodies: str) -> dict[str, str]:
    """An $EDITOR that runs one shell body after the other on the file, each time it is called."""
    calls = path / "calls"
    script = path / "editor"
    cases = "\n".join(f"{i}) {body} ;;" for i, body in enumerate(bodies))
    script.write_text(
        f"#!/bin/sh\nn=$(cat {calls} 2>/dev/null || echo 0)\necho $((n + 1)) > {calls}\n"
        f"case $n in\n{cases}\nesac\n# a change within the clock's tick is one too\n"
        'touch -d "+$((n + 5)) seconds" "$1"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"EDITOR": str(script), "VISUAL": "", "TMPDIR": str(path)}


# -------------------------------------------------------------------------------------- get
def test_get_prints_all_of_it_or_one_key(configured: Any) -> None:
    name = configured.name
    whole = json.loads(invoke("config", name, "get").stdout)
    assert whole["limits"] == CONFIG["limits"]
    assert whole["since"] == {"$datetime": "2026-01-02T00:00:00+00:00"}
    assert json.loads(invoke("config", name, "get", "--json").stdout) == whole
    assert tomllib.loads(invoke("config", name, "get", "--format", "toml").stdout) == CONFIG
    assert invoke("config", name, "get", "title").stdout == "shop\n"
    assert invoke("config", name, "get", "limits.rps").stdout == "100\n"
    assert invoke("config", name, "get", 'limits."api.v1".rps').stdout == "5\n"
    assert invoke("config", name, "get", "servers.1.host").stdout == "b\n"
    assert invoke("config", name, "get", "title", "--format", "json").stdout == '"shop"\n'
    part = invoke("config", name, "get", "limits", "--format", "toml").stdout
    assert tomllib.loads(part) == CONFIG["limits"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nope", "has no 'nope'"),
        ("limits.nope", "limits has no 'nope'"),
        ("servers.2", "list of 2"),
        ("title.x", "title is of type str"),
        ("limits..rps", "no path"),
        ("", "no path"),
    ],
)
def test_get_says_which_part_of_a_path_is_missing(path: str, said: str, configured: Any) -> None:
    assert said in invoke("config", configured.name, "get", path, status=1).stderr


def test_get_takes_no_slot_where_there_is_no_configuration(cache: Any) -> None:
    assert "no configuration yet" in invoke("config", cache.name, "get", status=1).stderr
    assert slot_names(cache._held) == []
    cache.slot("other")
    cache.slot("config")
    assert slot_names(cache._held) == ["other", "config"]
    invoke("config", cache.name, "get", status=1)


# -------------------------------------------------------------------------------------- set
@pytest.mark.parametrize(
    ("file_name", "text"),
    [
        ("a.toml", "[limits]\nrps = 1\n"),
        ("a.json", '{"limits": {"rps": 1}}'),
        ("a.conf", "[limits]\nrps = 1\n"),
        ("a.conf", ' {"limits": {"rps": 1}}'),
    ],
)
def test_set_stores_a_file(file_name: str, text: str, cache: Any, tmp_path: Path) -> None:
    file = tmp_path / file_name
    file.write_text(text)
    assert invoke("config", cache.name, "set", str(file)).stdout == "version 1\n"
    assert cache.slot().load() == {"limits": {"rps": 1}}
    invoke("config", cache.name, "set", "-", input=text.replace("1", "2"))
    assert cache.slot().load() == {"limits": {"rps": 2}}


@pytest.mark.parametrize(
    ("file_name", "text", "where"),
    [
        ("a.toml", "a = 1\nb = \n", "a.toml:2:5: "),
        ("a.toml", "a = 1\na = 2\n", "a.toml:2:6: "),
        ("a.json", '{\n "a": 1\n "b": 2}', "a.json:3:2: "),
        ("a.toml", "a = 1\nb = 'ü", "a.toml:2"),
    ],
)
def test_a_file_that_does_not_parse_is_named_with_its_line_and_changes_nothing(
    file_name: str, text: str, where: str, configured: Any, tmp_path: Path
) -> None:
    file = tmp_path / file_name
    file.write_text(text, encoding="latin-1" if "ü" in text else "utf-8")
    told = invoke("config", configured.name, "set", str(file), status=1).stderr
    assert f"{tmp_path}/{where}" in told
    assert configured.slot().load_versioned() == (CONFIG, 1)


def test_set_replaces_one_key_and_leaves_the_rest(configured: Any) -> None:
    name, slot = configured.name, configured.slot()
    assert invoke("config", name, "set", "limits.rps", "200").stdout == "version 2\n"
    assert invoke("config", name, "set", "new.deep.flag", "true").stdout == "version 3\n"
    invoke("config", name, "set", "title", "two words")
    invoke("config", name, "set", "number", "5", "--type", "str")
    invoke("config", name, "set", "low", "-5")
    invoke("config", name, "set", "servers.1", '{"host": "c"}')
    assert slot.load() == {
        **CONFIG,
        "limits": {"rps": 200, "api.v1": {"rps": 5}},
        "new": {"deep": {"flag": True}},
        "title": "two words",
        "number": "5",
        "low": -5,
        "servers": [{"host": "a"}, {"host": "c"}],
    }
    assert "no table" in invoke("config", name, "set", "title.x", "1", status=1).stderr
    assert "item '7'" in invoke("config", name, "set", "servers.7", "1", status=1).stderr
    assert "JSON" in invoke("config", name, "set", "x", "{", "--type", "json", status=2).stderr


def test_set_makes_the_first_configuration(cache: Any) -> None:
    invoke("config", cache.name, "set", "a.b", "1")
    assert cache.slot().load() == {"a": {"b": 1}}


def test_two_that_set_different_keys_at_once_lose_neither(cache: Any) -> None:
    processes = [
        subprocess.Popen([*SHMCACHE, "config", cache.name, "set", f"k{n}", str(n)])
        for n in range(6)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    assert cache.slot().load() == {f"k{n}": n for n in range(6)}


def test_too_large_a_configuration_is_refused(configured: Any) -> None:
    big = "x" * (configured.slot().capacity + 1)
    assert "config" in invoke("config", configured.name, "set", "big", big, status=1).stderr
    assert configured.slot().load() == CONFIG


# ------------------------------------------------------------------------------------- edit
def test_edit_stores_what_the_editor_leaves(configured: Any, tmp_path: Path) -> None:
    env = editor(tmp_path, 'sed -i s/shop/store/ "$1"')
    assert invoke("config", configured.name, "edit", env=env).stdout == "version 2\n"
    assert configured.slot().load() == {**CONFIG, "title": "store"}


def test_edit_shows_what_does_not_parse_and_lets_it_be_edited_again(
    configured: Any, tmp_path: Path
) -> None:
    env = editor(tmp_path, 'echo "= 1" >> "$1"', 'sed -i "$ d; s/shop/store/" "$1"')
    done = invoke("config", configured.name, "edit", env=env, input="y\n")
    lines = len(documents.render(CONFIG, "toml").splitlines()) + 1
    assert f"the configuration:{lines}:1: " in done.stderr
    assert configured.slot().load() == {**CONFIG, "title": "store"}


def test_edit_that_is_given_up_keeps_the_text_in_a_file(
    configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    env = editor(tmp_path, 'echo "= 1" >> "$1"')
    for answer in ("n\n", ""):  # "" is the end of the input: nobody is there to ask
        (tmp_path / "calls").unlink(missing_ok=True)
        done = invoke("config", configured.name, "edit", env=env, input=answer, status=1)
        (kept,) = tmp_path.glob("shmcache-*.toml")
        assert str(kept) in done.stderr
        assert kept.read_text().endswith("= 1\n")
        assert kept.stat().st_mode & 0o077 == 0
        kept.unlink()
    assert configured.slot().load_versioned() == (CONFIG, 1)


def test_edit_without_a_change_stores_nothing(configured: Any, tmp_path: Path) -> None:
    for body in ("exit 0", 'echo "# a comment" >> "$1"'):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = invoke("config", configured.name, "edit", env=editor(tmp_path, body))
        assert "nothing stored" in done.stderr
    assert configured.slot().load_versioned() == (CONFIG, 1)


def test_edit_does_not_overwrite_what_somebody_stored_meanwhile(
    configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    meanwhile = " ".join([*SHMCACHE, "config", configured.name, "set", "title", "theirs"])
    env = editor(tmp_path, f'{meanwhile}; sed -i s/shop/mine/ "$1"')
    done = invoke("config", configured.name, "edit", env={**os.environ, **env}, status=1)
    (kept,) = tmp_path.glob("shmcache-*.toml")
    assert f"config {configured.name} set {kept}" in done.stderr
    assert 'title = "mine"' in kept.read_text()
    assert configured.slot().load()["title"] == "theirs"


def test_edit_takes_json_where_toml_cannot_hold_it(cache: Any, tmp_path: Path) -> None:
    cache.slot().store({"nothing": None})
    env = editor(tmp_path, 'sed -i s/null/1/ "$1"')
    invoke("config", cache.name, "edit", env=env)
    assert cache.slot().load() == {"nothing": 1}
    cache.slot().store({"nothing": None})
    told = invoke("config", cache.name, "edit", "--format", "toml", env=env, status=1).stderr
    assert "TOML has no null, and nothing is one" in told


# ------------------------------------------------------------------------------------ watch
def test_watch_prints_each_change_as_a_line_until_the_cache_goes(cache: Any) -> None:
    process = subprocess.Popen(
        [*SHMCACHE, "config", cache.name, "watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    poll_until(
        lambda: b"watch" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), what="it runs"
    )
    # It may look for the first time only after this store: then the next one is its first.
    slot = cache.slot()
    slot.store({"n": 0})
    reader = iter(process.stdout)
    seen: list[Any] = []
    os.set_blocking(process.stdout.fileno(), False)

    def told() -> bool:
        slot.store({"n": 1})
        line = next(reader, "")
        seen.extend([json.loads(line)] if line else [])
        return bool(seen)

    poll_until(told, what="a line for a change")
    assert seen[0]["value"] in ({"n": 0}, {"n": 1})
    assert 1 <= seen[0]["version"] <= slot.load_versioned()[1]
    os.set_blocking(process.stdout.fileno(), True)
    cache.unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert cache.name in err


def test_watch_with_now_and_count_ends_by_itself(configured: Any) -> None:
    done = invoke("config", configured.name, "watch", "--now", "--count", "1")
    assert json.loads(done.stdout)["version"] == 1


# ------------------------------------------------------------------------------- documents
@pytest.mark.parametrize(
    "value",
    [
        {"a": b"\x00", "b": {1, 2}, "c": (1,), "d": {"$set": 1}, "e": float("inf")},
        {"table": {1: "int key"}, "when": CONFIG["since"], "clock": [{"x": 1.5}]},
        {"": 1, "dotted.key": {'quote"d': "multi\nline"}},
    ],
)
@pytest.mark.parametrize("format_name", documents.FORMATS)
def test_a_document_says_what_the_value_was(value: Any, format_name: str) -> None:
    text = documents.render(value, format_name)
    assert documents.parse(text, format_name, "test") == value


def test_with_path_changes_nothing_in_place() -> None:
    before = {"a": {"b": [1, {"c": 2}]}, 5: "int"}
    after = documents.with_path(before, documents.path_of("a.b.1.c"), 3)
    assert before == {"a": {"b": [1, {"c": 2}]}, 5: "int"}
    assert after == {"a": {"b": [1, {"c": 3}]}, 5: "int"}
    assert documents.with_path(before, ("5",), "x")[5] == "x"
    assert documents.path_of('a."b.c"."d\\"e".0') == ("a", "b.c", 'd"e', "0")
