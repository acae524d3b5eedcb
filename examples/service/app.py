"""A small FastAPI service whose workers share one cache; `run.py` starts it with four of them.

GET  /prices/ACME     a slow quote: one worker asks for it, all others wait and share it
GET  /report          a page for everybody: kept as a whole by the response cache
GET  /config          the configuration that all workers have now, and its version
PUT  /config          changes it, for all workers at once
GET  /stats           hit ratio, and how long quotes take, over all workers
POST /stop            tells every worker, by a token, that the service is going down
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import FastAPI, HTTPException

from shmcache import Cache, Cancelled
from shmcache.contrib.asgi import CacheMiddleware

cache = Cache(os.environ.get("SERVICE_CACHE", "example-service"), size="16MiB")
config = cache.slot("config")
stopping = cache.token("stopping")
quotes_took = cache.latencies("quotes")

app = FastAPI(title="shmcache example")


def currency() -> str:
    """A setting, as it is now: the slot is looked at with every request, and costs no lock."""
    return str((config.load() or {}).get("currency", "EUR"))


async def ask_the_exchange(symbol: str) -> dict[str, Any]:
    """The slow thing that is worth a cache."""
    with quotes_took.time():
        await asyncio.sleep(0.05)
    count = cache.incr(f"asked {symbol}")
    return {"symbol": symbol, "price": 100 + len(symbol), "asked": count, "by": os.getpid()}


@app.get("/prices/{symbol}")
async def price(symbol: str) -> dict[str, Any]:
    """A quote; `max-age` is the response cache's business, this is the value's."""
    if stopping.cancelled:
        raise HTTPException(503, f"going down: {stopping.reason}")
    quote = await cache.aget_or_init(
        f"quote {symbol}", lambda: ask_the_exchange(symbol), ttl=30, stale=60
    )
    return {**quote, "currency": currency(), "served_by": os.getpid()}


@app.get("/config")
async def show_config() -> dict[str, Any]:
    """The configuration and its version."""
    value, version = config.load_versioned()
    return {"config": value, "version": version, "served_by": os.getpid()}


@app.put("/config")
async def change_config(change: dict[str, Any]) -> dict[str, Any]:
    """Merge into the configuration: read, copy, update; no other worker's change is lost."""
    return {"config": config.rcu(lambda old: {**(old or {}), **change})}


@app.get("/stats")
async def stats() -> dict[str, Any]:
    """What all workers have seen together."""
    seen, took = cache.stats(), quotes_took.summary()
    return {
        "entries": seen.entries,
        "hit_ratio": seen.hit_ratio,
        "workers": seen.clients,
        "quotes": {"count": took.count, "mean_s": took.mean, "p99_s": took.p99},
    }


@app.post("/stop")
async def stop() -> dict[str, Any]:
    """Every worker refuses new work from now on, and ends what it has begun."""
    stopping.cancel("asked to stop")
    return {"stopping": True}


async def build_report() -> list[str]:
    """A long piece of work that asks now and then whether it should go on."""
    lines = []
    for number in range(5):
        stopping.raise_if_cancelled()
        await asyncio.sleep(0.01)
        lines.append(f"line {number}")
    return lines


@app.get("/report")
async def report() -> dict[str, Any]:
    """The same for everybody: see the middleware below."""
    try:
        return {"lines": await build_report(), "made_by": os.getpid()}
    except Cancelled as error:
        raise HTTPException(503, str(error)) from None


def only_reports(scope: Any) -> str | None:
    """What the response cache keeps: /report alone, whatever the query says."""
    return "/report" if scope["path"] == "/report" else None


app.add_middleware(CacheMiddleware, cache=cache, ttl=60, key=only_reports)
