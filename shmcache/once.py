"""Once per key: a missing value is computed by one caller, whoever else asks for it meanwhile.

Place: level 4, beneath `cache.py`. A hit of `get_or_init` never gets here (`_core/handle.pxi`). The
lease that decides among processes lives in the key's shard (`_core/src/lease.h`); here is who
takes it, who waits for it, and how.

The story
    Within a process, the callers of a missing key form a `Flight`: one leads, the others have a
    seat. So a process has at most one caller who deals with the key's lease, be it a thread or a
    task of an event loop; a thousand waiting tasks cost what one costs. The leader takes the lease
    and calls the factory, or waits for the process that has it. It looks for the value again when
    the shard's wake word changes (a futex: the wait costs nothing and ends within microseconds of
    the value), and every 25 ms asks the kernel whether the lease's holder lives.

    The leader ends the flight with the value, and everybody decodes a copy of its own. It hands
    the flight over to one seat if it leaves without a value: its factory raised, its task was
    cancelled, its time was up. A process that dies leaves its lease, and a waiter of another one
    takes it over, in exchange for exactly the dead one's (INV-LEASE).

    A `set` or `delete` of the key takes the lease away. The leader then keeps its value to itself,
    and the seats look again.

What it must not know: how leases are stored, and what is evicted for them. It holds no shard and
no lock of its own while a factory runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shmcache import _core, errors, flights, limits
from shmcache.flights import AGAIN, MISS, VALUE, WATCHERS, Ident, Seat
from shmcache.keys import Key

if TYPE_CHECKING:
    import asyncio  # 10 ms of every import: it is loaded where a loop runs, and has it already

__all__ = ["Lifetime", "Once"]

T = TypeVar("T")
Ttl = float | timedelta | None

SLICE_S: Final = 0.025
"""Seconds between two looks at whether a lease's holder lives: a waiter takes over within 50 ms."""

PATIENCE_S: Final = 0.1
"""Seconds that a shard is waited for at least, also where `lock_timeout` is less: holds last
microseconds, and giving up costs the promise that one caller computes."""

CLOSED_S: Final = 0.25
"""Seconds between two looks of a waiting thread at whether its handle has been closed."""

_LONGEST_S: Final = 1e6  # what a lock's acquire takes for an endless wait
_FRESH, _STALE, _UNFIT = range(3)  # of _core.look_up

_inside: ContextVar[frozenset[Ident]] = ContextVar("shmcache_initialising", default=frozenset())


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What a factory returns that knows best how long its value lives: the call's `ttl` and
    `stale` do not count then. For `contrib`; it is no part of the public API."""

    value: Any
    ttl: Ttl
    stale: float = 0.0


class _Moved(Exception):
    """The key's content has changed: its namespace was invalidated. Look again."""


