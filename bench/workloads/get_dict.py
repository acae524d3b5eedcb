"""Gets and sets of a small dict with two codecs, beside a dict of packed bytes."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open


def run(options: Options) -> Result:
    """Time the round trip of a small dict through the codecs."""
    result = Result(
        "get_dict",
        "get and set, small dict",
        "1,000 hot keys of 20 characters; each value is {'id': n, 'name': 'Ada', 'tags': "
        "['a', 'b']}.  Beside it: a dict of packed bytes, `unpackb(get(key))`, and for sets "
        "`store[key] = packb(value)`.",
        "Deep or large values, and types beyond JSON's.",
    )
    keys = hot_keys()
    values = {key: {"id": n, "name": "Ada", "tags": ["a", "b"]} for n, key in enumerate(keys)}
    value = values[keys[1]]
    packed = {key: msgpack.packb(value) for key, value in values.items()}
    by_str = [keys]
    with contextlib.ExitStack() as stack:
        contestants = [
            Contestant(
                "dict.get, unpackb",
                "unpackb(get(key))",
                {"unpackb": msgpack.unpackb, "get": packed.get},
                by_str,
            ),
            Contestant(
                "dict set, packb",
                "store[key] = packb(value)",
                {"store": dict(packed), "packb": msgpack.packb, "value": value},
                by_str,
            ),
        ]
        caches: dict[str, Any] = {}
        for codec in ("msgpack", "msgspec"):
            cache = caches[codec] = stack.enter_context(shmcache_open(codec=codec))
            for key in keys:
                cache.set(key, values[key])
                require(cache.get(key) == values[key], f"{codec} returns an equal value")
            # Sets go to a cache of their own: gets are to find what they were promised.
            other = stack.enter_context(shmcache_open(codec=codec))
            contestants += [
                Contestant(f"shmcache get, {codec}", "get(key)", {"get": cache.get}, by_str),
                Contestant(
                    f"shmcache set, {codec}",
                    "set_(key, value)",
                    {"set_": other.set, "value": value},
                    by_str,
                ),
            ]
        rounds = interleave(contestants, options)
        for cache in caches.values():
            require(cache.stats().misses == 0, "every get was a hit")
    result.measurements = rounds.measurements
    peer, stored = "dict.get, unpackb", "dict set, packb"
    result.figures = [
        rounds.ratio(
            "get dict, msgpack / dict.get + unpackb",
            "shmcache get, msgpack",
            peer,
            target=1.1,
            prototype=0.98,
        ),
        rounds.ratio(
            "get dict, msgspec / dict.get + unpackb", "shmcache get, msgspec", peer, target=0.65
        ),
        rounds.ratio("set dict, msgpack / dict set + packb", "shmcache set, msgpack", stored),
        rounds.ratio("set dict, msgspec / dict set + packb", "shmcache set, msgspec", stored),
    ]
    return result
