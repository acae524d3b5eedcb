"""`shmcache get`, `set`, `del`, `incr`, `ttl`, `keys`, `clear`, `unlink`, `verify`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from support import names
from support.cli import SHMCACHE, invoke, run
from support.processes import Channel, Worker
from support.segments import mapped, shard_offset

from shmcache import Cache, _core
from shmcache.cli.values import bytes_from_text, bytes_text, from_plain, to_plain

RICH_VALUES = [
    b"a\x00b\\n\n\xff'\"",
    (1, (2, b"x"), "three"),
    {1, 2},
    frozenset({"a"}),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    time(3, 4, 5),
    timedelta(days=-1, microseconds=7),
    Decimal("0.10"),
    UUID(int=77),
    float("inf"),
    {1: "int keys", b"k": None, (1, 2): [True]},
    {"$set": "only looks like a set"},
    {"plain": [1, 2.5, None, True, "ünï"], "deep": {"$b": (b"",)}},
    2**80,
]


def crowd(channel: Channel, name: str) -> None:
    """Hold a cache open until told to close it, and say whether it was the last."""
    with Cache(name, size="1MiB") as cache:
        cache["a"] = 1
        channel.sync()
    channel.send(names.segment_path(name).exists())


def leave(channel: Channel, name: str) -> None:
    """Die with a cache open."""
    cache = Cache(name, size="1MiB")
    cache["text"] = "left"
    cache.set("brief", 1, ttl=1000)
    cache["count"] = 7
    channel.send()
    os._exit(1)


# ----------------------------------------------------------------------------------- values
def test_text_is_printed_as_it_is_and_all_else_as_json(cache: Any) -> None:
    cache.update({"t": "two\nlines", "d": {"name": "Ada"}, "n": None, "i": 7, "l": [1, "x"]})
    assert invoke("get", cache.name, "t").stdout == "two\nlines\n"
    assert invoke("get", cache.name, "t", "--json").stdout == '"two\\nlines"\n'
    assert json.loads(invoke("get", cache.name, "d").stdout) == {"name": "Ada"}
    assert invoke("get", cache.name, "n").stdout == "null\n"
    assert invoke("get", cache.name, "i").stdout == "7\n"
    assert json.loads(invoke("get", cache.name, "l").stdout) == [1, "x"]


@pytest.mark.parametrize("value", RICH_VALUES, ids=lambda v: type(v).__name__)
def test_what_get_prints_set_stores_as_what_it_was(value: Any, cache: Any) -> None:
    cache["from"] = value
    printed = invoke("get", cache.name, "from").stdout.strip()
    json.loads(printed)
    invoke("set", cache.name, "to", printed, "--type", "json")
    assert cache["to"] == value
    assert type(cache["to"]) is type(value)


def test_what_only_pickle_can_hold_is_printed_for_reading() -> None:
    assert to_plain([range(3)]) == [{"$repr": "range(0, 3)"}]
    with pytest.raises(ValueError, match="only printed for reading"):
        from_plain({"$repr": "x"})


def test_raw_prints_the_very_bytes(cache: Any) -> None:
    cache.update({"b": bytes(range(256)), "t": "text", "n": 1})
    assert run("get", cache.name, "b", "--raw").stdout == bytes(range(256))
    assert invoke("get", cache.name, "t", "--raw").stdout == "text"
    assert "--raw" in invoke("get", cache.name, "n", "--raw", status=1).stderr


def test_bytes_as_text_and_back() -> None:
    everything = bytes(range(256))
    assert bytes_from_text(bytes_text(everything)) == everything
    assert bytes_text(b"plain'\"") == "plain'\""
    assert bytes_from_text("ü") == "ü".encode()
    for wrong in ("\\", "\\q", "\\x1", "a\\"):
        with pytest.raises(ValueError, match="no escape"):
            bytes_from_text(wrong)


@pytest.mark.parametrize(
    ("text", "kind", "stored"),
    [
        ("17", "str", "17"),
        ("17", "int", 17),
        ("a\\x00", "bytes", b"a\x00"),
        ('{"a": [1]}', "json", {"a": [1]}),
    ],
)
def test_set_stores_the_type_that_was_said(text: str, kind: str, stored: Any, cache: Any) -> None:
    assert invoke("set", cache.name, "k", text, "--type", kind).output == ""
    assert cache["k"] == stored
    assert type(cache["k"]) is type(stored)


def test_a_value_that_is_none_of_its_type_is_wrong_usage(cache: Any) -> None:
    for text, kind in (("{", "json"), ("1.5", "int"), ("\\q", "bytes"), ("[" * 9999, "json")):
        assert "VALUE" in invoke("set", cache.name, "k", text, "--type", kind, status=2).stderr
    assert "k" not in cache


def test_a_ttl_is_kept_and_printed(cache: Any) -> None:
    invoke("set", cache.name, "k", "v", "--ttl", "100")
    assert 90 < float(invoke("ttl", cache.name, "k").stdout) <= 100
    assert 90 < cache.ttl("k") <= 100
    invoke("set", cache.name, "k", "v")
    assert invoke("ttl", cache.name, "k").stdout == "never\n"
    assert invoke("ttl", cache.name, "k", "--json").stdout == "null\n"
    assert "'gone'" in invoke("ttl", cache.name, "gone", status=1).stderr
    for wrong in ("0", "-1", "nan"):
        assert "ttl" in invoke("set", cache.name, "k", "new", "--ttl", wrong, status=2).stderr
    assert cache["k"] == "v"


# ------------------------------------------------------------------------------------- keys
def test_keys_of_other_types_and_in_namespaces(cache: Any) -> None:
    cache.update({17: "int", "17": "str", b"\x00\\": "bytes"})
    inner = cache.namespace("a/b").namespace("c")
    inner[17] = "inner"
    at = cache.name
    assert invoke("get", at, "17").stdout == "str\n"
    assert invoke("get", at, "17", "--key-type", "int").stdout == "int\n"
    assert invoke("get", at, "\\x00\\\\", "--key-type", "bytes").stdout == "bytes\n"
    nested = ("--namespace", "a/b", "-n", "c")
    assert invoke("get", at, "17", "--key-type", "int", *nested).stdout == "inner\n"
    invoke("set", at, "k", "v", *nested)
    assert inner["k"] == "v"
    assert "k" not in cache
    assert invoke("keys", at, *nested, "--key-type", "int").stdout == "17\n"
    assert "no int" in invoke("get", at, "x", "--key-type", "int", status=2).stderr
    assert "namespace 'x'" in invoke("get", at, "17", "-n", "x", status=1).stderr


def test_keys_are_listed_by_prefix_and_type(cache: Any) -> None:
    cache.update({"user:1": 1, "user:2": 1, "order:1": 1, 5: 1, b"\xff": 1, (1, "x"): 1})
    assert sorted(invoke("keys", cache.name).stdout.split("\n")[:-1]) == sorted(
        ["user:1", "user:2", "order:1", "5", '{"$bytes": "\\\\xff"}', '{"$tuple": [1, "x"]}']
    )
    listed = invoke("keys", cache.name, "--prefix", "user:").stdout.split()
    assert sorted(listed) == ["user:1", "user:2"]
    assert invoke("keys", cache.name, "--key-type", "bytes").stdout == "\\xff\n"
    assert invoke("keys", cache.name, "--key-type", "int", "--json").stdout == "[5]\n"
    assert invoke("keys", cache.name, "--prefix", "none", "--json").stdout == "[]\n"
    assert len(json.loads(invoke("keys", cache.name, "--json", "--limit", "2").stdout)) == 2
    assert (
        "prefix"
        in invoke("keys", cache.name, "--prefix", "1", "--key-type", "int", status=2).stderr
    )


def test_thousands_of_keys_are_listed_once_each_also_as_json(open_cache: Any) -> None:
    cache = open_cache()
    cache.set_many({f"key {n}": n for n in range(3000)})
    assert sorted(invoke("keys", cache.name).stdout.splitlines()) == sorted(cache)
    assert sorted(json.loads(invoke("keys", cache.name, "--json").stdout)) == sorted(cache)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_head_closes_the_pipe_and_nobody_complains(options: tuple[str, ...], cache: Any) -> None:
    cache.set_many({f"key {n} {'x' * 100}": n for n in range(3000)})
    process = subprocess.Popen(
        [*SHMCACHE, "keys", cache.name, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 1)
    assert complaint == b""


def test_a_key_that_is_no_utf8_comes_back_as_it_was(cache: Any) -> None:
    odd = b"\xff\xfe key"
    subprocess.run([*SHMCACHE, "set", cache.name, odd, "v"], check=True, timeout=60)
    done = run("keys", cache.name)
    assert done.stdout == odd + b"\n"
    cache.clear()
    cache["\ud800"] = 1  # a lone surrogate that no bytes stand for
    assert invoke("keys", cache.name).stdout == "\\ud800\n"


def test_del_says_how_many_there_were(cache: Any) -> None:
    cache.update({"a": 1, "b": 1, "c": 1})
    assert invoke("del", cache.name, "a", "b", "none").stdout == "2\n"
    assert invoke("del", cache.name, "none").stdout == "0\n"
    assert list(cache) == ["c"]
    assert invoke("del", cache.name, status=2)


def test_incr_counts_up_and_down(cache: Any) -> None:
    assert invoke("incr", cache.name, "n").stdout == "1\n"
    assert invoke("incr", cache.name, "n", "10").stdout == "11\n"
    assert invoke("incr", cache.name, "n", "-3").stdout == "8\n"
    assert invoke("incr", cache.name, "n", "--", "-35").stdout == "-27\n"
    assert invoke("incr", cache.name, "n", "--namespace", "s", "-1").stdout == "-1\n"
    cache.update({"text": "x", "most": 2**63 - 1})
    assert "'text'" in invoke("incr", cache.name, "text", status=1).stderr
    assert "64 bit" in invoke("incr", cache.name, "most", status=1).stderr
    assert cache["text"] == "x"
    assert invoke("incr", cache.name, "n", "1.5", status=2)
    assert invoke("incr", cache.name, "n", "--tll", status=2)


def test_errors_are_one_line_of_the_cache_itself(open_cache: Any) -> None:
    small = open_cache(size="1MiB", codec="raw", policy="keep")
    big = "x" * (small.max_value_size + 1)
    for arguments in (
        ("set", small.name, "k", "text"),  # codec raw takes bytes
        ("set", small.name, "k", big, "--type", "bytes"),
        ("set", small.name, "k" * 70_000, "v", "--type", "bytes"),
    ):
        told = invoke(*arguments, status=1).stderr
        assert told.startswith("Error: ")
        assert told.count("\n") == 1


# --------------------------------------------------------------------------- whole caches
def test_clear_empties_the_cache_or_one_namespace(cache: Any) -> None:
    cache["a"] = 1
    cache.namespace("x")["b"] = 2
    cache.slot().store({"stays": True})
    assert invoke("clear", cache.name, "--namespace", "x").output == ""
    assert list(cache.namespace("x")) == []
    assert list(cache) == ["a"]
    invoke("clear", cache.name)
    assert len(cache) == 0
    assert cache.slot().load() == {"stays": True}


def test_unlink_removes_the_cache_and_warns_of_who_has_it(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB"):
        told = invoke("unlink", cache_name)
        assert "1 living process had" in told.stderr
        assert not names.leftovers(cache_name)
        assert f"no cache '{cache_name}'" in invoke("unlink", cache_name, status=1).stderr
        assert invoke("unlink", cache_name, "--force").output == ""


def test_unlink_removes_what_cannot_be_opened(cache_name: str, start: Any) -> None:
    worker = start(leave, cache_name)
    worker.recv()
    worker.join()
    with mapped(cache_name) as data:
        data[0:8] = b"garbage!"
    assert invoke("unlink", cache_name).output == ""
    assert not names.leftovers(cache_name)


def test_verify_finds_damage_and_exits_1(open_cache: Any) -> None:
    cache = open_cache()
    cache["a"] = "value"
    assert "sound" in invoke("verify", cache.name).stdout
    report = json.loads(invoke("verify", cache.name, "--json").stdout)
    assert report["sound"] is True
    with mapped(cache.name) as data:
        place = shard_offset(data, 0) + _core.LAYOUT["shm_shard.counts"]
        place += _core.LAYOUT["shm_counts.entries"]
        before = data[place]
        data[place] = before ^ 0x40
        report = json.loads(invoke("verify", cache.name, "--json", status=1).stdout)
        told = invoke("verify", cache.name, status=1)
        data[place] = before
    assert report["sound"] is False
    assert any(f["invariant"] == "INV-COUNTS" and f["shard"] == 0 for f in report["findings"])
    assert "INV-COUNTS does not hold in shard 0" in told.stdout
    assert "shmcache unlink" in told.stderr


# ------------------------------------------------------------- what looking must not change
LOOKING: list[tuple[str, ...]] = [
    ("get", "NAME", "text"),
    ("ttl", "NAME", "brief"),
    ("keys", "NAME"),
    ("config", "NAME", "get"),
    ("verify", "NAME"),
    ("doctor", "NAME"),
    ("ls",),
]
CHANGING: list[tuple[str, ...]] = [
    ("set", "NAME", "k", "v"),
    ("incr", "NAME", "n"),
    ("del", "NAME", "k"),
    ("config", "NAME", "set", "k", "v"),
    ("clear", "NAME"),
]


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING, ("unlink", "NAME")], ids=" ".join)
def test_no_command_creates_a_cache(command: tuple[str, ...], cache_name: str) -> None:
    done = run(*[cache_name if word == "NAME" else word for word in command])
    assert done.returncode == (0 if command == ("ls",) else 1)
    if command != ("ls",):
        assert cache_name in (done.stderr + done.stdout).decode()
    assert b"Traceback" not in done.stderr
    assert not names.leftovers(cache_name)


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING], ids=" ".join)
def test_a_leftover_is_still_there_after_it(
    command: tuple[str, ...], cache_name: str, start: Any
) -> None:
    worker = start(leave, cache_name)
    worker.recv()
    worker.join()
    path = names.segment_path(cache_name)
    before, content = path.stat(), path.read_bytes()
    run(*[cache_name if word == "NAME" else word for word in command])
    after = path.stat()
    assert after.st_ino == before.st_ino
    if command[0] in ("ls", "doctor"):  # they do not even attach
        assert after.st_mtime_ns == before.st_mtime_ns
        assert path.read_bytes() == content
    with Cache(cache_name) as cache:  # adopted
        if command in LOOKING:
            assert dict(cache) == {"text": "left", "brief": 1, "count": 7}
            assert cache.ttl("brief") > 900
    assert not names.leftovers(cache_name)


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING], ids=" ".join)
def test_the_last_member_still_unlinks_after_it(
    command: tuple[str, ...], cache_name: str, start: Any
) -> None:
    worker: Worker = start(crowd, cache_name)
    assert worker.recv() == "ready"
    run(*[cache_name if word == "NAME" else word for word in command])
    assert names.segment_path(cache_name).exists()
    worker.send("go")
    assert worker.recv() is False
    assert not names.leftovers(cache_name)


# -------------------------------------------------------------------------- the whole group
def test_every_command_has_help_with_an_example_within_80_columns() -> None:
    from shmcache.cli import main

    commands = main.list_commands(None)  # type: ignore[arg-type]
    assert {"get", "set", "del", "incr", "ttl", "keys", "clear", "unlink"} <= set(commands)
    assert {"config", "doctor", "verify", "bench", "completion", "ls", "replay"} <= set(commands)
    listed = invoke("--help").stdout
    for command in commands:
        told = invoke(command, "--help").stdout
        assert f"shmcache {command}" in told.partition("Usage:")[2].partition("\n")[2], command
        assert "Example" in told, command
        assert f"  {command} " in listed
        assert max(map(len, told.splitlines())) <= 80, command
    assert max(map(len, listed.splitlines())) <= 80


@pytest.mark.parametrize("command", ["get", "set", "edit", "watch"])
def test_config_has_an_example_for_each_of_its_commands(command: str) -> None:
    told = invoke("config", "NAME", command, "--help").stdout
    assert f"shmcache config app {command}" in told


def test_wrong_usage_exits_2(cache: Any) -> None:
    for arguments in (
        ("no-such-command",),
        ("get", cache.name),
        ("get", "a/b", "k"),
        ("get", cache.name, "k", "--key-type", "float"),
        ("set", cache.name, "k", "v", "--ttl", "soon"),
        ("keys", cache.name, "--limit", "0"),
        ("completion", "tcsh"),
    ):
        invoke(*arguments, status=2)


def test_a_command_that_draws_nothing_imports_nothing_that_draws(cache: Any) -> None:
    cache["k"] = "v"
    script = (
        "import sys\nfrom shmcache.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print([m for m in ('rich', 'tomli_w', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "get", cache.name, "k"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "v\n[]\n"


class Own:
    """A codec that the command line has not."""

    name = "own"

    def encode(self, value: object) -> bytes:
        return repr(value).encode()

    def decode(self, data: memoryview) -> object:
        return bytes(data).decode()


def test_what_needs_no_value_works_whatever_the_codec_is(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(codec=Own())
    cache["a"], cache["b"] = [1], [2]
    assert set(run("keys", cache.name).stdout.split()) == {b"a", b"b"}
    assert run("ttl", cache.name, "a").stdout == b"never\n"
    assert run("incr", cache.name, "hits").stdout == b"1\n"
    assert run("del", cache.name, "a").stdout == b"1\n"
    assert "codec" in invoke("get", cache.name, "b", status=1).stderr
    run("clear", cache.name)
    assert len(cache) == 0


def test_ls_lists_it(new_name: Callable[[], str]) -> None:
    name = new_name()
    with Cache(name, size="1MiB"):
        assert name in run("ls").stdout.decode()


def test_ls_cuts_no_name_and_names_what_is_wrong(new_name: Callable[[], str]) -> None:
    name = new_name()[:40] + "-" * 20
    with Cache(name, size="1MiB"):
        told = invoke("ls").stdout
        assert f"{name} " in told
        with mapped(name) as data:
            before = data[0:8]
            data[0:8] = b"garbage!"
            done = invoke("ls")
            data[0:8] = before
    assert f"\n{name}: " in done.stdout
    assert not names.leftovers(name)