class _Call:
    """One call that has missed: its arguments, checked, and the steps that sync and async share."""

    __slots__ = (
        "deadline",
        "flights",
        "handle",
        "ident",
        "key",
        "negative_ttl",
        "patience",
        "stale_ms",
        "timeout",
        "ttl",
    )

    def __init__(
        self, handle: Once, key: Key, ttl: Ttl, timeout: float, stale: float, negative_ttl: Ttl
    ) -> None:
        self.handle = handle
        self.key = key
        self._live(ttl, stale)
        self.timeout = limits.check_timeout("timeout", timeout)
        self.negative_ttl = negative_ttl
        if negative_ttl is not None and negative_ttl != 0:
            limits.ttl_to_ms(negative_ttl)
        self.identify()
        self.deadline = time.monotonic() + min(self.timeout, _LONGEST_S)
        self.patience = max(handle.lock_timeout, PATIENCE_S)
        self.flights = flights.here()

    def _live(self, ttl: Ttl, stale: float) -> None:
        limits.ttl_to_ms(ttl)
        self.ttl = ttl
        self.stale_ms = int(min(limits.check_timeout("stale", stale) * 1000, limits.TTL_MAX_MS))

    def made(self, value: Any) -> Any:
        """A factory's value, without the lifetime that it may come with."""
        if type(value) is not Lifetime:
            return value
        self._live(value.ttl, value.stale)
        return value.value

    def identify(self) -> None:
        """Tell the key from every other one; again where its content has changed (`_Moved`)."""
        handle = self.handle
        kind, content = _core.key_content(handle, self.key)
        attachment = handle._attachment
        self.ident: Ident = (
            0 if attachment is None else attachment.superblock.nonce,
            kind,
            content,
        )
        if self.ident in _inside.get():
            raise errors.ReentrantInit(
                f"the factory of key {self.key!r:.80} of cache {handle.name!r} asks for that very "
                "key, and would wait for itself; compute the value without it, or use another key"
            )

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def look(self) -> tuple[Any, Any]:
        """(the value, an expired one that may still be served); MISS where there is none."""
        seen = _core.look_up(self.handle, self.key)
        if seen is None or seen[2] == _UNFIT:
            return MISS, MISS
        return (MISS, seen[0]) if seen[2] == _STALE else (seen[0], MISS)

    def copy_of(self, value: Any) -> Any:
        """What the key holds now, for a seat; where that is nothing, what its leader has got."""
        seen, _ = self.look()
        return value if seen is MISS else seen

    def step(self, lock_timeout: float) -> tuple[Any, int | None, int]:
        """What the leader does next: (value, None, 0) return it; (MISS, lease, 0) call the
        factory, with a lease of that version (0: without one); (MISS, None, word) wait for the
        wake word to change."""
        handle, key = self.handle, self.key
        while True:
            word, holder, version = _core.lease_look(handle, key)
            seen = _core.look_up(handle, key)
            if seen is not None and seen[2] == _FRESH:
                return seen[0], None, 0
            dead = 0
            if version:
                if self._is_alive(holder):
                    if seen is not None and seen[2] == _STALE:
                        return seen[0], None, 0
                    return MISS, None, word
                dead = version
            unfit = seen[1] if seen is not None and seen[2] == _UNFIT else 0
            until = _core.now_ms() + int(self.left() * 1000)
            outcome, lease = _core.lease_take(
                handle, key, self.ident[2], until, dead, unfit, lock_timeout
            )
            if outcome == "taken":
                return MISS, lease, 0
            if outcome == "full":
                return MISS, 0, 0
            if outcome == "moved":
                raise _Moved

    def _is_alive(self, holder: int) -> bool:
        if holder == 0 or holder == _core.identity(self.handle):
            return False  # flipped bytes; or ours: but the one who leads in this process is we
        alive: bool = self.handle._attachment.is_alive((holder >> 32) - 1, holder & 0xFFFFFFFF)
        return alive

    def keeps(self, value: Any) -> bool:
        """Whether the value is to be stored at all."""
        return not (value is None and self.negative_ttl == 0 and self.negative_ttl is not None)

    def publish(self, value: Any, lease: int, lock_timeout: float) -> bool:
        """Store the value if the lease is still there; whether it was."""
        ttl = self.ttl
        if value is None and self.negative_ttl is not None:
            ttl = self.negative_ttl
        return _core.lease_publish(
            self.handle, self.key, self.ident[2], value, ttl, self.stale_ms, lease, lock_timeout
        )

    def give_up(self, lease: int, lock_timeout: float) -> None:
        """Let go of the lease; a shard that is not to be had now is waited for in a thread."""
        if not lease:
            return
        try:
            _core.lease_release(self.handle, self.key, self.ident[2], lease, lock_timeout)
        except errors.LockTimeout:
            threading.Thread(
                target=_release_later,
                args=(self.handle, self.key, self.ident[2], lease),
                daemon=True,
            ).start()
        except errors.ShmcacheError:
            pass  # closed, unlinked or damaged: nobody can wait for this lease any more

    def count_failure(self) -> None:
        with contextlib.suppress(errors.ShmcacheError):
            _core.count_store_failure(self.handle)

    def timed_out(self) -> errors.InitTimeout:
        where = f"key {self.key!r:.80} of cache {self.handle.name!r}"
        return errors.InitTimeout(
            f"whoever initialises {where} did not deliver within {self.timeout:g} s, and is alive; "
            "call again, with a longer timeout if its factory takes that long, or set the key"
        )


