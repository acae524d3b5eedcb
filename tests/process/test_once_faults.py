"""Death at every step of writing to a namespace, dropping one, and initialising a key."""

from __future__ import annotations

import json

import pytest
from support import faults
from support.once_fault_driver import CHANGES, INITIALISING, PATHS

EVERY_WRITE = {"locked", "note_armed", "slot_stored", "note_cleared", "unlocking"}
EXPECTED: dict[str, set[str]] = dict.fromkeys(PATHS, EVERY_WRITE)
EXPECTED |= {path: EVERY_WRITE | {"epoch_dropped"} for path in PATHS if "invalidate" in path}
EXPECTED |= {path: EXPECTED[path] | {"lease_dropped"} for path in INITIALISING}


@pytest.mark.parametrize("path", PATHS)
def test_death_anywhere_harms_nobody(path: str) -> None:
    """And the path passes the points of its kind, so that none is left out."""
    report = json.loads(faults.run("once_fault_driver", path))
    failures = report["failures"]
    assert failures == [], "\n".join(failures[:20])
    assert set(report["reached"]) >= EXPECTED[path]
    assert report["deaths"] >= len(EXPECTED[path])


def test_a_missing_epoch_is_died_at_somewhere() -> None:
    assert "epoch_dropped" in faults.fault_points()
    assert any("epoch_dropped" in EXPECTED[path] for path in CHANGES)
