"""Every public operation of a Cache as one call, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[[Any], object]

READS: dict[str, Call] = {
    "get": lambda c: c.get("k"),
    "getitem": lambda c: c["k"],
    "contains": lambda c: "k" in c,
    "len": len,
    "get_many": lambda c: c.get_many(["k"]),
    "gets": lambda c: c.gets("k"),
    "ttl": lambda c: c.ttl("k"),
    "get_field": lambda c: c.get_field("k", "field"),
    "iter": list,
    "keys": lambda c: list(c.keys()),
    "values": lambda c: list(c.values()),
    "items": lambda c: list(c.items()),
    "scan": lambda c: list(c.scan("k")),
    "try_get": lambda c: c.try_get("k"),
    "eq": lambda c: c == {"another": 1},
    "stats": lambda c: c.stats(),
    "verify": lambda c: c.verify(),
}

WRITES: dict[str, Call] = {
    "set": lambda c: c.set("k", 1),
    "setitem": lambda c: c.__setitem__("k", 1),
    "add": lambda c: c.add("k", 1),
    "replace": lambda c: c.replace("k", 1),
    "delete": lambda c: c.delete("k"),
    "delitem": lambda c: c.__delitem__("k"),
    "pop": lambda c: c.pop("k", None),
    "setdefault": lambda c: c.setdefault("k2", 1),
    "popitem": lambda c: c.popitem(),
    "set_many": lambda c: c.set_many({"k": 1}),
    "delete_many": lambda c: c.delete_many(["k"]),
    "incr": lambda c: c.incr("n"),
    "decr": lambda c: c.decr("n"),
    "cas": lambda c: c.cas("k", 2, 1),
    "alter": lambda c: c.alter("n", lambda value: value + 1, default=0),
    "touch": lambda c: c.touch("k"),
    "retain": lambda c: c.retain(lambda key, value: True),
    "update": lambda c: c.update({"k": 1}),
    "clear": lambda c: c.clear(),
    "expire": lambda c: c.expire(),
    "try_set": lambda c: c.try_set("k", 1),
    "try_add": lambda c: c.try_add("k", 1),
    "try_delete": lambda c: c.try_delete("k"),
    "try_pop": lambda c: c.try_pop("k", None),
    "try_incr": lambda c: c.try_incr("n"),
}

EVERY: dict[str, Call] = {**READS, **WRITES}
