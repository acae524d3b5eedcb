"""Responses kept in shared memory, for every ASGI application (FastAPI, Starlette, Django...).

    app = CacheMiddleware(app, "pages", ttl=30, stale=60)

Place: level 6; over the public `Cache`, with no framework: it speaks ASGI, on asyncio. What HTTP
says of requests and responses is in `_http.py`.

What happens to a request
    GET, HEAD                     looked up; the response to GET is stored if it may be
    with Authorization, Cookie, Range, If-Match, If-Unmodified-Since, a body, or
    ``Cache-Control: no-store``   passed by, untouched
    POST, PUT, DELETE...          passed by; unless it fails, what is kept under its URL goes
    websockets                    passed by
A missing response is computed by one request among all workers, while the others wait for it
(`aget_or_init`); with `stale`, one refreshes an expired response while the others get the old one
at once. HEAD is answered from the response to GET, without its body, and passed by where there is
none. If-None-Match and If-Modified-Since are answered by 304 where the kept response allows it.

What may be stored is decided as RFC 9111 decides for a shared cache, with the application's say:
a status that is cacheable by default (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501; 302,
303 and 307 where the response says for how long), no Set-Cookie, no ``Vary: *``, no
``Cache-Control`` of ``no-store``, ``private`` or ``no-cache``, no event stream. ``s-maxage``,
``max-age`` and ``Expires``, in this order, take precedence over `ttl`, and
``stale-while-revalidate`` over `stale`; ``must-revalidate``, ``proxy-revalidate`` and ``s-maxage``
forbid stale responses. A request may say ``no-cache``, ``max-age`` or ``min-fresh`` (what is too
old for it is computed anew and stored); ``only-if-cached`` is answered from the cache, or by 504.
Requests that differ in what ``Vary`` names are kept apart.

A response is passed on as it arrives while its body is collected: being cached costs the first
request no time, and no stream is held up. As soon as it turns out that it is not to be stored (by
its headers, or because it has become larger than the cache takes), the requests that wait for it
ask the application themselves, and so does everybody for the next `PASS_S` seconds, at once. Of a
response that ends early (the client has gone, the application failed), one waiter takes over.

Outages. With ``on_error="miss"`` (the default) the application answers as if there was no cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from shmcache import errors
from shmcache.cache import Cache
from shmcache.contrib import _http
from shmcache.contrib._connection import OUTAGES, Connection, OnError, connect
from shmcache.contrib._http import PASS, Headers, Page, Scope, Varies
from shmcache.contrib._recorder import PASS_S, Message, Recorder, Send
from shmcache.once import Lifetime

__all__ = ["CacheMiddleware"]

Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

VARIES_S: Final = 86_400.0
"""Seconds that the names a URL varies by are kept; longer than responses live, as a rule."""

STEPS: Final = 4
"""Times that a request looks anew because what it looked under has changed meanwhile."""


class CacheMiddleware:
    """An ASGI application around another one, which keeps its responses for all workers.

    Args:
        app: the application.
        cache: a `Cache`, which stays yours to close; or the name of one, opened when the
            application starts (or at the first request, where the server has no lifespan), with
            `cache_arguments`, and closed when it stops.
        ttl: seconds that a response lives which does not say so itself; None: for ever.
        stale: seconds after expiry for which the old response is served while one request
            refreshes it, where the response does not say.
        key: called with the scope; returns a str that tells responses apart, instead of scheme,
            host, path and query. None from it passes the request by.
        name: of the cache's namespace that responses are in.
        timeout: seconds that a request waits for another one to compute its response; then it
            asks the application itself.
        on_error: ``"miss"`` or ``"raise"`` (the cache's errors come out of the application).
        cache_arguments: those of `Cache`, where `cache` is a name.

    Raises ValueError, TypeError for arguments that make no sense. Opens nothing yet.
    """

    def __init__(
        self,
        app: App,
        cache: Cache | str,
        ttl: float | None = 60.0,
        *,
        stale: float = 0.0,
        key: Callable[[Scope], str | None] | None = None,
        name: str = "asgi",
        timeout: float = 20.0,
        on_error: OnError = "miss",
        **cache_arguments: Any,
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl must be seconds > 0, or None for ever; not {ttl!r}")
        for what, value in (("stale", stale), ("timeout", timeout)):
            if not value >= 0:
                raise ValueError(f"{what} must be seconds >= 0, not {value!r}")
        if not isinstance(cache, str) and cache_arguments:
            raise TypeError(
                f"{', '.join(sorted(cache_arguments))}: arguments of Cache go with the name of a "
                "cache; this one is open already"
            )
        self.app = app
        self.ttl = ttl
        self.stale = stale
        self.timeout = timeout
        self._key = key or _http.url_of
        self._name = name
        self._own = isinstance(cache, str)
        self._space: Any = None
        self._connection: Connection = (
            connect(cache, on_error=on_error, **cache_arguments)
            if isinstance(cache, str)
            else Connection.of(cache, on_error)
        )

    def invalidate(self, url: str | None = None) -> None:
        """Drop the response to a URL (as `key` tells it, by default ``http://host/path?query``),
        whatever it varies by; without `url` all responses. For all workers. O(1)."""

        def operation(cache: Cache) -> None:
            space = self._of(cache)
            if url is None:
                space.invalidate()
            else:
                space.delete(url)

        self._connection.run(operation, None)

    def _of(self, cache: Cache) -> Any:
        """The responses' namespace; one that is kept follows its cache when that is reopened."""
        space = self._space
        if space is None or space[0] is not cache:
            space = self._space = (cache, cache.namespace(self._name))
        return space[1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request from the cache, or pass it on."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] not in _http.SAFE:
            await self._change(scope, receive, send)
        elif not _http.may_look_up(scope) or (url := self._key(scope)) is None:
            await self.app(scope, receive, send)
        else:
            await _Call(self, url, scope, receive, send).run()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's life: the cache is opened before it starts, and closed after it."""

        async def opening() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup" and self._own:
                self._connection.run(len, 0)
            return message

        async def closing(message: Message) -> None:
            if self._own and message["type"].startswith("lifespan.shutdown."):
                self._space = None
                self._connection.close()
            await send(message)

        await self.app(scope, opening, closing)

    async def _change(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that changes something: unless it fails, what is kept of its URL is old (RFC
        9111, 4.4), before its client can ask for it again."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:
                url = self._key({**scope, "method": "GET"})
                if url is not None:
                    await self._drop(url)
            await send(message)

        await self.app(scope, receive, sending)

    async def _drop(self, url: str) -> None:
        def operation(cache: Cache, waits: bool) -> bool:
            space = self._of(cache)
            with contextlib.suppress(errors.KeyTooLarge):  # nor was it ever stored
                (space.delete if waits else space.try_delete)(url)
            return True

        await self._write(operation)

    async def put(self, key: Any, kept: Lifetime) -> None:
        """Store an entry, in place of one that is there; whatever becomes of it."""

        def operation(cache: Cache, waits: bool) -> bool:
            space = self._of(cache)
            if kept.stale:
                (space.delete if waits else space.try_delete)(key)
                return True
            try:
                (space.set if waits else space.try_set)(key, kept.value, kept.ttl)
            except errors.ValueTooLarge:
                space.delete(key)
            return True

        await self._write(operation)
        if kept.stale:  # which only an initialiser can say

            async def factory() -> Any:
                return kept

            with contextlib.suppress(*OUTAGES):
                await self._connection.arun(
                    lambda cache: self._of(cache).aget_or_init(key, factory, timeout=0.0)
                )

    async def _write(self, operation: Callable[[Cache, bool], bool]) -> None:
        """Write at once, or in a thread where a shard is held: the event loop waits for none."""

        def at_once(cache: Cache) -> bool:
            try:
                return operation(cache, False)
            except errors.WouldBlock:
                return False

        if not self._connection.run(at_once, True):
            await asyncio.to_thread(
                self._connection.run, lambda cache: operation(cache, True), False
            )


class _Incomplete(Exception):
    """The response ended early: a waiter is to take over."""


class _Call:
    """One request that may be answered from the cache."""

    def __init__(
        self, middleware: CacheMiddleware, url: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.middleware = middleware
        self.connection = middleware._connection
        self.url = url
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers: Headers = list(scope["headers"])
        self.wants = _http.directives(_http.joined(self.headers, b"cache-control"))
        self.asks_if = bool(
            _http.joined(self.headers, b"if-none-match")
            or _http.joined(self.headers, b"if-modified-since")
        )
        self.varies: Varies | None = None
        self.answered = False

    @property
    def key(self) -> Any:
        varies = self.varies
        return self.url if varies is None else varies.key(self.url, self.headers)

    async def run(self) -> None:
        """Answer, by whatever way there is."""
        try:
            for _ in range(STEPS):
                if await self._step():
                    return
        except errors.InitTimeout:
            if self.answered:
                raise  # the application's own; else somebody else's response takes its time
        except OUTAGES as error:
            if self.answered or (
                self.connection.on_error == "raise" and not isinstance(error, errors.KeyTooLarge)
            ):
                raise
            self.connection.log(error)
        if not self.answered:
            await self._pass()

    async def _step(self) -> bool:
        """Look under the key; whether the request is answered."""
        missing = object()
        packed = self._run(lambda space: space.get(self.key, missing), missing)
        if packed is missing:
            return await self._miss()
        return await self._found(packed)

    def _run(self, operation: Callable[[Any], Any], missed: Any) -> Any:
        middleware = self.middleware
        return self.connection.run(lambda cache: operation(middleware._of(cache)), missed)

    async def _found(self, packed: object) -> bool:
        """Answer with an entry of the cache, or look on as it says."""
        entry = _http.unpack(packed)
        if entry is None:
            await self._record()
        elif isinstance(entry, Varies):
            if self.varies is not None:
                return False
            self.varies = entry
            if not await self._step():
                self.varies = None
                return False
        elif _http.wants_more(self.wants, time.time() - entry.made_at, entry.lives):
            await self._record()
        else:
            await self._reply(entry)
        return True

    async def _miss(self) -> bool:
        if "only-if-cached" in self.wants:
            await self._refuse()
        elif self.scope["method"] == "HEAD":
            await self._pass()
        elif self.asks_if or "no-cache" in self.wants or self.wants.get("max-age") == "0":
            await self._record()
        else:
            return await self._initialise()
        return True

    # ------------------------------------------------------- without anybody waiting for it

    async def _pass(self) -> None:
        """The application's answer."""
        self.answered = True
        await self.middleware.app(self.scope, self.receive, self.send)

    async def _record(self) -> None:
        """The application's answer, which is kept if it may be."""
        if "only-if-cached" in self.wants:
            await self._refuse()
            return
        if self.scope["method"] == "HEAD":
            await self._pass()
            return
        recorder = self._recorder()
        self.answered = True
        await self.middleware.app(self.scope, self.receive, recorder)
        kept = await self._to_keep(recorder)
        if kept is not None and kept.value != PASS:
            await self.middleware.put(self.key, kept)

    def _recorder(self) -> Recorder:
        middleware = self.middleware
        limit = self.connection.run(lambda cache: cache.max_value_size, 0)
        return Recorder(self.send, middleware.ttl, middleware.stale, limit)

    # -------------------------------------------------------- one computes, the others wait

    async def _initialise(self) -> bool:
        """Compute the response for all who wait for it, or wait for the one who does; whether the
        request is answered.

        The application runs here, in the request's own task; the lease is held by a task beside
        it, so that it can be given up as soon as the response turns out not to be storable.
        """
        loop = asyncio.get_running_loop()
        leads: asyncio.Future[None] = loop.create_future()
        outcome: asyncio.Future[Lifetime | None] = loop.create_future()
        flight = loop.create_task(self._fly(leads, outcome))
        flight.add_done_callback(lambda _: _settle(leads, None))
        try:
            await leads
            if not flight.done():
                await self._compute(outcome)
        finally:
            if not outcome.done():
                outcome.set_exception(_Incomplete())
            outcome.exception()  # seen, whoever awaits it
            if not leads.done():
                flight.cancel()
            await asyncio.wait((flight,))
            error = None if flight.cancelled() else flight.exception()
        if self.answered:
            self._look_at(error)
            return True
        packed = flight.result()
        if packed is not None:
            return await self._found(packed)
        if self._has_changed():
            return False
        await self._record()  # somebody else's was not to be kept, and may be the next one neither
        return True

    def _has_changed(self) -> bool:
        """Whether what the URL varies by has changed since this request has looked."""
        packed = self._run(lambda space: space.get(self.url), None)
        return bool(packed != (None if self.varies is None else self.varies.pack()))

    async def _fly(
        self, leads: asyncio.Future[None], outcome: asyncio.Future[Lifetime | None]
    ) -> Any:
        async def factory() -> Any:
            if self._has_changed():  # whom we have waited for has found that out
                return None
            _settle(leads, None)
            return await outcome

        middleware = self.middleware
        return await self.connection.arun(
            lambda cache: middleware._of(cache).aget_or_init(
                self.key,
                factory,
                middleware.ttl,
                timeout=middleware.timeout,
                stale=middleware.stale,
                negative_ttl=0,
            )
        )

    async def _compute(self, outcome: asyncio.Future[Lifetime | None]) -> None:
        recorder = self._recorder()
        recorder.on_unfit = lambda kept: _settle(outcome, kept)
        self.answered = True
        await self.middleware.app(self.scope, self.receive, recorder)
        if not outcome.done() and recorder.complete:
            _settle(outcome, await self._to_keep(recorder))

    def _look_at(self, error: BaseException | None) -> None:
        """What became of the storing, once the client has its answer: nothing that concerns it."""
        if error is None or isinstance(error, _Incomplete):
            return
        if not isinstance(error, OUTAGES):
            raise error
        self.connection.log(error)

    async def _to_keep(self, recorder: Recorder) -> Lifetime | None:
        """What is to be stored under the key that was asked for; None for nothing."""
        if recorder.lives is None:
            return Lifetime(PASS, PASS_S) if recorder.unfit else None
        if not recorder.complete:
            return None
        ttl, stale = recorder.lives
        packed = recorder.page(time.time()).pack()
        names = set(_http.vary_of(recorder.headers) or ())
        known = set(self.varies.names) if self.varies is not None else set()
        if names <= known:
            return Lifetime(packed, ttl, stale)
        varies = Varies(secrets.token_hex(8), tuple(sorted(names | known)))
        page = Lifetime(packed, ttl, stale)
        await self.middleware.put(varies.key(self.url, self.headers), page)
        found = Lifetime(varies.pack(), VARIES_S)
        if self.varies is None:
            return found
        await self.middleware.put(self.url, found)
        return None

    # --------------------------------------------------------------------- from the cache

    async def _reply(self, page: Page) -> None:
        self.answered = True
        status, headers, body = page.status, page.headers, page.body
        if self.asks_if and _http.not_modified(self.headers, page):
            status, headers, body = 304, page.on_304(), b""
        age = str(page.age(time.time())).encode()
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"age", age)],
            }
        )
        if self.scope["method"] == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def _refuse(self) -> None:
        """504: there is nothing, and the application is not to be asked."""
        self.answered = True
        headers = [(b"content-length", b"0")]
        await self.send({"type": "http.response.start", "status": 504, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)
