"""A small HTTP server for one cache's metrics: `/metrics` and `/healthz`.

Place: level 6; the daemon runs one where metrics are asked for, and an application may. It reads
the cache when it is scraped (`collector.py`), answers in Prometheus' text format or OpenMetrics
as the scraper accepts, and knows nothing else. It serves on a thread of its own, on 127.0.0.1
unless told otherwise: whoever can connect can read the figures (no keys, no values).
"""

from __future__ import annotations

import gzip
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, NamedTuple

from shmcache.cache import Cache
from shmcache.errors import ShmcacheError

if TYPE_CHECKING:
    from shmcache.collector import CacheCollector

__all__ = ["Exporter"]

logger = logging.getLogger("shmcache")

_CLIENT_SECONDS: Final = 10.0  # what a client has for its request and for taking the answer
_POLL_SECONDS: Final = 0.1  # how soon stop() is noticed
_PLAIN: Final = "text/plain; charset=utf-8"


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class Exporter:
    """Serves one cache's metrics over HTTP, from `start` to `stop`.

    Args:
        source: the cache, or what is called at each scrape and returns it open (see
            `CacheCollector`).
        host, port: where to listen; port 0 takes a free one, `address` says which.
        healthy: what /healthz says: whether all is well, and a line of text. Called for each
            request, on a thread of the exporter's; None: whether the cache can be read.
        name: the label `cache`; None: the cache's own name. Pass it where `source` is called, so
            that `shmcache_up` is labelled before there is a cache.

    ``GET /metrics`` answers 200, also where there is no cache: `shmcache_up` says so.
    ``GET /healthz`` answers 200 or 503; any other path 404.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed; the message says how to.
        OSError: from `start`, where the address cannot be listened on.
    """

    def __init__(
        self,
        source: Cache | Callable[[], Cache],
        host: str = "127.0.0.1",
        port: int = 0,
        healthy: Callable[[], tuple[bool, str]] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        from shmcache import collector

        self._collector = collector.CacheCollector(source, name=name)
        self._registry = collector.registry_of(self._collector)
        self._asked = (host, port)
        self._healthy = healthy or (lambda: _can_be_read(self._collector))
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        # A source that attaches or reopens is asked by one scrape at a time.
        self._scraping = threading.Lock()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the port that was taken, once it is started."""
        if self._server is None:
            return self._asked
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Listen and serve on a thread of its own; returns once connections are accepted.
        Does nothing where it serves already."""
        if self._server is not None:
            return
        host, port = self._asked
        try:
            family, _, _, _, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, (str(where[0]), int(where[1])), self._answer)
        except OSError as error:
            raise OSError(
                error.errno,
                f"metrics cannot be served on {host}:{port}: {error.strerror or error}; choose "
                "another address, or port 0 for any that is free",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_POLL_SECONDS,),
            name="shmcache-exporter",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the socket. Idempotent; waits for the thread, and for no
        client."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Exporter:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _answer(self, path: str, accept: str) -> _Answer:
        if path == "/metrics":
            from prometheus_client.exposition import choose_encoder

            encode, content_type = choose_encoder(accept)
            with self._scraping:
                return _Answer(200, content_type, encode(self._registry))
        if path == "/healthz":
            with self._scraping:
                well, text = self._healthy()
            return _Answer(200 if well else 503, _PLAIN, f"{text}\n".encode())
        return _Answer(404, _PLAIN, b"there is /metrics and /healthz\n")


def _can_be_read(collector: CacheCollector) -> tuple[bool, str]:
    try:
        reading = collector.read()
    except (ShmcacheError, OSError) as error:
        return False, str(error)
    return True, f"ok: cache {collector.name!r}, {reading.stats.entries} entries"


class _Server(ThreadingHTTPServer):
    """One thread a connection; they end with the process, and nobody waits for them."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        family: int,
        address: tuple[str, int],
        answer: Callable[[str, str], _Answer],
    ) -> None:
        self.address_family = family
        self.answer = answer
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without HTTPServer's look-up of the host's name, which may ask a slow name server.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("metrics: a client went away: %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS
    server_version = "shmcache"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            answer = self.server.answer(path, self.headers.get("Accept", ""))
        except Exception as error:
            logger.exception("metrics: %s failed", path)
            answer = _Answer(500, _PLAIN, f"{type(error).__name__}: {error}\n".encode())
        body = answer.body
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Cache-Control", "no-store")
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("metrics: %s", format % args)
