"""`CircuitBreaker`: a partner that is down is asked by nobody, then by one, then by all again.

Place: level 6. The breaker's state is one record (`_state.py`), each transition of it one
compare-and-swap; a call through a closed breaker reads it and writes nothing. docs/recipes/
breaker.md says when to use it.

    closed      calls go through; `failure_threshold` failures in a row, of all workers, open it
    open        calls are refused for `reset_timeout` seconds
    half-open   one call, of one worker, is let through: the probe; its success closes the
                breaker, its failure opens it again; all others are refused meanwhile

A probe whose process died has no verdict: the next caller probes at once (the kernel's word).
"""

from __future__ import annotations

import functools
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast, overload

from shmcache import limits
from shmcache.cache import Cache
from shmcache.errors import CacheFull, CacheNotFound, CorruptSegment, LockTimeout, ShmcacheError
from shmcache.recipes._state import Cell, Recipe, damaged, logger, open_room
from shmcache.recipes._worker import Token, Worker

__all__ = ["CircuitBreaker", "CircuitOpen"]

P = ParamSpec("P")
R = TypeVar("R")

State = Literal["closed", "open", "half-open"]

_CLOSED: Final = 0
_OPEN: Final = 1
_HALF_OPEN: Final = 2
_NAMES: Final[tuple[State, ...]] = ("closed", "open", "half-open")

_probing: set[int] = set()
"""Probes of this process that are under way; those that a child inherits bear another token."""

_OUTAGES: Final = (CacheFull, CacheNotFound, CorruptSegment, LockTimeout)


class CircuitOpen(ShmcacheError):
    """The call was refused, and not made.

    Attributes:
        retry_after: seconds until a call may be let through; 0 where a probe is under way.
    """

    retry_after: float

    def __init__(self, *args: object, retry_after: float = 0.0) -> None:
        super().__init__(*args)
        self.retry_after = retry_after


class _Circuit:
    """The breaker's record: failures in a row, when it was opened, and whose probe is under way."""

    __slots__ = ("failures", "opened_at", "owner", "probe", "state")

    def __init__(
        self,
        state: int = _CLOSED,
        failures: int = 0,
        opened_at: float = 0.0,
        probe: int = 0,
        owner: Token = (0, 0),
    ) -> None:
        self.state = state
        self.failures = failures
        self.opened_at = opened_at
        self.probe = probe
        self.owner = owner

    def plain(self) -> list[Any]:
        return [self.state, self.failures, self.opened_at, self.probe, *self.owner]


