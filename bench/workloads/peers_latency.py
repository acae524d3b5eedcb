"""Every operation of every peer, for values of four kinds: medians, and single calls."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.adapters import OPERATIONS, PEERS, Peer, opened
from bench.harness import (
    Contestant,
    Options,
    Result,
    Table,
    interleave,
    percentile,
    quiet,
    require,
    single_calls,
)
from bench.peers import hot_keys, shmcache_open
from bench.report import span
from bench.workloads._values import KINDS, Kind, document

SAMPLE_NS = 1_000_000
"""Wall time that a sample of a batch aims at."""

PERCENTILES = (50.0, 99.0, 99.9, 100.0)
BLOCK = 4_000
"""Single calls that a peer makes before the next one's turn."""

BLOCK_NS = 60_000_000
"""After which such a block ends early."""

BLOCKS = 6
FEWEST = 10
"""Samples that must lie beyond a percentile before it is stated."""

TITLES = {
    "get": "get, hit",
    "get_miss": "get, miss",
    "contains": "contains",
    "set": "set",
    "delete": "delete",
    "incr": "incr",
    "get_many": "get_many",
    "set_many": "set_many",
}


def run(options: Options) -> Result:
    """Time all peers in turns, one kind of value after the other."""
    rounds = 5 if options.quick else 21
    blocks = 1 if options.quick else BLOCKS
    kinds = KINDS[::3] if options.quick else KINDS
    result = Result(
        "peers_latency",
        "every operation, beside what people would use instead",
        "One process, hot keys: "
        + ", ".join(f"{k.keys:,} of {k.name}" for k in kinds)
        + "; keys are str of 20 characters.  get_many and set_many take lists of "
        + ", ".join(f"{k.batch} ({k.name})" for k in kinds)
        + f"; their time is for one key.  Medians are of {rounds} samples of about 1 ms, in which "
        "all peers take turns; percentiles are of single calls, each timed with perf_counter_ns, "
        "whose own cost (row `clock`) is part of them.  Every peer keeps everything it is given; "
        "set overwrites present keys with values of the same size; delete removes present keys.  "
        "Systems that store bytes get msgpack around the small dict; UltraDict, diskcache and the "
        "manager pickle by themselves.",
        "Other processes at work meanwhile (`peers_scaling`), cold keys (`peers_cold`), an "
        "application that uses the CPU's caches for other things between two calls; percentiles "
        "with fewer than ten samples beyond them are left out.  Redis and memcached have the other "
        "CPU for themselves.",
    )
    for kind in kinds:
        with opened(PEERS, 2 * kind.keys * (kind.size + 100), [], objects=kind.objects) as peers:
            _measure(kind, peers, rounds, blocks, result)
    _measure_own(rounds, blocks, result)
    with opened(PEERS, 1 << 20, result.skipped) as present:
        result.details["set up"] = {peer.name: peer.about for peer in present}
    return result


