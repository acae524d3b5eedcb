"""Death and standstill at every step of a store, a cancel and the naming of a slot or token."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from support import faults
from support.processes import HANG_S, wait_stopped
from support.swap_fault_driver import OURS, PATHS, check_config, config

from shmcache import Cache, LockTimeout

EXPECTED = {
    "store": "swap_",
    "first store": "swap_",
    "rcu": "swap_",
    "name a slot": "record_",
    "cancel": "token_",
    "cancel by name": "token_",
    "reset": "token_",
    "name a child": "record_",
}


@pytest.mark.parametrize("path", PATHS)
def test_death_anywhere_harms_nobody(path: str) -> None:
    """And the path passes every point of its kind, so that none is left out."""
    report = json.loads(faults.run("swap_fault_driver", path))
    failures = report["failures"]
    assert failures == [], "\n".join(failures[:20])
    assert {"locked", "unlocking"} <= set(report["reached"])
    kind = [point for point in faults.fault_points() if point.startswith(EXPECTED[path])]
    missing = set(kind) - set(report["reached"])
    # a reset writes no reason, and wakes nobody
    assert missing <= ({"token_reason", "token_rung"} if path == "reset" else set())


def test_every_fault_point_of_slots_and_tokens_is_of_some_path() -> None:
    ours = [point for point in faults.fault_points() if point.startswith(OURS)]
    assert len(ours) >= 11
    assert [point for point in ours if not point.startswith(tuple(EXPECTED.values()))] == []


CHILD = """
import sys
from shmcache import Cache, _core
from support.swap_fault_driver import config
name, point = sys.argv[1:]
with Cache(name, create=False) as cache:
    slot = cache.slot()
    slot.load()
    print("attached", flush=True)
    _core.set_fault(_core.FAULT_POINTS[point], 1, "stop")
    slot.store(config(2))
"""


@pytest.mark.parametrize(
    "point", ["locked", "swap_begin", "swap_half", "swap_described", "swap_advanced", "unlocking"]
)
def test_a_stopped_writer_stops_no_reader_and_is_never_robbed(
    open_cache: Callable[..., Cache], cache_name: str, point: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", lock_timeout=0.2)
    slot = cache.slot()
    slot.store(config(1))
    command = [*faults.command("fault_child")[:2], "-c", CHILD, cache_name, point]
    child = subprocess.Popen(command, env=faults.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "attached"
        wait_stopped(child.pid)
        stored = 2 if point in ("swap_advanced", "unlocking") else 1
        for _ in range(3):
            assert slot.load_versioned()[1] == stored
            assert check_config(slot.load()) == stored
        with pytest.raises(LockTimeout, match="swap slot 'config'"):
            slot.store(config(3))
        assert cache.slot("another").store(1) == 1, "other slots have locks of their own"
        cache["key"] = 1
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait(HANG_S) == 0
    finally:
        child.kill()
        child.wait(HANG_S)
        if child.stdout is not None:
            child.stdout.close()
    assert slot.load_versioned() == (config(2), 2)
    assert slot.store(config(3)) == 3
    assert slot._recoveries() == 0


def test_one_that_was_stopped_and_then_killed_is_recovered_from(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", lock_timeout=30)
    slot = cache.slot()
    slot.store(config(1))
    command = [*faults.command("fault_child")[:2], "-c", CHILD, cache_name, "swap_half"]
    child = subprocess.Popen(command, env=faults.environment(), stdout=subprocess.PIPE, text=True)
    try:
        wait_stopped(child.pid)
    finally:
        child.kill()
        child.communicate(timeout=HANG_S)
    assert slot.load_versioned() == (config(1), 1)
    assert slot.store(config(3)) == 2
    assert slot._recoveries() == 1
