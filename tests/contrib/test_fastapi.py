"""The response cache around real applications: FastAPI, and Starlette's middleware and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from shmcache import Cache, CacheNotFound
from shmcache.contrib.asgi import CacheMiddleware

pytest.importorskip("fastapi")

from fastapi import FastAPI, Header, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse


def make(cache: Cache | str, **arguments: Any) -> tuple[FastAPI, list[str]]:
    """An application and the calls of its handlers."""
    calls: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        calls.append("start")
        yield
        calls.append("stop")

    app = FastAPI(lifespan=lifespan)

    @app.get("/items/{number}")
    async def item(number: int, accept_language: str = Header("en")) -> dict[str, Any]:
        calls.append(f"item {number}")
        if number == 404:
            raise HTTPException(503)
        return {"number": number, "call": len(calls)}

    @app.put("/items/{number}")
    def change(number: int) -> dict[str, Any]:
        return {"changed": number}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        calls.append("stream")

        async def parts() -> AsyncIterator[bytes]:
            for part in range(5):
                await asyncio.sleep(0)
                yield b"%d," % part

        return StreamingResponse(parts(), headers={"Vary": "Accept-Language"})

    @app.get("/file")
    def file() -> FileResponse:
        calls.append("file")
        return FileResponse(__file__)

    @app.get("/cookie")
    def cookie() -> PlainTextResponse:
        calls.append("cookie")
        response = PlainTextResponse("yours")
        response.set_cookie("a", "b")
        return response

    @app.get("/boom")
    async def boom() -> None:
        calls.append("boom")
        raise ZeroDivisionError

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    app.add_middleware(CacheMiddleware, cache=cache, **arguments)
    return app, calls


def test_handlers_are_called_once(cache: Cache) -> None:
    app, calls = make(cache)
    client = TestClient(app)
    assert [client.get("/items/1").json()["call"] for _ in range(3)] == [1, 1, 1]
    assert client.put("/items/1").json() == {"changed": 1}
    assert client.get("/items/1").json()["call"] == 2
    assert client.head("/items/1").status_code in (200, 405)
    assert calls == ["item 1"] * 2


def test_streams_and_files(cache: Cache) -> None:
    app, calls = make(cache)
    client = TestClient(app)
    streamed = [client.get("/stream", headers={"accept-language": "de"}).text for _ in range(2)]
    assert streamed == ["0,1,2,3,4,"] * 2
    first, second = (client.get("/file") for _ in range(2))
    assert first.content == second.content and "age" in second.headers
    again = client.get("/file", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert calls == ["stream", "file"]


def test_what_is_not_kept(cache: Cache) -> None:
    app, calls = make(cache)
    client = TestClient(app, raise_server_exceptions=False)
    for _ in range(2):
        client.cookies.clear()
        assert client.get("/cookie").text == "yours"
        assert client.get("/items/404").status_code == 503
        assert client.get("/boom").status_code == 500
    assert calls == ["cookie", "item 404", "boom"] * 2


def test_websockets_and_lifespan_go_through(cache_name: str) -> None:
    app, calls = make(cache_name, size="1MiB")
    with TestClient(app) as client:
        Cache(cache_name, create=False).close()
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "hello"
        assert client.get("/items/1").json()["number"] == 1
    assert calls == ["start", "item 1", "stop"]
    with pytest.raises(CacheNotFound):
        Cache(cache_name, create=False)


def test_compressed_within_and_without(cache: Cache) -> None:
    """GZipMiddleware says Vary: Accept-Encoding; the cache may be on either side of it."""
    calls = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        calls.append(1)
        await PlainTextResponse("x" * 2000)(scope, receive, send)

    inside = GZipMiddleware(CacheMiddleware(page, cache, name="inside"))
    outside = CacheMiddleware(GZipMiddleware(page), cache, name="outside")

    async def run(app: Any) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for _ in range(2):
                for encoding in ("gzip", "identity"):
                    answer = await http.get("/", headers={"accept-encoding": encoding})
                    assert answer.text == "x" * 2000
                    assert answer.headers.get("content-encoding", "identity") == encoding

    asyncio.run(run(inside))
    assert len(calls) == 1
    asyncio.run(run(outside))
    assert len(calls) == 3
