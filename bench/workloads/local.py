"""Gets of decoded objects that the process keeps (`local_entries`), beside a dict of them."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open

KEYS = 500
SIZE = 10_000
"""Bytes of an encoded object."""


def document(number: int) -> dict[str, Any]:
    """An object of about `SIZE` bytes of msgpack: 100 rows, as a page of a table has them."""
    return {
        "id": number,
        "rows": [
            {"id": row, "name": f"row {row} of {number}", "note": "x" * 57, "ratio": row / 7}
            for row in range(100)
        ],
    }


def run(options: Options) -> Result:
    """Time revalidated gets of objects of 10 KB."""
    result = Result(
        "local",
        "get of a decoded 10 KB object",
        f"{KEYS} hot keys of 20 characters; each value is a dict with 100 rows of four fields, "
        f"about {SIZE} bytes of msgpack.  `local`: local_entries=1000, every get is a hit whose "
        "slot is looked at; with a ttl it looks at the clock too.  `decoded`: without "
        "local_entries.  Beside them: dict.get of the same objects.",
        "Writers that change the values meanwhile: each change costs one decoding a process.",
    )
    keys = hot_keys(KEYS)
    values = {key: document(number) for number, key in enumerate(keys)}
    encoded = [len(msgpack.packb(value)) for value in values.values()]
    require(0.9 * SIZE < min(encoded) <= max(encoded) < 1.1 * SIZE, "objects are of 10 KB")
    batches = [keys]
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(shmcache_open(local_entries=1000))
        expiring = stack.enter_context(shmcache_open(local_entries=1000))
        plain = stack.enter_context(shmcache_open())
        for key in keys:
            local.set(key, values[key])
            expiring.set(key, values[key], 3600)
            plain.set(key, values[key])
            require(local.get(key) == values[key], "the object is equal to what was stored")
            require(local.get(key) is local.get(key), "the second get decodes nothing")
            require(expiring.get(key) is expiring.get(key), "nor does it with a ttl")
        rounds = interleave(
            [
                Contestant("dict.get", "get(key)", {"get": values.get}, batches),
                Contestant("shmcache get, local", "get(key)", {"get": local.get}, batches),
                Contestant("shmcache get, local, ttl", "get(key)", {"get": expiring.get}, batches),
                Contestant("shmcache get, decoded", "get(key)", {"get": plain.get}, batches),
            ],
            options,
        )
        for cache in (local, expiring, plain):
            require(cache.stats().misses == 0, "every get was a hit")
    result.measurements = rounds.measurements
    result.figures = [
        rounds.ratio("local get, 10 KB / dict.get", "shmcache get, local", "dict.get", target=2.5),
        rounds.ratio(
            "local get with ttl, 10 KB / dict.get",
            "shmcache get, local, ttl",
            "dict.get",
            target=2.5,
        ),
        rounds.ratio("decoded get, 10 KB / local", "shmcache get, decoded", "shmcache get, local"),
    ]
    return result
