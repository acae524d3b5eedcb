"""The callers of this process that want the same missing key: one leads, the others have a seat.

Place: level 4, beneath `once.py`, whose leaders deal with other processes. It knows threads, event
loops and forks; it knows nothing of caches, leases or values.

A flight begins with its leader. It ends with a value for every seat, or with nothing, and all look
again; or the leader leaves it to one seat. `guard` is held for a few dictionary operations, never
while anything waits or user code runs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

__all__ = ["AGAIN", "LEAD", "MISS", "VALUE", "Flight", "Flights", "Ident", "Seat", "here"]

Ident = tuple[int, int, bytes]
"""Which key: the segment's nonce, kind and content."""

WATCHERS: Final = 16
"""Threads that wait for other processes on behalf of event loops; more keys than that are polled
every 5 ms."""

MISS: Final = object()
"""No value, where None is one."""

VALUE, AGAIN, LEAD = range(3)
"""What a seat is called for: there is a value; look again; lead."""


class Seat:
    """A caller who waits for the leader of its flight. `wake` runs under the guard, and raises
    RuntimeError where nobody is there any more (a closed event loop)."""

    __slots__ = ("gone", "outcome", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.outcome: int | None = None
        self.gone = False


class Flight:
    """The callers of one key in this process. Guarded by `Flights.guard`."""

    __slots__ = ("seats", "value")

    def __init__(self) -> None:
        self.seats: deque[Seat] = deque()
        self.value: Any = MISS


class Flights:
    """The flights of this process, by segment and key."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.guard = threading.Lock()
        self.under_way: dict[Ident, Flight] = {}
        self.watchers = ThreadPoolExecutor(WATCHERS, "shmcache-once")
        self.watching = 0

    def join(self, ident: Ident, seat: Seat | None) -> tuple[Flight, bool]:
        """The key's flight, and whether the caller leads it. Who does not takes `seat`, if any."""
        with self.guard:
            flight = self.under_way.get(ident)
            if flight is None:
                flight = self.under_way[ident] = Flight()
                return flight, True
            if seat is not None:
                flight.seats.append(seat)
            return flight, False

    def land(self, ident: Ident, flight: Flight, value: Any) -> None:
        """End a flight: with a value for all, or, with MISS, to let everybody look again."""
        with self.guard:
            flight.value = value
            self.under_way.pop(ident, None)
            for seat in flight.seats:
                self._call(seat, AGAIN if value is MISS else VALUE)
            flight.seats.clear()

    def hand_over(self, ident: Ident, flight: Flight) -> None:
        """The leader leaves without a value: the first who still waits leads, if there is one."""
        with self.guard:
            while flight.seats:
                if self._call(flight.seats.popleft(), LEAD):
                    return
            self.under_way.pop(ident, None)

    def leave(self, seat: Seat) -> bool:
        """Give up a seat. False if it has been called, at this very moment."""
        with self.guard:
            seat.gone = seat.outcome is None
            return seat.gone

    def desert(self, ident: Ident, flight: Flight, seat: Seat) -> None:
        """Give up a seat by an exception: what it was called for is somebody else's then."""
        if not self.leave(seat) and seat.outcome == LEAD:
            self.hand_over(ident, flight)

    @staticmethod
    def _call(seat: Seat, outcome: int) -> bool:
        if seat.gone:
            return False
        seat.outcome = outcome
        try:
            seat.wake()
        except RuntimeError:
            return False
        return True


_flights = Flights()


def here() -> Flights:
    """This process's flights: a forked child has none of its parent's."""
    global _flights
    if _flights.pid != os.getpid():
        _flights = Flights()
    return _flights
