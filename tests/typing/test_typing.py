"""The package says what types it has, and mypy agrees with api.py about them."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def mypy(file: Path, cache_dir: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy")
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache_dir}", str(file)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=cwd,
    )


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_the_public_types_are_as_promised(cache_dir: Path) -> None:
    done = mypy(HERE / "api.py", cache_dir)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_use_of_the_types_is_found(cache_dir: Path, tmp_path: Path) -> None:
    """The test above can fail: the same checker rejects a file with a mistake in it."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from shmcache import Cache\nCache('a').incr('k') + 'text'\n")
    done = mypy(wrong, cache_dir)
    assert done.returncode == 1
    assert "operator" in done.stdout


def test_the_types_are_found_from_anywhere(cache_dir: Path, tmp_path: Path) -> None:
    """In another project's directory mypy finds what is installed, editable or not."""
    user = tmp_path / "user.py"
    user.write_text("from shmcache import Cache\nCache('a').incr('k') + 1\n")
    done = mypy(user, cache_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_marked_as_typed() -> None:
    assert (importlib.resources.files("shmcache") / "py.typed").is_file()
