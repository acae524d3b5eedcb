"""Kill a writer at one fault point after another, and see what a survivor finds.

How it is run, and what it prints: support/dying.py.

For each point, and its first, second and seventh passage: a fresh cache of one shard is filled, a
fork attaches and makes the path's calls until the point kills it, and then, while the dead child
is still a zombie, this process reads everything, writes to the shard, verifies, and goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shmcache import Cache, CacheFull, _core
from support import payloads
from support.dying import SURVIVOR_S, Failure, Fork, of_shards, require, run
from support.names import leftovers, remove, unique_name
from support.segments import holder

PASSAGES = (1, 2, 7)
_stamps = itertools.count(1)


def payload(key: str, size: int) -> bytes:
    return payloads.make(key, next(_stamps), size)


@dataclass
class Path:
    """One write path: how to prepare a cache, which calls to kill in, what they may change."""

    act: Callable[[Cache], object]
    prepare: Callable[[Cache], None] = lambda cache: None
    touched: Callable[[str], bool] = lambda key: key == "victim"
    policy: str = "keep"
    avg_entry_size: int = 256
    first_death: str | None = None  # a writer has died here before, so that act takes over
    resident: int = field(default=20)


def is_any(key: str) -> bool:
    return True


def is_new(key: str) -> bool:
    return key.startswith(("victim", "new"))


def fill(fraction: float, size: int = 1000, ttl: float | None = None) -> Callable[[Cache], None]:
    """Fill up to a fraction of the log; with a ttl, wait until all of it has expired."""

    def prepare(cache: Cache) -> None:
        total = cache.stats().bytes_total
        prefix = "short" if ttl else "filler"
        for number in itertools.count():
            key = f"{prefix} {number}"
            if cache.stats().bytes_used >= fraction * total:
                break
            cache.set(key, payload(key, size), ttl)
        while ttl and any(key.startswith("short") for key in cache):
            time.sleep(0.001)

    return prepare


def victim(cache: Cache) -> None:
    cache["victim"] = payload("victim", 500)


def number(cache: Cache) -> None:
    cache["victim"] = 41


def overwrite_for_laps(cache: Cache) -> None:
    for turn in range(1500):
        cache["victim"] = payload("victim", 500 + turn * 37 % 4000)


def set_new_keys(cache: Cache) -> None:
    for turn in range(600):
        key = f"new {turn}"
        cache[key] = payload(key, 500 + turn * 37 % 6000)


def set_new_until_full(cache: Cache) -> None:
    for turn in range(3000):
        key = f"new {turn}"
        try:
            cache[key] = payload(key, 40)
        except CacheFull:
            return


def batch(count: int) -> dict[str, bytes]:
    return {f"new {turn}": payload(f"new {turn}", 300) for turn in range(count)}


def lease(cache: Cache) -> None:
    outcome, _ = _core.lease_take(cache, "victim", b"victim", 0, 0, 0, 5.0)
    require(outcome == "taken", outcome)


def lease_of_the_dead(cache: Cache) -> None:
    pid = os.fork()
    if pid == 0:
        lease(cache)
        os._exit(0)
    require(os.waitpid(pid, 0)[1] == 0, "no lease taken")


def reap(cache: Cache) -> None:
    """All slots of the shard: where the lease lies depends on the cache's hash seed."""
    start = 0
    while True:
        _, start = _core.reap_leases(cache, 0, start)
        if not start:
            return


def sweep(cache: Cache) -> None:
    while not _core.sweep_shard(cache, 0)[1]:
        pass


def initialise(cache: Cache) -> None:
    cache.get_or_init("victim", lambda: payload("victim", 500))


def initialise_in_vain(cache: Cache) -> None:
    with contextlib.suppress(LookupError):
        cache.get_or_init("victim", lambda: {}["nothing"])


def several(*steps: Callable[[Cache], object]) -> Callable[[Cache], None]:
    def run(cache: Cache) -> None:
        for step in steps:
            step(cache)

    return run


SHORT_S = 0.02

