"""The command `shmcache`: parses arguments and prints results, and decides nothing.

Place in the flow: the top of the house.  One file for each command, or family of commands; each
calls one function of the package and prints what it returns, for a person or with `--json` for a
program.  Results go to standard output, progress and errors to standard error.  Exit status: 0
success, 1 failure, 2 wrong usage.

A command's file is imported when the command runs (group.py): what prints a number does not wait
for what draws tables.
"""

from __future__ import annotations

import click

from shmcache.cli.group import LazyGroup, Place

__all__ = ["main"]

_RUN = "Run a cache"
_LOOK = "Look at caches"
_ENTRIES = "Entries"
_WHOLE = "Whole caches"
_CONFIG = "Configuration and copies"
_MEASURE = "Measure and set up"

# One line a command; the order is the order of `shmcache --help`.
COMMANDS = {
    "serve": Place(
        _RUN, "shmcache.cli.serve", "serve", "Own a cache: create or adopt, and keep it"
    ),
    "ls": Place(_LOOK, "shmcache.cli.caches", "ls", "List the caches on this host"),
    "stats": Place(_LOOK, "shmcache.cli.stats", "stats", "Show what a cache has counted"),
    "top": Place(_LOOK, "shmcache.cli.top", "top", "Watch a cache at work, live"),
    "latency": Place(_LOOK, "shmcache.cli.latency", "latency", "Show how long calls took"),
    "doctor": Place(
        _LOOK, "shmcache.cli.doctor", "doctor", "Find what is wrong, and say what mends it"
    ),
    "verify": Place(_LOOK, "shmcache.cli.verify", "verify", "Check every invariant of a cache"),
    "get": Place(_ENTRIES, "shmcache.cli.entries", "get", "Print the value of a key"),
    "set": Place(_ENTRIES, "shmcache.cli.entries", "set_", "Store a value"),
    "del": Place(_ENTRIES, "shmcache.cli.entries", "delete", "Remove keys"),
    "incr": Place(_ENTRIES, "shmcache.cli.entries", "incr", "Add to a counter"),
    "ttl": Place(_ENTRIES, "shmcache.cli.entries", "ttl", "Print how long an entry lives on"),
    "keys": Place(_ENTRIES, "shmcache.cli.entries", "keys", "List keys"),
    "clear": Place(_WHOLE, "shmcache.cli.wholes", "clear", "Remove every entry of a cache"),
    "unlink": Place(_WHOLE, "shmcache.cli.wholes", "unlink", "Remove a cache for everybody"),
    "config": Place(
        _CONFIG, "shmcache.cli.config", "config", "Get, set, edit and watch the configuration"
    ),
    "snapshot": Place(
        _CONFIG, "shmcache.cli.snapshot", "snapshot", "Save a cache to a file, and load it again"
    ),
    "replay": Place(
        _MEASURE, "shmcache.cli.replay", "replay", "Replay a recorded trace, and check every hit"
    ),
    "bench": Place(
        _MEASURE, "shmcache.cli.bench", "bench", "Measure get, set and incr on this machine"
    ),
    "completion": Place(
        _MEASURE, "shmcache.cli.completion", "completion", "Print a shell's completion script"
    ),
}


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`shmcache COMMAND --help` shows an example. Exit status: 0 success, 1 failure, 2 wrong "
    "usage.",
)
@click.version_option(package_name="shmcache", prog_name="shmcache")
def main() -> None:
    """One cache in shared memory for all worker processes of a service.

    Looking changes nothing: a command creates no cache unless it says so, and unlinks none but by
    `unlink`.
    """
