"""`Limiter`: so many at a time, in turn, among all processes.

Place: level 6. Who is in and who waits is one record (`_state.py`): each step is one
compare-and-swap, so whoever is killed is in, or waits, or is neither. `_aimd.py` says how the
limit adapts. docs/recipes/limiter.md says when to use it.

The story. Who wants in and finds room and nobody waiting is in. Else it takes a ticket at the end
of the queue, and looks again: every `LOOK_S` where it is next, less often the farther back it is,
so that a hundred waiters cost little more than one. A look takes no lock. The first of the queue,
as many as there is room for, may go in.

The dead are taken out by whoever waits (the kernel's word), holders and waiters alike. A waiter
that is *stopped* would keep the others from a place that it does not take: one that has not
gone in for `PATIENCE_S` though it may loses its ticket, and draws a new one when it comes back. A
holder that is stopped keeps its place: it is alive, and will go on with what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, Self

from shmcache import limits
from shmcache.cache import Cache
from shmcache.errors import CacheFull, LockTimeout, ShmcacheError
from shmcache.recipes._aimd import Aimd
from shmcache.recipes._state import Cell, Recipe, damaged, logger, open_room
from shmcache.recipes._worker import Token, Worker

__all__ = ["Limiter", "LimiterTimeout", "Permit"]

LOOK_S: Final = 0.5e-3
"""Seconds between two looks of who is next. A look is a get, and a decode where something has
changed; what it costs is waking up: 1 to 2% of a core at this rate."""

LONGEST_LOOK_S: Final = 15e-3

PROBE_S: Final = 20e-3
"""Seconds between two questions of a waiter who is alive; each costs 1 to 2 us a process."""

PATIENCE_S: Final = 0.5
"""Seconds after which a waiter that may go in, and does not, is passed by."""


class LimiterTimeout(ShmcacheError, TimeoutError):
    """There was no place within the time-out."""


class Permit:
    """A place, from `Limiter.acquire` to `release`; a context manager that releases.

    Leaving the `with` by an exception counts as a failed call; see `Limiter`.
    """

    __slots__ = ("_began", "_limiter", "_released", "ticket")

    def __init__(self, limiter: Limiter, ticket: int) -> None:
        self._limiter = limiter
        self._released = False
        self.ticket = ticket
        self._began = limiter._clock()

    def release(self, *, ok: bool = True) -> None:
        """Give the place to the next. May be called twice.

        ok: whether the call that it was for succeeded; of one that did not, only slowness counts.
        """
        if not self._released:
            self._limiter._release(self.ticket, self._limiter._clock() - self._began, ok)
            self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release(ok=kind is None)
        except (LockTimeout, CacheFull) as outage:  # what was computed is not lost to an outage
            self._limiter._left.add(self.ticket)
            logger.warning("a place of limiter %r is freed later: %s", self._limiter.name, outage)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ticket} of limiter {self._limiter.name!r}>"


class _Record:
    """Who is in and who waits, as the record has it."""

    __slots__ = ("aimd", "held", "initial", "next", "passing", "queue")

    def __init__(self, limit: int) -> None:
        self.initial = limit  # what the newest handle asked for
        self.next = 0  # the last ticket that was given out
        self.held: list[tuple[int, Token]] = []
        self.queue: list[tuple[int, Token]] = []
        self.passing: tuple[int, float] = (0, 0.0)  # who may go in and does not, and since when
        self.aimd = Aimd(float(limit))

    @classmethod
    def parse(cls, record: Any) -> Self:
        self = cls(1)
        self.initial, self.next, held, queue, passing, aimd = record
        self.held = [(ticket, (int(nonce), int(word))) for ticket, nonce, word in held]
        self.queue = [(ticket, (int(nonce), int(word))) for ticket, nonce, word in queue]
        self.passing = (int(passing[0]), float(passing[1]))
        limit, mean_s, floor_s, cooled = aimd
        self.aimd = Aimd(float(limit), float(mean_s), float(floor_s), int(cooled))
        return self

    def plain(self) -> list[Any]:
        return [
            self.initial,
            self.next,
            [[ticket, *owner] for ticket, owner in self.held],
            [[ticket, *owner] for ticket, owner in self.queue],
            list(self.passing),
            [self.aimd.limit, self.aimd.mean_s, self.aimd.floor_s, self.aimd.cooled],
        ]

    @property
    def room(self) -> int:
        """How many of those who wait may go in."""
        return max(0, int(self.aimd.limit) - len(self.held))

    def place(self, ticket: int) -> int | None:
        """How many are before that ticket; None if it does not wait (any more)."""
        for index, (other, _) in enumerate(self.queue):
            if other == ticket:
                return index
        return None

    def keep(self, fit: Callable[[int, Token], bool]) -> bool:
        """Take out whom `fit` does not hold for; whether there was one."""
        held = [entry for entry in self.held if fit(*entry)]
        queue = [entry for entry in self.queue if fit(*entry)]
        changed = len(held) < len(self.held) or len(queue) < len(self.queue)
        self.held, self.queue = held, queue
        return changed


class Limiter(Recipe):
    """A limit on how many callers of all processes are in a section at once.

    Args:
        cache: any `Cache`; policy ``"keep"`` recommended.
        name: the same name in any process is the same limiter.
        limit: how many at once, 1 or more. That of the newest handle counts for all: handles of
            one name are to be made with the same.
        adaptive: whether `limit` follows the latency of what is done in it (AIMD): a tenth less
            when it becomes slow, one more after as many good calls as the limit is, while at least
            half of it is used.
        minimum, maximum: what an adaptive limit stays between; `maximum` None: ten times `limit`.
        target: seconds of (smoothed) latency that are still good; None: twice the lowest seen,
            and a millisecond more than that at least.
        clock: monotonic seconds, the same for all processes; for tests.

    Fair: callers go in in the order in which they asked, whatever process they are of. A place
    whose process died, however it did, is free at once for whoever waits. Waiting costs no CPU to
    speak of: looks, 0.5 to 15 ms apart.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-limiter")
        >>> limiter = Limiter(cache, "partner-api", 2)
        >>> with limiter.acquire(timeout=1.0):
        ...     limiter.in_flight
        1
        >>> limiter.in_flight, limiter.limit
        (0, 2)
        >>> cache.close()

    Calls raise `CacheFull`, `LockTimeout` and `CacheNotFound` as the cache's own do.
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        limit: int,
        *,
        adaptive: bool = False,
        minimum: int = 1,
        maximum: int | None = None,
        target: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if maximum is None:
            maximum = 10 * limit
        for what, value in (("limit", limit), ("minimum", minimum), ("maximum", maximum)):
            if type(value) is not int:
                raise TypeError(f"{what} must be an int, not {type(value).__name__}")
        if not 1 <= minimum <= limit <= maximum:
            raise ValueError(
                f"1 <= minimum <= limit <= maximum does not hold for {minimum}, {limit} and "
                f"{maximum}"
            )
        if target is not None and not limits.check_timeout("target", target) > 0:
            raise ValueError(f"target must be more than 0 seconds, not {target!r}")
        self._room = open_room(cache, "limiter", name, durable=False)
        self.name = name
        self.adaptive = adaptive
        self._initial = limit
        self._bounds = (minimum, maximum)
        self._target = target
        self._clock = clock
        self._cell = Cell(self._room, "places")
        self._worker = Worker(self._room)
        self._left: set[int] = set()  # tickets of ours that an outage kept in the record
        self._cell.alter(self._configure)

    def acquire(self, timeout: float | None = None) -> Permit:
        """Wait for a place; use it as a context manager, or `Permit.release` it.

        timeout: seconds; 0: do not wait; None: no limit. Raises `LimiterTimeout` (a TimeoutError)
        when they have passed. Nobody is passed by while waiting, and who gives up is out of the
        queue. Noticed within a millisecond or so; the GIL is released meanwhile.
        """
        with contextlib.closing(self._wait(timeout)) as steps:
            for step in steps:
                if isinstance(step, Permit):
                    return step
                time.sleep(step)
        raise AssertionError("the wait ends with a permit or an exception")

    async def aacquire(self, timeout: float | None = None) -> Permit:
        """`acquire` for an event loop, which goes on meanwhile; a cancelled task is out of the
        queue. Use its result in a plain `with`."""
        with contextlib.closing(self._wait(timeout)) as steps:
            for step in steps:
                if isinstance(step, Permit):
                    return step
                await asyncio.sleep(step)
        raise AssertionError("the wait ends with a permit or an exception")

    @property
    def limit(self) -> int:
        """How many may be in at once now."""
        return int(self._load().aimd.limit)

    @property
    def in_flight(self) -> int:
        """How many are in and alive. Takes no lock; asks the kernel for each process."""
        living = self._worker.living()
        return sum(living(owner) for ticket, owner in self._load().held if ticket not in self._left)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._load().queue)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._room.name!r}>"

    # ------------------------------------------------------------------------------- waiting

    def _wait(self, timeout: float | None) -> Generator[float | Permit, None, None]:
        """Yields the seconds to sleep until the next look, and the permit in the end."""
        patience = math.inf if timeout is None else limits.check_timeout("timeout", timeout)
        now = time.monotonic()
        deadline, probe_at = now + patience, now
        ticket, inside = self._enter(patience > 0)
        if not inside and not ticket:
            raise self._late(patience)
        seen, record = None, _Record(1)
        try:
            while not inside:
                packed = self._room.get(self._cell.key)
                if packed != seen or packed is None:  # most looks end here: nothing has changed
                    seen, record = packed, self._load()
                now = time.monotonic()
                place = record.place(ticket)
                if place is None:  # passed by, or the record was evicted: at the end, again
                    ticket, inside = self._enter(True)
                elif place < record.room:
                    inside = self._go_in(ticket)
                elif now >= deadline:
                    raise self._late(patience)
                elif now >= probe_at:
                    probe_at = now + PROBE_S
                    self._clear(record, ticket)
                else:
                    behind = 1 + place - record.room
                    yield min(LOOK_S * behind, LONGEST_LOOK_S, deadline - now)
        finally:
            if not inside:
                self._give_up(ticket)
        yield Permit(self, ticket)

    def _enter(self, may_wait: bool) -> tuple[int, bool]:
        """A ticket, and whether it is in already; (0, False) where it would have to wait and may
        not. Asks who lives where there is no room."""
        me = self._worker.token()

        def enter(packed: Any) -> tuple[Any, tuple[int, bool]]:
            record = self._parse(packed)
            record.keep(self._is_due)
            if record.room <= len(record.queue):
                living = self._worker.living()
                record.keep(lambda ticket, owner: living(owner))
            inside = record.room > len(record.queue)
            if not inside and not may_wait:
                return None, (0, False)
            record.next += 1
            (record.held if inside else record.queue).append((record.next, me))
            return record.plain(), (record.next, inside)

        return self._cell.alter(enter)

    def _go_in(self, ticket: int) -> bool:
        def go_in(packed: Any) -> tuple[Any, bool]:
            record = self._parse(packed)
            place = record.place(ticket)
            if place is None or place >= record.room:
                return None, False
            record.held.append(record.queue.pop(place))
            return record.plain(), True

        return self._cell.alter(go_in)

    def _clear(self, seen: _Record, ticket: int) -> None:
        """Take out the dead, and whoever does not take a place that is free for it."""
        living = self._worker.living()
        idle = next((other for other, _ in seen.queue[: seen.room] if other != ticket), 0)
        now = self._clock()
        waits = not idle or now - seen.passing[1] < PATIENCE_S
        if seen.passing[0] == idle and waits and not seen.keep(lambda other, it: living(it)):
            return

        def clear(packed: Any) -> tuple[Any, None]:
            record = self._parse(packed)
            changed = record.keep(lambda other, it: self._is_due(other, it) and living(it))
            idle = next((other for other, _ in record.queue[: record.room] if other != ticket), 0)
            if record.passing[0] != idle:
                record.passing = (idle, now)
            elif idle and now - record.passing[1] >= PATIENCE_S:
                record.queue = [entry for entry in record.queue if entry[0] != idle]
                record.passing = (0, now)
            elif not changed:
                return None, None
            return record.plain(), None

        self._cell.alter(clear)

    def _is_due(self, ticket: int, owner: Token) -> bool:
        return ticket not in self._left or owner != self._worker.token()

    def _give_up(self, ticket: int) -> None:
        def leave(packed: Any) -> tuple[Any, None]:
            record = self._parse(packed)
            if not record.keep(lambda other, owner: other != ticket):
                return None, None
            return record.plain(), None

        try:
            self._cell.alter(leave)
        except (LockTimeout, CacheFull) as outage:
            self._left.add(ticket)
            logger.warning("limiter %r: a ticket is given up later: %s", self.name, outage)

    def _release(self, ticket: int, seconds: float, ok: bool) -> None:
        left = set(self._left)

        def release(packed: Any) -> tuple[Any, None]:
            record = self._parse(packed)
            in_flight = len(record.held)
            changed = record.keep(self._is_due)
            if not record.keep(lambda other, owner: other != ticket):
                return (record.plain() if changed else None), None
            if self.adaptive:
                record.aimd.learn(
                    seconds,
                    ok=ok,
                    ticket=ticket,
                    newest=record.next,
                    in_flight=in_flight,
                    bounds=self._bounds,
                    target_s=self._target,
                )
            return record.plain(), None

        self._cell.alter(release)
        self._left -= left

    def _late(self, seconds: float) -> LimiterTimeout:
        record = self._load()
        return LimiterTimeout(
            f"no place in limiter {self.name!r} within {seconds:g} s: {len(record.held)} of "
            f"{int(record.aimd.limit)} are in and {len(record.queue)} wait; wait longer, raise "
            "the limit, or turn the caller away"
        )

    # ----------------------------------------------------------------------------- the record

    def _configure(self, packed: Any) -> tuple[Any, None]:
        if packed is not None:
            record = self._parse(packed)
            if record.initial == self._initial:
                return None, None
            record.initial = self._initial
            record.aimd = Aimd(float(self._initial))
            return record.plain(), None
        return self._parse(None).plain(), None

    def _load(self) -> _Record:
        return self._parse(self._cell.load())

    def _parse(self, packed: Any) -> _Record:
        if packed is None:  # new, or evicted: nobody is known to be in
            record = _Record(self._initial)
            record.next = int(self._clock() * 1e6)  # tickets of the record that was are no longer
            return record
        try:
            return _Record.parse(packed)
        except (TypeError, ValueError, IndexError) as error:
            raise damaged(self._room, self._cell.key) from error
