"""Is a recorded history of one key linearizable?

The algorithm is Wing and Gong's (Testing and verifying concurrent objects, 1993) with Lowe's
memoisation (Testing for linearizability, 2017): walk the history in time order, try to let each
call that could come first take effect, go back when no order is left, and never look twice at the
same set of finished calls with the same state.

Linearizability is local (Herlihy and Wing, 1990): a history over many keys is linearizable if and
only if its restriction to each key is.  So each key is checked alone, which keeps this fast.
``invalidate`` of a namespace is a call on all its keys at once: histories with it are checked as a
whole, their state being that of every key (``Space``).

The sequential specification of a key, besides what a dict does:

get_or_init(v)
    Where there is a value: returns it, and changes nothing; its factory may have run in vain.
    Where there is none: returns v, which its factory gave, and stores it.  But
    - a call that writes or removes the key, and lies within the run of the factory, takes the right
      to store away: v is not stored;
    - one that only meets the call may or may not; without any, v is stored.
    So two callers who both return their own values, and nothing between them that removes the
    first one's, are a violation: the factory ran twice.
invalidate
    No key of the namespace has a value.  Whoever asks later gets none that was stored before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

ABSENT = "<absent>"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its caller saw it.

    ``started`` and ``ended`` are CLOCK_MONOTONIC nanoseconds around the call; ``ended`` is
    infinite for one whose caller died inside it: it may have taken effect at any later time, or
    never (its result is then ignored).  ``factory`` is when the factory of a ``get_or_init`` began
    and ended, if it was called.  ``key`` is None for ``invalidate``.
    """

    key: Hashable
    name: str
    arguments: tuple[Any, ...]
    result: Any
    started: float
    ended: float = math.inf
    caller: int = 0
    factory: tuple[float, float] | None = None

    def __str__(self) -> str:
        given = ", ".join(map(repr, self.arguments))
        return f"{self.caller}: {self.started}..{self.ended} {self.name}({given}) -> {self.result}"


@dataclass(frozen=True, slots=True)
class State:
    """A key's sequential state.

    ``version`` is None from a write until a ``gets`` shows what version that write has made;
    ``seen`` holds the versions of earlier writes, none of which may ever come back.
    """

    value: Any = ABSENT
    version: Any = None
    seen: frozenset[Any] = frozenset()

    def written(self, value: Any) -> State:
        """The state after a write."""
        seen = self.seen if self.version is None else self.seen | {self.version}
        return State(value, None, seen)


def step(state: State, call: Call) -> State | None:
    """The state after ``call`` if a sequential cache could have given its result, else None."""
    unknown = call.ended == math.inf
    present = state.value != ABSENT
    name, arguments, result = call.name, call.arguments, call.result

    def answers(expected: Any) -> bool:
        return unknown or result == expected

    if name == "get":
        return state if answers(state.value) else None
    if name == "set":
        return state.written(arguments[0])
    if name == "add":
        if not answers(not present):
            return None
        return state if present else state.written(arguments[0])
    if name == "replace":
        if not answers(present):
            return None
        return state.written(arguments[0]) if present else state
    if name == "delete":
        if not answers(present):
            return None
        return state.written(ABSENT) if present else state
    if name == "pop":
        if not answers(state.value):
            return None
        return state.written(ABSENT) if present else state
    if name == "incr":
        total = state.value + arguments[0] if present else arguments[0]
        return state.written(total) if answers(total) else None
    if name == "gets":
        return _step_gets(state, result, unknown)
    if name == "cas":
        value, version = arguments
        matches = present and state.version is not None and state.version == version
        if not answers(matches):
            return None
        return state.written(value) if matches else state
    raise ValueError(f"no sequential meaning for a call of {name!r}")


def _step_gets(state: State, result: Any, unknown: bool) -> State | None:
    if unknown:
        return state
    if result == ABSENT or state.value == ABSENT:
        return state if result == state.value else None
    value, version = result
    if value != state.value:
        return None
    if state.version is None:
        return None if version in state.seen else State(value, version, state.seen)
    return state if version == state.version else None


KEPT, LOST, EITHER = "kept", "lost", "either"
"""What becomes of the value that a factory gave."""


def steps(state: State, call: Call, fate: str = KEPT) -> tuple[State, ...]:
    """Every state that a sequential cache could be in after ``call``, given its result."""
    if call.name == "invalidate":
        return (state if state.value == ABSENT else state.written(ABSENT),)
    if call.name != "get_or_init":
        after = step(state, call)
        return () if after is None else (after,)
    (own,) = call.arguments
    if call.ended == math.inf:
        return (state.written(own),) if state.value == ABSENT else ()
    if state.value != ABSENT:
        return (state,) if call.result == state.value else ()
    if call.result != own or call.factory is None:
        return ()
    return {KEPT: (state.written(own),), LOST: (state,), EITHER: (state.written(own), state)}[fate]


