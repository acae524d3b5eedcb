"""Run the example service: four uvicorn workers over one cache, in one command.

    python examples/service/run.py              serve on http://127.0.0.1:8000 until Ctrl-C
    python examples/service/run.py --demo       serve on a socket, ask for a few things, and end

The cache is opened here too: it lives as long as the service, also while workers are replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from shmcache import Cache

HERE = Path(__file__).resolve().parent
UP_S = 60.0


def command(workers: int, *where: str) -> list[str]:
    """uvicorn's command line."""
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "app:app"]
    return [*uvicorn, "--workers", str(workers), "--log-level", "warning", *where]


async def wait_until_up(client: httpx.AsyncClient, server: subprocess.Popen[bytes]) -> None:
    """Wait for the first answer."""
    async with asyncio.timeout(UP_S):
        while True:
            if server.poll() is not None:
                raise SystemExit(f"uvicorn ended with status {server.returncode}")
            try:
                await client.get("/config")
                return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def ask(client: httpx.AsyncClient) -> None:
    """Show what the workers share."""
    answers = await asyncio.gather(*(client.get("/prices/SHM") for _ in range(20)))
    quotes = [answer.json() for answer in answers]
    workers = {quote["served_by"] for quote in quotes}
    asked = max(quote["asked"] for quote in quotes)
    print(f"20 requests for one price, {len(workers)} workers answered: asked {asked} time(s)")

    await client.put("/config", json={"currency": "CHF"})
    answers = await asyncio.gather(*(client.get("/prices/SHM") for _ in range(20)))
    print(f"configuration changed: prices in {sorted({a.json()['currency'] for a in answers})}")

    answers = await asyncio.gather(*(client.get("/report") for _ in range(20)))
    print(f"20 requests for the report: made {len({a.json()['made_by'] for a in answers})} time(s)")

    stats = (await client.get("/stats")).json()
    took = stats["quotes"]
    print(
        f"quotes: {took['count']}, {took['mean_s'] * 1000:.0f} ms each; {stats['workers']} handles"
    )

    await client.post("/stop")
    refused = await asyncio.gather(*(client.get("/prices/SHM") for _ in range(20)))
    print(f"stopping: {sum(answer.status_code == 503 for answer in refused)} of 20 refused")


async def demonstrate(workers: int) -> None:
    """Serve on a unix socket, ask, and end."""
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "service.sock")
        server = subprocess.Popen(command(workers, "--uds", socket))
        try:
            transport = httpx.AsyncHTTPTransport(uds=socket)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://service", timeout=UP_S
            ) as client:
                await wait_until_up(client, server)
                await ask(client)
        finally:
            server.terminate()
            server.wait(UP_S)


def main() -> int:
    """Serve, or demonstrate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", action="store_true", help="ask a few things on a socket, and end")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    name = os.environ.setdefault("SERVICE_CACHE", "example-service")
    with Cache(name, size="16MiB") as cache:
        cache.token("stopping").reset()  # of a run that was killed
        cache.slot("config").store({"currency": "EUR"})
        if options.demo:
            asyncio.run(demonstrate(options.workers))
            return 0
        try:
            return subprocess.call(command(options.workers, "--port", str(options.port)))
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
