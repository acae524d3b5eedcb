"""Operations for callgrind to count; see instructions.py.  Run as a script: `_counted.py TIMES`.

Right before and right after each loop it calls getppid(), which nothing else does here and at
whose entry callgrind writes down what it has counted since: every second file is a loop's.
"""

from __future__ import annotations

import os
import sys

VARIANTS = (
    "empty loop",
    "dict.get",
    "get, 100 B",
    "get, miss",
    "get, 1 KiB",
    "get, 64 KiB",
    "get, int",
    "get, small dict",
    "get, local",
    "set, 100 B",
    "slot load",
)
"""The loops, in the order in which they run."""

DOCUMENT = {"id": 7, "name": "Ada", "tags": ["a", "b"]}
KEYS = 100


def main() -> None:
    """Run every loop over `TIMES` operations, between two markers."""
    from shmcache import Cache

    times = int(sys.argv[1])
    name = f"bench-counted-{os.getpid()}"
    with (
        Cache(name, create=True, size="16MiB") as cache,
        Cache(f"{name}-local", create=True, size="4MiB", local_entries=200) as local,
    ):
        # Sampling of latencies would come upon one call or another.
        cache.latency_sampling = local.latency_sampling = 0
        keys = [f"user:profile:{number:07d}" for number in range(KEYS)]
        sets = {
            "get, 100 B": b"x" * 100,
            "get, 1 KiB": b"y" * 1024,
            "get, 64 KiB": b"z" * 65_536,
            "get, int": 1_000_000,
            "get, small dict": DOCUMENT,
        }
        plain = dict.fromkeys(keys, 1)
        loops = {"dict.get": (plain.get, keys)}
        for place, (variant, value) in enumerate(sets.items()):
            mine = [f"user:prof{place:03d}:{number:07d}" for number in range(KEYS)]
            if variant == "get, 64 KiB":
                mine = mine[:20]
            for key in mine:
                cache.set(key, value)
                assert cache.get(key) == value, "every get is a hit"
            loops[variant] = (cache.get, mine)
        loops["get, miss"] = (cache.get, [key.replace("user", "none") for key in keys])
        for key in keys:
            local.set(key, DOCUMENT)
            assert local.get(key) is local.get(key), "the second get decodes nothing"
        loops["get, local"] = (local.get, keys)
        slot = cache.slot("config")
        slot.store(DOCUMENT)
        load = slot.load
        misses = cache.stats().misses
        missed = len(loops["get, miss"][1]) * (times // KEYS + 1)
        for key in loops["get, miss"][1]:
            assert cache.get(key) is None, "every key is absent"
        mark = os.getppid
        put, value = cache.set, sets["get, 100 B"]
        runs = {}
        for variant, (call, some) in loops.items():
            batch = (some * (times // len(some) + 1))[:times]
            runs[variant] = (call, batch)
            for key in batch[:300]:  # the interpreter specialises, visited counters fill
                call(key)
        batch = (keys * (times // KEYS + 1))[:times]
        for key in batch[:300]:
            put(key, value)
            load()
        for variant in VARIANTS:
            for some in (batch[:300], batch):
                if variant == "empty loop":
                    _empty(mark, some)
                elif variant == "set, 100 B":
                    _sets(mark, some, put, value)
                elif variant == "slot load":
                    _loads(mark, some, load)
                else:
                    call, own = runs[variant]
                    _gets(mark, own[: len(some)], call)
        assert cache.stats().misses <= misses + missed + 2 * KEYS + 1_000, "all else were hits"


def _empty(mark, batch):  # type: ignore[no-untyped-def]
    mark()
    for _key in batch:
        pass
    mark()


def _gets(mark, batch, call):  # type: ignore[no-untyped-def]
    mark()
    for key in batch:
        call(key)
    mark()


def _sets(mark, batch, put, value):  # type: ignore[no-untyped-def]
    mark()
    for key in batch:
        put(key, value)
    mark()


def _loads(mark, batch, load):  # type: ignore[no-untyped-def]
    mark()
    for _key in batch:
        load()
    mark()


if __name__ == "__main__":
    main()
