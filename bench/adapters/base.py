"""What the bench asks of a system that it measures, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import msgpack

Call = Callable[..., Any]

OPERATIONS = (
    "get",
    "get_miss",
    "contains",
    "set",
    "delete",
    "incr",
    "get_many",
    "set_many",
)
"""The calls of a peer, in the order in which tables show them."""

PIECE_BYTES = 256 << 10
"""Bytes of values in one message of `fill`."""


class Peer(Protocol):
    """One system under test.

    The calls are attributes that `open` and `attach` set: bound methods of the system's own
    objects where these fit, so that no wrapper of ours is measured, and None for what the system
    lacks (the tables show a dash).  Keys are ASCII strings of 20 characters.

    A value is `bytes`, or, after `open(objects=True)`, a small dict.  A system that stores only
    bytes gets msgpack around it, as its user would write it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """How it is set up, in one sentence."""
    shared: ClassVar[bool]
    """Whether other processes see what one has stored."""
    waits: ClassVar[bool]
    """Whether a call waits for another process, so that CPU time is not wall time."""

    get: Call | None
    """`get(key)`: the value."""
    get_miss: Call | None
    """`get(key)` where the key may be absent: None."""
    contains: Call | None
    set: Call | None
    delete: Call | None
    incr: Call | None
    """`incr(key)`: the new number, atomic among processes if the system is shared."""
    get_many: Call | None
    """`get_many(keys)`: a mapping of those present, or a list of values in the order of keys."""
    set_many: Call | None
    """`set_many(mapping)`."""

    def open(self, room: int, *, objects: bool = False) -> None:
        """Make an empty one with room for `room` bytes of keys and values.

        Raises Absent, with the reason, where the system is not installed or does not run."""
        ...

    def attach(self) -> None:
        """Set the calls for this process, which was forked from the one that called `open`."""
        ...

    def fill(self, pairs: Mapping[str, Any]) -> None:
        """Store all pairs, by whatever way is quickest."""
        ...

    def start_counter(self, key: str) -> None:
        """Store what `incr` counts up from: 0."""
        ...

    def footprint(self) -> int | None:
        """Bytes that the system takes at present for what is stored, None where it cannot tell."""
        ...

    def close(self) -> None:
        """End it, and everything it has started or left on disk.  May be called twice."""
        ...


class Absent(Exception):
    """The system cannot take part; the message says why."""


class Adapter:
    """What most peers have in common: nothing offered, and pairs stored one by one."""

    name: ClassVar[str]
    about: ClassVar[str]
    shared: ClassVar[bool] = True
    waits: ClassVar[bool] = False

    get: Call | None = None
    get_miss: Call | None = None
    contains: Call | None = None
    set: Call | None = None
    delete: Call | None = None
    incr: Call | None = None
    get_many: Call | None = None
    set_many: Call | None = None

    def attach(self) -> None:
        """Nothing to do: the calls work in a forked process as they are."""

    def fill(self, pairs: Mapping[str, Any]) -> None:
        """See `Peer`; in pieces, so that no message is larger than a server takes."""
        if self.set_many is not None:
            keys = list(pairs)
            first = next(iter(pairs.values()), b"")
            size = len(first) if isinstance(first, bytes) else 200
            each = max(1, min(500, PIECE_BYTES // max(1, size)))
            for at in range(0, len(keys), each):
                self.set_many({key: pairs[key] for key in keys[at : at + each]})
            return
        assert self.set is not None
        for key, value in pairs.items():
            self.set(key, value)

    def start_counter(self, key: str) -> None:
        """See `Peer`."""
        assert self.set is not None
        self.set(key, 0)

    def footprint(self) -> int | None:
        """See `Peer`."""
        return None


def unpacking(get: Call) -> Call:
    """`get` of a system that returns msgpack; None stays None."""
    unpackb = msgpack.unpackb

    def get_object(key: str) -> Any:
        found = get(key)
        return None if found is None else unpackb(found)

    return get_object


def packing(put: Call) -> Call:
    """`put` of a system that takes bytes."""
    packb = msgpack.packb

    def set_object(key: str, value: Any) -> None:
        put(key, packb(value))

    return set_object


def packing_many(put_many: Call) -> Call:
    """`set_many` of a system that takes bytes."""
    packb = msgpack.packb

    def set_objects(pairs: Mapping[str, Any]) -> None:
        put_many({key: packb(value) for key, value in pairs.items()})

    return set_objects


def unpacking_many(get_many: Call) -> Call:
    """`get_many` that returns a mapping or a list of msgpack."""
    unpackb = msgpack.unpackb

    def get_objects(keys: Sequence[str]) -> Any:
        found = get_many(keys)
        if isinstance(found, Mapping):
            return {key: unpackb(value) for key, value in found.items()}
        return [unpackb(value) for value in found]

    return get_objects


def encode_objects(peer: Adapter) -> None:
    """Put msgpack around all calls of a peer that stores only bytes."""
    if peer.get is not None:
        peer.get = unpacking(peer.get)
    if peer.get_miss is not None:
        peer.get_miss = unpacking(peer.get_miss)
    if peer.set is not None:
        peer.set = packing(peer.set)
    if peer.get_many is not None:
        peer.get_many = unpacking_many(peer.get_many)
    if peer.set_many is not None:
        peer.set_many = packing_many(peer.set_many)
