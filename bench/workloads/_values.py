"""The kinds of values that peers are compared on, and the statements that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.peers import value_of


@dataclass(frozen=True)
class Kind:
    """One kind of value."""

    name: str
    make: Callable[[int], Any]
    """The value that belongs to key number n."""
    keys: int
    """Hot keys: few enough that keys and values stay in the CPU's caches."""
    batch: int
    """Keys of a get_many or set_many."""
    size: int
    """Bytes of a value, about."""
    objects: bool = False


def document(number: int) -> dict[str, Any]:
    """A small dict, as a session or a row is: about 100 bytes of msgpack."""
    return {
        "id": number,
        "name": f"user {number}",
        "email": f"user{number}@example.org",
        "active": number % 3 > 0,
        "score": number / 7,
        "roles": ["reader", "editor"],
    }


KINDS = (
    Kind("100 B", lambda n: value_of(n, 100), 1_000, 100, 100),
    Kind("1 KiB", lambda n: value_of(n, 1 << 10), 1_000, 100, 1 << 10),
    Kind("64 KiB", lambda n: value_of(n, 64 << 10), 20, 20, 64 << 10),
    Kind("small dict", document, 1_000, 100, 200, objects=True),
)
