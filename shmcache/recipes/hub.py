"""`ClientHub`: one client object per process, and what all of them need set up once.

Place: level 6. Objects are this process's own and never leave it; the set-up is a
`get_or_init` of the cache. docs/recipes/hub.md says when to use it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, overload

from shmcache.cache import Cache
from shmcache.errors import CacheFull, ReentrantInit
from shmcache.recipes._state import Recipe, open_room

__all__ = ["ClientHub"]

T = TypeVar("T")
S = TypeVar("S")

_MISSING: Final = object()


class _Client(Generic[T]):
    """One object of this process: being built under `lock`, then there."""

    __slots__ = ("builder", "lock", "value")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.builder = 0  # the thread that builds it
        self.value: Any = _MISSING


class _Here:
    """The objects of this process. A forked child starts with none: sockets are not shared."""

    def __init__(self) -> None:
        self.clients: dict[tuple[int, str, str], _Client[Any]] = {}


_here = _Here()


def _forget() -> None:
    """In a child: its parent's objects are not its own. They are kept, unused: what a destructor
    would close in an orderly way (by a word to the server) is the parent's connection too."""
    global _here
    _inherited.append(_here)
    _here = _Here()


_inherited: list[_Here] = []
os.register_at_fork(after_in_child=_forget)


class ClientHub(Recipe):
    """Clients (of a database, a broker, a model server): each built exactly once per process,
    and set up exactly once across all processes.

    Args:
        cache: any `Cache`; policy ``"keep"``, so that no set-up is forgotten and repeated.
        name: hubs of one name share what was set up, and within a process the clients.

        >>> from shmcache import Cache
        >>> cache = Cache("doc-hub", policy="keep")
        >>> hub = ClientHub(cache, "clients")
        >>> a = hub.get("list", list)
        >>> a is hub.get("list", list)
        True
        >>> greet = hub.get("greeter", lambda word: word.upper, setup=lambda: "hello")
        >>> greet()
        'HELLO'
        >>> cache.close()
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self.name = name
        self._setups = open_room(cache, "hub", name, durable=True)
        attachment = cache._attachment
        # of this very segment: where the cache was replaced, what was set up is gone
        self._nonce = int(attachment.superblock.nonce)

    @overload
    def get(self, name: str, factory: Callable[[], T]) -> T: ...
    @overload
    def get(
        self, name: str, factory: Callable[[S], T], *, setup: Callable[[], S], timeout: float = 20.0
    ) -> T: ...
    def get(
        self,
        name: str,
        factory: Callable[..., Any],
        *,
        setup: Callable[[], Any] | None = None,
        timeout: float = 20.0,
    ) -> Any:
        """This process's client of that name; where there is none, ``factory()`` makes it.

        Args:
            name: of the client; a str.
            factory: makes it: without arguments, or with what `setup` returned. Called exactly
                once per process; a forked child calls it anew. Threads that ask meanwhile wait
                for it. If it raises, so does this call, and the next one tries again.
            setup: what is to be done once for all processes (create the topic, migrate, pick the
                endpoint). Called by one process before the first factory; what it returns, which
                the cache's codec must be able to encode, goes to every factory. If it raises or
                its process dies, another process that waits calls it.
            timeout: seconds to wait for another process's `setup` (`InitTimeout`).

        Once the client is there, a call is a dict look-up and does not touch the cache.

        Raises what `factory` and `setup` raise; `ReentrantInit` where the factory asks for its own
        client; `CacheFull` where there is no room to remember the set-up, which was done.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a client must be a str, not {type(name).__name__}")
        clients = _here.clients
        client = clients.setdefault((self._nonce, self.name, name), _Client())
        if client.value is not _MISSING:
            return client.value
        if client.builder == threading.get_ident():
            raise ReentrantInit(
                f"the factory of client {name!r} of hub {self.name!r} asks for that very client, "
                "and would wait for itself; build it without, or under another name"
            )
        with client.lock:
            if client.value is _MISSING:
                client.builder = threading.get_ident()
                try:
                    if setup is None:
                        client.value = factory()
                    else:
                        client.value = factory(self._configure(name, setup, timeout))
                finally:
                    client.builder = 0
            return client.value

    def configured(self, name: str, default: Any = None) -> Any:
        """What the set-up of that client returned, or `default` where it has not been done."""
        return self._setups.get(name, default)

    def forget(self, name: str) -> bool:
        """Have the client built, and set up, anew at the next `get`: by all processes, but those
        that have it already go on with theirs. True if this process had one.

        Does not close it: that is its user's."""
        self._setups.delete(name)
        client = _here.clients.pop((self._nonce, self.name, name), None)
        return client is not None and client.value is not _MISSING

    def _configure(self, name: str, setup: Callable[[], Any], timeout: float) -> Any:
        before = self._setups.get(name, _MISSING)
        if before is not _MISSING:
            return before
        done: list[Any] = []

        def set_up() -> Any:
            done.append(setup())
            return done[0]

        value = self._setups.get_or_init(name, set_up, timeout=timeout)
        if done and name not in self._setups:
            raise CacheFull(
                f"client {name!r} of hub {self.name!r} was set up, but cache "
                f"{self._setups.name!r} has no room to remember it, and every process would do it "
                "again: make the cache larger (size=)"
            )
        return value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in cache {self._setups.name!r}>"
