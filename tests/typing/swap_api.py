"""The public promises of the types of swap slots and tokens.  Only mypy reads this file."""

from __future__ import annotations

from typing import Any, assert_type

from shmcache import Cache, CancellationToken, SwapSlot, Watcher


def slots(cache: Cache) -> None:
    slot = cache.slot()
    assert_type(slot, SwapSlot)
    assert_type(cache.slot(name="flags"), SwapSlot)
    assert_type(slot.name, str)
    assert_type(slot.capacity, int)
    assert_type(slot.load(), Any)
    assert_type(slot.load_versioned(), tuple[Any, int])
    assert_type(slot.store({"a": 1}), int)
    assert_type(slot.compare_and_swap(1, {"a": 2}), bool)
    assert_type(slot.wait(1), int | None)
    assert_type(slot.wait(1, 0.5), int | None)
    assert_type(slot.watch(lambda value, version: None), Watcher)
    slot.rcu(lambda value: {**value, "b": 1})
    slot.watch(lambda value: None)  # type: ignore[misc, arg-type, unused-ignore]
    cache.slot(5)  # type: ignore[arg-type]
    slot.store()  # type: ignore[call-arg]
    slot.compare_and_swap("1", 2)  # type: ignore[arg-type]
    with slot.watch(print) as watcher:
        assert_type(watcher, Watcher)
        watcher.stop()


async def tokens(cache: Cache) -> None:
    token = cache.token("shutdown")
    assert_type(token, CancellationToken)
    assert_type(token.cancelled, bool)
    assert_type(token.reason, str | None)
    assert_type(token.wait(), bool)
    assert_type(token.wait(timeout=1), bool)
    assert_type(token.child("workers"), CancellationToken)
    assert_type(token.cancel(), bool)
    token.cancel(reason="deploy")
    token.raise_if_cancelled()
    await token.wait_async()
    token.reset()
    token.cancel(5)  # type: ignore[arg-type]
    token.cancelled = True  # type: ignore[misc]
    cache.token()  # type: ignore[call-arg]
