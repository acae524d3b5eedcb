"""A process's hold on a segment: one client, shared by all handles of the process, across forks.

Place in the flow: level 3.  `segment.py` decides whether and what to attach to and makes an
`Attachment`; `Cache` handles share it, one per process and segment; the binding asks it for who
this process is, whom to wait for, and whether somebody lives.  It knows the superblock, the
client table and semaphores; it knows nothing of shards, keys or values.

Life of an attachment

    open      takes a client slot and its kernel lock (liveness.py), counts one handle
    open      of the same segment in the same process: counts one handle more
    release   one handle less; with the last one the client leaves, and if it was the last client
              of a segment that does not persist, the segment is marked dead and unlinked

An observer's attachment is its handle's alone: it is not shared, the registry does not know it, and
its end unlinks nothing, whoever else is there (INV-OBSERVER).

A call of another thread may be under way when the last handle is released, even inside a shard
with the GIL released.  It keeps the `Mapping` alive, and the mapping keeps the lock that says
that this process is alive (`Mapping.companion`): nobody takes its shard away before it is done.
The slot itself is given back at once.

After a fork the child has a copy of everything but the lock (not copied) and the identity (wiped):
it is nobody until it calls `rejoin`, which the binding does at the first use, before it reads or
writes anything.  A child that never uses the cache costs nothing, and its exit means nothing.

A normal interpreter exit counts as closing, in main and in multiprocessing's children, which end
with `os._exit`: a finaliser of `multiprocessing.util` runs in both, after children were joined.
A process that dies otherwise leaves the segment to whoever opens it next.

Nothing here registers anything with multiprocessing's resource tracker, which would unlink
segments under their users (cpython#82300): `Block` is a `SharedMemory` that is opened and mapped
by our own hand (block.py).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections import deque
from contextlib import contextmanager
from multiprocessing import util as mp_util
from typing import TYPE_CHECKING, NoReturn

from shmcache import errors
from shmcache._linux import LockHold, Mapping, ProcessLock, ProcessPage
from shmcache.block import (
    DEAD,
    OWNER,
    OWNER_PID,
    PERSIST,
    Block,
    Superblock,
    destroy,
    load_word,
    may_unlink,
    segment_path,
    store_word,
)
from shmcache.liveness import (
    GATE_TIMEOUT_SECONDS,
    GENERATION_BITS,
    MEMBER,
    OBSERVER,
    ClientTable,
    close_gate,
    gate_closed,
    identity_word,
    is_locked,
    names_inode,
)
from shmcache.semaphores import SHM_DIR, Semaphores

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Attachment", "critical"]

logger = logging.getLogger("shmcache")

# After multiprocessing has joined its children (which may have the cache from us by fork, and not
# have used it yet), hence negative; and before nothing else that we know of.
_EXIT_PRIORITY = -100


# ------------------------------------------------------- one thread at a time, for each name
# The lock of a name guards what this process knows of the cache of that name: the registry's
# entry and the attachment's count of handles.  A thread that holds one never waits for another:
# a finaliser that closes some other cache in the middle of it is put off until it is done.
_locks: dict[str, ProcessLock] = {}
_registry: dict[str, Attachment] = {}
_attachments: set[Attachment] = set()  # all that are open, those that were replaced too
_put_off: deque[Attachment] = deque()
_inside = threading.local()


@contextmanager
def critical(name: str) -> Iterator[dict[str, Attachment]]:
    """Holds the lock of a name; yields the registry of this process's attachments by name."""
    lock = _locks.get(name) or _locks.setdefault(name, ProcessLock())
    with lock.current():
        _inside.depth = getattr(_inside, "depth", 0) + 1
        try:
            yield _registry
        finally:
            _inside.depth -= 1
    while _put_off and not _inside.depth:
        try:
            attachment = _put_off.popleft()
        except IndexError:  # another thread took it
            break
        attachment.release()


