"""docs/cli.md: every example is run, and prints what the page says."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def examples() -> list[tuple[str, str]]:
    """Commands with the output that follows them, of every block marked `console`."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            else:
                command, output = found[-1]
                found[-1] = (command, f"{output}{line}\n")
    return found


def test_the_page_has_examples() -> None:
    assert len(examples()) > 30


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="the examples are for a shell")
def test_every_example_prints_what_the_page_says(open_cache: Any, tmp_path: Path) -> None:
    command = tmp_path / "shmcache"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shmcache "$@"\n')
    command.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    cache = open_cache(shards=4, size="2MiB", name=None)
    checker = doctest.OutputChecker()
    for line, wanted in examples():
        done = subprocess.run(
            ["bash", "-c", re.sub(r"\bapp\b", cache.name, line)],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        printed = done.stdout.replace(cache.name, "app")
        if done.returncode:
            printed += f"[exit {done.returncode}]\n"
        assert checker.check_output(wanted, printed, doctest.ELLIPSIS), f"{line}\n{printed}"
