"""`shmcache completion`: the script that makes a shell complete this command.

The script is click's own: at each <TAB> it runs `shmcache` with the line so far in its
environment, which answers with commands, options, and the names that params.py knows.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

PROGRAM = "shmcache"
VARIABLE = "_SHMCACHE_COMPLETE"
"""What click asks for under the program's name."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes `shmcache` in SHELL: bash (4.4 and later), zsh or fish.

    It completes commands, options, the names of caches on this host, and of traces.

    \b
    Examples:
      echo 'eval "$(shmcache completion bash)"' >> ~/.bashrc
      echo 'eval "$(shmcache completion zsh)"' >> ~/.zshrc     # after compinit
      shmcache completion fish > ~/.config/fish/completions/shmcache.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"the installed click has no completion for {shell}")
    root = context.find_root().command
    # Without its look at the version of the shell that is here: the script may be for elsewhere.
    made = found(root, {}, PROGRAM, VARIABLE)
    click.echo(made.source_template % made.source_vars())
