"""get_or_init and memoize of a value that is there: beside a get, a call of Python, lru_cache."""

from __future__ import annotations

import functools

from bench.harness import Contestant, Options, Result, interleave, require
from bench.peers import hot_keys, shmcache_open, value_of

SIZE = 100


def run(options: Options) -> Result:
    """Time hits of get_or_init; the get beside it reads the same 1,000 pairs."""
    result = Result(
        "once",
        "get_or_init, hit, 100 B, hot",
        "1,000 keys (str, 20 characters), values of 100 B as bytes, read in order, "
        "over and over. `one Python call`: a function of the same two arguments that returns.  "
        "memoize and functools.lru_cache: functions of one argument, called by position, and of "
        "two, called by position and by name (the second a small int).",
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

        @cache.memoize
        def load_two(key: str, page: int) -> bytes:
            return values[key]

        lru_one = functools.lru_cache(maxsize=None)(load.__wrapped__)
        lru_two = functools.lru_cache(maxsize=None)(load_two.__wrapped__)
        for key in keys:
            for one, two in ((load, load_two), (lru_one, lru_two)):
                require(one(key) == two(key, 7) == values[key], "the first call stores")
                require(two(key=key, page=7) == values[key], "by name too")
        contestants = [
            Contestant("get", "get(key)", {"get": cache.get}, [keys]),
            Contestant(
                "get_or_init", "f(key, make)", {"f": cache.get_or_init, "make": never}, [keys]
            ),
            Contestant("memoize", "f(key)", {"f": load}, [keys]),
            Contestant("memoize, two", "f(key, 7)", {"f": load_two}, [keys]),
            Contestant("memoize, names", "f(key=key, page=7)", {"f": load_two}, [keys]),
            Contestant("lru_cache", "f(key)", {"f": lru_one}, [keys]),
            Contestant("lru_cache, two", "f(key, 7)", {"f": lru_two}, [keys]),
            Contestant("lru_cache, names", "f(key=key, page=7)", {"f": lru_two}, [keys]),
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
        *(
            rounds.ratio(
                f"memoize hit{how} / (get + one Python call)",
                f"memoize{how}",
                ("get", "one Python call"),
                target=1.5 if not how else None,
            )
            for how in ("", ", two", ", names")
        ),
        *(
            rounds.ratio(f"memoize hit{how} / lru_cache", f"memoize{how}", f"lru_cache{how}")
            for how in ("", ", two", ", names")
        ),
    ]
    return result