PATHS: dict[str, Path] = {
    "set new": Path(lambda c: c.set("victim", payload("victim", 500))),
    "set new with ttl": Path(lambda c: c.set("victim", payload("victim", 500), 1000)),
    "overwrite": Path(lambda c: c.set("victim", payload("victim", 900)), victim),
    "overwrite for laps": Path(overwrite_for_laps, several(fill(0.5), victim)),
    "overwrite for laps, evict": Path(
        overwrite_for_laps, several(fill(0.4), victim), policy="evict"
    ),
    "set with eviction": Path(set_new_keys, fill(0.7), is_new, "evict"),
    "set with eviction of what is read": Path(
        set_new_keys,
        several(fill(0.7), lambda c: [c.get_many(list(c)) for _ in range(3)]),
        is_new,
        "evict",
    ),
    "set into full buckets, keep": Path(
        set_new_until_full, lambda c: None, is_new, avg_entry_size=1000
    ),
    "set into full buckets, evict": Path(
        set_new_until_full, lambda c: None, is_new, "evict", avg_entry_size=4000
    ),
    "set over expired": Path(set_new_until_full, fill(0.8, ttl=SHORT_S), is_new),
    "set over expired, evict": Path(set_new_keys, fill(0.7, ttl=SHORT_S), is_new, "evict"),
    "add": Path(lambda c: c.add("victim", payload("victim", 500))),
    "replace": Path(lambda c: c.replace("victim", payload("victim", 100)), victim),
    "setdefault": Path(lambda c: c.setdefault("victim", payload("victim", 500))),
    "delete": Path(lambda c: c.delete("victim"), victim),
    "delete of the expired": Path(
        lambda c: [c.delete(f"short {n}") for n in range(50)],
        fill(0.1, ttl=SHORT_S),
        lambda key: key.startswith("short"),
    ),
    "pop": Path(lambda c: c.pop("victim"), victim),
    "popitem": Path(lambda c: [c.popitem() for _ in range(5)], victim, is_any),
    "incr": Path(lambda c: c.incr("victim"), number),
    "incr new": Path(lambda c: c.incr("victim", initial=41)),
    "touch": Path(lambda c: c.touch("victim", 1000), victim),
    "cas": Path(
        lambda c: c.cas("victim", payload("victim", 90), c.gets("victim").version),  # type: ignore[union-attr]
        victim,
    ),
    "alter": Path(lambda c: c.alter("victim", lambda _: payload("victim", 90)), victim),
    "clear": Path(lambda c: c.clear(), victim, is_any),
    "clear, evict": Path(lambda c: c.clear(), several(fill(0.7), set_new_keys), is_any, "evict"),
    "expire": Path(
        lambda c: c.expire(), fill(0.3, ttl=SHORT_S), lambda key: key.startswith("short")
    ),
    "sweep of an owner": Path(sweep, fill(0.3, ttl=SHORT_S), lambda key: key.startswith("short")),
    "leases of the dead": Path(reap, lease_of_the_dead),
    "recovery by an owner": Path(
        lambda c: _core.recover_shard(c, 0), victim, first_death="slot_stored"
    ),
    "retain": Path(
        lambda c: c.retain(lambda key, _: not key.startswith("filler")),
        fill(0.1),
        lambda key: key.startswith("filler"),
    ),
    "set_many": Path(lambda c: c.set_many(batch(50)), touched=is_new),
    "set_many, evict": Path(
        lambda c: [c.set_many(batch(300)) for _ in range(6)], fill(0.7), is_new, "evict"
    ),
    "delete_many": Path(
        lambda c: c.delete_many([f"filler {n}" for n in range(50)]),
        fill(0.1),
        lambda key: key.startswith("filler"),
    ),
    "get_or_init": Path(initialise),
    "get_or_init, evict": Path(initialise, several(fill(0.7), set_new_keys), is_any, "evict"),
    "get_or_init that raises": Path(initialise_in_vain),
    "set over a lease": Path(lambda c: c.set("victim", payload("victim", 500)), lease),
    "delete of a lease": Path(lambda c: c.delete("victim"), lease),
    "clear of a lease": Path(lambda c: c.clear(), lease, is_any),
    "take over": Path(
        lambda c: c.set("victim", payload("victim", 500)), victim, first_death="slot_stored"
    ),
    "take over before the slot": Path(
        lambda c: c.set("victim", payload("victim", 500)), victim, first_death="note_armed"
    ),
}


