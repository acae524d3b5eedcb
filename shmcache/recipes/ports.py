"""`PortPool`: numbers of a range, each taken by one process at a time.

Place: level 6. Free ports are a queue: position p of it, counted on for ever, is entry ``p % n``,
and a pool that was never used has each port at its own position without an entry. A port's entry
says who has taken it. Where the queue begins and ends is the data of a guard (`_guard.py`), so
that no death between entry and queue loses a port. docs/recipes/ports.md says when to use it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any, Final

from shmcache.cache import Cache
from shmcache.recipes._guard import Guard
from shmcache.recipes._state import Recipe, damaged, open_room, pack, unpack
from shmcache.recipes._worker import Living, Token, Worker
from shmcache.recipes.pool import PoolExhausted

__all__ = ["PortPool", "is_bindable"]

_SWEEP: Final = 2  # ports that each take looks at, whether their owners live

_FREE: Final[Token] = (0, 0)


class _Empty(Exception):
    """No port is free."""


class PortPool(Recipe):
    """The ports from `start` up to `stop` (not included), for the processes of a host.

    Args:
        cache: any `Cache`; policy ``"keep"``, so that no port is forgotten.
        name: the same name in any process is the same pool; the range must be the same too.
        start, stop: as of `range`: 1 <= start < stop <= 65536.
        usable: ``usable(port)``: whether a port that is about to be handed out will do, such as
            `is_bindable`; one that will not goes to the end of the queue. None: not asked.

    `take` and `give` are O(1): some 30 us, whatever the size of the pool. Ports come in turn: the
    one given back last is handed out last, so that connections of its former life can end.

    A port belongs to the process that took it, until somebody gives it back. Ports of processes
    that died come back without being given: each `take` looks at two ports, and one that finds no
    port free looks at all, so that `PoolExhausted` is never raised on behalf of the dead.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-ports", policy="keep")
        >>> ports = PortPool(cache, "workers", 9000, 9002)
        >>> ports.take(), ports.take()
        (9000, 9001)
        >>> ports.give(9000)
        >>> ports.available(), ports.take()
        (1, 9000)
        >>> cache.close()

    Calls raise `CacheFull`, `LockTimeout` and `CacheNotFound` as the cache's own do.
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        start: int,
        stop: int,
        *,
        usable: Callable[[int], object] | None = None,
    ) -> None:
        if type(start) is not int or type(stop) is not int:
            raise TypeError(f"start and stop must be ints, not {start!r} and {stop!r}")
        if not 1 <= start < stop <= 65536:
            raise ValueError(f"1 <= start < stop <= 65536 does not hold for {start} and {stop}")
        self.name = name
        self._range = range(start, stop)
        self._usable = usable
        self._owners = open_room(cache, "ports", name, durable=True)
        self._queue = open_room(cache, "ports.queue", name, durable=False)
        self._worker = Worker(self._owners)
        self._guard = Guard(self._queue, "ends", self._worker)
        self._next = random.randrange(len(self._range))  # where this process's sweep goes on
        self._check(self._guard.read(self))

    def take(self) -> int:
        """A free port, this process's own until it is given back. O(1).

        Raises `PoolExhausted` where none is free, or usable; finding that out walks all of them.
        """
        living = self._worker.living()
        for _ in range(min(_SWEEP, len(self._range))):
            self._next = (self._next + 1) % len(self._range)
            self._reclaim(self._range[self._next], living)
        refused: set[int] = set()
        while True:
            port = self._take()
            if port is None and self._reclaim_all():
                port = self._take()
            if port is None:
                raise PoolExhausted(
                    f"all {len(self._range)} ports of pool {self.name!r} ({self._range.start} to "
                    f"{self._range.stop - 1}) are taken by living processes"
                    + (f", or unusable ({len(refused)})" if refused else "")
                    + ": give some back, or make the range larger"
                )
            if self._usable is None or self._usable(port):
                return port
            self.give(port)
            if port in refused:
                raise PoolExhausted(
                    f"none of the {len(refused)} free ports of pool {self.name!r} is usable: see "
                    "what else uses them (`ss -tlnp`), or make the range larger"
                )
            refused.add(port)

    def give(self, port: int) -> None:
        """Give a port back, whichever process took it. O(1).

        Raises ValueError where it is not of this pool, or not taken: a port that was given back
        twice might be somebody else's by then.
        """
        if port not in self._range:
            raise ValueError(
                f"port {port!r} is not of pool {self.name!r}: {self._range.start} to "
                f"{self._range.stop - 1}"
            )
        if not self._give(port, None):
            raise ValueError(f"port {port} of pool {self.name!r} is not taken: give it back once")

    def available(self) -> int:
        """How many ports are free; those of processes that died count once they were found."""
        _, _, head, tail = self._check(self._guard.read(self))
        return tail - head

    def owned(self) -> list[int]:
        """The ports that this process has taken. Walks the range."""
        me = self._worker.token()
        return [port for port in self._range if self._owner(port) == me]

    def __repr__(self) -> str:
        first, last = self._range.start, self._range.stop - 1
        return f"<{type(self).__name__} {self.name!r} {first} to {last}>"

    # ------------------------------------------------------------------- ports and their queue

    def _take(self) -> int | None:
        me = self._worker.token()

        def plan(data: Any) -> list[Any]:
            _, _, head, tail = self._check(data)
            if head >= tail:
                raise _Empty
            return ["take", self._queued(head), *me]

        def act(note: list[Any]) -> int:
            self._owners.set(note[1], pack(me))
            return int(note[1])

        try:
            return self._guard.change(self, plan, act)
        except _Empty:
            return None

    def _give(self, port: int, owner: Token | None) -> bool:
        """Put a taken port at the end of the queue; False if it is not taken (by `owner`)."""

        def plan(data: Any) -> list[Any] | None:
            _, _, _, tail = self._check(data)
            current = self._owner(port)
            if current == _FREE or owner not in (None, current):
                return None
            return ["give", port, tail]

        def act(note: list[Any]) -> bool:
            self._queue.set(note[2] % len(self._range), note[1])
            self._owners.set(port, pack(_FREE))
            return True

        return bool(self._guard.change(self, plan, act))

    def settle(self, note: Any, data: Any) -> Any:
        """Where the queue begins and ends after a change; for the guard."""
        start, stop, head, tail = data
        match note:
            case ["take", port, nonce, word]:
                head += self._owner(port) == (nonce, word)
            case ["give", port, _]:
                tail += self._owner(port) == _FREE
        return [start, stop, head, tail]

    def build(self, key: str) -> Any:
        """The queue anew, from what the ports' entries say; for the guard."""
        start, stop = self._range.start, self._range.stop
        if next(iter(self._owners), None) is None:
            return [start, stop, 0, len(self._range)]
        free = [port for port in self._range if self._owner(port) == _FREE]
        self._queue.set_many(dict(enumerate(free)))
        return [start, stop, 0, len(free)]

    def _reclaim(self, port: int, living: Living) -> int:
        owner = self._owner(port)
        return owner != _FREE and not living(owner) and self._give(port, owner)

    def _reclaim_all(self) -> int:
        living = self._worker.living()
        return sum(self._reclaim(port, living) for port in self._range)

    def _queued(self, position: int) -> int:
        at = position % len(self._range)
        port = self._queue.get(at, self._range[at])
        if type(port) is not int or port not in self._range:
            raise damaged(self._queue, at)
        return port

    def _owner(self, port: int) -> Token:
        packed = self._owners.get(port)
        if packed is None:
            return _FREE
        match unpack(self._owners, port, packed):
            case [int(nonce), int(word)]:
                return nonce, word
        raise damaged(self._owners, port)

    def _check(self, data: Any) -> tuple[int, int, int, int]:
        match data:
            case [int(start), int(stop), int(head), int(tail)]:
                if (start, stop) == (self._range.start, self._range.stop):
                    return start, stop, head, tail
                raise ValueError(
                    f"pool {self.name!r} of cache {self._owners.name!r} has ports {start} to "
                    f"{stop - 1}, not {self._range.start} to {self._range.stop - 1}: use that "
                    "range, or another name"
                )
        raise damaged(self._queue, self._guard.key)


def is_bindable(port: int, host: str = "") -> bool:
    """Whether a TCP socket could be bound to `port` of `host` (every address of the machine) just
    now. Nobody is kept from binding it in the next moment; binding is the only proof."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT does not count
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