def _release_later(handle: Once, key: Key, content: bytes, lease: int) -> None:
    """Wait for a shard whose holder is alive but stopped, to give a lease up."""
    with contextlib.suppress(errors.ShmcacheError):
        while True:
            try:
                _core.lease_release(handle, key, content, lease, 5.0)
                return
            except errors.LockTimeout:
                continue


def _initialise(call: _Call, factory: Callable[[], T]) -> T:
    """get_or_init where the key is missing."""
    crew = call.flights
    while True:
        ident = call.ident
        value, old = call.look()
        if value is not MISS:
            return value  # type: ignore[no-any-return]
        bell = threading.Lock()
        bell.acquire()
        seat = Seat(bell.release)
        flight, lead = crew.join(ident, seat if old is MISS else None)
        if not lead:
            if old is not MISS:
                return old  # type: ignore[no-any-return]
            try:
                rung = bell.acquire(timeout=min(call.left(), CLOSED_S))
                while not rung and call.left():
                    call.look()  # raises once another thread has closed the handle
                    rung = bell.acquire(timeout=min(call.left(), CLOSED_S))
            except BaseException:
                crew.desert(ident, flight, seat)
                raise
            if not rung and crew.leave(seat):
                raise call.timed_out()
            if seat.outcome == AGAIN:
                continue
            if seat.outcome == VALUE:
                return call.copy_of(flight.value)  # type: ignore[no-any-return]
        try:
            value, handed = _lead(call, factory)
        except _Moved:
            crew.land(ident, flight, MISS)
            call.identify()
            continue
        except BaseException:
            crew.hand_over(ident, flight)
            raise
        crew.land(ident, flight, handed)
        return value  # type: ignore[no-any-return]


def _lead(call: _Call, factory: Callable[[], Any]) -> tuple[Any, Any]:
    """(the value, what the others get: it too, or MISS where they are to look again)."""
    while True:
        try:
            value, lease, word = call.step(call.patience)
        except errors.LockTimeout:  # the shard's holder is stopped: go on without a lease
            value, lease, word = MISS, 0, 0
        if value is not MISS:
            return value, value
        if lease is not None:
            break
        left = call.left()
        if not left:
            raise call.timed_out()
        _core.lease_wait(call.handle, call.key, word, min(left, SLICE_S))
    try:
        token = _inside.set(_inside.get() | {call.ident})
        try:
            value = call.made(factory())
        finally:
            _inside.reset(token)
        if not lease or not call.keeps(value):
            return _unstored(call, value, lease, call.patience)
        try:
            stored = call.publish(value, lease, call.patience)
        except (errors.CacheFull, errors.ValueTooLarge, errors.LockTimeout):
            call.count_failure()
            call.give_up(lease, call.patience)
            return value, value
        return value, value if stored else MISS
    except BaseException:
        call.give_up(lease, call.patience)
        raise


def _unstored(call: _Call, value: Any, lease: int, lock_timeout: float) -> tuple[Any, Any]:
    """A value that was not to be stored, or could not be for want of a lease."""
    if call.keeps(value):
        call.count_failure()
    call.give_up(lease, lock_timeout)
    return value, value


async def _ainitialise(call: _Call, factory: Callable[[], Awaitable[T]]) -> T:
    """aget_or_init where the key is missing."""
    import asyncio

    crew = call.flights
    loop = asyncio.get_running_loop()
    while True:
        ident = call.ident
        value, old = call.look()
        if value is not MISS:
            return value  # type: ignore[no-any-return]
        bell: asyncio.Future[None] = loop.create_future()
        seat = Seat(partial(loop.call_soon_threadsafe, _ring, bell))
        flight, lead = crew.join(ident, seat if old is MISS else None)
        if not lead:
            if old is not MISS:
                return old  # type: ignore[no-any-return]
            timer = loop.call_later(call.left(), _ring, bell)
            try:
                await bell
            except BaseException:
                crew.desert(ident, flight, seat)
                raise
            finally:
                timer.cancel()
            if crew.leave(seat):
                raise call.timed_out()
            if seat.outcome == AGAIN:
                continue
            if seat.outcome == VALUE:
                return call.copy_of(flight.value)  # type: ignore[no-any-return]
        try:
            value, handed = await _alead(call, factory)
        except _Moved:
            crew.land(ident, flight, MISS)
            call.identify()
            continue
        except BaseException:
            crew.hand_over(ident, flight)
            raise
        crew.land(ident, flight, handed)
        return value  # type: ignore[no-any-return]


