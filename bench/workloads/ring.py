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
        "999 us; `with ring.time()` has an empty body.  Gets as in get_hot, through one handle "
        "whose `latency_sampling` is set before each sample: 256 (the default), 0 (off), 1 (each).",
        "Several processes that record to one ring at once: they share the line of its head.",
    )
    keys = hot_keys()
    values = {key: value_of(number, SIZE) for number, key in enumerate(keys)}
    durations = [[number * 1_000 for number in range(1_000)]]
    with shmcache_open() as cache:

        def get(name: str, sampling: int) -> Contestant:
            def settle() -> None:  # one handle for all: two differ by where they lie in memory
                cache.latency_sampling = sampling

            return Contestant(name, "get(key)", {"get": cache.get}, [keys], settle=settle)

        for key in keys:
            cache.set(key, values[key])
        for key in keys:
            require(cache.get(key) == values[key], "every pair is there")
        ring, own = cache.latencies(), cache.latencies("shmcache.get")
        counted, sampled = ring.summary().count, own.summary().count
        contestants = [
            Contestant("record_ns", "record(key)", {"record": ring.record_ns}, durations),
            Contestant("record", "record(key)", {"record": ring.record}, durations),
            Contestant("with time()", "with time(): pass", {"time": ring.time}, durations),
            get("get, 1 in 256", 256),
            get("get, sampling off", 0),
            get("get, each", 1),
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
