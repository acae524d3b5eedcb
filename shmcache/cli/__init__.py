"""The command `shmcache`: parses arguments and prints results, and decides nothing.

Place in the flow: the top of the house.  One file for each command; each calls one function of
the package and prints what it returns, for a person or with `--json` for a program.  Results go
to standard output, progress and errors to standard error.  Exit status: 0 success, 1 failure,
2 wrong usage.
"""

from __future__ import annotations

import click

from shmcache.cli.caches import ls
from shmcache.cli.replay import replay

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shmcache", prog_name="shmcache")
def main() -> None:
    """One cache in shared memory for all worker processes of a service."""


main.add_command(ls)
main.add_command(replay)
