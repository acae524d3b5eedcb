"""ASGI applications that count their calls, and clients that ask them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

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
