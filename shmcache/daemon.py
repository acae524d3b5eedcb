"""`shmcache serve`: the process that owns a cache and keeps it healthy.

Place: level 6. `Daemon` is a loop of one thread around an `Owner`, which does what there is to do
in the segment, a bounded slice at a time; the loop says when, listens to signals, reads the
configuration again, has snapshots saved and tells the service manager how it goes. It is not in
the way of anybody: clients never wait for it, work on while it is stopped, and after it is gone.

One turn of the loop waits until something is due, or a signal or a thread wakes it, and does what
is due:

    a slice      `Owner.tend` for a few milliseconds; a round is done when every shard was visited
    the watchdog is fed at the end of a round, and nowhere else: a loop that hangs, or that no
                 longer gets through all shards, is restarted by the service manager
    a look       at the configuration file, once a second
    a snapshot   in a thread (saver.py)
    the status   one line for `systemctl status`

A segment that is unlinked or replaced under the daemon is made anew (or adopted), and logged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shmcache.cache import Cache
from shmcache.errors import CacheNotFound, ShmcacheError
from shmcache.listener import Listener
from shmcache.notify import Notifier
from shmcache.owner import Owner, Tended
from shmcache.saver import Saver
from shmcache.settings import Settings, new_cache_needed
from shmcache.wakeup import FileWatch, Wakeup

__all__ = ["Daemon"]

logger = logging.getLogger("shmcache")

LOOK_S: Final = 0.5
"""Between two looks at the configuration file: a change counts at the second look that sees it,
so within a second."""

STATUS_S: Final = 10.0
"""Between two status lines of their own accord."""

RETRY_S: Final = 1.0
"""Before another try where a slice, or making the cache anew, has failed."""

PAUSE_MAX_S: Final = 0.01
"""Between two slices of a round the loop waits as long as the slice took, this at most: a round
over a large cache takes half a CPU, not a whole one."""

FEEDS: Final = 3
"""Rounds, and so signs of life, within the time that the watchdog grants, at the least."""

STALE_S: Final = 10.0
"""`/healthz` fails when the last round ended longer ago than this and three sweep intervals."""

EXTEND_S: Final = 30.0
"""Asked of the service manager at a time, while a snapshot is loaded or the last one saved."""

LOAD_S: Final = 600.0
"""What the watchdog is asked to wait while a cache that was removed is filled from its snapshot:
there are no rounds meanwhile."""

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)


class _Stopped(Exception):
    """A signal ended the start-up."""


class Daemon:
    """Owns a cache until it is told to stop.

    Args:
        name: of the cache.
        load: reads the settings; called at the start and at every reload. What it raises at a
            reload (ValueError, OSError) is reported and leaves the old settings in force.
        config: the file that `load` reads, watched for changes; None: there is none.
        notifier: to the service manager.
        on_ready: called once, with this daemon, when the cache is there and served.
        open_owner: what makes the owner, `Owner.open`; tests pass another.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Settings],
        *,
        config: Path | None = None,
        notifier: Notifier | None = None,
        on_ready: Callable[[Daemon], object] = lambda daemon: None,
        open_owner: Callable[..., Owner] = Owner.open,
    ) -> None:
        self.name = name
        self._load = load
        self._config = config
        self._notifier = notifier or Notifier()
        self._on_ready = on_ready
        self._open_owner = open_owner
        self._settings = Settings()
        self._wanted = self._settings.cache  # of the next cache of this name
        self._wakeup = Wakeup((*_STOPS, signal.SIGHUP))
        self._owner: Owner | None = None
        self._listener = Listener(name, lambda: self.cache, self.healthy)
        self._saver: Saver | None = None
        self._watch: FileWatch | None = None
        self._stops = 0
        self._trouble = ""
        self._stuck: tuple[tuple[int, int], ...] = ()
        self._new_cache_for: list[str] = []
        self._refused = ""
        self._round_began = self._round_ended = self._fed = -1e9
        self._next_slice = self._next_look = self._next_status = 0.0
        self._next_save = float("inf")

    # --------------------------------------------------------------------------- for on_ready
    @property
    def cache(self) -> Cache:
        """The cache, as of now; `CacheNotFound` while there is none."""
        owner = self._owner
        if owner is None:
            raise CacheNotFound(f"cache {self.name!r} is not there yet, or was removed just now")
        return owner.cache

    @property
    def adopted(self) -> bool:
        """Whether the cache was there already."""
        return self._owner is not None and self._owner.adopted

    @property
    def metrics(self) -> tuple[str, int] | None:
        """Where metrics are served, with the port that was picked; None: nowhere."""
        return self._listener.address

    def healthy(self) -> tuple[bool, str]:
        """Whether the loop gets through its rounds, and a word on it. From any thread."""
        if self._owner is None:
            return False, self._trouble or "starting"
        age = time.monotonic() - self._round_ended
        limit = STALE_S + 3 * self._settings.daemon.sweep_interval
        if age > limit:
            return False, self._trouble or f"no round over all shards for more than {limit:.0f} s"
        return True, "ok"

    # ------------------------------------------------------------------------------ life
    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; main thread only.

        SIGHUP reloads the settings. The segment stays for its clients, unless the settings say
        `unlink`. A snapshot is saved before the end where one is configured; a second SIGTERM
        abandons that.

        Raises:
            ValueError, OSError: the settings, or what they ask for, cannot be had (at the start).
            CacheExists: another owner daemon that is alive has this cache.
            ShmcacheError: as opening a `Cache`.
            OSError: the last snapshot could not be saved.
        """
        if self._config is not None:  # before it is read: no change is missed
            self._watch = FileWatch(self._config)
        self._settings = self._load()
        self._wanted = self._settings.cache
        with self._wakeup:
            try:
                self._start()
                while not self._stops:
                    self._turn()
                self._notifier.stopping("stopping")
                self._save_the_last()
            except _Stopped:
                self._notifier.stopping("stopped before it was ready")
            finally:
                self._close()

    def _start(self) -> None:
        settings = self._settings
        _check_snapshot(settings.daemon.snapshot)
        # First what can fail without a trace: a port that is taken makes no cache.
        self._listener.move(settings.metrics.listen)
        self._open(settings)
        self._plan_saves()
        self._notifier.ready(self._status())
        self._next_status = time.monotonic() + STATUS_S
        self._on_ready(self)

    def _open(self, settings: Settings) -> None:
        """Creates or adopts the cache; where that is not all done, nothing is left of it."""
        snapshot = settings.daemon.snapshot
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            owner = self._open_owner(
                self.name,
                snapshot=snapshot,
                on_progress=self._loading,
                **settings.cache.arguments(),
            )
        try:
            if settings.config is not None:
                owner.store_config(settings.config)
        except BaseException:
            owner.close(unlink=not owner.adopted)
            raise
        self._owner = owner
        self._trouble, self._stuck = "", ()
        self._new_cache_for = [str(warning.message) for warning in caught]
        now = time.monotonic()
        self._round_began = self._round_ended = self._next_slice = now
        logger.info("cache %r: %s", self.name, "adopted" if owner.adopted else "created")
        for warning in caught:
            logger.warning("%s", warning.message)
        if owner.loaded is not None:
            logger.info("snapshot %s: %d entries loaded", snapshot, owner.loaded.entries)
        if snapshot is not None and owner.load_error is not None:
            self._put_aside(snapshot, owner.load_error)

    def _put_aside(self, snapshot: Path, error: Exception) -> None:
        """A cache that starts cold is better than none; what is wrong with the snapshot, and the
        file, are for whoever looks: the next save must not replace it."""
        logger.error("snapshot %s: not loaded, or not all of it: %s", snapshot, error)
        aside = snapshot.with_name(snapshot.name + ".not-loaded")
        try:
            snapshot.replace(aside)
        except OSError as failed:
            logger.error("snapshot %s: cannot be kept as %s: %s", snapshot, aside, failed)
        else:
            logger.error("it is kept as %s", aside)

    def _loading(self, *_: Any) -> None:
        """While a snapshot is loaded: asks for time, and lets a signal end it."""
        self._notifier.extend_timeout(EXTEND_S)
        self._take(self._wakeup.wait(0))
        if self._stops:
            raise _Stopped

    def _close(self) -> None:
        """Lets go of all of it; after an error as after a clean stop."""
        if self._saver is not None:
            self._saver.abandon()
            self._saver.join()
        if self._owner is not None:
            unlink = self._settings.daemon.unlink
            self._owner.close(unlink=unlink)
            logger.info(
                "cache %r: %s", self.name, "unlinked" if unlink else "left to its clients, warm"
            )
        self._listener.move(None)

    # ------------------------------------------------------------------------------ the loop
    def _turn(self) -> None:
        """Waits for the next thing that is due, and does what is."""
        due = min(self._next_slice, self._next_status, self._next_save)
        if self._watch is not None:
            due = min(due, self._next_look)
        hangups = self._take(self._wakeup.wait(due - time.monotonic()))
        if self._stops:
            return
        now = time.monotonic()
        if hangups:
            self._reload("SIGHUP")
        elif self._watch is not None and now >= self._next_look:
            self._next_look = now + LOOK_S
            if self._watch.changed():
                self._reload(f"{self._watch.path} has changed")
        if now >= self._next_slice:
            self._slice(now)
        if now >= self._next_save:
            self._plan_saves()
            self._save()
        if now >= self._next_status:
            self._next_status = now + STATUS_S
            self._notifier.status(self._status())

    def _take(self, signals: list[int]) -> int:
        """Counts what signals ask for; returns how often a reload."""
        for number in signals:
            if number in _STOPS:
                self._stops += 1
                logger.info("%s: stopping", signal.Signals(number).name)
        return signals.count(signal.SIGHUP)

    def _slice(self, now: float) -> None:
        if self._owner is None:
            self._make_anew(now)
            return
        try:
            tended = self._owner.tend()
        except CacheNotFound:
            logger.warning(
                "cache %r was unlinked or replaced under this daemon: making it anew", self.name
            )
            self._drop()
            self._make_anew(now)
            return
        except ShmcacheError as error:
            self._suffer(error, now)
            return
        self._trouble = ""
        if tended.recovered:
            logger.warning("repaired %d shards whose holders had died", tended.recovered)
        if tended.clients:
            logger.info("let go of %d clients that have died", tended.clients)
        self._tell_of_stuck(tended)
        end = time.monotonic()
        if not tended.round_complete:
            self._next_slice = end + min(end - now, PAUSE_MAX_S)
            return
        self._round_ended = end
        self._feed(end)
        interval = self._settings.daemon.sweep_interval
        if self._notifier.watchdog_s is not None:
            interval = min(interval, self._notifier.watchdog_s / FEEDS)
        self._next_slice = max(self._round_began + interval, end + min(end - now, PAUSE_MAX_S))
        self._round_began = self._next_slice

    def _tell_of_stuck(self, tended: Tended) -> None:
        stuck = tuple((blocked.shard, blocked.pid) for blocked in tended.blocked)
        for shard, pid in set(stuck) - set(self._stuck):
            logger.warning(
                "shard %d is held by process %d, which lives and does not get on: is it stopped?",
                shard,
                pid,
            )
        self._stuck = stuck

    def _feed(self, now: float) -> None:
        """A sign of life, at the end of a round; not more often than anybody needs."""
        patience = self._notifier.watchdog_s
        if patience is not None and now - self._fed >= min(1.0, patience / (2 * FEEDS)):
            self._fed = now
            self._notifier.watchdog()

    def _suffer(self, error: Exception, now: float) -> None:
        """Says once what is wrong, and tries again later. No round ends meanwhile, so that the
        watchdog and `/healthz` notice what does not pass."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            logger.error("%s", error)
            self._notifier.status(self._status())
        self._next_slice = now + RETRY_S

    def _drop(self) -> None:
        owner, self._owner = self._owner, None
        if self._saver is not None:  # it reads a cache that is gone
            self._saver.abandon()
            self._saver.join()
            self._saver = None
        if owner is not None:
            with contextlib.suppress(ShmcacheError, OSError):
                owner.close(unlink=False)

    def _make_anew(self, now: float) -> None:
        settings = dataclasses.replace(self._settings, cache=self._wanted)
        patience = self._notifier.watchdog_s
        try:
            if patience is not None and settings.daemon.snapshot is not None:
                self._notifier.patience(max(patience, LOAD_S))
            self._open(settings)
        except (ShmcacheError, OSError, ValueError) as error:
            self._suffer(error, now)
        else:
            self._settings = settings
            self._notifier.status(self._status())
        finally:
            if patience is not None and settings.daemon.snapshot is not None:
                self._notifier.patience(patience)

    # --------------------------------------------------------------------------- snapshots
    def _plan_saves(self) -> None:
        daemon = self._settings.daemon
        if daemon.snapshot is None or not daemon.snapshot_interval:
            self._next_save = float("inf")
        else:
            self._next_save = time.monotonic() + daemon.snapshot_interval

    def _save(self) -> None:
        """Begins a snapshot, unless the last one still goes on."""
        path = self._settings.daemon.snapshot
        if path is None or self._owner is None:
            return
        if self._saver is not None and not self._saver.done:
            logger.warning("snapshot %s: the last one is not done yet; left out", path)
            return
        self._saver = Saver(self._owner.cache, path, self._wakeup.wake)

    def _save_the_last(self) -> None:
        """Saves what there is; the loop goes on meanwhile. One more signal abandons it."""
        if self._settings.daemon.snapshot is None or self._owner is None:
            return
        if self._saver is not None and not self._saver.done:
            self._saver.abandon()  # it began too early to be the last
            self._saver.join()
        self._save()
        saver, asked = self._saver, -1e9
        while saver is not None and not saver.done:
            now = time.monotonic()
            if now - asked >= EXTEND_S / FEEDS:
                asked = now
                self._notifier.extend_timeout(EXTEND_S)
                self._notifier.status(f"saving {saver.path}")
            self._take(self._wakeup.wait(min(self._next_slice - now, 0.1)))
            if self._stops > 1:
                saver.abandon()
            if self._owner is not None and time.monotonic() >= self._next_slice:
                self._slice(time.monotonic())
        if saver is not None and saver.error is not None:
            raise OSError(f"the last snapshot was not saved: {saver.error}")

    # ------------------------------------------------------------------------------- reload
    def _reload(self, why: str) -> None:
        """Reads the settings again and lives by them; by the old ones where they are no good."""
        logger.info("%s: reading the configuration again", why)
        self._notifier.reloading("reloading the configuration")
        if self._watch is not None:
            self._watch.taken()
        try:
            settings = self._load()
            self._apply(settings)
        except (ShmcacheError, OSError, ValueError, TypeError, ImportError) as error:
            self._refused = str(error).splitlines()[0]
            for line in str(error).splitlines():
                logger.error("%s", line)
            logger.error("the configuration was not reloaded: the old one stays in force")
        else:
            self._refused = ""
        self._notifier.ready(self._status())

    def _apply(self, settings: Settings) -> None:
        """Makes `settings` those in force, all of them or, where this raises, none."""
        old = self._settings
        _check_snapshot(settings.daemon.snapshot)
        moved = settings.metrics.listen != old.metrics.listen
        if moved:
            self._listener.move(settings.metrics.listen)
        try:
            if settings.config is not None and self._owner is not None:
                version = self._owner.store_config(settings.config)
                if version is not None:
                    logger.info("slot 'config': version %d", version)
        except BaseException:
            if moved:
                self._listener.move(old.metrics.listen)
            raise
        self._new_cache_for = new_cache_needed(old.cache, settings.cache)
        for change in self._new_cache_for:
            logger.warning(
                "%s needs a new cache, and counts when it is made anew: stop, unlink, start", change
            )
        # [cache] stays that of the cache that is there, until it is made anew.
        self._wanted = settings.cache
        self._settings = dataclasses.replace(settings, cache=old.cache)
        if settings.daemon.sweep_interval != old.daemon.sweep_interval:
            self._next_slice = time.monotonic()
        if (settings.daemon.snapshot, settings.daemon.snapshot_interval) != (
            old.daemon.snapshot,
            old.daemon.snapshot_interval,
        ):
            self._plan_saves()
        if settings == old:
            logger.info("the configuration is what it was")

    # ------------------------------------------------------------------------------- status
    def _status(self) -> str:
        """How it goes, in one line."""
        words = [f"pid {os.getpid()}"]
        with contextlib.suppress(ShmcacheError):
            stats = self.cache.stats()
            words = [
                f"{stats.entries:,} entries",
                f"{stats.bytes_used / (1 << 20):.1f} of {stats.bytes_total / (1 << 20):.1f} MiB",
                f"{stats.clients} clients",
            ]
        text = ", ".join(words)
        if self._trouble:
            text += f"; in trouble: {self._trouble}"
        if self._stuck:
            text += f"; held up: {', '.join(f'shard {s} by pid {p}' for s, p in self._stuck)}"
        if self._refused:
            text += f"; configuration not reloaded: {self._refused}"
        if self._new_cache_for:
            text += f"; needs a new cache: {', '.join(self._new_cache_for)}"
        return text


def _check_snapshot(path: Path | None) -> None:
    """Finds out now, not when it is needed, that a snapshot has nowhere to go."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(
            f"snapshot {path}: it must be a file's path in a directory that user {os.geteuid()} "
            "may write to"
        )
