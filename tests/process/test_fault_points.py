"""Death and standstill at every step between lock and release, in every write path."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import faults, payloads
from support.dying import ELSEWHERE
from support.fault_driver import PATHS
from support.names import run_token
from support.processes import HANG_S, poll_until, wait_stopped
from support.segments import holder

from shmcache import Cache, LockTimeout, WouldBlock


@pytest.fixture
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What support/fault_driver.py found for a path; run once for all xdist workers."""
    faults.environment()
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = root / f"faults-{run_token()}"
    root.mkdir(exist_ok=True)

    def report(path: str) -> dict[str, Any]:
        file = root / path.replace(" ", "-")
        with (root / f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                text = faults.run("fault_driver", path)
                file.with_suffix(".part").write_text(text)
                file.with_suffix(".part").rename(file)
            found = json.loads(file.read_text())
            assert isinstance(found, dict)
            return found

    return report


@pytest.mark.parametrize("path", PATHS)
def test_death_anywhere_in_a_write_harms_nobody(
    report_of: Callable[[str], dict[str, Any]], path: str
) -> None:
    report = report_of(path)
    assert report["deaths"] >= 3, f"hardly a fault point reached: {report['reached']}"
    failures = report["failures"]
    assert failures == [], "\n".join(failures[:20])


def test_every_fault_point_is_reached(report_of: Callable[[str], dict[str, Any]]) -> None:
    reached = {point for path in PATHS for point in report_of(path)["reached"]}
    others = (*ELSEWHERE, "epoch_")  # test_swap_faults.py, test_ring_faults.py, test_once_faults.py
    expected = {point for point in faults.fault_points() if not point.startswith(others)}
    assert sorted(expected - reached) == []


@contextmanager
def stopped_writer(name: str, point: str, prefix: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has stopped itself inside the shard; killed in the end if still there."""
    child = subprocess.Popen(
        [*prefix, *faults.command("fault_child", name, point, "stop")],
        env=faults.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "attached"
        yield child
    finally:
        child.kill()
        child.wait(HANG_S)
        if child.stdout is not None:
            child.stdout.close()


STOPS = ["locked", "entry_half", "note_armed", "slot_stored", "note_cleared", "unlocking"]


@pytest.mark.parametrize("point", STOPS)
def test_a_stopped_writer_blocks_writers_only_and_is_never_robbed(
    open_cache: Callable[..., Cache], cache_name: str, point: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", shards=1, lock_timeout=0.2)
    impatient = open_cache(cache_name, lock_timeout=0)
    resident = {f"resident {n}": payloads.make(f"resident {n}", n, 300) for n in range(50)}
    cache.set_many(resident)
    cache["stopped"] = payloads.make("stopped", 0, 400)
    with stopped_writer(cache_name, point, []) as child:
        wait_stopped(child.pid)
        word = holder(cache_name)
        assert word != 0

        for key, value in resident.items():
            assert cache[key] == cache.try_get(key) == value
        assert payloads.check("stopped", cache["stopped"]) in (0, 1)
        assert cache.get("absent") is None
        assert "resident 1" in cache
        assert len(cache) == 51
        assert {key: v for key, v in cache.items() if key != "stopped"} == resident
        assert cache.get_many(resident) == resident
        assert cache.stats().entries == 51
        assert len(list(cache.scan("resident"))) == 50

        began = time.monotonic()
        with pytest.raises(LockTimeout, match=cache_name) as timeout:
            cache["new"] = 1
        assert 0.2 <= time.monotonic() - began < 5
        assert not isinstance(timeout.value, WouldBlock)
        with pytest.raises(LockTimeout) as partial:
            cache.set_many({"new": 1, "newer": 2})
        assert set(partial.value.keys) == {"new", "newer"}
        for blocked in (
            lambda: cache.try_set("new", 1),
            lambda: cache.try_add("new", 1),
            lambda: cache.try_delete("resident 1"),
            lambda: cache.try_pop("resident 1"),
            lambda: cache.try_incr("n"),
            lambda: impatient.set("new", 1),
            lambda: impatient.delete("resident 1"),
        ):
            before = time.monotonic()
            with pytest.raises(WouldBlock, match=cache_name):
                blocked()
            assert time.monotonic() - before < 0.15
        stats = cache.stats()
        assert stats.try_blocked >= 5
        assert stats.try_attempts >= 5
        assert stats.recoveries == 0
        assert stats.clients == 2
        assert holder(cache_name) & (1 << 48) - 1 == word & (1 << 48) - 1, "robbed"

        os.kill(child.pid, signal.SIGCONT)
        assert child.wait(HANG_S) == 0
    assert payloads.check("stopped", cache["stopped"]) == 3
    assert {key: cache[key] for key in resident} == resident
    cache["new"] = 1
    assert cache.stats().recoveries == 0
    assert cache.verify() == []


def test_a_stopped_writer_that_is_killed_is_recovered_from(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", shards=1, lock_timeout=30)
    cache["stopped"] = payloads.make("stopped", 0, 400)
    with stopped_writer(cache_name, "slot_stored", []) as child:
        wait_stopped(child.pid)
        child.kill()
        began = time.monotonic()
        cache["new"] = 1
        assert time.monotonic() - began < 1.0
    assert payloads.check("stopped", cache["stopped"]) == 1
    assert cache.stats().recoveries == 1
    assert cache.verify() == []


def python_below(pid: int) -> int | None:
    """The pid, as we see it, of the descendant of ``pid`` that has stopped itself."""
    pending = [pid]
    while pending:
        at = pending.pop()
        try:
            children = Path(f"/proc/{at}/task/{at}/children").read_text()
            state = Path(f"/proc/{at}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state == "T":
            return at
        pending += map(int, children.split())
    return None


def test_pids_of_another_namespace_mean_nothing(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    """In its own PID namespace the writer has a pid that is dead, or somebody else's, in ours."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare(1), to make a PID namespace")
    cache = open_cache(cache_name, size="1MiB", shards=1, lock_timeout=0.3)
    cache["stopped"] = payloads.make("stopped", 0, 400)
    # sh is the namespace's init: signals that an init sends to itself are ignored.
    prefix = [unshare, "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
    with stopped_writer(cache_name, "note_armed", prefix) as child:
        poll_until(lambda: python_below(child.pid) is not None, what="the writer stops itself")
        stopped = python_below(child.pid)
        assert stopped is not None
        assert cache.stats().clients == 2
        with pytest.raises(LockTimeout):
            cache["new"] = 1
        assert cache.stats().recoveries == 0
        os.kill(stopped, signal.SIGKILL)
        poll_until(lambda: cache.stats().clients == 1, 5, what="its death is noticed")
        cache["new"] = 1
    assert cache.stats().recoveries == 1
    assert cache.verify() == []
