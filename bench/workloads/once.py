"""get_or_init and memoize of a value that is there: beside a get, and a call of Python."""

from __future__ import annotations

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open, value_of

SIZE = 100


def run(options: Options) -> Result:
    """Time hits of get_or_init; the get beside it reads the same 1,000 pairs."""
    result = Result(
        "once",
        "get_or_init, hit, 100 B, hot",
        "1,000 keys (str, 20 characters), values of 100 B as bytes, read in order, "
        "over and over. `one Python call`: a function of the same two arguments that returns.",
        "Misses, waiting, and hits of large values, where the copy counts.",
    )
    keys = hot_keys()
    values = {key: value_of(number, SIZE) for number, key in enumerate(keys)}

    def never() -> bytes:
        raise AssertionError("every call is a hit")

    def call(key: str, factory: object) -> None:
        return None

    with shmcache_open() as cache:
        for key in keys:
            require(
                cache.get_or_init(key, lambda key=key: values[key]) == values[key],
                "the first call stores",
            )

        @cache.memoize
        def load(key: str) -> bytes:
            return values[key]

        for key in keys:
            require(load(key) == values[key], "the first call stores")
        contestants = [
            Contestant("get", "get(key)", {"get": cache.get}, [keys]),
            Contestant(
                "get_or_init", "f(key, make)", {"f": cache.get_or_init, "make": never}, [keys]
            ),
            Contestant("memoize", "f(key)", {"f": load}, [keys]),
            Contestant("one Python call", "f(key, make)", {"f": call, "make": never}, [keys]),
        ]
        misses = cache.stats().misses
        rounds = interleave(contestants, options)
        require(cache.stats().misses == misses, "every call was a hit")

    result.measurements = rounds.measurements
    result.figures = [
        rounds.ratio(
            "get_or_init hit / (get + one Python call)",
            "get_or_init",
            ("get", "one Python call"),
            target=1.5,
        ),
        rounds.ratio("get_or_init hit / get", "get_or_init", "get"),
        rounds.ratio(
            "memoize hit / (get + one Python call)",
            "memoize",
            ("get", "one Python call"),
            target=1.5,
        ),
    ]
    return result
