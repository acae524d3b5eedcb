"""`once.Lifetime`: a factory that says how long its value lives, for the response cache."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from shmcache import Cache
from shmcache.once import Lifetime


def test_its_ttl_takes_precedence(cache: Cache) -> None:
    assert cache.get_or_init("a", lambda: Lifetime("value", 50.0), ttl=5.0) == "value"
    assert cache["a"] == "value"
    assert 40 < (cache.ttl("a") or 0) <= 50


def test_async(cache: Cache) -> None:
    async def factory() -> Any:
        return Lifetime(b"value", None)

    assert asyncio.run(cache.aget_or_init("a", factory, 5.0)) == b"value"
    assert cache.ttl("a") is None


def test_its_stale_takes_precedence(cache: Cache) -> None:
    cache.get_or_init("a", lambda: Lifetime(1, 0.05, 60.0))
    while cache.get("a") is not None:
        pass

    got: list[Any] = []

    def factory() -> int:
        other = threading.Thread(target=lambda: got.append(cache.get_or_init("a", lambda: 9)))
        other.start()
        other.join(10)
        return 3

    assert cache.get_or_init("a", factory) == 3
    assert got == [1]


def test_one_that_makes_no_sense_is_its_callers_error(cache: Cache) -> None:
    with pytest.raises(ValueError, match="ttl"):
        cache.get_or_init("a", lambda: Lifetime(1, -1.0))
    assert cache.get_or_init("a", lambda: 2) == 2
