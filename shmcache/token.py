"""Cancellation tokens: clean shutdown across processes.

Place: level 4, beside `cache.py`, which hands tokens out. What a token is, and why it needs no
repair, is told in `_core/src/token.h`; here is what waits. Waiting is as in `swap.py`: all waiters
of a cache sleep on one futex, which every cancel wakes, and look every `SLICE_SECONDS` besides.
"""

from __future__ import annotations

import time
from typing import Any, Final

from shmcache import _core, limits
from shmcache.errors import Cancelled
from shmcache.swap import SLICE_SECONDS

__all__ = ["CancellationToken"]

REASON_MAX: Final = 128
"""Bytes of a reason's UTF-8; what is longer is cut."""


class CancellationToken(_core.Token):
    """A flag that any process may raise and all of them see; `Cache.token` makes it.

    `cancelled` and `reason` are inherited from the core and documented there, and so is `reset`.
    A token outlives the processes that cancelled it: reset it at start-up, or name it for the run.
    A cache has 64 tokens, children included; their names are never given back (`LimitReached`).

    Safe to use from many threads, in forked children and in signal handlers; pickles to "the token
    of that name". After `cache.close()` its calls raise `CacheClosed`.
    """

    __slots__ = ("__weakref__",)

    @property
    def name(self) -> str:
        """The token's own name, without its parents'."""
        return self._names[-1]

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel this token, and with it its children; wakes whoever waits.

        True if this call did it; False if it was cancelled already, by itself or with a parent:
        the first reason stays. `reason` is cut to 128 bytes of UTF-8.

        Waits up to the handle's `lock_timeout` for a process that is in the middle of cancelling
        the same token (`LockTimeout`); one that died there is no obstacle.
        """
        encoded = None
        if reason is not None:
            if not isinstance(reason, str):
                raise TypeError(f"reason must be a str or None, not {type(reason).__name__}")
            encoded = reason.encode("utf-8", "replace")
            if len(encoded) > REASON_MAX:
                encoded = encoded[:REASON_MAX].decode("utf-8", "ignore").encode()
        if len(self._names) > 1 and self.cancelled:
            return False
        return self._cancel(encoded)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled`, with the token's name and reason, if it is cancelled."""
        if self.cancelled:
            reason = self.reason
            raise Cancelled(
                f"token {'/'.join(self._names)!r} of cache {self._cache.name!r} was cancelled"
                + (f": {reason}" if reason else "")
            )

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is cancelled; True if it is, False after `timeout` seconds (None: no
        limit).

        Noticed at once, 15 ms later at worst. Costs no CPU to speak of; the GIL is released, and
        a signal's handler runs at once. Raises CacheClosed or CacheNotFound as `SwapSlot.wait`.
        """
        deadline = None
        if timeout is not None:
            deadline = time.monotonic() + limits.check_timeout("timeout", timeout)
        while True:
            bell = self._bell()
            if self.cancelled:
                return True
            nap = SLICE_SECONDS
            if deadline is not None:
                nap = min(nap, deadline - time.monotonic())
                if nap <= 0:
                    return False
            self._sleep(bell, nap)

    async def wait_async(self) -> None:
        """Wait until it is cancelled, without blocking the event loop or a thread.

        Looks every 15 ms (a timer of the loop; a look costs well under a microsecond), so it works
        in any loop, after a fork, and can be cancelled like any task.
        """
        import asyncio  # not before it is used: it takes 10 ms to load

        while not self.cancelled:
            await asyncio.sleep(SLICE_SECONDS)

    def child(self, name: str) -> CancellationToken:
        """The child of that name: the same one for every process that asks for it. Cancelled with
        this token, and by itself without it. Takes one of the cache's tokens at its first use."""
        return CancellationToken(self._cache, *self._names, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return CancellationToken, (self._cache, *self._names)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'/'.join(self._names)!r} of {self._cache!r}>"
