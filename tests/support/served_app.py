"""The application that tests of real servers serve: WSGI (`wsgi`) and ASGI (`asgi`).

The cache's name comes from SHMCACHE_APP. Every computation of a value is counted in the cache
itself, by key and generation: single flight holds if each count is 1.

    /pid              the worker's
    /value/KEY        "value of KEY, generation N", computed by one worker (some milliseconds)
    /held             opens and keeps a request until the worker is killed for it
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from shmcache import Cache
from shmcache.contrib.asgi import CacheMiddleware

cache = Cache(os.environ["SHMCACHE_APP"], size="4MiB")
COMPUTES_S = 0.01  # long enough for others to ask meanwhile


def generation() -> int:
    """What `computations` are counted by; a test moves it on."""
    return int(cache.get("generation", 0))


def count(key: str, at: int) -> None:
    """Count a computation that has come to its end."""
    cache.incr(f"computed {at} {key}")


def value_of(key: str) -> str:
    """The value of a key in this generation, computed once by all workers."""
    at = generation()

    def compute() -> str:
        time.sleep(COMPUTES_S)
        count(key, at)
        return f"value of {key}, generation {at}"

    return str(cache.get_or_init(f"{at} {key}", compute))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application for gunicorn."""
    path = environ["PATH_INFO"]
    if path == "/held":
        cache["holder"] = os.getpid()
        signal.pause()
    body = str(os.getpid()) if path == "/pid" else value_of(path.rpartition("/")[2])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """The application for uvicorn."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    path = scope["path"]
    headers = [(b"cache-control", b"no-store")]
    if path == "/pid":
        body = str(os.getpid())
    else:
        at, key = path.split("/")[2:]
        await asyncio.sleep(COMPUTES_S)
        count(key, int(at))
        body = f"value of {key}, generation {at}"
        headers = []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


asgi = CacheMiddleware(plain, cache, ttl=None)  # type: ignore[arg-type]
