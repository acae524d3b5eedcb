"""CacheMiddleware over raw ASGI applications: what is kept, and what is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.asgi import App, ask, texts

from shmcache import Cache
from shmcache.contrib.asgi import CacheMiddleware

Handler = Callable[[Any, Any, Any], Awaitable[None]]


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
