"""Where a daemon's metrics are served, which a reload may change.

Place: level 6, between `daemon.py` and `exporter.py`, which is imported only where metrics are
asked for: its package is an extra.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmcache.cache import Cache

if TYPE_CHECKING:
    from shmcache.exporter import Exporter

__all__ = ["Listener"]

logger = logging.getLogger("shmcache")


class Listener:
    """Serves the metrics of one cache at one address at a time, or nowhere.

    Args:
        name: of the cache.
        cache: called at each scrape, from the exporter's threads; returns the open cache.
        healthy: what /healthz says.
    """

    def __init__(
        self, name: str, cache: Callable[[], Cache], healthy: Callable[[], tuple[bool, str]]
    ) -> None:
        self._name = name
        self._cache = cache
        self._healthy = healthy
        self._exporter: Exporter | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port, the one that was picked for port 0; None: metrics are not served."""
        return None if self._exporter is None else self._exporter.address

    def move(self, listen: tuple[str, int] | None) -> None:
        """Serve at `listen` from now on, None: nowhere. Where that cannot be, goes on where it
        was, and raises.

        Raises:
            OSError: the address cannot be listened on.
            ValueError: the package that it takes is not installed.
        """
        old = self._exporter
        try:
            new = self._start(listen)
        except OSError as error:
            same_port = old is not None and listen is not None and old.address[1] == listen[1]
            if old is None or not same_port or error.errno != errno.EADDRINUSE:
                raise
            # It may be ourselves who have that port, on another address.
            was_at = old.address
            old.stop()
            self._exporter = None
            try:
                self._exporter = self._start(listen)
            except OSError:
                self._exporter = self._start(was_at)
                raise
            return
        self._exporter = new
        if old is not None:
            old.stop()

    def _start(self, listen: tuple[str, int] | None) -> Exporter | None:
        if listen is None:
            return None
        from shmcache.exporter import Exporter

        try:
            exporter = Exporter(self._cache, *listen, healthy=self._healthy, name=self._name)
        except ImportError as error:
            raise ValueError(f"metrics were asked for: {error}") from error
        exporter.start()
        host, port = exporter.address
        logger.info("metrics: http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        return exporter
