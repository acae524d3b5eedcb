"""Kill a process at each step of a write to a namespace, of dropping one, and of initialising a
key; what do others find?

How it is run, and what it prints: support/dying.py.

A namespace is there as a whole or gone as a whole; what has gone never comes back, for handles that
knew it and for new ones, and its memory does.  A key that is being initialised has one value in the
end, and nobody who asks for it meanwhile waits for the dead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shmcache import Cache, Namespace, _core
from support.dying import SURVIVOR_S, Fork, of_shards, require, run
from support.names import leftovers, remove, unique_name

PASSAGES = (1, 2, 3)
SHARDS = 4  # an epoch, and most of what it covers, lie in different ones
SIZE = 1000
NAMESPACES = {"space": ("space",), "deep": ("space", "deep"), "other": ("other",)}

Entries = dict[str, Any]
Seen = dict[str, Entries]  # the entries of each of NAMESPACES, of "fresh", and of the cache


def value(*what: Any) -> dict[str, Any]:
    """Goes through the codec, and so is kept by whoever reads it."""
    return {"what": list(what), "padding": "x" * SIZE}


def namespace(cache: Cache, name: str) -> Namespace[Any]:
    first, *rest = NAMESPACES.get(name, (name,))
    found = cache.namespace(first)
    for prefix in rest:
        found = found.namespace(prefix)
    return found


def look(cache: Cache) -> Seen:
    """Everything, by iteration; and a get of each key must agree."""
    seen: Seen = {name: dict(namespace(cache, name).items()) for name in (*NAMESPACES, "fresh")}
    for name, entries in seen.items():
        handle = namespace(cache, name)
        for key, found in entries.items():
            require(handle.get(key) == found, f"{name}[{key!r}] is iterated over but not found")
    seen["plain"] = dict(cache.items())
    return seen


# ------------------------------------------------------------------------ namespaces


@dataclass
class Change:
    """One change of namespaces, and whether what is seen after a death in it may be so."""

    act: Callable[[Cache], object]
    allowed: Callable[[Seen, Seen], bool]  # (before, now)


def only_victim_differs(name: str) -> Callable[[Seen, Seen], bool]:
    """Any of the new keys, whole, may be there; all else is as it was."""

    def allowed(before: Seen, now: Seen) -> bool:
        def old(entries: Entries) -> Entries:
            return {k: v for k, v in entries.items() if not k.startswith("victim")}

        new = [v for k, v in now[name].items() if k.startswith("victim")]
        return all(old(before[n]) == old(now[n]) for n in before) and all(
            v in (value("old"), value("new"), 1, 2) for v in new
        )

    return allowed


def all_or_nothing(*names: str) -> Callable[[Seen, Seen], bool]:
    """Those namespaces are gone together, or all is as it was."""

    def allowed(before: Seen, now: Seen) -> bool:
        gone = {**before, **{name: {} for name in names}}
        return now in (before, gone)

    return allowed


def gone_then_new(before: Seen, now: Seen) -> bool:
    if not all_or_nothing("space", "deep")(before, {**now, "space": before["space"]}):
        return all_or_nothing("space", "deep")(before, now) or (
            now["space"] == {"victim": value("new")} and not now["deep"]
        )
    return now["space"] == before["space"]


def drop_and_set(cache: Cache) -> None:
    space = namespace(cache, "space")
    space.invalidate()
    space["victim"] = value("new")


CHANGES: dict[str, Change] = {
    "first set": Change(
        lambda c: namespace(c, "fresh").set("victim", value("new")), only_victim_differs("fresh")
    ),
    "first set, nested": Change(
        lambda c: namespace(c, "fresh").namespace("below").set("victim", value("new")),
        only_victim_differs("fresh"),
    ),
    "set": Change(
        lambda c: namespace(c, "space").set("victim", value("new")), only_victim_differs("space")
    ),
    "overwrite": Change(
        lambda c: namespace(c, "space").set("victim old", value("new")),
        only_victim_differs("space"),
    ),
    "delete": Change(
        lambda c: namespace(c, "space").delete("victim old"), only_victim_differs("space")
    ),
    "incr": Change(
        lambda c: [namespace(c, "deep").incr("victim") for _ in range(2)],
        only_victim_differs("deep"),
    ),
    "set_many": Change(
        lambda c: namespace(c, "fresh").set_many({f"victim {n}": value("new") for n in range(9)}),
        only_victim_differs("fresh"),
    ),
    "invalidate": Change(
        lambda c: namespace(c, "space").invalidate(), all_or_nothing("space", "deep")
    ),
    "invalidate nested": Change(
        lambda c: namespace(c, "deep").invalidate(), all_or_nothing("deep")
    ),
    "invalidate, then set": Change(drop_and_set, gone_then_new),
}


def fill_namespaces(cache: Cache) -> None:
    """Two fifths of the memory for `space`, some entries for the others."""
    total = cache.stats().bytes_total
    space, deep, other = (namespace(cache, name) for name in NAMESPACES)
    for n in range(10):
        deep[f"deep {n}"] = value("deep", n)
        other[f"other {n}"] = value("other", n)
        cache[f"plain {n}"] = value("plain", n)
    space["victim old"] = value("old")
    for n in itertools.count():
        if cache.stats().bytes_used >= 0.4 * total:
            return
        space[f"space {n}"] = value("space", n)


def none_comes_back(cache: Cache, before: Seen, now: Seen) -> None:
    """What has gone stays away: for this handle, which knew it, and for a new one."""
    with Cache(cache.name, create=False) as other:
        for handle in (cache, other):
            for name in NAMESPACES:
                space = namespace(handle, name)
                for key in before[name].keys() - now[name].keys():
                    require(space.get(key) is None, f"{name}[{key!r}] has come back")
                    require(key not in space, f"{name}[{key!r}] has come back")
            again = look(handle)
            for name in NAMESPACES:
                for key, found in again[name].items():
                    fresh = key == "survivor" or now[name].get(key) == found
                    require(fresh, f"{name}[{key!r}] has come back by iteration")


def one_change(path: Change, point: str, passage: int) -> bool:
    name = unique_name("space-fault")
    cache = Cache(
        name, size="1MiB", shards=SHARDS, policy="keep", avg_entry_size=256, local_entries=500
    )
    fork = None
    try:
        cache["survivor"] = value("survivor")
        fill_namespaces(cache)
        cache.latency_sampling = 0
        cache.expire()
        before = look(cache)
        fork = Fork(cache, _core.FAULT_POINTS[point], passage, path.act)
        ended = fork.ended()
        require(ended in (0, signal.SIGKILL), f"the child raised or exited with {ended}")
        now = look(cache)
        require(path.allowed(before, now), f"left is {summary(before)} -> {summary(now)}")
        if ended == 0:
            return False
        none_comes_back(cache, before, now)
        began = time.monotonic()
        for space in NAMESPACES:
            namespace(cache, space)["survivor"] = value("survivor", space)
        for n in range(100):  # each shard is taken
            cache[f"survivor {n}"] = value("survivor", n)
        took = time.monotonic() - began
        require(took < SURVIVOR_S, f"a survivor's writes took {took:.2f} s")
        require(cache.stats().recoveries == 1, f"{cache.stats().recoveries} recoveries")
        require(cache.verify() == [], f"verify: {cache.verify()}")
        none_comes_back(cache, before, now)
        if now["space"].keys() & before["space"].keys():
            namespace(cache, "space").invalidate()
        now = look(cache)
        for space in ("space", "deep"):
            now[space].pop("survivor", None)
            require(not now[space].keys() - {"victim"} or space == "deep", f"{space} is there")
        # Less than six tenths live in all: shards that fill unevenly have room for it, and for
        # four tenths more of what has been dropped they have none.
        for n in range(int(cache.stats().bytes_total * 0.5 / SIZE) - 100):
            cache[f"filler {n}"] = value("filler", n)  # CacheFull if no memory came back
        none_comes_back(cache, before, now)
        require(cache.verify() == [], f"verify after filling: {cache.verify()}")
        return True
    finally:
        if fork is not None:
            fork.reap()
        cache.close()
        remove(leftovers(name))


def summary(seen: Seen) -> dict[str, int]:
    return {name: len(entries) for name, entries in seen.items()}


# ------------------------------------------------------------------------ leases


@dataclass
class Initialising:
    """A call of get_or_init in which a child dies; a survivor asks for the key meanwhile."""

    act: Callable[[Cache], object]
    prepare: Callable[[Cache], object] = lambda cache: None
    values: tuple[str, ...] = ("child", "mine")
    space: str = ""  # the namespace of the key, "": none
    stale: float = 0.0


def handle(cache: Cache, space: str) -> Any:
    return namespace(cache, space) if space else cache


def initialise(cache: Cache, space: str = "", stale: float = 0.0) -> None:
    handle(cache, space).get_or_init("victim", lambda: value("child"), stale=stale)


def fail(cache: Cache) -> None:
    with contextlib.suppress(LookupError):
        cache.get_or_init("victim", lambda: {}["nothing"])


def overtaken(step: Callable[[Any], object], space: str = "") -> Callable[[Cache], None]:
    """Somebody writes or removes the key while its factory runs: here, the factory itself."""

    def act(cache: Cache) -> None:
        of = handle(cache, space)
        of.get_or_init("victim", lambda: (step(of), value("late"))[1])

    return act


def leave_a_lease(cache: Cache) -> None:
    """Another process takes the lease, and dies."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            cache.get_or_init("victim", lambda: os._exit(1))
        os._exit(2)
    _, status = os.waitpid(pid, 0)
    require(os.waitstatus_to_exitcode(status) == 1, "the first initialiser did not die")
    require(_core.lease_look(cache, "victim")[2] != 0, "the first initialiser left no lease")


