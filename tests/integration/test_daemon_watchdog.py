"""The watchdog is fed by rounds over all shards, and by nothing else."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.daemons import Daemon as Process
from support.daemons import NotifySocket
from support.processes import Channel, Worker, poll_until

from shmcache import CorruptSegment
from shmcache.daemon import Daemon
from shmcache.notify import Notifier
from shmcache.owner import Owner, Tended
from shmcache.settings import load

PATIENCE_S = 0.3
"""What the watchdog grants in these tests: a sign of life comes at least three times as often."""


class Faulty(Owner):
    """An owner whose `tend` can be made to hang, to fail, or to never finish a round."""

    fault: Callable[[Tended], Tended]

    def tend(self, budget_s: float = 0.005) -> Tended:
        return type(self).fault(super().tend(budget_s))


def serve_with(channel: Channel, name: str, address: str, kind: str) -> None:
    """In a process of its own: a daemon that goes wrong once the test says so."""
    os.environ.update({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(PATIENCE_S * 1e6))})
    never = threading.Event()

    def fault(tended: Tended) -> Tended:
        if not channel.told():
            return tended
        if kind == "hangs":
            never.wait()
        if kind == "raises":
            raise CorruptSegment("INV-TEST: it is broken")
        return Tended(tended.shard, 0, 0, 0, 0, False)  # never gets through all shards

    Faulty.fault = staticmethod(fault)
    Daemon(
        name,
        lambda: load(None, {}, {"size": "1MiB", "metrics": "127.0.0.1:0"}),
        notifier=Notifier(),
        on_ready=lambda daemon: channel.send(daemon.metrics),
        open_owner=Faulty.open,
    ).run()


def test_it_is_fed_while_the_loop_goes_round(
    serve: Callable[..., Process], cache_name: str, tmp_path: Path
) -> None:
    with NotifySocket(str(tmp_path / "notify")) as manager:
        environment = {
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(int(PATIENCE_S * 1e6)),
            "SHMCACHE_SWEEP_INTERVAL": "3600",  # the watchdog's patience is shorter
        }
        daemon = serve(cache_name, "--size", "1MiB", environment=environment)
        manager.until("READY")
        for _ in range(10):
            manager.until("WATCHDOG")
        assert daemon.stop() == 0


def test_nobody_is_fed_where_nobody_asked(
    serve: Callable[..., Process], cache_name: str, tmp_path: Path
) -> None:
    with NotifySocket(str(tmp_path / "notify")) as manager:
        environment = {
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": "1000",
            "WATCHDOG_PID": "1",  # another's
        }
        daemon = serve(
            cache_name, "--size", "1MiB", "--sweep-interval", "0.05", environment=environment
        )
        manager.until("READY")
        daemon.hang_up()
        manager.until("READY")
        assert daemon.stop() == 0
        manager.drain()
        assert not any("WATCHDOG" in said for said in manager.received)


@pytest.mark.parametrize("kind", ["hangs", "raises", "never gets round"])
def test_it_is_not_fed_any_more_when_the_loop(
    kind: str,
    start: Callable[..., Worker],
    serve: Callable[..., Process],
    cache_name: str,
    tmp_path: Path,
) -> None:
    with NotifySocket(str(tmp_path / "notify")) as manager:
        worker = start(serve_with, cache_name, manager.address, kind, method="spawn")
        host, port = worker.recv()
        manager.until("WATCHDOG")
        worker.send("go wrong")
        # What is under way may still be told; then there is silence, for many times the patience.
        with pytest.raises(TimeoutError):
            for _ in range(20):
                manager.until("WATCHDOG", seconds=5 * PATIENCE_S)
        if kind == "raises":
            assert any("INV-TEST" in said.get("STATUS", "") for said in manager.received)
        # The exporter has threads of its own, and tells of a loop that hangs all the same.
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
            assert b"shmcache_entries" in answer.read()
        worker.kill()
    # What systemd does then: start it again. Nothing is lost, nobody stands in the way.
    assert "(adopted)" in serve(cache_name, "--unlink").ready().out()


def test_healthz_fails_when_the_rounds_do(
    start: Callable[..., Worker],
    serve: Callable[..., Process],
    cache_name: str,
    tmp_path: Path,
) -> None:
    with NotifySocket(str(tmp_path / "notify")) as manager:
        worker = start(_stale_soon, cache_name, manager.address, method="spawn")
        host, port = worker.recv()
        url = f"http://{host}:{port}/healthz"
        poll_until(lambda: ask(url) == (200, "ok"), what="healthy")
        worker.send("go wrong")
        poll_until(lambda: ask(url)[0] == 503 and "INV-TEST" in ask(url)[1], what="ill")
        worker.kill()
    serve(cache_name, "--unlink").ready().stop()


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode().strip()


def _stale_soon(channel: Channel, *arguments: Any) -> None:
    import shmcache.daemon

    shmcache.daemon.STALE_S = -2.5  # with three sweep intervals: half a second
    serve_with(channel, *arguments, "raises")
