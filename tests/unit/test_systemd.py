"""The unit and its files: systemd itself looks at them, offline."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
UNIT = UNITS / "shmcache@.service"
SCRIPT = Path(sys.executable).with_name("shmcache")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (Debian: apt-get install systemd)",
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"},
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit `shmcache@app.service` as it would be installed here: the template as it is, adapted
    by the two drop-ins, the second with the directory of this environment's own script."""
    assert SCRIPT.exists(), "the package is not installed in this environment"
    unit = tmp_path / "shmcache@app.service"
    shutil.copy(UNIT, unit)
    drop_ins = tmp_path / "shmcache@app.service.d"
    drop_ins.mkdir()
    shutil.copy(UNITS / "instance.conf", drop_ins)
    venv = (UNITS / "venv.conf").read_text()
    assert "/opt/app/venv/bin" in venv
    (drop_ins / "venv.conf").write_text(venv.replace("/opt/app/venv/bin", str(SCRIPT.parent)))
    return unit


@needs_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(installed: Path) -> None:
    for unit in (UNIT, installed):
        done = analyze("verify", str(unit))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_verify_would_see_a_mistake(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("WatchdogSec", "WatchdogSecs"))
    done = analyze("verify", str(installed))
    assert "WatchdogSecs" in done.stderr


@needs_analyze
def test_the_exposure_is_at_most_2_5(installed: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=25", str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert score is not None, done.stdout
    assert 0 < float(score[1]) <= 2.5


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None,
    reason="systemd-sysusers is not installed (Debian: apt-get install systemd)",
)
def test_sysusers_takes_the_user() -> None:
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(UNITS / "shmcache.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def settings_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def test_nothing_in_the_unit_hides_or_removes_shared_memory() -> None:
    unit = settings_of(UNIT)
    assert unit["RemoveIPC"] == ["no"]
    assert unit["User"] == ["shmcache"]
    forbidden = {"DynamicUser", "PrivateIPC", "TemporaryFileSystem", "InaccessiblePaths"}
    forbidden |= {"ReadOnlyPaths", "RootDirectory", "RootImage", "PrivateUsers", "PrivateNetwork"}
    assert forbidden.isdisjoint(unit)


def test_the_unit_is_what_the_daemon_speaks() -> None:
    unit = settings_of(UNIT)
    assert unit["Type"] == ["notify"]
    assert "WatchdogSec" in unit
    assert unit["Restart"] == ["on-failure"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["StateDirectory"] == ["shmcache"]
    command = "shmcache serve %i --config /etc/shmcache/%i.toml"
    assert unit["ExecStart"] == [f"/usr/bin/env {command}"]


def test_the_drop_in_makes_the_unit_find_this_environment(installed: Path) -> None:
    """ExecStart, as systemd would run it: with the PATH of the drop-in and nothing else."""
    (value,) = settings_of(installed.parent / "shmcache@app.service.d" / "venv.conf")["Environment"]
    command = settings_of(installed)["ExecStart"][0].split()[:3]
    done = subprocess.run(
        [*command, "--help"],
        env={"PATH": value.removeprefix("PATH="), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout
