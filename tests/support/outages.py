"""Outages of a cache, brought about for real where that is possible."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from shmcache import Cache, errors

UNOPENABLE: dict[str, tuple[dict[str, Any], type[errors.ShmcacheError]]] = {
    "no room in /dev/shm": ({"size": "1TiB"}, errors.OutOfSharedMemory),
    "not permitted": (
        {"size": "1MiB", "mode": 0o666, "codec": "pickle"},
        errors.NotPermitted,
    ),
}
"""Arguments of Cache that are right, and with which none can be opened here; and the error."""


WRITES = (
    *("set", "add", "delete", "incr", "pop", "alter", "touch", "replace", "cas", "clear"),
    *("set_many", "delete_many", "try_set", "try_add", "try_delete", "try_incr", "try_pop"),
)


def hold_all_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every write of this process finds its shard held by a stopped process."""

    def held(*_: Any, **__: Any) -> NoReturn:
        raise errors.LockTimeout("shard 0 is held by process 1, which is alive")

    for name in WRITES:
        monkeypatch.setattr(Cache, name, held)


def fill(cache: Cache) -> None:
    """Make a cache with the policy ``keep``, and one shard, full for values of 8,000 bytes."""
    with pytest.raises(errors.CacheFull):
        for number in range(1_000_000):
            cache.set(f"filler {number}", b"x" * 4000)
