"""Who owns what a recipe hands out: processes named so that their deaths are the kernel's word.

Place: level 6, beneath the recipes. The public API of `Cache` does not say who a process is; this
is the one place where a recipe asks the attachment for it. A pid would not do: pids are reused,
and mean nothing across containers.

A token is a process's hold on one segment: the segment's nonce, and the holder word that it has
in there (client slot and generation, never the same twice). A token of another segment, which
came in by a snapshot, is nobody's, and so is that of a process that has closed its last handle.
"""

from __future__ import annotations

from typing import Any

from shmcache import _core
from shmcache.liveness import GENERATION_BITS

__all__ = ["Token", "Worker"]

Token = tuple[int, int]
"""Nonce of the segment, and holder word in it. Two ints, so that every codec can store them."""

_GENERATION_MASK = (1 << GENERATION_BITS) - 1


class Worker:
    """This process among those that share a cache, asked through one of its handles."""

    __slots__ = ("_handle",)

    def __init__(self, handle: _core.Handle) -> None:
        self._handle = handle

    def token(self) -> Token:
        """This process's token; a forked child has one of its own. About 200 ns.

        Raises CacheClosed or CacheNotFound as every call of the handle does.
        """
        word = _core.identity(self._handle)
        return self._attachment().superblock.nonce, word

    def is_alive(self, token: Token) -> bool:
        """Whether that process still holds the segment: the kernel's word, about 2 us.

        False for a token of another segment, and for one that is damaged.
        """
        nonce, word = token
        attachment = self._attachment()
        client = (word >> GENERATION_BITS) - 1
        if nonce != attachment.superblock.nonce or client < 0:
            return False
        return bool(attachment.is_alive(client, word & _GENERATION_MASK))

    def living(self) -> Living:
        """`is_alive` for a walk over many tokens: asks once for each."""
        return Living(self)

    def _attachment(self) -> Any:
        attachment = self._handle._attachment
        if attachment is None:
            _core.identity(self._handle)  # raises CacheClosed, and says which cache
            attachment = self._handle._attachment
        return attachment


class Living:
    """Remembers the answers of `is_alive`, for as long as one walk takes."""

    __slots__ = ("_known", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._known: dict[Token, bool] = {}

    def __call__(self, token: Token) -> bool:
        alive = self._known.get(token)
        if alive is None:
            alive = self._known[token] = self._worker.is_alive(token)
        return alive