def _measure_own(rounds: int, blocks: int, result: Result) -> None:
    """What only shmcache has: decoded objects that a process keeps, slots and rings."""
    from shmcache import Cache

    keys = hot_keys()
    with (
        shmcache_open(local_entries=2 * len(keys)) as local,
        shmcache_open() as cache,
    ):
        assert isinstance(cache, Cache)
        for n, key in enumerate(keys):
            local.set(key, document(n))
            require(local.get(key) == document(n), "the object is equal to what was stored")
            require(local.get(key) is local.get(key), "the second get decodes nothing")
        slot = cache.slot("config")
        slot.store(document(1))
        require(slot.load() == document(1), "the slot holds what was stored")
        ring = cache.latencies()
        calls = {
            "local get of a small dict": ("call(key)", local.get, keys),
            "slot load": ("call()", slot.load, keys),
            "ring record_ns": ("call(key)", ring.record_ns, range(1_000)),
        }
        contestants = [
            Contestant(name, statement, {"call": call}, [items], sample_ns=SAMPLE_NS)
            for name, (statement, call, items) in calls.items()
        ]
        timed = interleave(contestants, Options(repeats=rounds))
        spans: dict[str, list[int]] = {name: [] for name in calls}
        with quiet():
            for _ in range(blocks):
                for name, (statement, call, items) in calls.items():
                    batch = list(items) * (BLOCK // len(items))
                    spans[name] += single_calls(statement, {"call": call}, batch, BLOCK_NS)
        require(ring.summary().count > 0, "durations were recorded")
        require(local.stats().misses == 0, "every get was a hit")
    figures = {
        name: {"median_ns": timed[name].median_ns, **_percentiles(some)}
        for name, some in spans.items()
    }
    result.data["own"] = figures
    rows = [
        [name] + [span(figure[p]) for p in ("median_ns", "p50", "p99", "p99.9", "max")]
        for name, figure in figures.items()
    ]
    columns = ["", "in batches", "single calls: median", "p99", "p99.9", "max"]
    result.tables.append(Table("What only shmcache has", columns, rows))


@dataclass(frozen=True)
class _Task:
    """One operation of one peer, as a statement over prepared arguments."""

    peer: Peer
    operation: str
    statement: str
    names: Mapping[str, Any]
    items: Sequence[Any]
    per_item: int = 1
    refill: Mapping[str, Any] | None = None
    """What to store before the operation is timed: delete needs something to delete."""

    @property
    def name(self) -> str:
        """Unique among the tasks of a kind."""
        return f"{self.peer.name}: {self.operation}"

    def prepare(self) -> None:
        """Store what the statement takes away."""
        if self.refill is not None:
            self.peer.fill(self.refill)


def _tasks(kind: Kind, peer: Peer) -> Iterator[_Task]:
    keys = hot_keys(2 * kind.keys)
    present, absent = keys[: kind.keys], keys[kind.keys :]
    values = {key: kind.make(n) for n, key in enumerate(present)}
    counter = "counter:000000000000"
    peer.fill(values)
    _check(peer, values, absent)
    if peer.incr is not None:
        peer.start_counter(counter)
        require([peer.incr(counter) for _ in range(3)] == [1, 2, 3], f"{peer.name} counts")
    lists = [present[at : at + kind.batch] for at in range(0, kind.keys, kind.batch)]
    spare = {f"spare:profile:{n:06d}": kind.make(n) for n in range(min(kind.keys, 100))}

    def task(operation: str, statement: str, items: Sequence[Any], **more: Any) -> Iterator[_Task]:
        call = getattr(peer, operation)
        if call is not None:
            names = {"call": call, **more.pop("names", {})}
            yield _Task(peer, operation, statement, names, items, **more)

    yield from task("get", "call(key)", present)
    yield from task("get_miss", "call(key)", absent)
    yield from task("contains", "call(key)", present)
    value = kind.make(1)
    yield from task("set", "call(key, value)", present, names={"value": value})
    yield from task("delete", "call(key)", list(spare), refill=spare)
    yield from task("incr", "call(key)", [counter] * 1_000)
    yield from task("get_many", "call(key)", lists, per_item=kind.batch)
    pairs = [dict.fromkeys(some, value) for some in lists]
    yield from task("set_many", "call(key)", pairs, per_item=kind.batch)


def _check(peer: Peer, values: Mapping[str, Any], absent: Sequence[str]) -> None:
    assert peer.get is not None
    for key, value in values.items():
        require(peer.get(key) == value, f"{peer.name} holds every pair")
    if peer.get_miss is not None:
        require(
            all(peer.get_miss(key) is None for key in absent), f"{peer.name} lacks what is absent"
        )
    if peer.get_many is not None:
        some = list(values)[:20]
        found = peer.get_many(some)
        found = list(found.values()) if isinstance(found, Mapping) else found
        require(found == [values[key] for key in some], f"{peer.name} returns all of a batch")


def _measure(kind: Kind, peers: list[Peer], rounds: int, blocks: int, result: Result) -> None:
    tasks = [task for peer in peers for task in _tasks(kind, peer)]
    timed = interleave([_contestant(task) for task in tasks], Options(repeats=rounds))
    spans: dict[str, list[int]] = {task.name: [] for task in tasks}
    clock: list[int] = []
    with quiet():
        for _ in range(blocks):
            clock += single_calls("pass", {}, range(BLOCK), BLOCK_NS)
            for task in tasks:
                spans[task.name] += _block(task)
    for peer in peers:  # after the sets: the value that was set last, and nothing but it
        if peer.set is not None:
            assert peer.get is not None
            require(
                all(peer.get(key) == kind.make(1) for key in hot_keys(kind.keys)),
                f"{peer.name} holds what was set last",
            )
    figures: dict[str, Any] = {}
    for task in tasks:
        median = timed[task.name]
        figures.setdefault(task.operation, {})[task.peer.name] = {
            "median_ns": median.median_ns,
            "low_ns": median.low_ns,
            "high_ns": median.high_ns,
            "loop_ns": median.loop_ns,
            **_percentiles(spans[task.name]),
        }
    result.data.setdefault("kinds", {})[kind.name] = figures
    result.data.setdefault("clock_ns", {})[kind.name] = statistics.median(clock)
    result.tables += _tables(kind, peers, figures, _percentiles(clock))


def _contestant(task: _Task) -> Contestant:
    """A task whose batch takes about `SAMPLE_NS`, whatever the peer."""
    task.prepare()
    probe = single_calls(task.statement, task.names, task.items[:20], SAMPLE_NS)
    cost = max(1.0, statistics.median(probe))
    count = max(1, min(len(task.items), int(SAMPLE_NS / cost)))
    if task.refill is not None:
        batches = [list(task.items)] * 2  # two of them: a sample never repeats its batch
    elif count < len(task.items):
        whole = len(task.items) - len(task.items) % count
        batches = [task.items[at : at + count] for at in range(0, whole, count)]
    else:
        batches = [task.items]
    return Contestant(
        task.name,
        task.statement,
        task.names,
        batches,
        operations=task.per_item,
        warm=task.refill is None and len(batches) == 1,
        settle=task.prepare if task.refill is not None else None,
        sample_ns=SAMPLE_NS,
        waits=task.peer.waits,
    )


def _block(task: _Task) -> array[int]:
    """Single calls of one task: `BLOCK` of them, if they take no longer than `BLOCK_NS`."""
    if task.refill is not None:
        spans = array("Q")
        for _ in range(BLOCK // len(task.items)):
            task.prepare()
            spans += single_calls(task.statement, task.names, task.items, BLOCK_NS)
            if sum(spans) > BLOCK_NS:
                break
        return spans
    items = task.items * (BLOCK // len(task.items) + 1)
    return single_calls(task.statement, task.names, items[:BLOCK], BLOCK_NS)


def _percentiles(spans: list[int]) -> dict[str, Any]:
    ordered = sorted(spans)
    found: dict[str, Any] = {"single_calls": len(ordered)}
    for p in PERCENTILES:
        stated = p in {50.0, 100.0} or len(ordered) * (100 - p) / 100 >= FEWEST
        found["max" if p == 100 else f"p{p:g}"] = percentile(ordered, p) if stated else None
    return found


def _tables(
    kind: Kind, peers: list[Peer], figures: Mapping[str, Any], clock: Mapping[str, Any]
) -> list[Table]:
    operations = [operation for operation in OPERATIONS if operation in figures]
    medians = Table(
        f"{kind.name}, medians",
        ["", *(TITLES[operation] for operation in operations)],
        [
            [peer.name]
            + [
                span(figures[operation].get(peer.name, {}).get("median_ns"))
                for operation in operations
            ]
            for peer in peers
        ],
        "A dash: the system has no such operation.",
    )
    tails = []
    for operation in ("get", "set"):
        rows = [
            [peer.name]
            + [span(figures[operation][peer.name][p]) for p in ("p50", "p99", "p99.9", "max")]
            + [f"{figures[operation][peer.name]['single_calls']:,}"]
            for peer in peers
            if peer.name in figures[operation]
        ]
        rows.append(["clock"] + [span(clock[p]) for p in ("p50", "p99", "p99.9", "max")] + [""])
        columns = ["", "median", "p99", "p99.9", "max", "calls"]
        note = "All other operations: in the JSON." if operation == "set" else ""
        tails.append(Table(f"{kind.name}, single calls: {TITLES[operation]}", columns, rows, note))
    return [medians, *tails]
