"""Swap slots: `load` beside a dict look-up, alone and beside writers; what waiting costs."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import threading
import time
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from bench.harness import Contestant, Figure, Options, Result, interleave, require
from bench.peers import shmcache_open
from bench.processes import Crew, Loop, Window

READERS = 4
BYTES = 2_048
PIECE = 2_000
"""Loads between two looks at the clock."""

LATENCIES = 200


def run(options: Options) -> Result:
    """Time loads beside dict.get; then readers' throughput with and without a writer."""
    result = Result(
        "swap",
        "swap slot: load, 2 KiB config",
        "A config of about 2 KiB (a dict of numbers and text, msgpack).  `load` is a bound method "
        "in a local variable, `dict.get` finds the same object.  `a writer every 1 ms` is another "
        "process that stores all the time, so that each new version costs the reader one copy, one "
        f"checksum and one decode.  Throughput: {READERS} processes call load() for "
        f"{options.window_s:g} s windows, and check what they loaded in every {PIECE} of them; the "
        "writer stores every 10 ms, or sleeps; windows take turns.  Noticing: from before store() "
        "in one thread until wait() has returned in another.",
        "More readers than this machine has CPUs for; configs that take longer to decode.",
    )
    with shmcache_open(size=4 << 20) as cache:
        slot = cache.slot()
        slot.store(_config(1))
        _beside_dict(result, options, cache)
        _throughput(result, options, cache)
        _waiting(result, options, cache)
    return result


