"""Eviction policies in plain Python, to compare the real cache with.

All follow one rule: `access(key, size)` looks the key up, and on a miss admits it; what is kept
never adds up to more than `capacity` in the unit of `size`; an object larger than the capacity is
not admitted.  They are written for clarity and checked against the reference table that comes
with the traces (`python -m bench.policy --check`).

Sources: CLOCK, Corbató 1968; SIEVE, Zhang et al., NSDI 2024; S3-FIFO, Yang et al., SOSP 2023.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol


class Policy(Protocol):
    """A simulated cache."""

    def access(self, key: int, size: int) -> bool:
        """Look `key` up, admitting it on a miss; returns whether it was a hit."""
        ...


class Fifo:
    """First in, first out."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._capacity = capacity
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def access(self, key: int, size: int) -> bool:
        """See `Policy`."""
        if key in self._sizes:
            return True
        if size <= self._capacity:
            while self._free < size:
                self._free += self._sizes.popitem(last=False)[1]
            self._sizes[key] = size
            self._free -= size
        return False


class Lru:
    """Least recently used."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._capacity = capacity
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def access(self, key: int, size: int) -> bool:
        """See `Policy`."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return True
        if size <= self._capacity:
            while self._free < size:
                self._free += self._sizes.popitem(last=False)[1]
            self._sizes[key] = size
            self._free -= size
        return False


class Clock:
    """FIFO with another chance for what was hit, up to `top` of them."""

    def __init__(self, capacity: int, top: int = 1) -> None:
        self._free = capacity
        self._capacity = capacity
        self._top = top
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._hits: dict[int, int] = {}

    def access(self, key: int, size: int) -> bool:
        """See `Policy`."""
        hits = self._hits.get(key)
        if hits is not None:
            if hits < self._top:
                self._hits[key] = hits + 1
            return True
        if size <= self._capacity:
            while self._free < size:
                self._evict()
            self._sizes[key] = size
            self._hits[key] = 0
            self._free -= size
        return False

    def _evict(self) -> None:
        while True:
            key = next(iter(self._sizes))
            if self._hits[key] == 0:
                self._free += self._sizes.pop(key)
                del self._hits[key]
                return
            self._hits[key] -= 1
            self._sizes.move_to_end(key)


class _Node:
    """An object in the list of `Sieve`."""

    __slots__ = ("key", "newer", "older", "size", "visited")

    def __init__(self, key: int, size: int) -> None:
        self.key = key
        self.size = size
        self.visited = False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve:
    """A FIFO in which what was hit stays in place while a hand moves from old to new."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._capacity = capacity
        self._nodes: dict[int, _Node] = {}
        self._newest: _Node | None = None
        self._oldest: _Node | None = None
        self._hand: _Node | None = None

    def access(self, key: int, size: int) -> bool:
        """See `Policy`."""
        node = self._nodes.get(key)
        if node is not None:
            node.visited = True
            return True
        if size <= self._capacity:
            while self._free < size:
                self._evict()
            node = _Node(key, size)
            node.older = self._newest
            if self._newest is not None:
                self._newest.newer = node
            self._newest = node
            if self._oldest is None:
                self._oldest = node
            self._nodes[key] = node
            self._free -= size
        return False

    def _evict(self) -> None:
        node = self._hand or self._oldest
        assert node is not None
        while node.visited:
            node.visited = False
            node = node.newer or self._oldest
            assert node is not None
        self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._newest = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._oldest = node.newer
        del self._nodes[node.key]
        self._free += node.size


class S3Fifo:
    """Small FIFO (a tenth), main FIFO, and a queue of ghosts.

    As published: objects enter the small queue, or main where a ghost remembers them; a two-bit
    count of hits; from the small queue those with more than one hit move to main, the others
    leave a ghost; in main a hit buys another round.  The small queue gives way while it is at
    its share, else main.  Ghosts are bounded by the bytes that they stood for: as many as main
    can hold.
    """

    def __init__(self, capacity: int, small: float = 0.1, threshold: int = 2) -> None:
        self._capacity = capacity
        self._small_capacity = int(capacity * small)
        self._main_capacity = capacity - self._small_capacity
        self._threshold = threshold
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._small_used = self._main_used = self._ghost_used = 0
        self._sizes: dict[int, int] = {}
        self._hits: dict[int, int] = {}
        self._ghosts: OrderedDict[int, int] = OrderedDict()

    def access(self, key: int, size: int) -> bool:
        """See `Policy`."""
        hits = self._hits.get(key)
        if hits is not None:
            if hits < 3:
                self._hits[key] = hits + 1
            return True
        if size > self._capacity:
            return False
        ghost = self._ghosts.pop(key, None)
        if ghost is not None:
            self._ghost_used -= ghost
        while self._small_used + self._main_used + size > self._capacity:
            if self._small and (self._small_used >= self._small_capacity or not self._main):
                self._evict_small()
            else:
                self._evict_main()
        self._sizes[key] = size
        self._hits[key] = 0
        if ghost is not None:
            self._main.append(key)
            self._main_used += size
        else:
            self._small.append(key)
            self._small_used += size
        return False

    def _evict_small(self) -> None:
        while self._small:
            key = self._small.popleft()
            size = self._sizes[key]
            self._small_used -= size
            if self._hits[key] < self._threshold:
                del self._sizes[key], self._hits[key]
                self._remember(key, size)
                return
            self._hits[key] = 0
            self._main.append(key)
            self._main_used += size
            if self._main_used > self._main_capacity:
                self._evict_main()

    def _evict_main(self) -> None:
        while True:
            key = self._main.popleft()
            if self._hits[key] == 0:
                self._main_used -= self._sizes.pop(key)
                del self._hits[key]
                return
            self._hits[key] -= 1
            self._main.append(key)

    def _remember(self, key: int, size: int) -> None:
        self._ghosts[key] = size
        self._ghost_used += size
        while self._ghost_used > self._main_capacity:
            self._ghost_used -= self._ghosts.popitem(last=False)[1]


POLICIES: dict[str, Callable[[int], Policy]] = {
    "FIFO": Fifo,
    "LRU": Lru,
    "CLOCK, 1 bit": Clock,
    "CLOCK, 2 bits": lambda capacity: Clock(capacity, top=3),
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
}
"""Name, as in the reference table, and how to make one of `capacity`."""