def expire_stale(cache: Cache) -> None:
    cache.get_or_init("victim", lambda: value("stale"), ttl=0.01, stale=1000)
    while "victim" in cache:
        time.sleep(0.001)


INITIALISING: dict[str, Initialising] = {
    "initialise": Initialising(initialise),
    "initialise, and fail": Initialising(fail, values=("mine",)),
    "initialise after a death": Initialising(initialise, leave_a_lease),
    "initialise a stale one": Initialising(
        lambda c: initialise(c, stale=1000),
        expire_stale,
        values=("child", "mine", "stale"),
        stale=1000,
    ),
    "initialise in a namespace": Initialising(lambda c: initialise(c, "fresh"), space="fresh"),
    "set while it is initialised": Initialising(
        overtaken(lambda c: c.set("victim", value("set"))), values=("set", "mine")
    ),
    "delete while it is initialised": Initialising(
        overtaken(lambda c: c.delete("victim")), values=("mine",)
    ),
    "invalidate while it is initialised": Initialising(
        overtaken(lambda space: space.invalidate(), "fresh"), values=("mine",), space="fresh"
    ),
}


def one_initialising(path: Initialising, point: str, passage: int) -> bool:
    name = unique_name("once-fault")
    cache = Cache(name, size="1MiB", shards=SHARDS, policy="keep")
    fork = None
    try:
        cache["survivor"] = value("survivor")
        path.prepare(cache)
        cache.latency_sampling = 0
        mine = handle(cache, path.space)
        nobodys = (0, _core.lease_look(mine, "victim")[2])
        fork = Fork(cache, _core.FAULT_POINTS[point], passage, path.act)
        while not fork.has_ended() and _core.lease_look(mine, "victim")[2] in nobodys:
            os.sched_yield()  # so that the child is the first
        with bounded("a survivor"):
            first = mine.get_or_init("victim", lambda: value("mine"), stale=path.stale)
        ended = fork.ended()
        require(ended in (0, signal.SIGKILL), f"the child raised or exited with {ended}")
        require(first in map(value, path.values), f"{first['what']} is not of this key's values")
        if ended == 0:
            return False
        with bounded("who asks after the death"):
            last = mine.get_or_init("victim", lambda: value("mine"), stale=path.stale)
        require(last == first or first == value("stale"), f"{last['what']}, {first['what']} before")
        require(last != value("stale"), "nobody refreshes a stale value")
        with Cache(name, create=False) as other:
            again = handle(other, path.space).get_or_init("victim", lambda: value("another"))
            require(again == last, f"two values: {again['what']} and {last['what']}")
        require(mine["victim"] == last, "what get_or_init gave is not stored")
        mine["victim"] = value("after")
        require(mine.get("victim") == value("after"), "the survivor's set is not there")
        for n in range(100):  # each shard is taken
            cache[f"survivor {n}"] = value("survivor", n)
        cache.expire()  # sweeps: a lease under an epoch that has gone is nobody's
        require(sum(shard.leases for shard in cache.stats().shards) == 0, "a lease is left")
        require(cache.stats().recoveries == 1, f"{cache.stats().recoveries} recoveries")
        require(cache.verify() == [], f"verify: {cache.verify()}")
        return True
    finally:
        if fork is not None:
            fork.reap()
        cache.close()
        remove(leftovers(name))


@contextlib.contextmanager
def bounded(who: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    require(took < SURVIVOR_S, f"{who} waited for {took:.2f} s")


PATHS: dict[str, Change | Initialising] = {**CHANGES, **INITIALISING}


def one_death(path: Change | Initialising, point: str, passage: int) -> bool:
    """Whether the point was reached; Failure if a survivor found anything wrong."""
    if isinstance(path, Change):
        return one_change(path, point, passage)
    return one_initialising(path, point, passage)


if __name__ == "__main__":
    run(PATHS, of_shards(), PASSAGES, one_death)
