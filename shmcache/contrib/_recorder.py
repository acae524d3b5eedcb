"""A response on its way to the client, and what may be kept of it.

Place: level 6, beneath `asgi.py`. Knows ASGI's messages and `_http.py`; knows no cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, cast

from shmcache.contrib._http import PASS, Headers, Lives, Page, lifetime
from shmcache.once import Lifetime

__all__ = ["PASS_S", "Message", "Recorder", "Send"]

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

PASS_S: Final = 60.0
"""Seconds for which nobody waits for a response that was not to be stored."""


class Recorder:
    """A `send` that passes a response on, and collects what may be stored of it."""

    def __init__(self, send: Send, ttl: float | None, stale: float, limit: int) -> None:
        self._send = send
        self._ttl = ttl
        self._stale = stale
        self._room = limit
        self._body: list[bytes] = []
        self.status = 0
        self.headers: Headers = []
        self.lives: Lives | None = None
        self.unfit = False  # not to be stored, and that by what it is, not by mishap
        self.complete = False
        self.on_unfit: Callable[[Lifetime | None], object] = lambda kept: None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self._begin(message)
        elif kind == "http.response.body":
            self._add(message)
        elif kind not in ("http.response.push", "http.response.early_hint", "http.response.debug"):
            self._discard(True)  # a body that we do not see: a file's, sent by the server itself
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        self.headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        self.lives = lifetime(self.status, self.headers, self._ttl, self._stale)
        self._room -= sum(len(name) + len(value) + 16 for name, value in self.headers) + 64
        if self.lives is None or message.get("trailers"):
            # a failure may be over in a moment: the next one in the queue tries
            self._discard(self.status < 500 and self.status != 429)

    def _add(self, message: Message) -> None:
        body = message.get("body", b"")
        self._room -= len(body)
        if self.lives is not None:
            if self._room < 0:
                self._discard(True)
            else:
                self._body.append(bytes(body))
        if not message.get("more_body", False):
            self.complete = True

    def _discard(self, unfit: bool) -> None:
        self.lives = None
        self._body.clear()
        self.unfit = unfit
        self.on_unfit(Lifetime(PASS, PASS_S) if unfit else None)

    def page(self, now: float) -> Page:
        """The response, as it is stored; only where `lives` is set and it is complete."""
        lives = cast(Lives, self.lives)
        return Page.of(self.status, self.headers, b"".join(self._body), lives.ttl, now)
