"""Who is alive: the client table of a segment, the kernel locks behind it, and the gate.

Place in the flow: level 3, below `attachment.py` and `segment.py`.  Knows the client table and
bytes of a file; knows nothing of shards, semaphores or names of caches, but for messages.

The liveness file is the segment's own file: no second file can be lost, or replaced alone.  Locks
are taken on bytes that need not exist:

    byte slot * 2^32 + generation    held by the client in that slot of the client table
    byte 2^62                        the gate

A client.  Attaching takes a slot of the table and, through a `LockHold`, the byte of the slot and
its new generation.  The kernel drops the lock with the process, whatever ends it, so "is client
17 of generation 3 alive" is one F_OFD_GETLK, and the answer holds across pid namespaces, for
zombies, and after a pid was reused.  The generation moves on each time the slot is taken, so a
dead client's byte is never locked again.

`in_use` in the table is a hint: 1 from attach to detach, 2 for an observer.  A slot with 0 is tried
first, but taken only if no byte of it is locked.  A client with 0 whose lock is still held has
left, with a last call of another thread on its way out (see `Attachment.release`): it is alive for
whoever waits for a shard that it holds, and gone for whoever asks who uses the segment.

An observer is a client that only looks, or changes an entry by hand: it has a slot and a lock like
any other, so that shards and leases that it holds are somebody's, but `living` and
`anybody_living` leave it out (INV-OBSERVER).  So the last member out unlinks under it, and a
segment that only observers have open counts as left behind.

The gate.  One byte is held by whoever attaches, closes, unlinks or replaces, for some tens of
microseconds, so that the last one out cannot unlink under a fresh attacher:

    attacher: gate - path still names this inode? - not marked dead? - take a slot - open gate
    closer:   gate - give up the slot - nobody left? mark dead, unlink - open gate

Whichever comes second sees what the first did: the attacher finds the path gone (or replaced),
or the closer finds the attacher's lock.  A process that is killed at the gate opens it by dying.
One that is stopped there is alive, and would stop the others for ever if they waited in the
kernel (F_OFD_SETLKW): they try, for a bounded time, and raise `LockTimeout`.

The gate is on the inode that the path named when it was opened; by the time it is locked the path
may name another.  So it counts only if the path still names the inode then.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shmcache import errors
from shmcache._core import LAYOUT
from shmcache._linux import LockHold, Mapping, probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmcache.geometry import Geometry

__all__ = [
    "GATE_BYTE",
    "GATE_TIMEOUT_SECONDS",
    "GENERATION_BITS",
    "MEMBER",
    "OBSERVER",
    "ClientTable",
    "close_gate",
    "gate_closed",
    "identity_word",
    "is_locked",
    "names_inode",
    "somebody_lives",
]

GATE_BYTE = 1 << 62
"""The byte that is held at the gate; clients' bytes are all below it."""

GENERATION_BITS = 32
"""Bits of a generation in a client's byte number, and in a holder word (SHM_L_CLIENT_SHIFT)."""

GATE_TIMEOUT_SECONDS = 5.0
"""How long a process tries to get through the gate.  It is held for tens of microseconds, so a
thousand processes that start at once are through in a tenth of a second."""

MEMBER = 1
"""`in_use` of a client that counts: the segment stays while one of them lives."""

OBSERVER = 2
"""`in_use` of a client that does not."""

_GENERATION_MASK = (1 << GENERATION_BITS) - 1
_FIRST_PAUSE_SECONDS = 50e-6  # about as long as the gate is held
_LONGEST_PAUSE_SECONDS = 2e-3

_PROBES_AT_ONCE = 16  # an open file for each; a probe of 1,000 slots takes 3 ms, at the gate

_CLIENT_WORDS = LAYOUT["sizeof.shm_client"] // 4
_GENERATION = LAYOUT["shm_client.generation"] // 4
_IN_USE = LAYOUT["shm_client.in_use"] // 4
_PID = LAYOUT["shm_client.pid"] // 4
_UID = LAYOUT["shm_client.uid"] // 4
_ATTACHED = LAYOUT["shm_client.attached_mono_ns"] // 4


def client_byte(client: int, generation: int) -> int:
    """The byte of the segment's file that this client, in this generation, holds locked."""
    return client << GENERATION_BITS | generation


def identity_word(client: int, generation: int) -> int:
    """The client as the holder word of a shard names it; never 0, never the same twice."""
    return (client + 1) << GENERATION_BITS | generation


def names_inode(path: str, device: int, inode: int) -> bool:
    """Whether `path` names that very file now; a symbolic link does not."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return status.st_ino == inode and status.st_dev == device


def close_gate(name: str, path: str, timeout_seconds: float = GATE_TIMEOUT_SECONDS) -> LockHold:
    """Waits its turn at the gate of the segment that `path` names, and closes it behind it.

    name: of the cache, for messages.
    Returns the hold; its `release` opens the gate.  `path` names the inode of the hold, and goes
    on doing so while the gate is closed, since only who holds the gate may unlink.
    Raises `FileNotFoundError` if there is no such file (any more), `LockTimeout` if somebody held
    the gate for all of `timeout_seconds`, and other `OSError`s of open(2).
    """
    deadline = time.monotonic() + timeout_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            hold = LockHold(path, GATE_BYTE)
        except BlockingIOError:
            pass
        else:
            if names_inode(path, hold.device, hold.inode):
                return hold
            hold.release()  # it was unlinked between open and lock: look at what is there now
        if time.monotonic() >= deadline:
            raise errors.LockTimeout(
                f"cache {name!r}: a living process has held the gate of {path} for "
                f"{timeout_seconds:g} s, where it stays for microseconds; it is stopped or "
                "starved: resume or kill it (`fuser` names who uses the file)"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@contextmanager
def gate_closed(name: str, path: str) -> Iterator[LockHold]:
    """`close_gate` as a context manager."""
    hold = close_gate(name, path)
    try:
        yield hold
    finally:
        hold.release()


def is_locked(path: str, client: int, generation: int) -> tuple[int, int, bool]:
    """Device and inode that `path` names, and whether that client's byte is locked there."""
    device, inode, held = probe(path, [(client_byte(client, generation), 1)])
    return device, inode, held[0]


