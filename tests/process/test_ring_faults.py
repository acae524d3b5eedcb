"""Death at every step of naming, recording to, draining and clearing a latency ring."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
from support import faults
from support.processes import HANG_S, wait_stopped
from support.ring_fault_driver import OURS, PATHS

from shmcache import Cache, LockTimeout

EXPECTED = {
    "record": {"ring_placed", "ring_stored", "ring_counted", "ring_summed", "ring_done"},
    "drain": {"ring_taken"},
    "clear": {"ring_cleared", "ring_emptied"},
    "name": {"ring_filled", "ring_named"},
}


@pytest.mark.parametrize("path", PATHS)
def test_death_anywhere_harms_nobody(path: str) -> None:
    """And the path passes every point of its kind, so that none is left out."""
    report = json.loads(faults.run("ring_fault_driver", path))
    failures = report["failures"]
    assert failures == [], "\n".join(failures[:20])
    assert set(report["reached"]) >= EXPECTED[path]


def test_every_fault_point_of_rings_is_of_some_path() -> None:
    ours = {point for point in faults.fault_points() if point.startswith(OURS)}
    assert ours == set().union(*EXPECTED.values())


CHILD = """
import sys
from shmcache import Cache, _core
name, point = sys.argv[1:]
with Cache(name, create=False) as cache:
    ring = cache.latencies()
    print("attached", flush=True)
    _core.set_fault(_core.FAULT_POINTS[point], 1, "stop")
    if point == "ring_filled":
        cache.latencies("child's")
    ring.record_ns(7)
"""


@pytest.mark.parametrize("point", ["ring_placed", "ring_stored", "ring_counted", "ring_filled"])
def test_a_stopped_process_stops_nobody(
    open_cache: Callable[..., Cache], cache_name: str, point: str
) -> None:
    """Recorders and readers go on; only naming waits for who is stopped in it, and is bounded."""
    cache = open_cache(cache_name, size="1MiB", lock_timeout=0.2)
    ring = cache.latencies(capacity=16)
    ring.record_ns(1)
    command = [*faults.command("fault_child")[:2], "-c", CHILD, cache_name, point]
    child = subprocess.Popen(command, env=faults.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "attached"
        wait_stopped(child.pid)
        for ns in range(100, 150):
            ring.record_ns(ns)
        assert [round(s * 1e9) for s in ring.recent(5)] == [145, 146, 147, 148, 149]
        assert [round(s * 1e9) for s in ring.drain(100)] == list(range(134, 150))
        if point == "ring_filled":
            with pytest.raises(LockTimeout, match="directory of rings"):
                cache.latencies("mine")
        else:
            cache.latencies("mine").record_ns(1)
        child.send_signal(18)  # SIGCONT: the late one stores over a newer sample, or is dropped
        assert child.wait(HANG_S) == 0
        recent = [round(s * 1e9) for s in ring.recent(100)]
        assert recent == ([7] if point == "ring_filled" else [])
        assert ring.summary().count == 52
        assert cache.latencies("mine").capacity >= 16
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
