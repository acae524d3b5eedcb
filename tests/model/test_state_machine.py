"""A cache against a dict: hypothesis drives both with the same calls and compares everything.

The caches are so small, and some values so large, that the logs wrap many times within a run, so
entries are moved, evicted and swept all along.  Time is real: entries either live for an hour, or
for milliseconds that the machine waits out.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.names import leftovers, unique_name
from support.processes import poll_until

from shmcache import Cache, CacheFull, ValueTooLarge

KEYS: list[Any] = [*(f"key {number}" for number in range(12)), *range(2, 8), b"bytes", ("t", 1)]
KEYS += [None, True, 2.5]
LONG_KEY = "long " * 500
LONG_TTL = 3600.0
FEW = 8  # keys of which many calls are made, so that they meet

short_keys = st.one_of(st.sampled_from(KEYS[:FEW]), st.sampled_from(KEYS))
keys = st.one_of(short_keys, st.just(LONG_KEY))
ttls = st.sampled_from([None, LONG_TTL])
small_values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-5, 5),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.sampled_from([None, True, False, 1.5, 2**100, (1, (2,)), {"a": [1]}, {1, 2}, b""]),
)
# Fractions of max_value_size: stored as that many equal bytes.
fractions = st.one_of(st.just(1.0), st.floats(0, 1), st.floats(0, 0.1))


@dataclass
class Entry:
    """What the model knows of a key."""

    value: Any
    expires: bool


class CacheMachine(RuleBasedStateMachine):
    """The common rules; each policy adds what it promises about absence."""

    policy = ""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Any, Entry] = {}
        self.fill = itertools.count()
        self.name = unique_name(f"machine-{self.policy}")

    @initialize(shards=st.sampled_from([1, 1, 2]), avg=st.sampled_from([16, 256, 4096]))
    def open(self, shards: int, avg: int) -> None:
        self.cache = Cache(
            self.name, size="1MiB", shards=shards, avg_entry_size=avg, policy=self.policy
        )

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            try:
                assert self.cache.verify() == []
            finally:
                self.cache.close()
        assert leftovers(self.name) == []

    # ------------------------------------------------------------------------- helpers

    def present(self, key: Any) -> bool:
        """Whether the key is there; drops it from the model where the policy may have."""
        raise NotImplementedError

    def write(self, key: Any, call: Any, value: Any, ttl: float | None) -> Any:
        """Make a storing call; the model follows unless the cache said that it is full."""
        result = call()
        self.model[key] = Entry(value, ttl is not None)
        return result

    def large(self, fraction: float) -> bytes:
        return bytes([next(self.fill) % 256]) * int(fraction * self.cache.max_value_size)

    # --------------------------------------------------------------------------- rules

    @rule(key=keys, value=small_values, ttl=ttls)
    def set(self, key: Any, value: Any, ttl: float | None) -> None:
        self.write(key, lambda: self.cache.set(key, value, ttl), value, ttl)

    @rule(key=short_keys, fraction=fractions, ttl=ttls)
    def set_large(self, key: Any, fraction: float, ttl: float | None) -> None:
        value = self.large(fraction)
        self.write(key, lambda: self.cache.set(key, value, ttl), value, ttl)

    @rule(key=short_keys, fraction=st.floats(0.3, 1), times=st.integers(1, 30))
    def overwrite_often(self, key: Any, fraction: float, times: int) -> None:
        for _ in range(times):
            value = self.large(fraction)
            self.write(key, lambda value=value: self.cache.set(key, value), value, None)

    @rule(key=keys)
    def set_too_large(self, key: Any) -> None:
        with pytest.raises(ValueTooLarge):
            self.cache.set(key, bytes(self.cache.max_value_size + 300))

    @rule(key=keys, value=small_values, ttl=ttls, call=st.sampled_from(["add", "try_add"]))
    def add(self, key: Any, value: Any, ttl: float | None, call: str) -> None:
        if self.present(key):
            assert getattr(self.cache, call)(key, value, ttl) is False
        else:
            assert self.write(
                key, lambda: getattr(self.cache, call)(key, value, ttl), value, ttl
            ) in (True, None)

    @rule(key=keys, value=small_values, ttl=ttls)
    def replace(self, key: Any, value: Any, ttl: float | None) -> None:
        if self.present(key):
            assert self.write(key, lambda: self.cache.replace(key, value, ttl), value, ttl) in (
                True,
                None,
            )
        else:
            assert self.cache.replace(key, value, ttl) is False

    @rule(key=keys, value=small_values)
    def setdefault(self, key: Any, value: Any) -> None:
        if self.present(key):
            assert self.cache.setdefault(key, value) == self.model[key].value
        else:
            self.write(key, lambda: self.cache.setdefault(key, value), value, None)

    @rule(key=keys, call=st.sampled_from(["delete", "try_delete"]))
    def delete(self, key: Any, call: str) -> None:
        expected = self.present(key)
        assert getattr(self.cache, call)(key) is expected
        self.model.pop(key, None)

    @rule(key=keys, call=st.sampled_from(["pop", "try_pop"]))
    def pop(self, key: Any, call: str) -> None:
        marker = object()
        expected = self.model[key].value if self.present(key) else marker
        assert getattr(self.cache, call)(key, marker) == expected
        self.model.pop(key, None)

    @rule()
    def popitem(self) -> None:
        alive = [key for key in list(self.model) if self.present(key)]
        if alive:
            key, value = self.cache.popitem()
            assert self.model.pop(key).value == value
        else:
            with pytest.raises(KeyError):
                self.cache.popitem()

    @rule(key=keys, delta=st.integers(-3, 3), ttl=ttls, initial=st.sampled_from([0, 10]))
    def incr(self, key: Any, delta: int, ttl: float | None, initial: int) -> None:
        def call() -> int:
            return self.cache.incr(key, delta, initial=initial, ttl=ttl)

        if not self.present(key):
            result = self.write(key, call, initial + delta, ttl)
            assert result in (initial + delta, None)
            return
        entry = self.model[key]
        if type(entry.value) is not int:
            with pytest.raises(TypeError):
                call()
        elif not -(2**63) <= entry.value + delta < 2**63 or not -(2**63) <= entry.value < 2**63:
            with pytest.raises(OverflowError):
                call()
        else:
            total = entry.value + delta
            kept = LONG_TTL if entry.expires else None
            assert self.write(key, call, total, kept) in (total, None)

    @rule(key=keys, value=small_values, ttl=ttls, meanwhile=st.booleans())
    def gets_and_cas(self, key: Any, value: Any, ttl: float | None, meanwhile: bool) -> None:
        if not self.present(key):
            assert self.cache.gets(key) is None
            assert self.cache.cas(key, value, 1) is False
            return
        seen = self.cache.gets(key)
        assert seen is not None
        assert seen.value == self.model[key].value
        assert self.cache.gets(key) == seen
        version = seen.version
        if meanwhile:
            old = self.model[key].value
            if self.write(key, lambda: self.cache.touch(key), old, None):
                assert self.cache.cas(key, value, version) is False
        else:
            result = self.write(key, lambda: self.cache.cas(key, value, version, ttl), value, ttl)
            assert result in (True, None)

    @rule(key=keys, value=small_values, ttl=ttls, default=st.booleans())
    def alter(self, key: Any, value: Any, ttl: float | None, default: bool) -> None:
        if self.present(key):
            entry = self.model[key]
            kept = ttl if ttl is not None else (LONG_TTL if entry.expires else None)

            def check(old: Any) -> Any:
                assert old == entry.value
                return value

            self.write(key, lambda: self.cache.alter(key, check, ttl=ttl), value, kept)
        elif default:
            self.write(
                key, lambda: self.cache.alter(key, lambda _: value, default=0, ttl=ttl), value, ttl
            )
        else:
            with pytest.raises(KeyError):
                self.cache.alter(key, lambda old: value)

    @rule(key=keys, ttl=ttls)
    def touch(self, key: Any, ttl: float | None) -> None:
        if self.present(key):
            value = self.model[key].value
            assert self.write(key, lambda: self.cache.touch(key, ttl), value, ttl) in (True, None)
        else:
            assert self.cache.touch(key, ttl) is False

    @rule(batch=st.dictionaries(keys, small_values, max_size=10), ttl=ttls)
    def set_many(self, batch: dict[Any, Any], ttl: float | None) -> None:
        try:
            self.cache.set_many(batch, ttl)
            missing: set[Any] = set()
        except CacheFull as error:
            missing = set(error.keys)
            assert missing <= batch.keys()
            self.check_full()
        for key in batch.keys() - missing:
            self.model[key] = Entry(batch[key], ttl is not None)

    @rule(some=st.lists(keys, max_size=8, unique=True))
    def get_many(self, some: list[Any]) -> None:
        expected = {key: self.model[key].value for key in some if self.present(key)}
        assert self.cache.get_many(some) == expected

    @rule(some=st.lists(keys, max_size=8, unique=True))
    def delete_many(self, some: list[Any]) -> None:
        expected = sum(self.present(key) for key in some)
        assert self.cache.delete_many(some) == expected
        for key in some:
            self.model.pop(key, None)

    @rule(key=keys, value=small_values)
    def set_and_let_expire(self, key: Any, value: Any) -> None:
        self.write(key, lambda: self.cache.set(key, value, 0.003), value, 0.003)
        if key in self.model:
            poll_until(lambda: key not in self.cache, 5, what="the key expires")
            del self.model[key]

    @rule()
    def expire(self) -> None:
        before = len(self.cache)
        removed = self.cache.expire()
        assert len(self.cache) == before - removed == sum(map(self.present, list(self.model)))

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()
        assert len(self.cache) == 0

    @rule(keep=st.sets(keys))
    def retain(self, keep: set[Any]) -> None:
        alive = [key for key in list(self.model) if self.present(key)]
        removed = [key for key in alive if key not in keep]
        assert self.cache.retain(lambda key, _: key in keep) == len(removed)
        for key in removed:
            self.model.pop(key)

    @rule()
    def reattach(self) -> None:
        old, self.cache = self.cache, Cache(self.name, create=False)
        old.close()

    @rule(key=keys)
    def read(self, key: Any) -> None:
        marker = object()
        if self.present(key):
            entry = self.model[key]
            assert self.cache.get(key, marker) == entry.value
            assert type(self.cache[key]) is type(entry.value)
            left = self.cache.ttl(key)
            assert (left is not None) == entry.expires
            assert left is None or LONG_TTL - 600 < left <= LONG_TTL + 0.01
        else:
            assert self.cache.get(key, marker) is marker
            assert self.cache.try_get(key, marker) is marker
            with pytest.raises(KeyError):
                self.cache.ttl(key)

    @rule()
    def iterate(self) -> None:
        found = dict(self.cache.items())
        alive = {key for key in list(self.model) if self.present(key)}
        assert found == {key: self.model[key].value for key in alive}
        assert sorted(map(repr, self.cache)) == sorted(map(repr, found))
        texts = {key for key in alive if isinstance(key, str) and key.startswith("key 1")}
        assert set(self.cache.scan("key 1")) == texts

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "cache"):
            stats = self.cache.stats()
            assert stats.entries == len(self.cache) >= sum(map(self.present, list(self.model)))
            assert stats.bytes_used <= stats.bytes_total

    def check_full(self) -> None:
        raise AssertionError(f"policy {self.policy} says that it is full")


class EvictMachine(CacheMachine):
    """``evict``: a value is right or absent, and absent only if something was evicted."""

    policy = "evict"

    def __init__(self) -> None:
        super().__init__()
        self.evictions = 0

    def present(self, key: Any) -> bool:
        if key in self.model and key not in self.cache:
            assert self.cache.stats().evictions > self.evictions, f"{key!r} is lost"
            del self.model[key]
        return key in self.model

    @invariant()
    def what_is_missing_was_evicted(self) -> None:
        """What is missing was evicted, and is counted; see also the test below."""
        if not hasattr(self, "cache"):
            return
        stats = self.cache.stats()
        lost = [key for key in list(self.model) if not self.present(key)]
        assert stats.evictions - self.evictions >= len(lost)
        self.evictions = self.cache.stats().evictions


class KeepMachine(CacheMachine):
    """``keep``: nothing is ever lost; a write may be refused, and then the old value stays."""

    policy = "keep"

    def present(self, key: Any) -> bool:
        return key in self.model

    def write(self, key: Any, call: Any, value: Any, ttl: float | None) -> Any:
        try:
            return super().write(key, call, value, ttl)
        except CacheFull:
            self.check_full()
            return None

    def check_full(self) -> None:
        """Entries here are up to a sixth of a log, and the gap and the new one must fit beside."""
        stats = self.cache.stats()
        fullest = max(shard.bytes_used / shard.bytes_total for shard in stats.shards)
        assert fullest >= 0.4, f"refused a write with every shard at most {fullest:.0%} full"

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "cache"):
            absent = [key for key in self.model if key not in self.cache]
            assert absent == []


MACHINES = {"evict": EvictMachine, "keep": KeepMachine}
SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}


@pytest.mark.parametrize("policy", MACHINES)
def test_a_cache_behaves_as_the_model(policy: str) -> None:
    run_state_machine_as_test(
        MACHINES[policy], settings=settings(max_examples=150, stateful_step_count=60, **SETTINGS)
    )


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("policy", MACHINES)
def test_a_cache_behaves_as_the_model_for_long(policy: str) -> None:
    run_state_machine_as_test(
        MACHINES[policy], settings=settings(max_examples=500, stateful_step_count=100, **SETTINGS)
    )


@pytest.mark.parametrize("fill", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("sizes", [(10, 10), (300, 300), (4000, 4000), (0, 12_000)], ids=str)
def test_evict_loses_nothing_while_the_live_bytes_fit(fill: float, sizes: tuple[int, int]) -> None:
    """Overwrites, deletes and new keys for laps of the log, little more than 70% of it live."""
    rng = random.Random(17)
    average = sum(sizes) // 2
    name = unique_name("fits")
    with Cache(name, size="1MiB", shards=1, avg_entry_size=max(average, 16) + 10) as cache:
        total = cache.stats().bytes_total
        model: dict[int, bytes] = {}
        written = number = 0
        while written < (10 if average >= 300 else 2) * total:
            number += 1
            value = bytes([number % 256]) * rng.randint(*sizes)
            cache[number] = model[number] = value
            written += len(value) + 40
            while number % 8 == 0 and cache.stats().bytes_used > fill * total:
                gone = next(iter(model))
                assert cache.delete(gone) is True, f"{gone} was evicted at {fill:.0%}"
                del model[gone]
            if number % 3 == 0:
                again = next(iter(model))
                cache[again] = model[again] = value
        assert cache == model
        assert cache.stats().evictions == 0
        assert cache.verify() == []
