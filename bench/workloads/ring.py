"""Latency rings: what recording costs, and what recording costs the cache's own gets."""

from __future__ import annotations

from bench.harness import Contestant, Figure, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open, value_of

SIZE = 100
MOST_NS = 60.0
"""What `record_ns` may take, call and all."""


def run(options: Options) -> Result:
    """Time `record_ns`, and gets that hit with the sampling of latencies on, off and for each."""
    result = Result(
        "ring",
        "latency rings",
        "`record_ns` and `record` are bound methods in local variables, given durations of 0 to "
        "999 us; `with ring.time()` has an empty body.  Gets as in get_hot, through handles on one "
        "cache that differ in `latency_sampling`: 256 (the default), 0 (off), 1 (each).",
        "Several processes that record to one ring at once: they share the line of its head.",
    )
    keys = hot_keys()
    values = {key: value_of(number, SIZE) for number, key in enumerate(keys)}
    durations = [[number * 1_000 for number in range(1_000)]]
    from shmcache import Cache

    with (
        shmcache_open() as cache,
        Cache(cache.name, create=False) as off,
        Cache(cache.name, create=False) as each,
    ):
        off.latency_sampling = 0
        each.latency_sampling = 1
        for key in keys:
            cache.set(key, values[key])
        for key in keys:
            require(cache.get(key) == off.get(key) == values[key], "every pair is there")
        ring, own = cache.latencies(), cache.latencies("shmcache.get")
        counted, sampled = ring.summary().count, own.summary().count
        contestants = [
            Contestant("record_ns", "record(key)", {"record": ring.record_ns}, durations),
            Contestant("record", "record(key)", {"record": ring.record}, durations),
            Contestant("with time()", "with time(): pass", {"time": ring.time}, durations),
            Contestant("get, 1 in 256", "get(key)", {"get": cache.get}, [keys]),
            Contestant("get, sampling off", "get(key)", {"get": off.get}, [keys]),
            Contestant("get, each", "get(key)", {"get": each.get}, [keys]),
        ]
        rounds = interleave(contestants, options)
        require(ring.summary().count > counted, "durations were recorded")
        require(own.summary().count > sampled, "gets were sampled")
        require(cache.stats().misses == 0, "every get was a hit")

    result.measurements = rounds.measurements
    recording = rounds["record_ns"]
    result.figures = [
        Figure(
            "record_ns",
            recording.median_ns,
            MOST_NS,
            net=recording.net_ns,
            unit="ns",
            low=recording.low_ns,
            high=recording.high_ns,
        ),
        rounds.ratio("record_ns / get", "record_ns", "get, sampling off"),
        rounds.ratio(
            "get, 1 in 256 sampled / not sampled", "get, 1 in 256", "get, sampling off", target=1.02
        ),
        rounds.ratio("get, each sampled / not sampled", "get, each", "get, sampling off"),
    ]
    return result