def check_value(key: str, value: object) -> None:
    if isinstance(value, int):
        require(key == "victim" and value in (41, 42), f"{key!r} is {value}")
        return
    try:
        payloads.check(key, value)
    except AssertionError as error:
        raise Failure(str(error)) from None


def check_entries(cache: Cache, before: dict[str, Any], path: Path, evicted: int) -> None:
    """Every value is whole; what the path did not touch is as it was, or was evicted."""
    now = dict(cache.items())
    for key, value in now.items():
        check_value(key, value)
        if not path.touched(key) and key != "survivor":
            require(before.get(key) == value, f"{key!r} has changed")
    lost = [key for key in before if key not in now and not path.touched(key)]
    require(len(lost) <= evicted, f"{len(lost)} entries lost, {evicted} evicted: {lost[:5]}")
    for key in now:
        require(cache.get(key) is not None, f"{key!r} is iterated over but not found")


def one_death(path: Path, point: str, passage: int) -> bool:
    """Whether the point was reached; Failure if a survivor found anything wrong."""
    name = unique_name("fault")
    cache = Cache(
        name, size="1MiB", shards=1, policy=path.policy, avg_entry_size=path.avg_entry_size
    )
    forks: list[Fork] = []
    try:
        cache["survivor"] = payload("survivor", 200)
        for n in range(path.resident):
            cache[f"resident {n}"] = payload(f"resident {n}", 50 + n * 31)
        path.prepare(cache)
        cache.latency_sampling = 0  # a death while a latency is recorded would be after the write
        before = dict(cache.items())
        stats = cache.stats()
        if path.first_death is not None:
            first = _core.FAULT_POINTS[path.first_death]
            forks.append(Fork(cache, first, 1, victim))
            require(forks[0].ended() == signal.SIGKILL, "the first writer did not die")
        forks.append(Fork(cache, _core.FAULT_POINTS[point], passage, path.act))
        ended = forks[-1].ended()
        require(ended in (0, signal.SIGKILL), f"the writer raised or exited with {ended}")
        if ended == 0:
            return False
        require(holder(name) != 0, "the shard was free at this point")
        check_entries(cache, before, path, evicted_since(cache, stats))
        began = time.monotonic()
        cache["survivor"] = payload("survivor", 200)
        took = time.monotonic() - began
        require(took < SURVIVOR_S, f"a survivor's write took {took:.2f} s")
        now = cache.stats()
        # One for each death, unless the second writer died before it could count the first.
        recoveries = now.recoveries - stats.recoveries
        require(1 <= recoveries <= len(forks), f"{recoveries} recoveries counted")
        require(holder(name) == 0, "the survivor did not free the shard")
        require(cache.verify() == [], f"verify: {cache.verify()}")
        check_entries(cache, before, path, evicted_since(cache, stats))
        go_on(cache)
        return True
    finally:
        for fork in forks:
            fork.reap()
        cache.close()
        remove(leftovers(name))


def evicted_since(cache: Cache, stats: Any) -> int:
    """Evictions since ``stats``, and the one that may have lacked its count at the death."""
    evictions = cache.stats().evictions - stats.evictions
    return evictions + 1 if cache.policy == "evict" else 0


def go_on(cache: Cache) -> None:
    """The cache must serve on for laps, whatever the dead writer left half-done."""
    cache.expire()
    require(len(cache) == cache.stats().entries == len(list(cache)), "counts disagree")
    for turn in range(400):
        cache["survivor"] = payload("survivor", 200 + turn * 53 % 3000 if turn < 399 else 200)
    for key, value in cache.items():
        check_value(key, value)
    require(cache.verify() == [], f"verify after going on: {cache.verify()}")
    cache.clear()
    require(len(cache) == cache.stats().bytes_used == 0, "clear left something")


if __name__ == "__main__":
    run(PATHS, of_shards(), PASSAGES, one_death)
