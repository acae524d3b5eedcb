"""`shmcache completion`: what a shell completes, asked of the shell itself where it is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cli import SHMCACHE, invoke

from shmcache import Cache
from shmcache.trace import BUNDLED


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `shmcache` is this package's command."""
    command = tmp_path / "shmcache"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shmcache "$@"\n')
    command.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.fixture
def complete(path: str) -> Callable[..., list[str]]:
    """Completes the last of some words in bash, as <TAB> does."""

    def ask(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("shmcache", *words))
        script = (
            'source <(shmcache completion bash); compopt() { echo "compopt:${*: -1}"; }\n'
            f"COMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
            '_shmcache_completion shmcache; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", script],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1]

    return ask


def test_bash_completes_commands_options_and_choices(complete: Callable[..., list[str]]) -> None:
    assert complete("ver") == ["verify"]
    assert {"get", "set", "config", "doctor", "replay", "ls"} <= set(complete(""))
    assert complete("get", "app", "key", "--name") == ["--namespace"]
    assert complete("get", "app", "key", "--key-type", "") == ["str", "int", "bytes"]
    assert complete("config", "app", "e") == ["edit"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("no-such") == [""]


def test_bash_completes_names_of_caches(
    complete: Callable[..., list[str]], new_name: Callable[[], str]
) -> None:
    first, second = new_name(), new_name()
    with Cache(first, size="1MiB"), Cache(second, size="1MiB"):
        common = first.rpartition("-test")[0].rpartition("-")[0]
        assert second.startswith(common)
        for command in ("get", "set", "keys", "unlink", "doctor", "verify", "config"):
            assert sorted(complete(command, common)) == sorted([first, second]), command
        assert complete("get", first, "") == [""]  # keys are not completed
    assert complete("get", common) == [""]


def test_bash_completes_traces_else_files(complete: Callable[..., list[str]]) -> None:
    assert complete("replay", BUNDLED[0][:2])[-1] == BUNDLED[0]
    assert complete("replay", "./x") == ["compopt:default", ""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_s_script_asks_this_command(shell: str) -> None:
    script = invoke("completion", shell).stdout
    assert f"_SHMCACHE_COMPLETE={shell}_complete" in script
    assert "%" not in script.replace("%%", "").replace("%:*", "") or shell != "bash"


@pytest.mark.parametrize(
    ("shell", "words", "answer"),
    [
        ("zsh", {"COMP_WORDS": "shmcache ver", "COMP_CWORD": "1"}, "verify\n"),
        ("fish", {"COMP_WORDS": "shmcache ver", "COMP_CWORD": "ver"}, "verify\t"),
        ("zsh", {"COMP_WORDS": "shmcache get NAME", "COMP_CWORD": "2"}, "NAME\n"),
        ("fish", {"COMP_WORDS": "shmcache get NAME", "COMP_CWORD": "NAME"}, "NAME\t"),
    ],
)
def test_what_zsh_and_fish_ask_is_answered(
    shell: str, words: dict[str, str], answer: str, cache: Any
) -> None:
    asked = {key: value.replace("NAME", cache.name) for key, value in words.items()}
    done = subprocess.run(
        SHMCACHE,
        env={**os.environ, **asked, "_SHMCACHE_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.replace("NAME", cache.name) in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_is_sound_in_its_shell(shell: str, path: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(invoke("completion", shell).stdout)
    subprocess.run([shell, "-n", str(script)], check=True, timeout=60)


def test_completing_a_command_s_name_imports_none_of_them() -> None:
    script = (
        "import sys, os\nfrom shmcache.cli import main\n"
        "try:\n    main(prog_name='shmcache')\nexcept SystemExit:\n    pass\n"
        "print([m for m in sys.modules if m.startswith('shmcache.cli.')])"
    )
    asked = {"COMP_WORDS": "shmcache l", "COMP_CWORD": "1", "_SHMCACHE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "['shmcache.cli.group']"
    assert "plain,ls" in done.stdout
