"""CacheMiddleware over raw ASGI applications: what is kept, what is not, and who computes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from support.processes import Channel, release

from shmcache import Cache, CacheNotFound
from shmcache.contrib.asgi import CacheMiddleware

Handler = Callable[[Any, Any, Any], Awaitable[None]]
HANG_S = 30.0


class App:
    """An application that counts its calls; answers with the call's number, or as it is told."""

    def __init__(self, *headers: tuple[str, str], status: int = 200, body: bytes = b"") -> None:
        self.headers = [(name.encode(), value.encode()) for name, value in headers]
        self.status = status
        self.body = body
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Event()
        self.tail: list[bytes] = []
        self.between: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        body = self.body or b"%d" % self.calls
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        more = bool(self.tail) or self.between is not None
        await send({"type": "http.response.body", "body": body, "more_body": more})
        if self.between is not None:
            await self.between.wait()
        for index, part in enumerate(self.tail):
            last = index == len(self.tail) - 1
            await send({"type": "http.response.body", "body": part, "more_body": not last})
        if more and not self.tail:
            await send({"type": "http.response.body"})


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG_S)


def ask(app: Any, *requests: Any) -> list[httpx.Response]:
    """The responses to requests, one after the other: a path, (path, headers) or (method, path,
    headers)."""

    async def run() -> list[httpx.Response]:
        async with client(app) as http:
            found = []
            for request in requests:
                if isinstance(request, str):
                    request = ("GET", request, {})
                elif len(request) == 2:
                    request = ("GET", *request)
                method, path, headers = request
                found.append(await http.request(method, path, headers=headers))
            return found

    return asyncio.run(run())


def texts(responses: list[httpx.Response]) -> list[str]:
    return [response.text for response in responses]


