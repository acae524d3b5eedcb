"""`ResourcePool`: amounts of what there is only so much of, taken together or not at all.

Place: level 6. All reservations of a pool are one record (`_state.py`), so that each allocation,
of a batch too, is one compare-and-swap: whoever is killed has taken all of it or nothing.
docs/recipes/pool.md says when to use it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from shmcache import limits
from shmcache.cache import Cache
from shmcache.errors import CacheFull, LockTimeout, ShmcacheError
from shmcache.recipes import _machine
from shmcache.recipes._state import Cell, Recipe, damaged, logger, open_room
from shmcache.recipes._worker import Token, Worker

__all__ = ["PoolExhausted", "Reservation", "ResourcePool"]

_FIRST_PAUSE_S: Final = 0.5e-3
_LONGEST_PAUSE_S: Final = 10e-3

_SLACK: Final = 1e-9
"""What fractions may be off by: three tenths and seven tenths are to fill a whole."""


class PoolExhausted(ShmcacheError):
    """There is not enough left of what was asked for."""


@dataclass(slots=True)
class _Taken:
    """A reservation as the record has it."""

    id: int
    owner: Token
    deadline: float | None
    amounts: dict[str, float]


class Reservation:
    """What `ResourcePool.allocate` returns: amounts that are this process's until `release`.

    A context manager that releases.

    Attributes:
        amounts: what was allocated, by name.
    """

    __slots__ = ("_id", "_pool", "amounts")

    def __init__(self, pool: ResourcePool, id: int, amounts: dict[str, float]) -> None:
        self._pool = pool
        self._id = id
        self.amounts = amounts

    def release(self) -> bool:
        """Give it back. True if it was still held; False if it was released before, or lost to
        its lease. May be called in another process (a forked child)."""
        return self._pool._release(self._id)

    def renew(self, lease: float | None) -> bool:
        """Hold it for `lease` seconds from now (None: until released). False if it is lost."""
        return self._pool._renew(self._id, lease)

    @property
    def held(self) -> bool:
        """Whether it still counts: neither released, nor past its lease. Takes no lock."""
        return self._pool._holds(self._id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool._release_quietly(self._id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.amounts} of pool {self._pool.name!r}>"


class ResourcePool(Recipe):
    """Capacities (CPUs, memory, licences, GPU slots) that all workers of a host allocate from.

    Args:
        cache: any `Cache`; policy ``"keep"``, so that no reservation is forgotten.
        name: the same name in any process is the same pool.
        capacities: amount by name, finite and 0 or more. None: what the pool has already, else
            this machine's ``cpus`` (as CPU affinity and the cgroup's quota leave it; a fraction,
            maybe) and ``memory`` (bytes, as the cgroup's limit leaves it). Those given replace
            those that the pool had; what is reserved stays reserved.
        clock: monotonic seconds, the same for all processes; for tests.

    A reservation is lost at once when its process dies: the next `allocate` that needs the room,
    and `available`, see it by the kernel's word. Forked children are processes of their own; what
    their parent has allocated stays the parent's.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-pool", policy="keep")
        >>> pool = ResourcePool(cache, "encoder", {"gpus": 2, "memory": 8_000})
        >>> with pool.allocate(gpus=1, memory=6_000):
        ...     pool.available()
        {'gpus': 1, 'memory': 2000}
        >>> first, second = pool.allocate_batch([{"gpus": 1}, {"gpus": 1}])
        >>> try:
        ...     pool.allocate(gpus=1)
        ... except PoolExhausted as error:
        ...     print(str(error).partition(";")[0])
        pool 'encoder' has gpus: 0 of 2 left, and 1 asked for
        >>> cache.close()

    Cost: one compare-and-swap of a record that has all reservations in it: some 20 us, and
    2 us for each of them. Calls raise `CacheFull`, `LockTimeout` and `CacheNotFound` as the
    cache's own do.
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        capacities: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = None if capacities is None else _check_capacities(capacities)
        self._room = open_room(cache, "pool", name, durable=True)
        self.name = name
        self._clock = clock
        self._cell = Cell(self._room, "reservations")
        self._worker = Worker(self._room)
        self._unreleased: set[int] = set()
        self._given: dict[str, float] = given or {}

        def configure(record: Any) -> tuple[Any, dict[str, float]]:
            if record is None:
                mine = _machine.capacities() if given is None else given
                return [mine, []], mine
            capacities, taken = self._parse(record)
            if given is None or given == capacities:
                return None, capacities
            return [given, _plain(taken)], given

        self._given = self._cell.alter(configure)

    def allocate(
        self, /, *, timeout: float | None = 0.0, lease: float | None = None, **amounts: float
    ) -> Reservation:
        """Reserve these amounts, all of them or none.

        Args:
            timeout: seconds to wait for room (looked for every 0.5 to 10 ms, in no order among
                those who wait); 0: do not wait; None: no limit.
            lease: seconds after which the reservation is lost, though its process lives
                (`Reservation.renew` prolongs it); None: it is kept until released.
            **amounts: by name; each finite and more than 0.

        Raises `PoolExhausted` if they are not to be had within `timeout`, at once if they are more
        than the pool's capacities; ValueError for a name that the pool has not, or an amount that
        makes no sense.
        """
        return self.allocate_batch([amounts], timeout=timeout, lease=lease)[0]

    def allocate_batch(
        self,
        batch: Iterable[Mapping[str, float]],
        *,
        timeout: float | None = 0.0,
        lease: float | None = None,
    ) -> list[Reservation]:
        """Reserve several sets of amounts at once, all or nothing: one `Reservation` for each, to
        be released one by one. Arguments and errors as `allocate`."""
        wanted = [self._check_amounts(amounts) for amounts in batch]
        length = None if lease is None else _check_lease(lease)
        deadline = None
        if timeout is not None:
            deadline = time.monotonic() + limits.check_timeout("timeout", timeout)
        if not wanted:
            return []
        pause = _FIRST_PAUSE_S
        while True:
            made, short = self._try(wanted, length)
            if made is not None:
                return made
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0 or short.hopeless:
                raise PoolExhausted(short.message)
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def available(self) -> dict[str, float]:
        """What is left, by name. Takes no lock; asks the kernel about each process that holds
        some."""
        capacities, taken = self._parse(self._cell.load())
        living = self._worker.living()
        return _left(capacities, [one for one in self._current(taken) if living(one.owner)])

    @property
    def capacities(self) -> dict[str, float]:
        """What there is in all, by name."""
        return self._parse(self._cell.load())[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._room.name!r}>"

    # ----------------------------------------------------------------------------- the record

    def _try(
        self, wanted: list[dict[str, float]], lease: float | None
    ) -> tuple[list[Reservation] | None, _Short]:
        owner = self._worker.token()
        sums = _sum(wanted)
        cleared = set(self._unreleased)

        def take(record: Any) -> tuple[Any, tuple[list[Reservation] | None, _Short]]:
            capacities, taken = self._parse(record)
            taken = self._current(taken)
            short = _Short(self.name, capacities, taken, sums)
            if short:
                living = self._worker.living()
                taken = [one for one in taken if living(one.owner)]
                short = _Short(self.name, capacities, taken, sums)
                if short:
                    return None, (None, short)
            until = None if lease is None else self._clock() + lease
            new = [_Taken(secrets.randbits(62), owner, until, amounts) for amounts in wanted]
            made = [Reservation(self, one.id, one.amounts) for one in new]
            return [capacities, _plain([*taken, *new])], (made, short)

        result = self._cell.alter(take)
        if result[0] is not None:
            self._unreleased -= cleared
        return result

    def _current(self, taken: list[_Taken]) -> list[_Taken]:
        now = self._clock()
        return [
            one
            for one in taken
            if (one.deadline is None or one.deadline > now) and one.id not in self._unreleased
        ]

    def _release(self, id: int) -> bool:
        def give(record: Any) -> tuple[Any, bool]:
            capacities, taken = self._parse(record)
            left = [one for one in taken if one.id != id]
            if len(left) == len(taken):
                return None, False
            held = any(one.id == id for one in self._current(taken))
            return [capacities, _plain(left)], held

        return self._cell.alter(give)

    def _release_quietly(self, id: int) -> None:
        """Release at the end of a `with`: what was computed in it is not lost to an outage."""
        try:
            self._release(id)
        except (LockTimeout, CacheFull) as error:
            self._unreleased.add(id)  # this handle's next allocation releases it
            logger.warning("a reservation of pool %r is released later: %s", self.name, error)

    def _renew(self, id: int, lease: float | None) -> bool:
        length = None if lease is None else _check_lease(lease)

        def prolong(record: Any) -> tuple[Any, bool]:
            capacities, taken = self._parse(record)
            current = self._current(taken)
            for one in current:
                if one.id == id:
                    one.deadline = None if length is None else self._clock() + length
                    return [capacities, _plain(current)], True
            return None, False

        return self._cell.alter(prolong)

    def _holds(self, id: int) -> bool:
        return any(one.id == id for one in self._current(self._parse(self._cell.load())[1]))

    def _parse(self, record: Any) -> tuple[dict[str, float], list[_Taken]]:
        if record is None:  # evicted or cleared: nothing is known to be reserved
            return dict(self._given), []
        try:
            capacities, taken = record
            return dict(capacities), [
                _Taken(id, (int(nonce), int(word)), deadline, dict(amounts))
                for id, nonce, word, deadline, amounts in taken
            ]
        except (TypeError, ValueError) as error:
            raise damaged(self._room, self._cell.key) from error

    def _check_amounts(self, amounts: Mapping[str, float]) -> dict[str, float]:
        if not amounts:
            raise ValueError(f"nothing to allocate from pool {self.name!r}: name an amount")
        capacities = self.capacities
        for name, amount in amounts.items():
            if name not in capacities:
                raise ValueError(
                    f"pool {self.name!r} has no {name!r}: it has {', '.join(sorted(capacities))}"
                )
            if not _is_number(amount) or not 0 < amount < math.inf:
                raise ValueError(
                    f"amount of {name!r} must be a finite number more than 0, not {amount!r}"
                )
        return dict(amounts)


class _Short:
    """What a request lacks; false where it lacks nothing."""

    __slots__ = ("hopeless", "message")

    def __init__(
        self,
        pool: str,
        capacities: dict[str, float],
        taken: list[_Taken],
        sums: dict[str, float],
    ) -> None:
        left = _left(capacities, taken)
        lacking = [name for name in sums if sums[name] > left.get(name, 0) + _SLACK]
        self.hopeless = any(sums[name] > capacities.get(name, 0) + _SLACK for name in lacking)
        self.message = ""
        if lacking:
            remedy = (
                "that is more than it will ever have: give it larger capacities, or ask for less"
                if self.hopeless
                else "release some, wait longer (timeout=), or give it larger capacities"
            )
            what = ", ".join(
                f"{name}: {left.get(name, 0):g} of {capacities.get(name, 0):g} left, and "
                f"{sums[name]:g} asked for"
                for name in lacking
            )
            self.message = f"pool {pool!r} has {what}; {remedy}"

    def __bool__(self) -> bool:
        return bool(self.message)


def _left(capacities: dict[str, float], taken: list[_Taken]) -> dict[str, float]:
    used = _sum(one.amounts for one in taken)
    left = {name: amount - used.get(name, 0) for name, amount in capacities.items()}
    return {name: 0 if amount < _SLACK else amount for name, amount in left.items()}


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            sums[name] = sums.get(name, 0) + amount
    return sums


def _plain(taken: list[_Taken]) -> list[Any]:
    return [[one.id, *one.owner, one.deadline, one.amounts] for one in taken]


def _is_number(amount: object) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool)


def _check_capacities(capacities: Mapping[str, float]) -> dict[str, float]:
    if not capacities:
        raise ValueError("capacities must name at least one resource")
    for name, amount in capacities.items():
        if not isinstance(name, str):
            raise TypeError(f"a resource's name must be a str, not {type(name).__name__}")
        if not _is_number(amount) or not 0 <= amount < math.inf:
            raise ValueError(
                f"capacity of {name!r} must be a finite number of 0 or more, not {amount!r}"
            )
    return dict(capacities)


def _check_lease(lease: float) -> float:
    length = limits.check_timeout("lease", lease)
    if not 0 < length < math.inf:
        raise ValueError(f"lease must be more than 0 seconds, or None for no end, not {lease!r}")
    return length