def _changes(call: Call) -> bool:
    """Has it written or removed the key, so that whoever initialised it was overtaken?"""
    if call.name in ("set", "delete", "incr", "invalidate"):
        return True
    return call.name in ("add", "replace", "cas") and call.result is True


def _may_change(call: Call) -> bool:
    return call.name not in ("get", "gets", "get_or_init")


def fates(calls: list[Call]) -> list[str]:
    """For each call, what may become of the value of its factory: see the specification above."""
    found = [KEPT] * len(calls)
    changing = [call for call in calls if _may_change(call)]
    for index, call in enumerate(calls):
        if call.name != "get_or_init" or call.factory is None:
            continue
        began, ended = call.factory
        for other in changing:
            if other.key not in (call.key, None):
                continue
            if began <= other.started and other.ended <= ended and _changes(other):
                found[index] = LOST
                break
            if other.started < call.ended and call.started < other.ended:
                found[index] = EITHER
    return found


Space: TypeAlias = tuple[tuple[Hashable, State], ...]
"""The states of all keys of a namespace."""


def space_steps(space: Space, call: Call, fate: str = KEPT) -> tuple[Space, ...]:
    """``steps`` for a whole namespace."""
    if call.name == "invalidate":
        return (tuple((key, *steps(state, call)) for key, state in space),)  # type: ignore[misc]
    at = next(i for i, (key, _) in enumerate(space) if key == call.key)
    return tuple(
        (*space[:at], (call.key, after), *space[at + 1 :])
        for after in steps(space[at][1], call, fate)
    )


class _Node:
    """A call's start or end in the doubly linked history."""

    __slots__ = ("call", "end", "index", "next", "previous")

    def __init__(self, call: Call, index: int, end: _Node | None) -> None:
        self.call = call
        self.index = index
        self.end = end  # of a start: the node of its end
        self.next: _Node | None = None
        self.previous: _Node | None = None


def _linked(calls: list[Call]) -> _Node:
    events: list[tuple[float, int, int, _Node]] = []
    for index, call in enumerate(calls):
        end = _Node(call, index, None)
        events.append((call.started, 0, index, _Node(call, index, end)))
        events.append((call.ended, 1, index, end))
    events.sort(key=lambda event: event[:3])
    head = last = _Node(calls[0], -1, None)
    for *_, node in events:
        last.next, node.previous = node, last
        last = node
    return head


def _lift(node: _Node) -> None:
    for part in (node, node.end):
        assert part is not None and part.previous is not None
        part.previous.next = part.next
        if part.next is not None:
            part.next.previous = part.previous


def _unlift(node: _Node) -> None:
    for part in (node.end, node):
        assert part is not None and part.previous is not None
        part.previous.next = part
        if part.next is not None:
            part.next.previous = part


def is_linearizable(calls: Iterable[Call], initial: State | None = None) -> bool:
    """Whether some order of ``calls`` (all of one key) explains every result.

    The order must respect time: a call that ended before another started comes first.  Calls that
    never ended may be left out.  Cost: about linear for histories of a few callers, exponential in
    the number of callers in the worst case.
    """
    history = list(calls)
    assert len({call.key for call in history}) <= 1, "one key at a time: linearizability is local"
    return _explained(history, initial or State(), steps)


def is_linearizable_space(calls: Iterable[Call]) -> bool:
    """``is_linearizable`` for all calls on one namespace, ``invalidate`` among them."""
    history = list(calls)
    keys = sorted({call.key for call in history} - {None})  # type: ignore[type-var]
    return _explained(history, tuple((key, State()) for key in keys), space_steps)


def _explained(history: list[Call], state: Any, after: Callable[..., tuple[Any, ...]]) -> bool:
    if not history:
        return True
    must = sum(1 << index for index, call in enumerate(history) if call.ended != math.inf)
    fate = fates(history)
    head = _linked(history)
    done = 0
    stack: list[tuple[_Node, Any]] = []
    tried: set[tuple[int, Any]] = set()
    node = head.next
    while done & must != must:
        assert node is not None, "an unfinished call's end lies behind every call that ended"
        if node.end is not None:
            larger = done | 1 << node.index
            for next_state in after(state, node.call, fate[node.index]):
                if (larger, next_state) not in tried:
                    stack.append((node, state))
                    state, done = next_state, larger
                    tried.add((done, state))
                    _lift(node)
                    node = head.next
                    break
            else:
                node = node.next
        elif not stack:
            return False
        else:
            node, state = stack.pop()
            done &= ~(1 << node.index)
            _unlift(node)  # and once more: what it has tried by now is in `tried`
    return True


def violations(calls: Iterable[Call]) -> dict[Hashable, list[Call]]:
    """The keys whose histories are not linearizable, each with its calls in time order."""
    by_key: defaultdict[Hashable, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    return {
        key: sorted(history, key=lambda call: call.started)
        for key, history in by_key.items()
        if not is_linearizable(history)
    }