def _ring(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)


async def _alead(call: _Call, factory: Callable[[], Awaitable[Any]]) -> tuple[Any, Any]:
    """`_lead` that never blocks: a shard that is taken is asked for again, a lease is waited for
    in a thread."""
    while True:
        try:
            value, lease, word = await _patiently(call, lambda: call.step(0.0))
        except errors.LockTimeout:
            value, lease, word = MISS, 0, 0
        if value is not MISS:
            return value, value
        if lease is not None:
            break
        left = call.left()
        if not left:
            raise call.timed_out()
        await _await_lease(call, word, min(left, SLICE_S))
    try:
        token = _inside.set(_inside.get() | {call.ident})
        try:
            value = call.made(await factory())
        finally:
            _inside.reset(token)
        if not lease or not call.keeps(value):
            return _unstored(call, value, lease, 0.0)
        held = lease
        try:
            stored = await _patiently(call, lambda: call.publish(value, held, 0.0))
        except (errors.CacheFull, errors.ValueTooLarge, errors.LockTimeout):
            call.count_failure()
            call.give_up(lease, 0.0)
            return value, value
        return value, value if stored else MISS
    except BaseException:
        call.give_up(lease, 0.0)
        raise


async def _patiently(call: _Call, attempt: Callable[[], T]) -> T:
    """Repeat what raises WouldBlock, for as long as `lock_timeout` would wait."""
    import asyncio

    until = time.monotonic() + call.patience
    pause = 0.0
    while True:
        try:
            return attempt()
        except errors.WouldBlock:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2 + 0.0005, 0.02)


async def _await_lease(call: _Call, word: int, seconds: float) -> None:
    import asyncio

    crew = call.flights
    if crew.watching >= WATCHERS:
        await asyncio.sleep(min(seconds, 0.005))
        return
    crew.watching += 1
    try:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            crew.watchers, _core.lease_wait, call.handle, call.key, word, seconds
        )
    finally:
        crew.watching -= 1


class Once(_core.Handle):
    """`aget_or_init`, and what `get_or_init` of the binding does where the key is missing."""

    __slots__ = ()

    def _initialise(
        self,
        key: Key,
        factory: Callable[[], T],
        ttl: Ttl,
        timeout: float,
        stale: float,
        negative_ttl: Ttl,
    ) -> T:
        """get_or_init where the key is missing (its hit is in the binding, which calls this)."""
        return _initialise(_Call(self, key, ttl, timeout, stale, negative_ttl), factory)

    async def aget_or_init(
        self,
        key: Key,
        factory: Callable[[], Awaitable[T]],
        ttl: Ttl = None,
        *,
        timeout: float = 20.0,
        stale: float = 0.0,
        negative_ttl: Ttl = None,
    ) -> T:
        """`get_or_init` with an async factory; never blocks the event loop.

        Cancelling the initialising task hands over to a waiter. Tasks of all loops and threads of
        the process wait together, so that many waiters cost no more than one.
        """
        try:
            value = self.get(key, MISS)
        except errors.DecodeError:
            value = MISS
        if value is not MISS:
            return value  # type: ignore[no-any-return]
        return await self._ainitialise(key, factory, ttl, timeout, stale, negative_ttl)

    async def _ainitialise(
        self,
        key: Key,
        factory: Callable[[], Awaitable[T]],
        ttl: Ttl,
        timeout: float,
        stale: float,
        negative_ttl: Ttl,
    ) -> T:
        """aget_or_init where the key is missing."""
        return await _ainitialise(_Call(self, key, ttl, timeout, stale, negative_ttl), factory)