def _config(number: int) -> dict[str, Any]:
    text = f"{number}:" * (BYTES // (len(str(number)) + 1) - 20)
    return {
        "number": number,
        "text": text,
        "limits": {"connections": 100, "timeout": 2.5},
        "check": zlib.crc32(f"{number}{text}".encode()),
    }


def _number(value: Any) -> int:
    """The number of a config that is whole."""
    number, text = value["number"], value["text"]
    require(zlib.crc32(f"{number}{text}".encode()) == value["check"], "no value is torn")
    assert isinstance(number, int)
    return number


def _beside_dict(result: Result, options: Options, cache: Any) -> None:
    slot = cache.slot()
    peer = {"config": slot.load()}
    require(slot.load() is peer["config"], "load() returns the same object")
    once = [[None] * 1_000]
    names = {"load": slot.load, "slot": slot, "get": peer.get}
    contestants = [
        Contestant("slot load", "load()", names, once),
        Contestant("slot slot.load()", "slot.load()", names, once),
        Contestant("slot load_versioned", "load()", {"load": slot.load_versioned}, once),
        Contestant("dict.get", "get('config')", names, once),
    ]
    rounds = interleave(contestants, options)
    require(slot.load() is peer["config"], "nobody stored meanwhile")
    with _writer(cache.name) as pipe:
        pipe.send(0.001)
        before = slot.load_versioned()[1]
        began = time.monotonic()
        beside = interleave(
            [
                Contestant("slot load, a writer every 1 ms", "load()", names, once),
                Contestant("dict.get, a writer every 1 ms", "get('config')", names, once),
            ],
            options,
        )
        stored = slot.load_versioned()[1] - before
        result.details["stores_per_second_beside"] = round(stored / (time.monotonic() - began))
    require(stored > 10, "the writer stored meanwhile")
    _number(slot.load())
    result.measurements = rounds.measurements + [
        m for m in beside.measurements if not m.name.startswith("empty loop")
    ]
    result.figures += [
        rounds.ratio("slot load() / dict.get", "slot load", "dict.get", target=3.0),
        rounds.ratio("slot.load() / dict.get", "slot slot.load()", "dict.get"),
        beside.ratio(
            "slot load() / dict.get, a writer every 1 ms",
            "slot load, a writer every 1 ms",
            "dict.get, a writer every 1 ms",
            target=3.0,
        ),
    ]


def _throughput(result: Result, options: Options, cache: Any) -> None:
    name = cache.name

    def prepare(worker: int) -> Loop:
        from shmcache import Cache

        mine = Cache(name, create=False)
        slot = mine.slot()

        def loop(deadline: int) -> tuple[int, Any]:
            load, now, done, last = slot.load, time.perf_counter_ns, 0, 0
            versions = 0
            while now() < deadline:
                for _ in range(PIECE):
                    value = load()
                done += PIECE
                number = value["number"]
                require(number >= last, "versions never go back")
                if number != last:
                    _number(value)
                    versions += 1
                last = number
            return done, versions

        return loop

    windows: dict[str, list[Window]] = {"quiet": [], "writer": []}
    with Crew(prepare, READERS) as crew, _writer(name) as pipe:
        for _ in range(options.windows):
            for state, taken in windows.items():
                pipe.send(0.010 if state == "writer" else None)
                taken.append(crew.window(options.window_s, options.redo))
        pipe.send(None)
    seen = [work.result for window in windows["writer"] for work in window.works]
    require(min(seen) >= 1 and statistics.median(seen) > 3, "readers saw several versions")
    paired = [
        beside.rate / quiet.rate
        for beside, quiet in zip(windows["writer"], windows["quiet"], strict=True)
    ]
    low, middle, high = statistics.quantiles(paired, n=4)
    result.figures.append(
        Figure(
            f"{READERS} readers: a writer every 10 ms / none",
            middle,
            0.9,
            at_most=False,
            low=low,
            high=high,
        )
    )
    result.figures.append(
        Figure(
            f"{READERS} readers: a writer every 10 ms / none, by CPU time",
            statistics.median(w.cpu_rate for w in windows["writer"])
            / statistics.median(w.cpu_rate for w in windows["quiet"]),
        )
    )
    result.details["loads_per_second"] = {
        state: round(statistics.median(window.rate for window in taken))
        for state, taken in windows.items()
    }
    result.details["disturbed_windows"] = {
        state: sum(window.disturbed for window in taken) for state, taken in windows.items()
    }


def _waiting(result: Result, options: Options, cache: Any) -> None:
    slot, token = cache.slot("waited for"), cache.token("shutdown")
    noticed: dict[int, float] = {}
    count = LATENCIES // 4 if options.quick else LATENCIES

    def watch() -> None:
        version = 0
        while version < count:
            version = slot.wait(version) or version
            noticed[version] = time.monotonic()

    thread = threading.Thread(target=watch)
    thread.start()
    latencies = []
    for number in range(count):
        time.sleep(0.005)
        began = time.monotonic()
        version = slot.store(number)
        while version not in noticed:
            time.sleep(0.001)
        latencies.append(noticed[version] - began)
    thread.join()
    latencies.sort()
    result.details["noticed_after_microseconds"] = {
        "median": round(latencies[len(latencies) // 2] * 1e6),
        "p99": round(latencies[len(latencies) * 99 // 100] * 1e6),
    }
    rest = 1.0 if options.quick else 3.0
    costs = {}
    for what, wait in (
        ("slot.wait", lambda: slot.wait(count, rest)),
        ("token.wait", lambda: token.wait(rest)),
    ):
        before = time.thread_time()
        wait()
        costs[what] = (time.thread_time() - before) / rest
    result.details["percent_of_a_core_while_waiting"] = {
        what: round(100 * cost, 3) for what, cost in costs.items()
    }
    result.figures.append(
        Figure(
            "noticing a store: p99",
            result.details["noticed_after_microseconds"]["p99"] / 1e3,
            20.0,
            unit="ms",
        )
    )


@contextlib.contextmanager
def _writer(name: str) -> Iterator[Connection]:
    """A process that stores configs every so many seconds, as it is told; None: it sleeps."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_write, args=(name, theirs, ours), daemon=True)
    process.start()
    theirs.close()
    try:
        require(ours.poll(30) and ours.recv() == "ready", "the writer has attached")
        yield ours
    finally:
        ours.close()
        process.join(30)


def _write(name: str, pipe: Connection, inherited: Connection) -> None:
    from shmcache import Cache

    inherited.close()
    cache = Cache(name, create=False)
    slot = cache.slot()
    pipe.send("ready")
    interval: float | None = None
    next_at = 0.0
    with contextlib.suppress(EOFError):
        while True:
            pause = None if interval is None else max(0.0, next_at - time.monotonic())
            if pipe.poll(pause):
                interval = pipe.recv()
                next_at = time.monotonic()
                continue
            slot.store(_config(slot._version() + 1))
            assert interval is not None
            next_at += interval
    cache.close()
