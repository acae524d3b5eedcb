"""The exceptions that shmcache raises: one tree under `ShmcacheError`.

Place: level 0 of the house; imports nothing of it. Each exception also derives from the built-in
that a caller may already be catching (`FileNotFoundError`, `TimeoutError`, `ValueError`...), so
that moving from a file or a dict to a cache needs no new `except` clause. What derives from
`OSError` carries an `errno`.

Messages say what was wrong, with which name or size, and what to do about it. Every instance
takes the message as its one positional argument, and pickles: a worker of a process pool can
raise it in its parent.
"""

import errno
from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "CacheClosed",
    "CacheExists",
    "CacheFull",
    "CacheNotFound",
    "Cancelled",
    "CorruptSegment",
    "DecodeError",
    "GeometryWarning",
    "InitTimeout",
    "KeyTooLarge",
    "LayoutMismatch",
    "LimitReached",
    "LockTimeout",
    "NotPermitted",
    "OutOfSharedMemory",
    "ReentrantInit",
    "ShmcacheError",
    "SlotTooLarge",
    "ValueTooLarge",
    "WouldBlock",
]


class ShmcacheError(Exception):
    """Whatever shmcache raises on its own account; catch it to treat any outage as a miss."""


class _SystemError(ShmcacheError, OSError):
    """What derives from one of the `OSError` family: sets `errno` as the system would.

    `errno` alone, without `strerror`, leaves `str(error)` to be the message, without a number
    in brackets before it.
    """

    _ERRNO: ClassVar[int]

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.errno = self._ERRNO


class CacheNotFound(_SystemError, FileNotFoundError):
    """There is no cache of that name, or no longer: it was unlinked or replaced meanwhile."""

    _ERRNO = errno.ENOENT


class CacheExists(_SystemError, FileExistsError):
    """`create=True` found a cache of that name."""

    _ERRNO = errno.EEXIST


class CacheClosed(ShmcacheError, ValueError):
    """The handle was closed, by this thread or by another one."""


class NotPermitted(_SystemError, PermissionError):
    """The segment belongs to somebody else, or asks for what its permissions make unsafe."""

    _ERRNO = errno.EPERM


class OutOfSharedMemory(ShmcacheError, MemoryError):
    """/dev/shm has no room for the segment that was asked for; raised at creation only."""


class LayoutMismatch(ShmcacheError):
    """The segment was made by another version or build of shmcache."""


class CorruptSegment(ShmcacheError):
    """Bytes of the segment contradict an invariant, which the message names."""


class DecodeError(ShmcacheError, ValueError):
    """Stored bytes are not what their codec, or the type that was asked for, can decode."""


class LimitReached(ShmcacheError):
    """No swap slot, latency ring, token or client slot is left in the segment."""


class CacheFull(ShmcacheError):
    """Under policy `keep`: the key's shard has no room, and nothing may be dropped.

    Attributes:
        keys: after `set_many`, the keys that were not stored, in the order of the mapping; what
            was stored before stays stored. Empty after an operation on one key.
    """

    keys: tuple[Any, ...]

    def __init__(self, *args: object, keys: Iterable[Any] = ()) -> None:
        super().__init__(*args)
        self.keys = tuple(keys)


class KeyTooLarge(ShmcacheError, ValueError):
    """The key's content takes more bytes than an entry can say (65,535)."""


class ValueTooLarge(ShmcacheError, ValueError):
    """The encoded value is larger than `cache.max_value_size`."""


class SlotTooLarge(ShmcacheError, ValueError):
    """The encoded value is larger than the swap slot's `capacity`; the old value stays."""


class LockTimeout(_SystemError, TimeoutError):
    """A shard was not to be had within `lock_timeout`: its holder is alive, but does not go on.

    Attributes:
        keys: after `set_many`, the keys that were not stored, in the order of the mapping; what
            was stored before stays stored. Empty after an operation on one key.
    """

    _ERRNO = errno.ETIMEDOUT
    keys: tuple[Any, ...]

    def __init__(self, *args: object, keys: Iterable[Any] = ()) -> None:
        super().__init__(*args)
        self.keys = tuple(keys)


class WouldBlock(LockTimeout):
    """A `try_` call, or one with `lock_timeout=0`, would have had to wait for a shard."""

    _ERRNO = errno.EWOULDBLOCK


class InitTimeout(_SystemError, TimeoutError):
    """Another process's initialiser of the key did not deliver within `timeout`."""

    _ERRNO = errno.ETIMEDOUT


class Cancelled(ShmcacheError):
    """The cancellation token was cancelled."""


class ReentrantInit(ShmcacheError, RuntimeError):
    """A factory asked for the very key that it is there to make, and would wait for itself."""


class GeometryWarning(UserWarning):
    """The segment's size or shard count is not the one asked for; the segment's own applies."""
