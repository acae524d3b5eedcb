"""Who holds the locks of a segment, and whether they live: looked at from outside, taking none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shmcache._core import LAYOUT
from shmcache._linux import Mapping
from shmcache.block import Superblock
from shmcache.doctor.diagnosis import Diagnosis, Places
from shmcache.liveness import GENERATION_BITS, is_locked

__all__ = ["Client", "client_of", "examine_holders"]

_GENERATION_MASK = (1 << GENERATION_BITS) - 1
_IDENTITY = (1 << 48) - 1
"""The bits of a holder word that say who (SHM_L_IDENTITY); the one above: somebody waits."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client that a word of the segment names.

    Attributes:
        slot, generation: its identity.
        alive: what the kernel says of it.
        pid: as its own namespace sees it; None where its slot has had another client since.
    """

    slot: int
    generation: int
    alive: bool
    pid: int | None

    def __str__(self) -> str:
        return f"process {self.pid}" if self.pid else f"client {self.slot}/{self.generation}"


def load_long(mapping: Mapping, offset: int) -> int:
    """One 64-bit word of the segment, in one load."""
    return memoryview(mapping)[offset : offset + 8].cast("Q")[0]


def client_of(word: int, superblock: Superblock, mapping: Mapping, path: str) -> Client | None:
    """The client that a holder word names; None for 0 and for what is no holder word.

    Raises OSError where the file is gone.
    """
    slot, generation = ((word & _IDENTITY) >> GENERATION_BITS) - 1, word & _GENERATION_MASK
    if not 0 <= slot < superblock.geometry.client_count:
        return None
    base = superblock.geometry.clients_off + slot * LAYOUT["sizeof.shm_client"]
    words = memoryview(mapping)[base : base + LAYOUT["sizeof.shm_client"]].cast("I")
    same = words[LAYOUT["shm_client.generation"] // 4] == generation
    pid = words[LAYOUT["shm_client.pid"] // 4] if same else None
    return Client(slot, generation, is_locked(path, slot, generation)[2], pid)


def _locks(superblock: Superblock) -> Iterator[tuple[str, int]]:
    """Every lock of a segment, as people call it, and where its holder word lies."""
    g = superblock.geometry
    for i in range(g.shard_count):
        yield f"shard {i}", g.shards_off + i * g.shard_stride + LAYOUT["shm_shard.holder"]
    for i in range(g.slot_count):
        yield f"swap slot {i}", g.slots_off + i * g.slot_stride + LAYOUT["shm_swap.holder"]
    if g.slot_count:
        yield "the directory of swap slots", g.slots_off + LAYOUT["shm_swap.directory"]
    for i in range(g.token_count):
        offset = g.tokens_off + i * LAYOUT["sizeof.shm_token"]
        yield f"token {i}", offset + LAYOUT["shm_token.holder"]
    if g.token_count:
        yield "the directory of tokens", g.tokens_off + LAYOUT["shm_token.directory"]
    yield "the directory of latency rings", g.rings_off + LAYOUT["shm_rings.holder"]


def examine_holders(
    places: Places, superblock: Superblock, mapping: Mapping, path: str
) -> Iterator[Diagnosis]:
    """Find locks whose holder is dead, or stopped."""
    name = superblock.name
    dead: list[str] = []
    words: list[str] = []
    stopped: dict[int, list[str]] = {}
    for what, offset in _locks(superblock):
        word = load_long(mapping, offset)
        if word == 0 or (client := client_of(word, superblock, mapping, path)) is None:
            continue
        if load_long(mapping, offset) & _IDENTITY != word & _IDENTITY:
            continue  # it was let go of meanwhile: whoever held it was well
        if not client.alive:
            dead.append(f"{what} by {client}")
            words.append(f"{what} {word & _IDENTITY:#x}")
        elif client.pid and _is_stopped(places, client.pid):
            stopped.setdefault(client.pid, []).append(what)
    if dead:
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r}: held by the dead: {_some(dead)}",
            "a process was killed in the middle of a write. The next write there repairs it within "
            "milliseconds; until then what it was about to change may hold memory or a lease back",
            f"shmcache verify {name} (it takes every shard, and so repairs it now)",
            "dead-holder",
            tuple(words),
        )
    for pid, held in stopped.items():
        yield Diagnosis(
            "warning",
            name,
            f"cache {name!r}: process {pid} is stopped, and holds {_some(held)}",
            "writers there wait for it, and raise LockTimeout in the end; reads go on",
            f"kill -CONT {pid} (or kill -KILL {pid}: what it held is repaired)",
            "stopped-holder",
        )


def _some(items: list[str]) -> str:
    more = len(items) - 5
    return ", ".join(items[:5]) + (f" and {more} more" if more > 0 else "")


def _is_stopped(places: Places, pid: int) -> bool:
    try:
        stat = (places.proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])