def somebody_lives(path: str) -> bool:
    """Whether any process holds any client's byte, whatever the file's bytes say."""
    return probe(path, [(0, GATE_BYTE)])[2][0]


class ClientTable:
    """The client table of a mapped segment.

    Line 0 of a slot is written here, under the gate; the counters beside it belong to the slot,
    are written by the client's own calls, and are never reset: a successor adds on.

    Nothing read here is trusted: a slot is free when the kernel says that nobody holds it.
    """

    def __init__(self, mapping: Mapping, geometry: Geometry, path: str) -> None:
        start = geometry.clients_off
        end = start + geometry.client_count * LAYOUT["sizeof.shm_client"]
        self._words = memoryview(mapping)[start:end].cast("I")
        self._count = geometry.client_count
        self._path = path
        self._look_at = 0  # where `dead` goes on

    def close(self) -> None:
        """Lets go of the mapping.  Idempotent."""
        self._words.release()

    def take(self, device: int, inode: int, kind: int = MEMBER) -> tuple[int, int, LockHold]:
        """Takes a free slot and its lock; returns client, generation and hold.  Gate held.

        device, inode: of the segment; the path must name it still.
        kind: MEMBER or OBSERVER.

        Raises `LimitReached` if living processes have all slots.  Costs two system calls where a
        slot was never used or given back, else a probe of every slot: about a millisecond.
        """
        in_use = self._words[_IN_USE::_CLIENT_WORDS].tolist()
        for client in (client for client, used in enumerate(in_use) if not used):
            if not self._alive([client])[0]:
                return self._claim(client, device, inode, kind)
        abandoned = [client for client, used in enumerate(in_use) if used]
        for client, alive in zip(abandoned, self._alive(abandoned), strict=True):
            if not alive:
                return self._claim(client, device, inode, kind)
        raise errors.LimitReached(
            f"all {self._count} client slots of {self._path} are held by living processes: close "
            "handles that are not needed, or spread the processes over several caches"
        )

    def _claim(self, client: int, device: int, inode: int, kind: int) -> tuple[int, int, LockHold]:
        words, base = self._words, client * _CLIENT_WORDS
        generation = (words[base + _GENERATION] + 1) & _GENERATION_MASK or 1
        # The lock first: who dies in between has used the generation nowhere yet.
        hold = LockHold(self._path, client_byte(client, generation))
        if (hold.device, hold.inode) != (device, inode):
            hold.release()
            raise errors.CacheNotFound(
                f"{self._path} was replaced by hand while its gate was closed; open it again"
            )
        attached_ns = time.monotonic_ns()
        words[base + _GENERATION] = generation
        words[base + _PID] = os.getpid()
        words[base + _UID] = os.geteuid()
        words[base + _ATTACHED] = attached_ns & 0xFFFFFFFF
        words[base + _ATTACHED + 1] = attached_ns >> 32
        words[base + _IN_USE] = kind
        return client, generation, hold

    def leave(self, client: int) -> None:
        """Gives the slot back; its lock may outlive this by a call under way.

        A member's with the gate held, which orders it with the question who is left.
        """
        self._words[client * _CLIENT_WORDS + _IN_USE] = 0

    def dead(self, limit: int) -> list[int]:
        """Which of the next `limit` slots in use are those of processes that have died.

        Goes on where the last call stopped, and begins anew after the last slot.  A hint without
        the gate: see `reap`.  Costs a system call for each slot looked at.
        """
        in_use = self._words[_IN_USE::_CLIENT_WORDS].tolist()
        used = [c for c, used in enumerate(in_use) if used and c >= self._look_at][:limit]
        self._look_at = used[-1] + 1 if len(used) == limit else 0
        return [client for client, alive in zip(used, self._alive(used), strict=True) if not alive]

    def reap(self, clients: list[int]) -> int:
        """Marks those of `clients` that are dead as free; returns how many.  Gate held."""
        alive = self._alive(clients)
        for client in (client for client, lives in zip(clients, alive, strict=True) if not lives):
            self._words[client * _CLIENT_WORDS + _IN_USE] = 0
        return alive.count(False)

    def living(self) -> int:
        """How many processes are attached and alive, observers left out.

        Where no descriptor is left to ask the kernel with, whoever has not closed counts as alive.
        Costs a probe for each slot whose user has not closed: a microsecond each and more.
        """
        members = self._members()
        try:
            return sum(self._alive(members))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            return len(members)

    def anybody_living(self) -> bool:
        """Whether a process that has not closed and is no observer is alive.

        Looks no further than the first.
        """
        if not somebody_lives(self._path):
            return False
        used = self._members()
        if any(self._alive(used[:1])):  # most often it is the one in the first slot
            return True
        return any(
            any(self._alive(used[start : start + _PROBES_AT_ONCE]))
            for start in range(1, len(used), _PROBES_AT_ONCE)
        )

    def _members(self) -> list[int]:
        in_use = self._words[_IN_USE::_CLIENT_WORDS].tolist()
        return [client for client, used in enumerate(in_use) if used not in (0, OBSERVER)]

    def _alive(self, clients: list[int]) -> list[bool]:
        """For each client whether somebody holds its byte of any generation."""
        span = 1 << GENERATION_BITS
        return probe(self._path, [(client_byte(client, 0), span) for client in clients])[2]