class CircuitBreaker(Recipe):
    """A circuit breaker that all workers of a host share.

    Args:
        cache: any `Cache`; policy ``"keep"`` recommended.
        name: the same name in any process is the same breaker; give all the same arguments.
        failure_threshold: failures in a row, of all workers together, that open it; 1 or more.
        reset_timeout: seconds from then to the first probe.
        failures: the exceptions that count as failures; others count as success: the partner did
            answer. What is no `Exception` (KeyboardInterrupt, a cancelled task) is no verdict.
        clock: monotonic seconds, the same for all processes; for tests.

    For plain and async functions, by `call` or as a decorator:

        >>> from shmcache import Cache
        >>> cache = Cache("doc-breaker")
        >>> breaker = CircuitBreaker(cache, "partner", failure_threshold=2)
        >>> breaker.call(int, "7"), breaker.state
        (7, 'closed')
        >>> @breaker
        ... def ask():
        ...     raise ConnectionError
        >>> for _ in range(2):
        ...     try:
        ...         ask()
        ...     except ConnectionError:
        ...         pass
        >>> breaker.state
        'open'
        >>> breaker.reset()
        >>> cache.close()

    A call through a closed breaker costs two gets. An outage of the cache (it is full, gone,
    stopped) lets calls through and is logged: a breaker is to protect, not to break.
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        failure_threshold: int = 5,
        reset_timeout: float = 30.0,
        *,
        failures: type[Exception] | tuple[type[Exception], ...] = Exception,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if type(failure_threshold) is not int:
            raise TypeError(
                f"failure_threshold must be an int, not {type(failure_threshold).__name__}"
            )
        if failure_threshold < 1:
            raise ValueError(f"failure_threshold must be 1 or more, not {failure_threshold}")
        self.name = name
        self.failure_threshold = failure_threshold
        self.reset_timeout = limits.check_timeout("reset_timeout", reset_timeout)
        self._failures = failures
        self._clock = clock
        self._room = open_room(cache, "breaker", name, durable=False)
        self._cell = Cell(self._room, "state")
        self._worker = Worker(self._room)

    @overload
    def call(
        self, fn: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def call(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    def call(self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call `fn` with these arguments, if the breaker lets it through; returns and raises what
        it does, or raises `CircuitOpen` without calling it. Of an async function, a coroutine that
        does so when it is awaited."""
        if _is_async(fn):
            return self._call_async(cast(Callable[P, Awaitable[Any]], fn), *args, **kwargs)
        probe = self._admit()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            self._judge_error(error, probe)
            raise
        self._judge(True, probe)
        return result

    async def _call_async(
        self, fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        probe = self._admit()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            self._judge_error(error, probe)
            raise
        self._judge(True, probe)
        return result

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorate a plain or async function: every call goes through `call`."""
        if _is_async(fn):

            @functools.wraps(fn)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self._call_async(
                    cast(Callable[P, Awaitable[Any]], fn), *args, **kwargs
                )

            return cast(Callable[P, R], guarded_async)

        @functools.wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(fn, *args, **kwargs)

        return guarded

    @property
    def state(self) -> State:
        """``"closed"``, ``"open"`` or ``"half-open"``: a probe is under way, or the next call will
        be one. Takes no lock."""
        circuit = self._load()
        if circuit.state == _OPEN and self._left(circuit) <= 0:
            return _NAMES[_HALF_OPEN]
        return _NAMES[circuit.state]

    @property
    def failure_count(self) -> int:
        """Failures in a row."""
        return self._load().failures

    def reset(self) -> None:
        """Close it, by hand."""
        self._cell.alter(lambda record: (None if record is None else _Circuit().plain(), None))

    def trip(self) -> None:
        """Open it, by hand, for `reset_timeout` seconds from now."""
        self._cell.alter(lambda record: (self._opened(self._parse(record)).plain(), None))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._room.name!r}>"

    # ---------------------------------------------------------------------------- transitions

    def _admit(self) -> int:
        """Let a call through: 0, or the number of the probe that it is. Else `CircuitOpen`."""
        try:
            if self._load().state == _CLOSED:
                return 0
            number = secrets.randbits(62) | 1
            _probing.add(number)  # before anybody can ask
            admitted = self._cell.alter(functools.partial(self._begin_probe, number))
        except _OUTAGES as outage:
            logger.warning("breaker %r lets a call through: %s", self.name, outage)
            return 0
        if isinstance(admitted, CircuitOpen):
            _probing.discard(number)
            raise admitted
        if admitted == 0:
            _probing.discard(number)
        return admitted

    def _begin_probe(self, number: int, record: Any) -> tuple[Any, int | CircuitOpen]:
        circuit = self._parse(record)
        if circuit.state == _CLOSED:
            return None, 0
        if circuit.state == _OPEN:
            left = self._left(circuit)
            if left > 0:
                return None, CircuitOpen(
                    f"circuit breaker {self.name!r} is open after {circuit.failures} failures in a "
                    f"row: try again in {left:.3g} s",
                    retry_after=left,
                )
        elif self._is_probing(circuit):
            return None, CircuitOpen(
                f"circuit breaker {self.name!r} is half-open: one call probes whether its failures "
                "are over; try again when that has returned"
            )
        circuit.state = _HALF_OPEN
        circuit.probe, circuit.owner = number, self._worker.token()
        return circuit.plain(), number

    def _judge_error(self, error: BaseException, probe: int) -> None:
        if isinstance(error, Exception):
            self._judge(not isinstance(error, self._failures), probe)
        elif probe:
            self._settle(lambda circuit: self._no_verdict(circuit, probe), probe)

    def _judge(self, ok: bool, probe: int) -> None:
        """Take the outcome of a call into account."""
        if probe:
            self._settle(lambda circuit: self._verdict(circuit, probe, ok), probe)
        elif ok:
            try:
                circuit = self._load()
            except _OUTAGES:
                return
            if circuit.failures and circuit.state == _CLOSED:
                self._settle(self._succeeded, probe)
        else:
            self._settle(self._failed, probe)

    def _settle(self, change: Callable[[_Circuit], _Circuit | None], probe: int) -> None:
        def alter(record: Any) -> tuple[Any, None]:
            circuit = change(self._parse(record))
            return (None if circuit is None else circuit.plain()), None

        try:
            self._cell.alter(alter)
        except _OUTAGES as outage:
            logger.warning("breaker %r forgets the outcome of a call: %s", self.name, outage)
        finally:
            _probing.discard(probe)

    def _verdict(self, circuit: _Circuit, probe: int, ok: bool) -> _Circuit | None:
        if circuit.state != _HALF_OPEN or circuit.probe != probe:
            return None  # reset or tripped by hand meanwhile
        return _Circuit() if ok else self._opened(circuit)

    def _no_verdict(self, circuit: _Circuit, probe: int) -> _Circuit | None:
        if circuit.state != _HALF_OPEN or circuit.probe != probe:
            return None
        circuit.probe, circuit.owner = 0, (0, 0)  # half-open, and nobody's: the next call probes
        return circuit

    def _succeeded(self, circuit: _Circuit) -> _Circuit | None:
        return _Circuit() if circuit.state == _CLOSED and circuit.failures else None

    def _failed(self, circuit: _Circuit) -> _Circuit | None:
        if circuit.state != _CLOSED:
            return None  # the call began before it was opened
        circuit.failures += 1
        return circuit if circuit.failures < self.failure_threshold else self._opened(circuit)

    def _opened(self, circuit: _Circuit) -> _Circuit:
        return _Circuit(_OPEN, max(circuit.failures, 1), self._clock())

    def _left(self, circuit: _Circuit) -> float:
        """Seconds until the first probe; none where it was opened by another clock (a snapshot
        from before the host was started anew has times that this one has not reached)."""
        left = circuit.opened_at + self.reset_timeout - self._clock()
        return left if left <= self.reset_timeout else 0.0

    def _is_probing(self, circuit: _Circuit) -> bool:
        if not circuit.probe:
            return False
        if circuit.owner == self._worker.token():
            return circuit.probe in _probing  # one whose outcome an outage swallowed is over
        return self._worker.is_alive(circuit.owner)

    def _load(self) -> _Circuit:
        return self._parse(self._cell.load())

    def _parse(self, record: Any) -> _Circuit:
        if record is None:  # new, or evicted: closed
            return _Circuit()
        try:
            state, failures, opened_at, probe, nonce, word = record
            circuit = _Circuit(
                int(state), int(failures), float(opened_at), int(probe), (int(nonce), int(word))
            )
        except (TypeError, ValueError) as error:
            raise damaged(self._room, self._cell.key) from error
        if circuit.state not in (_CLOSED, _OPEN, _HALF_OPEN):
            raise damaged(self._room, self._cell.key)
        return circuit


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 (an object whose call is async)
    )