class Attachment:
    """This process as a client of one segment; made by `segment.open_segment`.

    Attributes:
        name: of the cache.
        superblock: a private copy of what never changes.
        identity: 8 bytes that hold this process's identity word while it is attached, and 0
            otherwise (closed, or a child that has not rejoined).
        client, generation: its slot in the client table, and the generation of that.
        uid, gid, mode: owner and permission bits of the segment's file.
        observer: whether it does not count as a client of the segment.
        created: whether the segment was made by this process's opening it.

    Safe to use from many threads.
    """

    def __init__(
        self,
        superblock: Superblock,
        mapping: Mapping,
        table: ClientTable,
        taken: tuple[int, int, LockHold],
        *,
        observer: bool = False,
        created: bool = False,
    ) -> None:
        self.observer = observer
        self.created = created
        self.name = superblock.name
        self.superblock = superblock
        self.path = segment_path(self.name)
        self.uid = mapping.uid
        self.gid = mapping.gid
        self.mode = stat.S_IMODE(mapping.mode)
        self.handles = 1
        self._device, self._inode = superblock.device, superblock.inode
        self._mapping: Mapping | None = mapping
        self._block = Block(f"shmcache.{self.name}", mapping)
        self._table = table
        self._semaphores = Semaphores(self.name, superblock.nonce)
        self.client = -1
        self.generation = 0
        self.identity = ProcessPage(0)
        self._become(taken)
        _attachments.add(self)
        _arm_exit_hook()

    def __repr__(self) -> str:
        return (
            f"<Attachment {self.name!r} client {self.client} generation {self.generation} "
            f"handles {self.handles}>"
        )

    def _become(self, taken: tuple[int, int, LockHold]) -> None:
        self.client, self.generation, hold = taken
        self.mapping.companion = hold
        self.identity.set(identity_word(self.client, self.generation))

    @property
    def mapping(self) -> Mapping:
        """The mapped segment; `CacheClosed` after the last handle was released."""
        mapping = self._mapping
        if mapping is None:
            self._refuse_closed()
        return mapping

    @property
    def dead(self) -> bool:
        """Whether the segment was unlinked by a process that says so."""
        return bool(load_word(self.mapping, DEAD))

    @property
    def persist(self) -> bool:
        """Whether the segment stays after its last client."""
        return bool(load_word(self.mapping, PERSIST))

    def set_persist(self, persist: bool) -> None:
        """Chooses whether the segment stays after its last client, for all of them."""
        store_word(self.mapping, PERSIST, int(persist))

    def owner_pid(self) -> int | None:
        """The owner daemon's pid, as its own namespace sees it; None where none is alive."""
        mapping = self.mapping
        owner = _owner_word(mapping)[0]
        client = (owner >> GENERATION_BITS) - 1
        if not 0 <= client < self.superblock.geometry.client_count:
            return None
        if not self.is_alive(client, owner & ((1 << GENERATION_BITS) - 1)):
            return None
        return load_word(mapping, OWNER_PID)

    def mark_owner(self) -> None:
        """Enters this process as the cache's owner daemon: one living process at a time
        (INV-OWNER).  Decides who may become the next one and what `owner_pid` says, nothing else.

        Raises `CacheExists` where a living process is the owner, this one included, and as
        `rejoin` does.  Waits for the gate.
        """
        self.rejoin()
        mapping = self.mapping
        with self._gate():
            pid = self.owner_pid()
            if pid is not None:
                raise errors.CacheExists(
                    f"cache {self.name!r} has an owner daemon already, pid {pid} in its own "
                    "namespace: stop that one first, or serve a cache of another name"
                )
            word = _owner_word(mapping)
            word[0] = 0
            store_word(mapping, OWNER_PID, os.getpid())
            word[0] = self.identity.value

    def disown(self) -> None:
        """Takes back `mark_owner`, if this process is the owner.  Idempotent; never waits."""
        mapping, identity = self._mapping, self.identity.value
        # while this process lives nobody else touches a word that names it: no gate is needed
        if mapping is not None and identity and _owner_word(mapping)[0] == identity:
            _owner_word(mapping)[0] = 0

    def reap_clients(self, limit: int = 64) -> int:
        """Frees the slots of clients that have died, among the next `limit` that are in use.

        Returns how many.  What they have counted stays in the totals.  Goes on where the last call
        stopped.  Attaching takes such a slot as well; freed ones make that, and the question who
        is left, cheaper.  Goes to the gate only where there is something to free, and never
        waits there: where somebody else is at it, that is left for a later call.

        Raises `CacheNotFound`, `CacheClosed`.
        """
        if self._mapping is None:
            self._refuse_closed()
        if not self.still_named():
            self._refuse_gone()
        try:
            dead = self._table.dead(limit)
            if not dead:
                return 0
            with self._gate(timeout_seconds=0.0):
                return self._table.reap(dead)
        except errors.LockTimeout:
            return 0
        except errors.ShmcacheError:
            raise
        except FileNotFoundError:
            self._refuse_gone()
        except ValueError:  # the table was closed by another thread
            self._refuse_closed()

    @contextmanager
    def _gate(self, timeout_seconds: float = GATE_TIMEOUT_SECONDS) -> Iterator[None]:
        """The gate of this very segment; `CacheNotFound` where the path names it no more."""
        try:
            gate = close_gate(self.name, self.path, timeout_seconds)
        except FileNotFoundError:
            self._refuse_gone()
        try:
            if (gate.device, gate.inode) != (self._device, self._inode) or self.dead:
                self._refuse_gone()
            yield
        finally:
            gate.release()

    @property
    def others_can_write(self) -> bool:
        """Whether a user other than this one and root may write to the segment."""
        return bool(self.mode & 0o022) or self.uid not in (0, os.geteuid())

    # ------------------------------------------------------------------ asked by the binding
    def still_named(self) -> bool:
        """Whether the cache's path names this segment; False after it was unlinked or replaced.

        Costs a stat(2), about a microsecond.
        """
        return names_inode(self.path, self._device, self._inode)

    def wait(self, lock: int, seconds: float) -> None:
        """Waits for a token of semaphore `lock`, at most `seconds`; releases the GIL.

        Returns after a token, the time or a slice of it: look again, and at a monotonic clock.
        Raises what a signal handler raises.
        """
        self._semaphores.wait(lock, seconds)

    def post(self, lock: int) -> None:
        """Adds a token to semaphore `lock` if it has none."""
        self._semaphores.post(lock)

    def is_alive(self, client: int, generation: int) -> bool:
        """Whether that client of the segment is alive: the kernel's word.

        Raises `CacheNotFound` where the path names no file or another one: the cache was unlinked
        or replaced, and nothing can be said.  Where the file cannot be opened for another reason
        (no descriptor left, say) the answer is True: never rob the living.
        """
        try:
            device, inode, locked = is_locked(self.path, client, generation)
        except FileNotFoundError:
            self._refuse_gone()
        except OSError:
            return True
        if (device, inode) != (self._device, self._inode):
            self._refuse_gone()
        return locked

    def live_clients(self) -> int:
        """How many processes are attached and alive, observers left out.

        Raises `CacheNotFound` as `is_alive`, `CacheClosed` after the last release.
        """
        if self._mapping is None:
            self._refuse_closed()
        if not self.still_named():
            self._refuse_gone()
        try:
            return self._table.living()
        except FileNotFoundError:
            self._refuse_gone()
        except ValueError:  # the table was closed by another thread
            self._refuse_closed()

    def rejoin(self) -> None:
        """Makes a forked child a client of its own; does nothing in a process that is one.

        Raises `CacheNotFound` if the segment was unlinked since, `CacheClosed` after the last
        release and at interpreter exit, `LimitReached` or `LockTimeout` as opening does.
        """
        with critical(self.name):
            if self.identity.is_mine:
                return
            if self._mapping is None:
                self._refuse_closed()
            if _exiting():
                raise errors.CacheClosed(
                    f"cache {self.name!r} was closed at interpreter exit; use it before that"
                )
            try:
                with gate_closed(self.name, self.path) as gate:
                    if (gate.device, gate.inode) != (self._device, self._inode) or self.dead:
                        self._refuse_gone()
                    kind = OBSERVER if self.observer else MEMBER
                    self._become(self._table.take(gate.device, gate.inode, kind))
            except (errors.CacheNotFound, errors.NotPermitted):
                raise
            except FileNotFoundError:
                self._refuse_gone()
            except PermissionError as error:
                raise errors.NotPermitted(
                    f"cache {self.name!r} belongs to user {self.uid}, group {self.gid}, with mode "
                    f"{self.mode:04o}, and this forked process has dropped its privileges to user "
                    f"{os.geteuid()}: have it created with mode=0o660 and a group of that user's"
                ) from error
            _attachments.add(self)
            _arm_exit_hook()

    # ------------------------------------------------------------------------ one handle less
    def release(self) -> None:
        """Counts one handle less; with the last one this process leaves the segment.

        The last client out of a segment that does not persist marks it dead and unlinks its
        files.  Where the gate cannot be had (its holder is stopped), or the files are another
        user's, it leaves them to whoever opens the cache next.  Never raises for such reasons.
        """
        if getattr(_inside, "depth", 0):
            # A finaliser that runs in the middle of somebody's critical section.
            _put_off.append(self)
            return
        with critical(self.name):
            if self.handles > 0:
                self.handles -= 1
                if self.handles == 0:
                    self._leave()

    def _leave(self) -> None:
        """Gives up the client slot and the memory; lock of the name held."""
        if _registry.get(self.name) is self:
            del _registry[self.name]
        _attachments.discard(self)
        if self.identity.is_mine:
            self._check_out()
        self._table.close()
        self._block.close()
        self._mapping = None

    def _check_out(self) -> None:
        """Stops being a client, and unlinks what nobody is left to use."""
        self.disown()
        self.identity.set(0)
        if self.observer:  # its slot is its own while its lock is held, and nobody waits for it
            self._table.leave(self.client)
            return
        if not self.still_named():
            return
        try:
            with gate_closed(self.name, self.path) as gate:
                if (gate.device, gate.inode) != (self._device, self._inode):
                    return
                self._table.leave(self.client)
                if self.persist or self._table.anybody_living() or not may_unlink(self.uid):
                    return
                destroy(self.name, self.mapping)
        except FileNotFoundError:  # unlinked by somebody else just now
            return
        except OSError as error:  # the gate's holder is stopped, no descriptor is left...
            logger.warning(
                "cache %r: closed, but its files were left to the next one to open it: %s",
                self.name,
                error,
            )

    def unlink(self) -> None:
        """Marks the segment dead and unlinks its files, whoever uses it.

        Idempotent, and possible after the last `release`; does nothing where the cache was
        replaced by another segment.  Handles stay open; their next calls raise `CacheNotFound`.
        Raises `NotPermitted` where the files are another user's, `LockTimeout` where the gate is
        not to be had.
        """
        with critical(self.name):
            if _registry.get(self.name) is self:
                del _registry[self.name]
            if not self.still_named():
                return
            try:
                with gate_closed(self.name, self.path) as gate:
                    if (gate.device, gate.inode) != (self._device, self._inode):
                        return
                    if not may_unlink(self.uid):
                        raise errors.NotPermitted(
                            f"cache {self.name!r} belongs to user {self.uid}, and {SHM_DIR} lets "
                            "only its owner and root unlink it: run this as one of them"
                        )
                    destroy(self.name, self._mapping or Mapping.open(self.path))
            except FileNotFoundError:
                return

    def _refuse_gone(self) -> NoReturn:
        raise errors.CacheNotFound(
            f"cache {self.name!r} was unlinked or replaced while this process had it open; "
            "reopen() attaches to what is there now, or creates it"
        )

    def _refuse_closed(self) -> NoReturn:
        raise errors.CacheClosed(
            f"cache {self.name!r} was closed in this process; open it again with "
            f"Cache({self.name!r})"
        )


def _owner_word(mapping: Mapping) -> memoryview:
    return memoryview(mapping)[OWNER : OWNER + 8].cast("Q")


# ------------------------------------------------------------------------- interpreter exit
_exit_hook: tuple[int, mp_util.Finalize] | None = None
_exited = ProcessPage(0)  # not 0 once this very process has closed everything


def _exiting() -> bool:
    return _exited.is_mine


def _arm_exit_hook() -> None:
    """Sees to it that this process closes at exit; multiprocessing forgets hooks in children."""
    global _exit_hook
    if _exit_hook is None or _exit_hook[0] != os.getpid() or not _exit_hook[1].still_active():
        hook = mp_util.Finalize(None, _close_all, exitpriority=_EXIT_PRIORITY)
        _exit_hook = (os.getpid(), hook)


def _close_all() -> None:
    """Checks this process out of every segment; memory stays mapped for threads that still run."""
    _exited.set(1)
    for attachment in list(_attachments):
        with critical(attachment.name):
            if attachment.handles and attachment.identity.is_mine:
                attachment._check_out()
