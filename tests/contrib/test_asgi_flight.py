"""CacheMiddleware over raw ASGI applications: who computes a response, outages, its life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from support.asgi import HANG_S, App, ask, client, texts
from support.processes import Channel, release

from shmcache import Cache, CacheNotFound
from shmcache.contrib.asgi import CacheMiddleware

Handler = Callable[[Any, Any, Any], Awaitable[None]]


async def crowd(app: Any, count: int, headers: Any = None) -> list[asyncio.Task[httpx.Response]]:
    http = client(app)
    return [asyncio.create_task(http.get("/", headers=headers)) for _ in range(count)]


async def settled(tasks: list[asyncio.Task[httpx.Response]]) -> None:
    """Let every task that can go on do so: until each has waited for a while, by loop turns."""
    for _ in range(200):
        await asyncio.sleep(0.001)
        if all(task.done() for task in tasks):
            return


class TestSingleFlight:
    @pytest.mark.parametrize("headers", [[], [("vary", "accept")]], ids=str)
    def test_eight_requests_are_one_call(self, cache: Cache, headers: Any) -> None:
        async def run() -> None:
            app = App(*headers)
            app.gate = asyncio.Event()
            tasks = await crowd(CacheMiddleware(app, cache), 8)
            await app.called.wait()
            await settled(tasks)
            app.gate.set()
            assert {response.text for response in await asyncio.gather(*tasks)} == {"1"}
            assert app.calls == 1

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    @pytest.mark.parametrize(
        "app",
        [
            App(("cache-control", "private")),
            App(("set-cookie", "a=b")),
            App(status=500),
            App(status=201),
        ],
        ids=lambda app: f"{app.status} {app.headers}",
    )
    def test_what_is_not_kept_holds_nobody_up(self, cache: Cache, app: App) -> None:
        """The headers are enough: the first response is still under way when the others go on."""

        async def run() -> None:
            app.calls, app.called = 0, asyncio.Event()
            app.between = asyncio.Event()
            tasks = await crowd(CacheMiddleware(app, cache), 8)
            while app.calls < 8:
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in tasks)
            app.between.set()
            got = sorted(response.text for response in await asyncio.gather(*tasks))
            assert got == [*"12345678"]

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_after_a_failure_one_computes_again(self, cache: Cache) -> None:
        async def run() -> None:
            app = App(status=500)
            wrapped = CacheMiddleware(app, cache)
            async with client(wrapped) as http:
                await http.get("/")
            app.status, app.gate = 200, asyncio.Event()
            tasks = await crowd(wrapped, 8)
            await settled(tasks)
            app.gate.set()
            assert {response.text for response in await asyncio.gather(*tasks)} == {"2"}

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_a_client_that_goes_hands_over(self, cache: Cache) -> None:
        async def run() -> None:
            app = App()
            app.between = asyncio.Event()
            wrapped = CacheMiddleware(app, cache)
            first = (await crowd(wrapped, 1))[0]
            await app.called.wait()
            others = await crowd(wrapped, 3)
            await settled(others)
            assert app.calls == 1
            app.called.clear()
            first.cancel()
            await app.called.wait()
            assert app.calls == 2
            app.between.set()
            assert {response.text for response in await asyncio.gather(*others)} == {"2"}
            assert app.calls == 2

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_an_application_that_ends_early_hands_over(self, cache: Cache) -> None:
        """As frameworks do when the client disconnects: no last part, and no exception."""
        calls = 0
        first_waits = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal calls
            calls += 1
            mine = calls
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%d" % mine, "more_body": True})
            if mine == 1:
                await first_waits.wait()
                return
            await send({"type": "http.response.body", "body": b"!"})

        async def request(wrapped: Any) -> bytes:
            sent = []

            async def send(message: Any) -> None:
                sent.append(message.get("body", b""))

            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            await wrapped(scope, None, send)
            return b"".join(sent)

        async def run() -> None:
            wrapped = CacheMiddleware(app, cache)
            tasks = [asyncio.create_task(request(wrapped)) for _ in range(4)]
            await settled(tasks)  # type: ignore[arg-type]
            first_waits.set()
            assert sorted(await asyncio.gather(*tasks)) == [b"1", b"2!", b"2!", b"2!"]
            assert await request(wrapped) == b"2!"

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_an_exception_is_its_callers(self, cache: Cache) -> None:
        async def run() -> None:
            calls = 0

            async def app(scope: Any, receive: Any, send: Any) -> None:
                nonlocal calls
                calls += 1
                if calls == 1:
                    await gate.wait()
                    raise ZeroDivisionError
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"%d" % calls})

            gate = asyncio.Event()
            tasks = await crowd(CacheMiddleware(app, cache), 4)
            await settled(tasks)
            gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            failed = [result for result in results if isinstance(result, BaseException)]
            assert [type(error) for error in failed] == [ZeroDivisionError]
            good = {result.text for result in results if isinstance(result, httpx.Response)}
            assert good == {"2"}

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_who_has_waited_long_enough_asks_itself(self, cache: Cache) -> None:
        async def run() -> None:
            app = App()
            app.between = asyncio.Event()
            wrapped = CacheMiddleware(app, cache, timeout=0.05, on_error="raise")
            tasks = await crowd(wrapped, 3)
            while app.calls < 3:
                await asyncio.sleep(0.001)
            app.between.set()
            got = sorted(response.text for response in await asyncio.gather(*tasks))
            assert got == ["1", "2", "3"]

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_the_stream_is_passed_on_as_it_comes(self, cache: Cache) -> None:
        async def run() -> None:
            app = App(body=b"first")
            app.between = asyncio.Event()
            arrived = asyncio.Event()

            async def send(message: Any) -> None:
                if message.get("body") == b"first":
                    arrived.set()

            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            task = asyncio.create_task(CacheMiddleware(app, cache)(scope, None, send))  # type: ignore[arg-type]
            await arrived.wait()
            assert not task.done()
            app.between.set()
            await task

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    @pytest.mark.parametrize("vary", [[], [("vary", "accept")]], ids=str)
    def test_stale_while_revalidate(self, cache: Cache, vary: Any) -> None:
        async def run() -> None:
            app = App(("cache-control", "max-age=1, stale-while-revalidate=60"), *vary)
            wrapped = CacheMiddleware(app, cache)
            async with client(wrapped) as http:
                assert (await http.get("/")).text == "1"
                while "age" in (await http.get("/")).headers and app.calls == 1:
                    await asyncio.sleep(0.05)
                assert app.calls == 2  # the first after its end refreshed it
                app.gate, app.called = asyncio.Event(), asyncio.Event()
                while not app.called.is_set():
                    refresher = asyncio.create_task(http.get("/"))
                    await asyncio.wait((refresher,), timeout=0.05)
                assert [(await http.get("/")).text for _ in range(3)] == ["2"] * 3
                app.gate.set()
                assert (await refresher).text == "3"
                assert (await http.get("/")).text == "3"

        asyncio.run(asyncio.wait_for(run(), HANG_S))

    def test_no_stale_response_where_it_forbids_that(self, cache: Cache) -> None:
        app = App(("cache-control", "max-age=1, must-revalidate"))

        async def run() -> None:
            async with client(CacheMiddleware(app, cache, stale=60)) as http:
                await http.get("/")
                while (await http.get("/")).text == "1":
                    await asyncio.sleep(0.05)
                app.gate, app.called = asyncio.Event(), asyncio.Event()
                while not app.called.is_set():
                    tasks = [asyncio.create_task(http.get("/"))]
                    await asyncio.wait(tasks, timeout=0.05)
                waiting = asyncio.create_task(http.get("/"))
                await settled([waiting])
                assert not waiting.done()
                app.gate.set()
                assert (await waiting).text == (await tasks[0]).text == "3"

        asyncio.run(asyncio.wait_for(run(), HANG_S))


def _serve(channel: Channel, name: str, vary: bool, requests: int) -> tuple[int, set[str]]:
    """One process of several that get the same requests at the same time."""

    async def run() -> tuple[int, set[str]]:
        app = App(*([("vary", "accept")] if vary else []), body=b"the same for all")
        wrapped = CacheMiddleware(app, name, size="2MiB")
        wrapped._connection.run(len, 0)
        got: set[str] = set()
        for _ in range(requests):
            channel.sync()
            tasks = await crowd(wrapped, 4)
            got |= {response.text for response in await asyncio.gather(*tasks)}
        channel.sync()
        wrapped._connection.close()
        return app.calls, got

    return asyncio.run(run())


@pytest.mark.parametrize("vary", [False, True])
def test_one_call_among_processes(cache_name: str, start: Any, vary: bool) -> None:
    workers = [start(_serve, cache_name, vary, 3) for _ in range(3)]
    for _ in range(4):
        release(workers)
    results = [worker.result() for worker in workers]
    assert sum(calls for calls, _ in results) == 1
    assert {text for _, got in results for text in got} == {"the same for all"}


class TestOutages:
    def test_an_unlinked_cache_is_made_anew(self, cache_name: str) -> None:
        app = App()
        wrapped = CacheMiddleware(app, cache_name, size="2MiB")
        ask(wrapped, "/", "/")
        wrapped._connection.cache.unlink()
        responses = ask(wrapped, *["/"] * 3)
        assert all(response.status_code == 200 for response in responses)
        wrapped._connection.close()

    def test_a_lent_cache_is_reopened(self, open_cache: Any) -> None:
        cache = open_cache()
        app = App()
        wrapped = CacheMiddleware(app, cache)
        ask(wrapped, "/")
        cache.unlink()

        def hit() -> bool:
            return len(set(texts(ask(wrapped, "/", "/")))) == 1 and app.calls > 1

        while not hit():
            pass
        assert not cache.closed

    def test_a_lent_cache_that_is_closed_stays_closed(self, open_cache: Any) -> None:
        cache = open_cache()
        wrapped = CacheMiddleware(App(), cache)
        cache.close()
        assert texts(ask(wrapped, "/", "/")) == ["1", "2"]
        assert cache.closed

    def test_no_cache_to_be_had(self, cache_name: str) -> None:
        app = App()
        wrapped = CacheMiddleware(app, cache_name, size="1TiB")
        assert texts(ask(wrapped, "/", "/", ("POST", "/", {}))) == ["1", "2", "3"]
        wrapped.invalidate()

    def test_on_error_raise(self, open_cache: Any) -> None:
        cache = open_cache()
        app = App()
        wrapped = CacheMiddleware(app, cache, on_error="raise")
        cache.close()
        with pytest.raises(ValueError, match="closed"):
            ask(wrapped, "/")
        assert app.calls == 0

    def test_the_applications_own_errors_are_not_taken_for_outages(self, cache: Cache) -> None:
        calls = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal calls
            calls += 1
            raise CacheNotFound("the application's own")

        for headers in ({}, {"cookie": "a"}, {"cache-control": "no-cache"}):
            with pytest.raises(CacheNotFound):
                ask(CacheMiddleware(app, cache), ("/", headers))
        assert calls == 3


class TestLife:
    def run_life(self, wrapped: Any, during: Callable[[], None]) -> list[str]:
        sent: list[str] = []

        async def run() -> None:
            messages: asyncio.Queue[Any] = asyncio.Queue()

            async def send(message: Any) -> None:
                sent.append(message["type"])
                if message["type"] == "lifespan.startup.complete":
                    during()
                    await messages.put({"type": "lifespan.shutdown"})

            await messages.put({"type": "lifespan.startup"})
            await wrapped({"type": "lifespan"}, messages.get, send)

        asyncio.run(asyncio.wait_for(run(), HANG_S))
        return sent

    @staticmethod
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    def test_its_own_cache_lives_with_the_application(self, cache_name: str) -> None:
        wrapped = CacheMiddleware(self.app, cache_name, size="2MiB")
        with pytest.raises(CacheNotFound):
            Cache(cache_name, create=False)

        def there() -> None:
            Cache(cache_name, create=False).close()

        sent = self.run_life(wrapped, there)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        with pytest.raises(CacheNotFound):
            Cache(cache_name, create=False)

    def test_a_lent_cache_stays_open(self, cache: Cache) -> None:
        self.run_life(CacheMiddleware(self.app, cache), lambda: None)
        assert not cache.closed

    def test_websockets_pass_by(self, cache: Cache) -> None:
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope, receive, send))

        scope: Any = {"type": "websocket", "path": "/"}
        asyncio.run(CacheMiddleware(app, cache)(scope, len, len))  # type: ignore[arg-type]
        assert seen == [(scope, len, len)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"ttl": float("nan")}, ValueError),
        ({"stale": -1}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"on_error": "ignore"}, ValueError),
        ({"size": "1MiB"}, TypeError),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(cache: Cache, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        CacheMiddleware(App(), cache, **arguments)
