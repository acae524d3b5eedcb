"""What `import shmcache` loads: every worker process of a service pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = "import shmcache, sys; print(*sorted(sys.modules))"

OPTIONAL = ("asyncio", "click", "msgspec", "prometheus_client", "pydantic", "rich", "tomllib")
"""Loaded where they are used, not before: asyncio alone takes a seventh of the import's time."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Names of the modules of an interpreter that has imported shmcache and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_core_is_loaded(loaded: set[str]) -> None:
    assert "shmcache._core._binding" in loaded


@pytest.mark.parametrize("module", OPTIONAL)
def test_optional_modules_are_loaded_where_they_are_used(loaded: set[str], module: str) -> None:
    assert module not in loaded
