"""Arguments that several commands take: the name of a cache, of a trace, a namespace, a key.

Each kind of argument says here how it is read and how a shell completes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from shmcache.cli.values import KEY_TYPES, key_from_text
from shmcache.errors import CacheNotFound, ShmcacheError
from shmcache.keys import Key
from shmcache.limits import check_name
from shmcache.observer import observe
from shmcache.registry import list_caches

if TYPE_CHECKING:
    from shmcache.cache import Cache
    from shmcache.namespace import Namespace

    TextType = click.ParamType[str]
else:
    TextType = click.ParamType  # generic for type checkers only, and since click 8.2

__all__ = [
    "CacheName",
    "TraceName",
    "cache_argument",
    "key_of",
    "key_options",
    "opened",
    "opened_entries",
]

F = TypeVar("F", bound=Callable[..., Any])


class CacheName(TextType):
    """The name of a cache; a shell completes those that are on this host."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name if it can be one."""
        try:
            return check_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the caches on this host; none where they cannot be listed."""
        with contextlib.suppress(OSError, ShmcacheError):
            return [
                CompletionItem(cache.name, help=cache.problem or f"cache of {cache.owner}")
                for cache in list_caches()
                if cache.name.startswith(incomplete)
            ]
        return []


class TraceName(TextType):
    """A trace: the name of one that ships with shmcache, or a file."""

    name = "trace"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the traces that ship with shmcache, and let the shell add files (bash: where no
        trace begins so; what comes after a request for files would be lost there)."""
        from shmcache.trace import BUNDLED

        bundled = [CompletionItem(name) for name in BUNDLED if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *bundled]


cache_argument = click.argument("name", type=CacheName())
"""NAME, the first argument of nearly every command."""


def key_of(text: str, key_type: str) -> Key:
    """Return the key that a text on the command line means; a usage error where it is none."""
    try:
        return key_from_text(text, key_type)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="KEY") from None


def key_options(default: str | None = "str") -> Callable[[F], F]:
    """Return a decorator that adds `--namespace` and `--key-type`."""

    def decorate(command: F) -> F:
        command = click.option(
            "--key-type",
            type=click.Choice(KEY_TYPES),
            default=default,
            show_default=True,
            help="What a KEY is. bytes: text with escapes such as \\x00.",
        )(command)
        return click.option(
            "--namespace",
            "-n",
            "namespaces",
            multiple=True,
            metavar="N",
            help="The namespace that it is in; again for one within that one.",
        )(command)

    return decorate


@contextlib.contextmanager
def opened(name: str, *, decode: bool = True) -> Iterator[Cache]:
    """Open a cache as an observer, for one command: it creates nothing and keeps nothing alive."""
    try:
        cache = observe(name, decode=decode)
    except CacheNotFound:
        raise click.ClickException(
            f"there is no cache {name!r} on this host: `shmcache ls` lists those that there are, "
            f"and `shmcache serve {name}`, or the first process that opens it, creates it"
        ) from None
    with cache:
        yield cache


@contextlib.contextmanager
def opened_entries(
    name: str, namespaces: tuple[str, ...], *, decode: bool = True
) -> Iterator[Cache | Namespace[Any]]:
    """Open a cache, and a namespace of it if any is named, as `opened` does."""
    with opened(name, decode=decode) as cache:
        found: Cache | Namespace[Any] = cache
        for prefix in namespaces:
            found = found.namespace(prefix)
        yield found
