"""Deaths between any two steps of a recipe: its namespaces are wrapped, and count what is called.

A recipe is Python over the public calls of a cache, so these are the points at which a death
could leave something half done: what happens within a call is the core's concern, and tested
there. ``arm(recipe, n)`` makes the process kill itself right before the n-th call (from 0).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from shmcache import Namespace
from shmcache.recipes._worker import Worker as Identity
from support.processes import Worker

STEPS = ("add", "alter", "cas", "delete", "get", "gets", "pop", "replace", "set", "get_many")


class Deadly:
    """A namespace whose calls are counted, the last one by SIGKILL."""

    def __init__(self, room: Namespace[Any], left: list[int]) -> None:
        self._room = room
        self._left = left

    def _step(self) -> None:
        if self._left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left[0] -= 1

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._room, name)
        if name not in STEPS:
            return found

        def call(*args: Any, **named: Any) -> Any:
            self._step()
            return found(*args, **named)

        return call

    def __contains__(self, key: object) -> bool:
        self._step()
        return key in self._room

    def __iter__(self) -> Iterator[Any]:
        self._step()
        return iter(self._room)


def arm(recipe: Any, steps: int) -> Callable[[], int]:
    """Kill this process before the call number ``steps`` of the recipe's namespaces; returns what
    tells how many are left."""
    left = [steps]
    wrapped: dict[int, Deadly] = {}
    seen: set[int] = set()

    def wrap(thing: Any) -> None:
        if (
            id(thing) in seen
            or isinstance(thing, Identity)
            or not type(thing).__module__.startswith("shmcache.recipes")
        ):
            return
        seen.add(id(thing))
        names = list(getattr(thing, "__dict__", ()))
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            names += [slots] if isinstance(slots, str) else list(slots)
        for name in names:
            value = getattr(thing, name, None)
            if isinstance(value, Namespace):
                setattr(thing, name, wrapped.setdefault(id(value), Deadly(value, left)))
            elif isinstance(value, list):
                for element in value:
                    wrap(element)
            else:
                wrap(value)

    wrap(recipe)
    assert wrapped, f"{recipe!r} has no namespace to wrap"
    return lambda: left[0]


def dies(fn: Callable[..., str], *args: Any) -> bool:
    """Run ``fn(channel, *args)`` in a process; whether it was killed. Else it says "survived"."""
    worker = Worker(fn, *args)
    code = worker.join()
    if code == -signal.SIGKILL:
        return True
    assert worker.result() == "survived"
    return False
