"""The inner loop of a replay, over a dict instead of a cache."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest

from shmcache.errors import CacheFull, LockTimeout, ValueTooLarge
from shmcache.readthrough import STRIDE, Latency, Tally, read_through
from shmcache.trace import Trace, load, make_value


class DictCache:
    """A cache that keeps everything, and the order in which it was asked."""

    def __init__(self) -> None:
        self.data: dict[str, object] = {}
        self.asked: list[str] = []
        self.stored: list[tuple[str, int, float | None]] = []

    def get(self, key: str, /) -> object:
        self.asked.append(key)
        return self.data.get(key)

    def set(self, key: str, value: bytes, ttl: float | None, /) -> None:
        self.stored.append((key, len(value), ttl))
        self.data[key] = value


def trace_of(*rows: tuple[str, int, float]) -> Trace:
    """Make a trace of (key, size, ttl)."""
    keys = tuple(dict.fromkeys(key for key, _, _ in rows))
    return Trace(
        "made",
        keys,
        array("Q", range(1, len(keys) + 1)),
        array("I", (keys.index(key) for key, _, _ in rows)),
        array("I", (size for _, size, _ in rows)),
        array("d", (ttl for _, _, ttl in rows)),
        frozenset(n for n, key in enumerate(keys) if len({s for k, s, _ in rows if k == key}) > 1),
    )


def test_every_row_is_a_get_and_every_miss_a_set() -> None:
    cache = DictCache()
    result = read_through(cache, trace_of(("a", 100, 0), ("b", 50, 1.5), ("a", 100, 0)))
    assert cache.asked == ["a", "b", "a"]
    assert cache.stored == [("a", 100, None), ("b", 50, 1.5)]
    assert result.tally == Tally(requests=3, hits=1, request_bytes=250, hit_bytes=100, sets=2)
    assert result.tally.operations == 5
    assert result.tally.hit_ratio == pytest.approx(1 / 3)
    assert result.tally.byte_hit_ratio == pytest.approx(0.4)
    assert result.get_ns.total() == 3
    assert result.set_ns.total() == 2
    assert result.ended_ns > result.started_ns
    assert not result.interrupted


def test_workers_share_the_rows_without_gap_or_overlap() -> None:
    rows = [(str(n), 1, 0.0) for n in range(STRIDE * 7 + 3)]
    caches = [DictCache() for _ in range(3)]
    for worker, cache in enumerate(caches):
        read_through(cache, trace_of(*rows), first=worker, step=3)
        assert cache.asked == [key for key, _, _ in rows[worker::3]]


def test_passes_repeat_the_trace_in_order() -> None:
    cache = DictCache()
    result = read_through(cache, trace_of(("a", 1, 0), ("b", 1, 0)), passes=3)
    assert cache.asked == ["a", "b"] * 3
    assert result.tally.hits == 4


@pytest.mark.parametrize(
    "wrong",
    [b"", b"foreign", "text", make_value(1, 99), make_value(2, 100), make_value(1, 100)[:-1]],
)
def test_a_hit_that_is_not_the_keys_own_value_is_wrong(wrong: object) -> None:
    cache = DictCache()
    cache.data["a"] = make_value(1, 100)
    made = trace_of(("a", 100, 0), ("b", 100, 0))
    assert read_through(cache, made).tally.wrong == 0
    cache.data["a"] = wrong
    tally = read_through(cache, made).tally
    assert (tally.wrong, tally.wrong_keys) == (1, ["a"])


def test_where_a_keys_size_changes_any_of_its_values_is_right() -> None:
    tally = read_through(DictCache(), trace_of(("a", 100, 0), ("a", 99, 0), ("a", 100, 0))).tally
    assert (tally.hits, tally.wrong) == (2, 0)


def test_every_wrong_value_is_counted_but_few_are_named() -> None:
    cache = DictCache()
    cache.data["a"] = b"foreign"
    tally = read_through(cache, trace_of(*[("a", 100, 0)] * 50)).tally
    assert tally.wrong == 50
    assert tally.wrong_keys == ["a"] * 10


@pytest.mark.parametrize(
    ("error", "counted"),
    [(ValueTooLarge("x"), "refused"), (CacheFull("x"), "full"), (LockTimeout("x"), "timeouts")],
)
def test_what_the_cache_refuses_is_counted_and_no_error(error: Exception, counted: str) -> None:
    class Refusing(DictCache):
        def set(self, key: str, value: bytes, ttl: float | None, /) -> None:
            raise error

    tally = read_through(Refusing(), trace_of(("a", 5, 0), ("a", 5, 0))).tally
    assert getattr(tally, counted) == 2
    assert tally.sets == 0
    assert tally.operations == 4


def test_a_stop_request_ends_it_between_two_strides() -> None:
    seen: list[int] = []

    def on_stride(tally: Tally) -> None:
        seen.append(tally.requests)

    result = read_through(
        DictCache(), load("web12"), stop=lambda: len(seen) == 2, on_stride=on_stride
    )
    assert result.interrupted
    assert seen == [STRIDE, 2 * STRIDE]
    assert result.tally.requests == 2 * STRIDE


def test_a_dict_reaches_the_compulsory_miss_ratio_of_the_bundled_trace() -> None:
    tally = read_through(DictCache(), load("web12")).tally
    assert 1 - tally.hit_ratio == pytest.approx(0.144, abs=0.0005)
    assert tally.wrong == 0


def test_tallies_add_up() -> None:
    total = Tally(1, 2, 3, 4, 5, 6, 7, 8, 9, ["a"])
    total.add(Tally(10, 20, 30, 40, 50, 60, 70, 80, 90, ["b"]))
    assert total == Tally(11, 22, 33, 44, 55, 66, 77, 88, 99, ["a", "b"])


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], Latency(0, 0, 0, 0, 0, 0)),
        ([7], Latency(1, 7, 7, 7, 7, 7)),
        (range(1, 1001), Latency(1000, 500, 900, 990, 999, 1000)),
        ([5] * 999 + [80], Latency(1000, 5, 5, 5, 5, 80)),
        ([1, 2], Latency(2, 1, 2, 2, 2, 2)),
    ],
)
def test_percentiles_are_of_the_nearest_rank(samples: list[int], expected: Latency) -> None:
    assert Latency.of(Counter(samples)) == expected
