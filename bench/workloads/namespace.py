"""Gets through a namespace, beside gets of the same keys from the cache itself."""

from __future__ import annotations

import contextlib
import dataclasses

import msgspec

from bench.harness import Contestant, Figure, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open


@dataclasses.dataclass
class User:
    """What the typed namespace decodes into."""

    id: int
    name: str
    tags: list[str]


class UserStruct(msgspec.Struct):
    """The same as a msgspec.Struct."""

    id: int
    name: str
    tags: list[str]


def run(options: Options) -> Result:
    """Time what the prefix and the epoch cost, and what decoding into a type does."""
    result = Result(
        "namespace",
        "get through a namespace",
        "1,000 hot keys of 20 characters, values of 100 bytes: from the cache, from a namespace "
        "`sessions`, and from one nested in it.  Then a small object of three fields, decoded by "
        "codec msgpack into a dict, and by msgspec straight into a dataclass and a Struct.",
        "Namespaces that are invalidated meanwhile.",
    )
    keys = hot_keys()
    value = b"x" * 100
    batches = [keys]
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(shmcache_open())
        namespace = cache.namespace("sessions")
        nested = namespace.namespace("admin")
        for key in keys:
            cache.set(key, value)
            namespace.set(key, value)
            nested.set(key, value)
        users = stack.enter_context(shmcache_open())
        plain = users.namespace("users")
        typed = users.namespace("users", User)
        structs = users.namespace("users", UserStruct)
        for number, key in enumerate(keys):
            typed.set(key, User(number, "Ada", ["a", "b"]))
            require(plain[key] == {"id": number, "name": "Ada", "tags": ["a", "b"]}, "plain dicts")
            require(typed[key] == User(number, "Ada", ["a", "b"]), "objects of the type")
        gets = {
            "get": cache,
            "namespace get": namespace,
            "nested namespace get": nested,
            "get dict": plain,
            "get dataclass": typed,
            "get Struct": structs,
        }
        rounds = interleave(
            [
                Contestant(name, "get(key)", {"get": handle.get}, batches)
                for name, handle in gets.items()
            ],
            options,
        )
        for handle in (cache, users):
            require(handle.stats().misses == 0, "every get was a hit")
    result.measurements = rounds.measurements
    base = rounds["get"].median_ns
    result.figures = [
        Figure(
            "namespace get, over get",
            rounds["namespace get"].median_ns - base,
            target=60,
            unit="ns",
        ),
        Figure(
            "nested namespace get, over get",
            rounds["nested namespace get"].median_ns - base,
            unit="ns",
        ),
        rounds.ratio("get dataclass / get dict", "get dataclass", "get dict"),
        rounds.ratio("get Struct / get dict", "get Struct", "get dict"),
    ]
    return result
