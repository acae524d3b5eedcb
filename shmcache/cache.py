"""`Cache`: a dict that the processes of a host share.

Place: level 4; what a worker uses. The hot methods (get, set, add, delete, incr, batches...) are
inherited from `_core.Handle` and documented there: a Python method around each would add half a
get again. What is composed of them is in `operations.py`, get_or_init in `once.py`. Here is what
decides: opening and closing, and what concerns the cache as a whole.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self, TypeVar, overload
from weakref import WeakValueDictionary

from shmcache import _core, codec, geometry, limits, segment, stats, verify
from shmcache.codec import Codec
from shmcache.errors import CacheClosed, GeometryWarning
from shmcache.latency import LatencyRing
from shmcache.memo import Memoizing
from shmcache.namespace import Namespace
from shmcache.operations import Operations, Ttl, Versioned
from shmcache.swap import SwapSlot
from shmcache.token import CancellationToken

__all__ = ["Cache", "Versioned"]

Policy = Literal["evict", "keep"]
T = TypeVar("T")


class _Default(str):
    """A default that can be told from the same string passed by a caller."""

    __slots__ = ()


_SIZE: Final = _Default("32MiB")


class Cache(Operations[Any], Memoizing):
    """A cache in shared memory, attached to by name.

    A `MutableMapping` whose entries every process of the host that opens the same name sees at
    once. Reads take no lock and never wait; a write takes one of the cache's shards. A process
    that is killed at any instruction harms no other one. Safe to use from many threads; survives
    `fork` (the child gets an identity of its own); pickles to "attach by name".

    Two keys are the same if type and value are: ``1``, ``1.0`` and ``True`` are three keys, where
    a dict would merge them. Values are copies: changing what `get` returned changes nothing in
    the cache.

    Args:
        name: 1 to 64 of ``A-Za-z0-9._-``, not starting with a dot.
        create: None attaches or creates, race-free among any number of starting processes; True
            only creates (`CacheExists`), False only attaches (`CacheNotFound`).
        wait: with ``create=False``, seconds to wait for the cache to appear.
        size: bytes of shared memory in all, an int or ``"64MiB"`` (2**20), ``"64MB"`` (10**6); at
            least 1 MiB. Reserved at once: `OutOfSharedMemory` if /dev/shm has no room.
        shards: a power of two; the default follows from `size` and the CPU count.
        avg_entry_size: bytes of key and value that the index is sized for.
        policy: at creation ``"evict"`` (default: a full cache makes room) or ``"keep"`` (nothing
            that has not expired is dropped; a full cache raises `CacheFull`).
        codec: at creation ``"msgpack"`` (the default), ``"raw"``, ``"json"``, ``"msgspec"``,
            ``"pickle"`` or an object with ``name``, ``encode`` and ``decode``.
        local_entries: decoded values that this handle keeps, 0: none. Each is revalidated against
            shared memory on every get, and is shared within the process: treat it as immutable.
        slots: swap slots to reserve.
        slot_capacity: bytes that each of them can hold.
        persist: keep the segment after its last handle has closed; None: only where an owner
            daemon runs the cache.
        mode: permissions of everything created in shared memory, whatever the umask.
        group: name or id of the group that it is to belong to, and, for an attacher, whose
            segments it accepts besides its own and root's.
        lock_timeout: seconds that a writing call waits for a shard before `LockTimeout`; 0 raises
            `WouldBlock` at once. A holder that has died is recovered from, not waited for.

    Geometry, policy and codec apply at creation: an attacher takes the segment's own. Asking for
    another policy or codec is a ValueError, for another size or number of shards a
    `GeometryWarning`.

    Raises:
        ValueError, TypeError: an argument that makes no sense.
        CacheExists, CacheNotFound: as `create` says.
        NotPermitted: the segment is somebody else's, or `pickle` on one that others can write.
        OutOfSharedMemory: /dev/shm cannot hold `size` bytes more.
        LayoutMismatch, CorruptSegment: what is there cannot be used (and may not be replaced).
        LimitReached: every client slot is taken.
    """

    # no instance dict: with one, the interpreter cannot specialise the look-up of `get`, which
    # costs 9 ns of a get's 45 (CPython 3.11)
    __slots__ = ("__weakref__", "_hash_seed", "_last", "_namespaces", "_opened")

    _opened: dict[str, Any]
    _hash_seed: int | None  # only where `_seeded` made it
    _observes: ClassVar[bool] = False  # see observer.py
    _decodes: ClassVar[bool] = True  # the same
    _last: segment.Attachment | None
    _namespaces: WeakValueDictionary[int, Namespace[Any]]

    def __init__(
        self,
        name: str,
        *,
        create: bool | None = None,
        wait: float = 0.0,
        size: int | str = _SIZE,
        shards: int | None = None,
        avg_entry_size: int = 256,
        policy: Policy | None = None,
        codec: str | Codec | None = None,
        local_entries: int = 0,
        slots: int = 16,
        slot_capacity: int | str = "64KiB",
        persist: bool | None = None,
        mode: int = 0o600,
        group: str | int | None = None,
        lock_timeout: float = 5.0,
    ) -> None:
        limits.check_name(name)
        if create not in (None, True, False):
            raise ValueError(f"create must be None, True or False, not {create!r}")
        if policy not in (None, "evict", "keep"):
            raise ValueError(f"policy must be 'evict' or 'keep', not {policy!r}")
        if persist not in (None, True, False):
            raise ValueError(f"persist must be None, True or False, not {persist!r}")
        limits.check_local_entries(local_entries)
        self._last = None
        self._pop_at = 0
        self._namespaces = WeakValueDictionary()
        self._opened = {
            "wait": limits.check_timeout("wait", wait),
            "size": size,
            "shards": shards,
            "avg_entry_size": avg_entry_size,
            "policy": policy,
            "codec": codec,
            "slots": slots,
            "slot_capacity": slot_capacity,
            "persist": persist,
            "mode": mode,
            "group": group,
            "local_entries": local_entries,
        }
        self._keep_local(local_entries)
        self._open(name, create, limits.check_timeout("lock_timeout", lock_timeout))

    @classmethod
    def _seeded(cls, hash_seed: int | None, name: str, **arguments: Any) -> Self:
        """`Cache(name, **arguments)`; where that creates the segment, with this hash seed (None: a
        random one). Keys then lie in the shards that they lay in when the seed was saved."""
        cache = cls.__new__(cls)
        cache._hash_seed = hash_seed
        Cache.__init__(cache, name, **arguments)
        return cache

    def _open(self, name: str, create: bool | None, lock_timeout: float) -> None:
        asked = self._opened
        size = geometry.parse_size(asked["size"])

        def plan() -> geometry.Geometry:
            return geometry.plan(
                size=size,
                shards=asked["shards"],
                avg_entry_size=asked["avg_entry_size"],
                policy=asked["policy"] or "evict",
                slots=asked["slots"],
                slot_capacity=geometry.parse_size(asked["slot_capacity"], "slot_capacity"),
                cpu_count=os.cpu_count() or 1,
            )

        plan()  # arguments that make no sense are refused, whether they are needed or not
        wanted = None if asked["codec"] is None else codec.resolve(asked["codec"])
        attachment = segment.open_segment(
            name,
            create=create,
            wait=asked["wait"],
            plan=plan,
            policy=asked["policy"],
            codec_name=None if wanted is None else wanted.name,
            mode=asked["mode"],
            group=asked["group"],
            persist=asked["persist"],
            hash_seed=getattr(self, "_hash_seed", None),
            observe=self._observes,
            decode=self._decodes,
        )
        try:
            found = attachment.superblock
            if not self._decodes:
                wanted = codec.SealedCodec(found.codec)
            elif wanted is None:
                wanted = codec.resolve(found.codec)
            self._warn_of_geometry(name, found.geometry, size)
            connected = self._connect(attachment, wanted, lock_timeout)
        except BaseException:
            attachment.release()
            raise
        if not connected:  # another thread reopened this handle, and was quicker
            attachment.release()

    def _warn_of_geometry(self, name: str, found: geometry.Geometry, size: int) -> None:
        asked = self._opened
        differ = []
        if asked["size"] is not _SIZE and size != found.total_size:
            differ.append(f"size {size} (it has {found.total_size} bytes)")
        if asked["shards"] not in (None, found.shard_count):
            differ.append(f"{asked['shards']} shards (it has {found.shard_count})")
        if differ:
            warnings.warn(
                f"cache {name!r} exists already, with a geometry of its own; asked for "
                f"{' and '.join(differ)}: an attacher takes the segment's",
                GeometryWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ life and identity

    def close(self) -> None:
        """Let go of the segment. The last handle of the last process unlinks it, unless it
        persists. May be called twice; every other call raises `CacheClosed` from then on, in
        other threads too."""
        attachment = self._disconnect()
        if attachment is not None:
            for namespace in list(self._namespaces.values()):
                namespace._disconnect()
            self._last = attachment
            attachment.release()

    def unlink(self) -> None:
        """Remove the cache for everybody: its name at once, its memory with the last process.
        Open handles raise `CacheNotFound` from then on. May be called twice, and after `close`."""
        attachment = self._attachment or self._last
        if attachment is not None:
            attachment.unlink()

    def reopen(self) -> None:
        """Attach anew by name (or create, as the handle was opened), after `CacheNotFound` or
        `close`. What was in the old segment stays there."""
        name, lock_timeout = self.name, self.lock_timeout
        self.close()
        self._open(name, None, lock_timeout)

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._attachment is None

    def __enter__(self) -> Self:
        self._held  # noqa: B018 (raises CacheClosed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        asked = self._opened
        local = asked["local_entries"]
        return _attach, (self.name, asked["codec"], asked["group"], self.lock_timeout, local)

    def __copy__(self) -> Self:
        raise TypeError(
            f"a cache is not copied: take dict() of it, or open Cache({self.name!r}) once more"
        )

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        if self.closed:
            return f"<{type(self).__name__} {self.name!r} closed>"
        return (
            f"<{type(self).__name__} {self.name!r} size={self.size} shards={self.shards} "
            f"policy={self.policy!r} codec={self.codec!r}>"
        )

    @property
    def _held(self) -> segment.Attachment:
        attachment: segment.Attachment | None = self._attachment
        if attachment is None:
            raise CacheClosed(
                f"this handle on cache {self.name!r} is closed; open the cache again with "
                f"Cache({self.name!r})"
            )
        return attachment

    @property
    def size(self) -> int:
        """Bytes of shared memory in all."""
        return self._held.superblock.geometry.total_size

    @property
    def shards(self) -> int:
        """The number of shards."""
        return self._held.superblock.geometry.shard_count

    @property
    def policy(self) -> str:
        """``"evict"`` or ``"keep"``."""
        return self._held.superblock.policy

    @property
    def codec(self) -> str:
        """The name of the codec that the segment's values are encoded with."""
        return self._held.superblock.codec

    @property
    def persist(self) -> bool:
        """Whether the segment stays after its last handle has closed."""
        return self._held.persist

    # --------------------------------------------------------------------------- as a whole

    def __len__(self) -> int:
        """Entries, expired ones included until they are swept. O(shards), no lock."""
        return _core.entry_count(self)

    def clear(self) -> None:
        """Remove every entry. Each shard is taken for about 100 us at a time; entries written
        meanwhile may stay."""
        for shard in range(self.shards):
            _core.clear_shard(self, shard)

    def expire(self) -> int:
        """Remove what has expired, now; returns how many entries. Writes do it by themselves when
        they need room. O(shards) where nothing has expired."""
        return sum(_core.expire_shard(self, shard) for shard in range(self.shards))

    def latencies(self, name: str = "default", *, capacity: int = 4096) -> LatencyRing:
        """The latency ring of that name, shared by all processes. The first to name it sets how
        many samples it keeps (fewer where the cache has no room for more); 16 names at least, then
        `LimitReached`. The cache's own gets and sets are in ``"shmcache.get"`` and
        ``"shmcache.set"``, one in `latency_sampling` of them."""
        return LatencyRing(self, name, capacity)

    @overload
    def namespace(self, prefix: str, type: None = None, *, ttl: Ttl = None) -> Namespace[Any]: ...
    @overload
    def namespace(self, prefix: str, type: type[T], *, ttl: Ttl = None) -> Namespace[T]: ...
    @overload
    def namespace(self, prefix: str, type: Any, *, ttl: Ttl = None) -> Namespace[Any]: ...
    def namespace(self, prefix: str, type: Any = None, *, ttl: Ttl = None) -> Namespace[Any]:
        """The entries whose keys begin with `prefix`, as a mapping of their own.

        Args:
            prefix: a str, not empty; the same prefix in any process is the same namespace.
            type: values are decoded into it: a dataclass, a TypedDict, a msgspec.Struct, a
                pydantic model, ``list[User]``...; `shmcache.typed` says who decodes what. Data
                that does not fit is a `DecodeError`.
            ttl: seconds that its entries live where a call gives no ttl (inf there: for ever).

        Its entries count in `len`, `stats` and `clear` of the cache, and show only through the
        namespace. `Namespace.invalidate` drops them all in O(1).

        Raises TypeError, ValueError (an empty prefix, more than 1,024 bytes), CacheClosed.
        """
        return Namespace(self, (prefix,), type, ttl)

    def _adopt_namespace(self, namespace: Namespace[Any]) -> None:
        """Close it with this handle."""
        self._namespaces[id(namespace)] = namespace

    # ------------------------------------------------------------------ beside the entries

    def slot(self, name: str = "config") -> SwapSlot:
        """The swap slot of that name: one value that is replaced whole, for read-mostly data. The
        first use of a name takes one of the cache's `slots` for good (`LimitReached`)."""
        return SwapSlot(self, name)

    def token(self, name: str) -> CancellationToken:
        """The cancellation token of that name. The first use of a name takes one of the cache's
        64 tokens for good (`LimitReached`)."""
        return CancellationToken(self, name)

    # ---------------------------------------------------------------------------- insight

    def stats(self) -> stats.Stats:
        """Counters of all processes over the cache's lifetime. Never waits for a shard."""
        return stats.collect(self, self._held)

    def verify(self) -> list[verify.Finding]:
        """Check every invariant of the segment, beside writers too. Returns findings, empty when
        it is sound. Takes each shard for about 200 ns an entry."""
        return verify.verify(self, self.shards)


def _attach(
    name: str, wanted: str | Codec | None, group: Any, lock_timeout: float, local_entries: int
) -> Cache:
    """What a pickled Cache becomes: a handle on the cache of that name."""
    return Cache(
        name,
        create=False,
        codec=wanted,
        group=group,
        lock_timeout=lock_timeout,
        local_entries=local_entries,
    )
