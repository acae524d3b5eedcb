"""The checker itself: it must accept what is linearizable and, above all, reject what is not."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from support.linearizability import (
    ABSENT,
    Call,
    State,
    fates,
    is_linearizable,
    is_linearizable_space,
    steps,
    violations,
)


def call(
    started: float,
    ended: float,
    name: str,
    *arguments: Any,
    gives: Any = None,
    factory: tuple[float, float] | None = None,
    key: str | None = "k",
) -> Call:
    return Call(key, name, arguments, gives, started, ended, factory=factory)


def init(started: float, ended: float, own: Any, gives: Any = None) -> Call:
    """A get_or_init; its factory ran, in the middle of it, if it gives its own value."""
    middle = (started + 1, ended - 1) if gives in (None, own) else None
    return call(
        started, ended, "get_or_init", own, gives=own if gives is None else gives, factory=middle
    )


ACCEPTED = {
    "nothing": [],
    "one after the other": [
        call(0, 1, "set", 1),
        call(2, 3, "get", gives=1),
        call(4, 5, "delete", gives=True),
        call(6, 7, "get", gives=ABSENT),
    ],
    "a read beside a write sees the old value": [
        call(0, 1, "set", 1),
        call(2, 9, "set", 2),
        call(3, 4, "get", gives=1),
        call(5, 6, "get", gives=2),
    ],
    "two adds at once, one winner": [
        call(0, 9, "add", 1, gives=False),
        call(1, 8, "add", 2, gives=True),
        call(10, 11, "get", gives=2),
    ],
    "the later start may come first": [
        call(0, 9, "incr", 1, gives=2),
        call(1, 8, "incr", 1, gives=1),
    ],
    "a dead caller's write took effect": [
        call(0, math.inf, "set", 1),
        call(5, 6, "get", gives=ABSENT),
        call(7, 8, "get", gives=1),
    ],
    "a dead caller's write never took effect": [
        call(0, math.inf, "set", 1),
        call(5, 6, "get", gives=ABSENT),
    ],
    "cas with the version that gets gave": [
        call(0, 1, "set", 1),
        call(2, 3, "gets", gives=(1, 70)),
        call(4, 5, "cas", 2, 70, gives=True),
        call(6, 7, "gets", gives=(2, 71)),
        call(8, 9, "cas", 3, 70, gives=False),
    ],
    "one initialises, another waits": [init(0, 9, 1), init(1, 10, 2, gives=1)],
    "a value that is there": [call(0, 1, "set", 5), init(2, 9, 1, gives=5)],
    "a set while the factory runs wins": [
        init(0, 9, 1),
        call(3, 4, "set", 5),
        call(10, 11, "get", gives=5),
    ],
    "a delete while the factory runs wins": [
        init(0, 9, 1),
        call(3, 4, "delete", gives=False),
        call(10, 11, "get", gives=ABSENT),
    ],
    "after a delete another one initialises": [
        init(0, 9, 1),
        call(3, 4, "delete", gives=False),
        init(5, 20, 2),
        call(21, 22, "get", gives=2),
    ],
    "a delete beside the call's end may have come before": [
        init(0, 9, 1),
        call(8.5, 12, "delete", gives=False),
        call(13, 14, "get", gives=ABSENT),
    ],
    "a dead initialiser stored": [init(0, math.inf, 1, gives=0), call(5, 6, "get", gives=1)],
    "a dead initialiser did not": [init(0, math.inf, 1, gives=0), init(3, 9, 2)],
    "pop and a pop that came too late": [
        call(0, 1, "set", 1),
        call(2, 9, "pop", gives=ABSENT),
        call(3, 8, "pop", gives=1),
    ],
}

REJECTED = {
    "a value out of nowhere": [call(0, 1, "get", gives=1)],
    "two factories for one value": [init(0, 9, 1), init(1, 10, 2)],
    "a factory beside a value": [call(0, 1, "set", 5), init(2, 9, 1)],
    "a value of a factory is lost": [init(0, 9, 1), call(10, 11, "get", gives=ABSENT)],
    "a late value overwrites a set": [
        init(0, 9, 1),
        call(3, 4, "set", 5),
        call(10, 11, "get", gives=1),
    ],
    "a late value comes after a delete": [
        init(0, 9, 1),
        call(3, 4, "delete", gives=False),
        call(10, 11, "get", gives=1),
    ],
    "somebody waits for a value that never was": [init(0, 9, 1), init(1, 10, 2, gives=3)],
    "a dead initialiser overwrites": [
        call(0, 1, "set", 5),
        init(2, math.inf, 1, gives=0),
        call(5, 6, "get", gives=1),
    ],
    "a stale read": [
        call(0, 1, "set", 1),
        call(2, 3, "set", 2),
        call(4, 5, "get", gives=1),
    ],
    "a lost update": [call(0, 9, "incr", 1, gives=1), call(1, 8, "incr", 1, gives=1)],
    "two winners of add": [
        call(0, 9, "add", 1, gives=True),
        call(1, 8, "add", 2, gives=True),
    ],
    "two winners of pop": [
        call(0, 1, "set", 1),
        call(2, 9, "pop", gives=1),
        call(3, 8, "pop", gives=1),
    ],
    "a read that goes back": [
        call(0, 1, "set", 1),
        call(2, 99, "set", 2),
        call(3, 4, "get", gives=2),
        call(5, 6, "get", gives=1),
    ],
    "a deleted value that comes back": [
        call(0, 1, "set", 1),
        call(2, 3, "delete", gives=True),
        call(4, 5, "get", gives=1),
    ],
    "two deletes of one value": [
        call(0, 1, "set", 1),
        call(2, 9, "delete", gives=True),
        call(3, 8, "delete", gives=True),
    ],
    "cas past a write": [
        call(0, 1, "set", 1),
        call(2, 3, "gets", gives=(1, 70)),
        call(4, 5, "set", 1),
        call(6, 7, "cas", 2, 70, gives=True),
    ],
    "cas that failed for no reason": [
        call(0, 1, "set", 1),
        call(2, 3, "gets", gives=(1, 70)),
        call(4, 5, "cas", 2, 70, gives=False),
    ],
    "a version that comes back": [
        call(0, 1, "set", 1),
        call(2, 3, "gets", gives=(1, 70)),
        call(4, 5, "set", 2),
        call(6, 7, "gets", gives=(2, 70)),
    ],
    "a version that changes by itself": [
        call(0, 1, "set", 1),
        call(2, 3, "gets", gives=(1, 70)),
        call(4, 5, "gets", gives=(1, 71)),
    ],
    "a dead caller's write seen before it started": [
        call(0, 1, "get", gives=1),
        call(5, math.inf, "set", 1),
    ],
    "a dead caller's write seen, then not": [
        call(0, math.inf, "set", 1),
        call(5, 6, "get", gives=1),
        call(7, 8, "get", gives=ABSENT),
    ],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_linearizable_histories_are_accepted(name: str) -> None:
    assert is_linearizable(ACCEPTED[name])


@pytest.mark.parametrize("name", REJECTED)
def test_other_histories_are_rejected(name: str) -> None:
    assert not is_linearizable(REJECTED[name])


def test_violations_name_the_key_and_leave_sound_keys_out() -> None:
    sound = [Call("a", "set", (1,), None, 0, 1), Call("a", "get", (), 1, 2, 3)]
    broken = [Call("b", "get", (), 7, 4, 5)]
    assert violations([*sound, *broken]) == {"b": broken}


def test_an_unknown_call_is_an_error_not_a_pass() -> None:
    with pytest.raises(ValueError, match="frobnicate"):
        is_linearizable([call(0, 1, "frobnicate")])


SPACES = {
    "gone for all keys": (
        True,
        [
            call(0, 1, "set", 1, key="a"),
            call(0, 1, "set", 2, key="b"),
            call(2, 9, "invalidate", key=None),
            call(3, 4, "get", gives=ABSENT, key="a"),
            call(5, 6, "get", gives=ABSENT, key="b"),
        ],
    ),
    "gone for one key, and then there for another": (
        False,
        [
            call(0, 1, "set", 1, key="a"),
            call(0, 1, "set", 2, key="b"),
            call(2, 9, "invalidate", key=None),
            call(3, 4, "get", gives=ABSENT, key="a"),
            call(5, 6, "get", gives=2, key="b"),
        ],
    ),
    "an older value comes back": (
        False,
        [
            call(0, 1, "set", 1, key="a"),
            call(2, 3, "invalidate", key=None),
            call(4, 5, "set", 2, key="b"),
            call(6, 7, "get", gives=1, key="a"),
        ],
    ),
    "a late value after an invalidation": (
        False,
        [
            call(0, 9, "get_or_init", 1, gives=1, factory=(1, 8), key="a"),
            call(2, 3, "invalidate", key=None),
            call(10, 11, "get", gives=1, key="a"),
        ],
    ),
    "a dead one's invalidation may have been": (
        True,
        [
            call(0, 1, "set", 1, key="a"),
            call(2, math.inf, "invalidate", key=None),
            call(3, 4, "get", gives=1, key="a"),
            call(5, 6, "get", gives=ABSENT, key="a"),
        ],
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_namespace_is_checked_as_a_whole(name: str) -> None:
    expected, history = SPACES[name]
    assert is_linearizable_space(history) is expected


def brute_force(history: list[Call]) -> bool:
    """The definition, word for word: some order that respects time explains every result."""
    fate = dict(zip(map(id, history), fates(history), strict=True))
    for order in itertools.permutations(history):
        if any(b.ended < a.started for a, b in itertools.combinations(order, 2)):
            continue
        states = {State()}
        for one in order:
            states = {after for state in states for after in steps(state, one, fate[id(one)])}
        if states:
            return True
    return False


def random_call(rng: random.Random) -> Call:
    started = rng.randrange(20)
    name = rng.choice(["get", "set", "add", "delete", "pop", "incr", "get_or_init"])
    values = [1, 2, 3]
    if name == "get_or_init":
        return init(started, started + rng.randrange(3, 12), *rng.choices(values, k=2))
    arguments = (rng.choice(values),) if name in ("set", "add", "incr") else ()
    gives = {
        "add": rng.choice([True, False]),
        "delete": rng.choice([True, False]),
        "get": rng.choice([*values, ABSENT]),
        "pop": rng.choice([*values, ABSENT]),
        "incr": rng.choice([1, 2, 3, 4]),
    }.get(name)
    return call(started, started + rng.randrange(1, 12), name, *arguments, gives=gives)


def test_agrees_with_the_definition_on_random_histories() -> None:
    rng = random.Random(20250101)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        history = [random_call(rng) for _ in range(rng.randrange(2, 6))]
        verdict = is_linearizable(history)
        assert verdict == brute_force(history), "\n".join(map(str, history))
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 100, f"the histories must be of both kinds: {verdicts}"


def test_long_histories_of_a_few_callers_are_quick() -> None:
    """Sequential truth with widened call times: 4,000 calls, always linearizable."""
    rng = random.Random(7)
    state = State()
    history = []
    for moment in range(0, 40_000, 10):
        name = rng.choice(["get", "set", "incr"])
        value = rng.randrange(5)
        if name == "get":
            gives = state.value
            arguments: tuple[int, ...] = ()
        elif name == "set":
            gives, arguments = None, (value,)
            state = state.written(value)
        else:
            gives = (0 if state.value == ABSENT else state.value) + 1
            arguments = (1,)
            state = state.written(gives)
        history.append(
            call(
                moment - rng.randrange(15),
                moment + rng.randrange(15),
                name,
                *arguments,
                gives=gives,
            )
        )
    assert is_linearizable(history)
