"""`shmcache serve`: the daemon that owns a cache, in the foreground."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from shmcache.cli.output import failing_clearly, size_text
from shmcache.cli.params import cache_argument
from shmcache.daemon import Daemon
from shmcache.notify import Notifier
from shmcache.settings import OPTIONS, load

_READERS = {option.name or option.key: option.read for option in OPTIONS}


def _checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse a flag that makes no sense as wrong usage (exit 2), before anything is made."""
    if value is not None:
        try:
            _READERS[str(parameter.name)](value)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(str(error)) from error
    return value


def _option(*declarations: str, **attributes: Any) -> Callable[..., Any]:
    return click.option(*declarations, callback=_checked, **attributes)


@click.command()
@cache_argument
@_option("--size", metavar="SIZE", help="Shared memory of a new cache, such as 64MiB (32MiB).")
@_option("--policy", metavar="evict|keep", help="What a full cache does: make room, or refuse.")
@_option("--shards", metavar="N", help="Shards of a new cache, a power of two.")
@_option("--avg-entry-size", metavar="BYTES", help="Bytes of key and value, sizes the index.")
@_option("--codec", metavar="NAME", help="Codec of a new cache (msgpack).")
@_option("--slots", metavar="N", help="Swap slots of a new cache (16).")
@_option("--slot-capacity", metavar="SIZE", help="Bytes that each of them can hold (64KiB).")
@_option("--mode", metavar="0660", help="Permissions (0600, with a group 0660).")
@_option("--group", metavar="G", help="Group, by name or number, that the cache belongs to.")
@click.option(
    "--config",
    envvar="SHMCACHE_CONFIG",
    type=click.Path(path_type=Path),
    help="TOML file with [cache], [daemon], [metrics] and [config]; watched for changes.",
)
@_option("--snapshot", metavar="FILE", help="Fill a new cache from it; save to it.")
@_option("--snapshot-interval", metavar="S", help="Seconds between saves (300); 0: only on stop.")
@_option("--sweep-interval", metavar="S", help="Seconds between rounds over all shards (1).")
@_option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics; port 0 picks one.")
@_option("--unlink/--no-unlink", default=None, help="Remove the cache when the daemon stops.")
@failing_clearly
def serve(name: str, config: Path | None, **flags: object) -> None:
    """Own the cache NAME: create it, or adopt what is there, warm, and keep it healthy.

    Runs in the foreground until SIGTERM or SIGINT, and leaves the cache for its clients, unless
    --unlink. Sweeps what has expired, reaps what dead clients left, publishes [config] of the
    file into the swap slot `config`, serves metrics and /healthz, saves snapshots. SIGHUP and a
    change of the file reload it. Every option is also a variable of the environment (--size is
    SHMCACHE_SIZE) and a key of the file; flags are the strongest, the file the weakest.

    \b
    Examples:
      shmcache serve app --size 256MiB --mode 0660 --group www-data
      shmcache serve app --config /etc/shmcache/app.toml --metrics 127.0.0.1:9419
    """
    _log_to_stderr()
    Daemon(
        name,
        lambda: load(config, flags=flags),
        config=config,
        notifier=Notifier(),
        on_ready=_announce,
    ).run()


def _announce(daemon: Daemon) -> None:
    """The line that says, on standard output, that the cache is there, and where its metrics."""
    cache = daemon.cache
    line = (
        f"serving cache {daemon.name!r} ({'adopted' if daemon.adopted else 'created'}): "
        f"{size_text(cache.size)} in {cache.shards} shards, policy {cache.policy}, "
        f"codec {cache.codec}, pid {os.getpid()}"
    )
    if daemon.metrics is not None:
        host, port = daemon.metrics
        line += f", metrics on http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    try:
        click.echo(line)
        sys.stdout.flush()
    except OSError:  # nobody reads it any more: no reason to end, nor to complain at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


# ---------------------------------------------------------------------------------------- logs
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Of sd-daemon(3): the journal takes `<4>` at the start of a line for a warning."""


class _JournalFormatter(logging.Formatter):
    """Lines for the journal, which has clocks and names of its own: priority and message."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 2)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _to_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error is the journal's own socket (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    if _to_journal(os.environ):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("shmcache")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
