"""Kill a process at one fault point after another of swap slots and tokens; what does another find?

How it is run, and what it prints: support/dying.py.  What a survivor must find depends on the
path: see its ``check``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmcache import Cache, LimitReached, SwapSlot, _core
from support.dying import SURVIVOR_S, Failure, Fork, require, run
from support.names import leftovers, remove, unique_name

PASSAGES = (1, 3)
OURS = ("record_", "swap_", "token_")
LOCK = ("locked", "unlocking")


def config(number: int, size: int = 2000) -> dict[str, Any]:
    """A value that tells by itself whether it is whole."""
    return {"number": number, "same": [number] * 20, "text": f"{number:04}" * (size // 4)}


def check_config(value: Any) -> int:
    require(isinstance(value, dict), f"{value!r:.80} is no config")
    number = value["number"]
    require(value == config(number), f"config {number} is torn")
    assert isinstance(number, int)
    return number


@dataclass
class Path:
    """What to prepare, where a child is killed, and what must hold afterwards."""

    act: Callable[[Cache], object]
    check: Callable[[Cache], None]
    prepare: Callable[[Cache], object] = lambda cache: None


def store_thrice(cache: Cache) -> None:
    for number in range(1, 4):
        cache.slot().store(config(number))


def versions_of(slot: SwapSlot) -> tuple[int, int]:
    """The version, and the number of the config stored with it; (0, 0): none."""
    value, version = slot.load_versioned()
    if value is None:
        require(version == 0, f"nothing under version {version}")
        return 0, 0
    return version, check_config(value)


def check_slot(least: int) -> Callable[[Cache], None]:
    """The last complete value, then stores that go on counting; `least` is the version that was
    there before the child, whose own stores are numbered 101 and up."""

    def check(cache: Cache) -> None:
        slot = cache.slot()
        version, number = versions_of(slot)
        require(version >= least, f"version {version} after {least}")
        stored = version - least  # by the child, in order
        require(number == (100 + stored if stored else least), f"{number} under {version}")
        require(slot.load() is slot.load(), "two objects for one version")
        began = time.monotonic()
        require(slot.store(config(200)) == version + 1, "the next store does not count on")
        took = time.monotonic() - began
        require(took < SURVIVOR_S, f"a survivor's store took {took:.2f} s")
        require(slot._recoveries() <= 1, "recovered more than once")
        require(versions_of(slot) == (version + 1, 200), "the survivor's store is not there")
        require(not slot.compare_and_swap(version, config(201)), "an old version was swapped")
        require(slot.compare_and_swap(version + 1, config(202)), "compare_and_swap failed")
        require(slot.wait(version + 1, 5) == version + 2, "wait does not see the store")

    return check


def check_names(cache: Cache) -> None:
    """Two slots: `config`, and one more that the child may have named."""
    slot = cache.slot("new")
    began = slot.load_versioned()[1]
    require(slot.store(config(9)) == began + 1, "the slot of the child's name cannot be stored")
    with Cache(cache.name, create=False) as other:
        require(other.slot("new").load() == config(9), "one name, two slots")
        require(other.slot("config").load_versioned()[1] == 0, "a store into another's slot")
    try:
        cache.slot("third")
    except LimitReached:
        return
    raise Failure("three names for two slots")


def check_cancelled(cache: Cache) -> None:
    token = cache.token("stop")
    before = token.cancelled
    require(token.reason == ("the child's" if before else None), f"reason {token.reason!r}")
    require(token.cancel("survivor's") is not before, "cancel() says who was first")
    require(token.cancelled and token.wait(5), "not cancelled")
    reason = "the child's" if before else "survivor's"
    require(token.reason == reason, f"{token.reason!r} instead of {reason!r}")
    require(token.child("one").cancelled, "its child is not cancelled")
    token.reset()
    require(not token.cancelled and token.reason is None, "reset did not help")


def check_reset(cache: Cache) -> None:
    token = cache.token("stop")
    require(token.reason == ("first" if token.cancelled else None), "cancelled without its reason")
    token.reset()
    require(not token.cancelled, "reset did not help")
    require(token.cancel("again") and token.reason == "again", "cancel after a reset")


def check_child(cache: Cache) -> None:
    child = cache.token("stop").child("one")
    child.cancel("only me")
    require(not cache.token("stop").cancelled, "a child cancelled its parent")
    with Cache(cache.name, create=False) as other:
        require(other.token("stop").child("one").reason == "only me", "one name, two tokens")


def store_new(cache: Cache) -> None:
    for number in range(101, 105):
        cache.slot().store(config(number))


def count_on(cache: Cache) -> None:
    """rcu: 100 + the number of stores, whatever was there."""
    before = cache.slot().load_versioned()[1]

    def more(value: Any) -> Any:
        number = value["number"]
        return config(101 if number == before else number + 1)

    for _ in range(4):
        cache.slot().rcu(more)


PATHS: dict[str, Path] = {
    "store": Path(store_new, check_slot(3), store_thrice),
    "first store": Path(store_new, check_slot(0), lambda cache: cache.slot()),
    "rcu": Path(count_on, check_slot(3), store_thrice),
    "name a slot": Path(lambda c: c.slot("new"), check_names, lambda c: c.slot()),
    "cancel": Path(lambda c: c.token("stop").cancel("the child's"), check_cancelled),
    "cancel by name": Path(
        lambda c: c.token("stop").cancel("the child's"), check_cancelled, lambda c: c.token("stop")
    ),
    "reset": Path(
        lambda c: c.token("stop").reset(), check_reset, lambda c: c.token("stop").cancel("first")
    ),
    "name a child": Path(
        lambda c: c.token("stop").child("one"), check_child, lambda c: c.token("stop")
    ),
}


def one_death(path: Path, point: str, passage: int) -> bool:
    """Whether the point was reached; Failure if a survivor found anything wrong."""
    name = unique_name("swapfault")
    cache = Cache(name, size="1MiB", shards=1, slots=2, lock_timeout=5)
    fork = None
    try:
        path.prepare(cache)
        fork = Fork(cache, _core.FAULT_POINTS[point], passage, path.act)
        ended = fork.ended()
        require(ended in (0, signal.SIGKILL), f"the child raised or exited with {ended}")
        if ended == 0:
            return False
        path.check(cache)
        cache["key"] = "value"
        require(cache["key"] == "value", "the cache itself does not go on")
        require(cache.verify() == [], f"verify: {cache.verify()}")
        return True
    finally:
        if fork is not None:
            fork.reap()
        cache.close()
        remove(leftovers(name))


if __name__ == "__main__":
    ours = [point for point in _core.FAULT_POINTS if point.startswith(OURS) or point in LOCK]
    run(PATHS, ours, PASSAGES, one_death)
