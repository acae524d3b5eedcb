"""Is a segment sound? Every invariant that the core's comments name, checked beside writers.

Place: level 3; the walk itself is in `_core/src/verify.h`. Each shard is checked under its own
lock, one after the other, so writers of other shards go on; nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmcache import _core

__all__ = ["Finding", "verify"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant: its name, what it says, where, and what was found instead."""

    invariant: str
    """As in the core's comments and docs/invariants.md, e.g. ``INV-COUNTS``."""
    text: str
    shard: int | None
    """The shard that it was found in; None: in a latency ring, a swap slot or a token."""
    slot: int | None
    """The slot of the shard's index that the finding is about, if it is about one."""
    expected: int
    found: int
    ring: int | None = None
    """The record of the directory of latency rings that the finding is about."""
    swap: int | None = None
    """The number of the swap slot that it is about."""
    token: int | None = None
    """The number of the cancellation token that it is about."""

    def __str__(self) -> str:
        if self.ring is not None:
            where = f"latency ring {self.ring}"
        elif self.swap is not None:
            where = f"swap slot {self.swap}"
        elif self.token is not None:
            where = f"token {self.token}"
        else:
            where = f"shard {self.shard}" + ("" if self.slot is None else f", slot {self.slot}")
        return (
            f"{self.invariant} does not hold in {where}: {self.text} "
            f"(expected {self.expected:#x}, found {self.found:#x})"
        )


def verify(handle: _core.Handle, shard_count: int) -> list[Finding]:
    """Check every shard, the latency rings, swap slots and tokens. Returns findings, empty when the
    segment is sound; of a shard with very many of them, the first 32. Raises LockTimeout where a
    shard is held by a living process for longer than the handle's `lock_timeout`. Cost: about 50 ns
    a slot and 200 ns an entry, during which the shard's writers wait."""
    findings = []
    for shard in range(shard_count):
        _, rows = _core.verify_shard(handle, shard)
        findings += [Finding(row[0], row[1], shard, *row[2:]) for row in rows]
    findings += [
        Finding(invariant, text, None, None, expected, found, ring)
        for invariant, text, ring, expected, found in _core.verify_rings(handle)
    ]
    findings += [
        Finding(invariant, text, None, None, expected, found, swap=swap)
        for invariant, text, swap, expected, found in _core.verify_swaps(handle)
    ]
    findings += [
        Finding(invariant, text, None, None, expected, found, token=token)
        for invariant, text, token, expected, found in _core.verify_tokens(handle)
    ]
    return findings