class TestWhatIsKept:
    def test_a_response_is_computed_once(self, cache: Cache) -> None:
        app = App(("x-a", "b"), ("content-type", "text/plain"))
        first, second = ask(CacheMiddleware(app, cache), "/a?x=1", "/a?x=1")
        assert (first.text, second.text, app.calls) == ("1", "1", 1)
        assert "age" not in first.headers
        assert second.headers["age"] == "0"
        assert second.headers["x-a"] == "b"
        assert second.headers["content-length"] == "1"

    def test_urls_are_told_apart(self, cache: Cache) -> None:
        app = App()
        wrapped = CacheMiddleware(app, cache)
        paths = ["/a", "/b", "/a?x", "/a?y", "/a%2Fb", "/a/b"]
        assert texts(ask(wrapped, *paths, *paths)) == [*"123456", *"123456"]

    def test_hosts_are_told_apart(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache)
        asked = [("/", {"host": host}) for host in ("a.example", "b.example", "A.EXAMPLE")]
        assert texts(ask(wrapped, *asked)) == ["1", "2", "1"]

    def test_a_key_of_ones_own(self, cache: Cache) -> None:
        def key(scope: Any) -> str | None:
            return None if scope["path"] == "/private" else scope["path"]

        wrapped = CacheMiddleware(App(), cache, key=key)
        assert texts(ask(wrapped, "/a?1", "/a?2", "/private", "/private")) == ["1", "1", "2", "3"]

    @pytest.mark.parametrize("name", ["authorization", "cookie", "range", "if-match"])
    def test_such_requests_pass_by(self, cache: Cache, name: str) -> None:
        wrapped = CacheMiddleware(App(), cache)
        asked = ("/", {name: "x"})
        assert texts(ask(wrapped, "/", asked, asked, "/")) == ["1", "2", "3", "1"]

    def test_a_get_with_a_body_passes_by(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache)
        asked = ("/", {"content-length": "3"})
        assert texts(ask(wrapped, asked, asked)) == ["1", "2"]

    @pytest.mark.parametrize(
        "headers",
        [
            [("set-cookie", "a=b")],
            [("vary", "*")],
            [("vary", "accept, *")],
            [("cache-control", "no-store")],
            [("cache-control", "max-age=9, private")],
            [("cache-control", 'private="set-cookie", max-age=5')],
            [("cache-control", "public"), ("cache-control", "No-Cache")],
            [("cache-control", "max-age=0")],
            [("cache-control", "s-maxage=0, max-age=60")],
            [("cache-control", "max-age=nonsense")],
            [("cache-control", "max-age=60"), ("age", "60")],
            [("expires", "0")],
            [("expires", "Thu, 01 Jan 1970 00:00:00 GMT")],
            [("content-type", "text/event-stream")],
        ],
        ids=str,
    )
    def test_such_responses_are_not_kept(self, cache: Cache, headers: Any) -> None:
        wrapped = CacheMiddleware(App(*headers), cache)
        assert texts(ask(wrapped, "/", "/", "/")) == ["1", "2", "3"]

    @pytest.mark.parametrize(
        "headers",
        [
            [("cache-control", "max-age=60")],
            [("cache-control", "max-age=0, s-maxage=60")],
            [("cache-control", "max-age=60"), ("expires", "0")],
            [("expires", "Fri, 31 Dec 9999 23:59:59 GMT")],
            [("cache-control", "x-private, community=no-store")],
        ],
        ids=str,
    )
    def test_such_responses_are_kept(self, cache: Cache, headers: Any) -> None:
        assert texts(ask(CacheMiddleware(App(*headers), cache), "/", "/")) == ["1", "1"]

    @pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])
    def test_statuses_that_are_kept(self, cache: Cache, status: int) -> None:
        app = App(status=status)
        responses = ask(CacheMiddleware(app, cache), "/", "/")
        assert [response.status_code for response in responses] == [status, status]
        assert app.calls == 1

    @pytest.mark.parametrize("status", [201, 206, 302, 304, 400, 401, 403, 429, 500, 502, 503])
    def test_statuses_that_are_not(self, cache: Cache, status: int) -> None:
        app = App(status=status)
        ask(CacheMiddleware(app, cache), "/", "/", "/")
        assert app.calls == 3

    def test_a_redirect_that_says_how_long_is_kept(self, cache: Cache) -> None:
        app = App(("cache-control", "max-age=9"), ("location", "/b"), status=302)
        ask(CacheMiddleware(app, cache), "/", "/")
        assert app.calls == 1

    def test_headers_of_the_connection_are_not_kept(self, cache: Cache) -> None:
        app = App(("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "5"), ("x-end", "2"))
        _, second = ask(CacheMiddleware(app, cache), "/", "/")
        assert {"connection", "x-hop", "keep-alive"}.isdisjoint(second.headers)
        assert second.headers["x-end"] == "2"

    def test_the_age_goes_on_from_what_it_was(self, cache: Cache) -> None:
        app = App(("cache-control", "max-age=500"), ("age", "100"))
        _, second = ask(CacheMiddleware(app, cache), "/", "/")
        assert 100 <= int(second.headers["age"]) <= 130
        assert second.headers.get_list("age") == [second.headers["age"]]

    def test_a_large_response_is_passed_on_and_not_kept(self, cache: Cache) -> None:
        app = App(body=b"x" * (cache.max_value_size + 1))
        responses = ask(CacheMiddleware(app, cache), "/", "/")
        assert [len(response.content) for response in responses] == [cache.max_value_size + 1] * 2
        assert app.calls == 2

    def test_the_largest_that_is_collected_is_kept(self, cache: Cache) -> None:
        app = App(body=b"x" * (cache.max_value_size - 2048))
        ask(CacheMiddleware(app, cache), "/", "/")
        assert app.calls == 1

    def test_a_streamed_body_is_kept_whole(self, cache: Cache) -> None:
        app = App(body=b"a")
        app.tail = [b"b", b"", b"c"]
        assert texts(ask(CacheMiddleware(app, cache), "/", "/")) == ["abc", "abc"]
        assert app.calls == 1

    def test_a_long_url_passes_by(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache, key=lambda scope: "x" * 70_000)
        assert texts(ask(wrapped, "/", "/")) == ["1", "2"]

    def test_the_codec_does_not_matter(self, open_cache: Any) -> None:
        for codec in ("raw", "json", "pickle"):
            wrapped = CacheMiddleware(App(("vary", "accept")), open_cache(codec=codec))
            assert texts(ask(wrapped, "/", "/")) == ["1", "1"]

    def test_what_somebody_else_has_written_there_is_an_outage(self, cache: Cache) -> None:
        app = App()
        wrapped = CacheMiddleware(app, cache, key=lambda scope: "k")
        for rubbish in (b"\xc1", b"\x01", [1], 7, b"\x92\x01"):
            cache.namespace("asgi")["k"] = rubbish
            ask(wrapped, "/")
        assert app.calls == 5


class TestMethods:
    def test_head_is_answered_from_get(self, cache: Cache) -> None:
        app = App(body=b"hello")
        head, get, again = ask(
            CacheMiddleware(app, cache), ("HEAD", "/", {}), "/", ("HEAD", "/", {})
        )
        assert app.calls == 2
        assert (get.text, again.content) == ("hello", b"")
        assert again.headers["content-length"] == "5"
        assert "age" not in head.headers and "age" in again.headers

    def test_a_change_drops_what_is_kept(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(("vary", "accept")), cache)
        post = ("POST", "/", {})
        assert texts(ask(wrapped, "/", "/", post, "/")) == ["1", "1", "2", "3"]

    def test_a_change_that_fails_drops_nothing(self, cache: Cache) -> None:
        app = App()
        wrapped = CacheMiddleware(app, cache)
        ask(wrapped, "/")
        app.status = 500
        ask(wrapped, ("DELETE", "/", {}))
        assert texts(ask(wrapped, "/")) == ["1"]

    def test_options_passes_by(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache)
        asked = ("OPTIONS", "/", {})
        assert texts(ask(wrapped, asked, asked)) == ["1", "2"]

    def test_invalidate(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(("vary", "accept")), cache)
        assert texts(ask(wrapped, "/a", "/b")) == ["1", "2"]
        wrapped.invalidate("http://test/a")
        assert texts(ask(wrapped, "/a", "/b")) == ["3", "2"]
        wrapped.invalidate()
        assert texts(ask(wrapped, "/a", "/b")) == ["4", "5"]


class TestRequests:
    def asked(self, field: str) -> tuple[str, dict[str, str]]:
        return "/", {"cache-control": field}

    def test_no_store_passes_by(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache)
        assert texts(ask(wrapped, self.asked("no-store"), "/", self.asked("no-store"), "/")) == [
            *"1232"
        ]

    @pytest.mark.parametrize("field", ["no-cache", "max-age=0"])
    def test_computed_anew_and_stored(self, cache: Cache, field: str) -> None:
        wrapped = CacheMiddleware(App(), cache)
        assert texts(ask(wrapped, "/", self.asked(field), "/", "/")) == [*"1222"]

    def test_computed_anew_where_there_is_nothing_yet(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(), cache)
        assert texts(ask(wrapped, self.asked("no-cache"), "/")) == [*"11"]

    def test_max_age_and_min_fresh(self, cache: Cache) -> None:
        app = App(("cache-control", "max-age=1000"), ("age", "100"))
        wrapped = CacheMiddleware(app, cache)
        fields = ["max-age=200", "max-age=50", "min-fresh=500", "min-fresh=950"]
        assert texts(ask(wrapped, "/", *map(self.asked, fields))) == [*"11223"]

    def test_only_if_cached(self, cache: Cache) -> None:
        app = App()
        first, second, third = ask(
            CacheMiddleware(app, cache),
            self.asked("only-if-cached"),
            "/",
            self.asked("only-if-cached"),
        )
        assert [r.status_code for r in (first, second, third)] == [504, 200, 200]
        assert (app.calls, third.text) == (1, "1")

    @pytest.mark.parametrize(
        ("tags", "status"),
        [
            ('"a"', 304),
            ('W/"a"', 304),
            ('"x", "a"', 304),
            ("*", 304),
            ('"b"', 200),
            ('"x,a"', 200),
        ],
    )
    def test_if_none_match(self, cache: Cache, tags: str, status: int) -> None:
        app = App(("etag", '"a"'), ("cache-control", "max-age=60"), ("x-other", "1"), body=b"hello")
        _, second = ask(CacheMiddleware(app, cache), "/", ("/", {"if-none-match": tags}))
        assert (second.status_code, app.calls) == (status, 1)
        if status == 304:
            assert second.content == b""
            assert (second.headers["etag"], second.headers["cache-control"]) == (
                '"a"',
                "max-age=60",
            )
            assert "age" in second.headers and "x-other" not in second.headers

    @pytest.mark.parametrize(("day", "status"), [("02", 304), ("03", 304), ("01", 200)])
    def test_if_modified_since(self, cache: Cache, day: str, status: int) -> None:
        app = App(("last-modified", "Fri, 02 Jan 2026 00:00:00 GMT"))
        since = {"if-modified-since": f"Fri, {day} Jan 2026 00:00:00 GMT"}
        _, second = ask(CacheMiddleware(app, cache), "/", ("/", since))
        assert second.status_code == status

    def test_a_condition_that_the_application_answers(self, cache: Cache) -> None:
        app = App(status=304)
        wrapped = CacheMiddleware(app, cache)
        asked = ("/", {"if-none-match": '"a"'})
        assert [response.status_code for response in ask(wrapped, asked, asked)] == [304, 304]
        app.status = 200
        ask(wrapped, asked, "/")
        assert app.calls == 3


class TestVary:
    def test_requests_that_differ_are_kept_apart(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(("vary", "Accept, X-Lang")), cache)
        asked = [
            ("/", {"accept": accept, "x-lang": lang, "x-other": other})
            for accept, lang, other in ["aa1", "ab1", "ba1", "aa2", "ab2", "ba2"]
        ]
        assert texts(ask(wrapped, *asked)) == [*"123123"]

    def test_a_header_that_is_absent_is_one_value(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(("vary", "x-lang")), cache)
        assert texts(ask(wrapped, "/", ("/", {"x-lang": "a"}), "/", ("/", {"x-lang": "a"}))) == [
            *"1212"
        ]

    def test_more_names_later(self, cache: Cache) -> None:
        app = App(("vary", "a"))
        wrapped = CacheMiddleware(app, cache)
        one, two = ("/", {"a": "1", "b": "1"}), ("/", {"a": "2", "b": "1"})
        ask(wrapped, one)
        app.headers = [(b"vary", b"b")]
        ask(wrapped, two)
        three = ("/", {"a": "2", "b": "2"})
        assert texts(ask(wrapped, two, three, two, three)) == [*"2323"]

    def test_other_values_are_not_mixed_up(self, cache: Cache) -> None:
        wrapped = CacheMiddleware(App(("vary", "a, b")), cache)
        asked = [("/", {"a": "x", "b": ""}), ("/", {"a": "", "b": "x"}), ("/", {"b": "x"})]
        assert texts(ask(wrapped, *asked)) == [*"122"]


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
