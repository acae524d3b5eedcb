"""Writers are killed at random moments, again and again, while survivors check every value."""

from __future__ import annotations

import contextlib
import functools
import random
import secrets
import time
from collections.abc import Callable
from multiprocessing.connection import wait

import pytest
from support import payloads
from support.names import leftovers
from support.processes import STRESS_S, Channel, Worker

from shmcache import Cache, CacheFull

pytestmark = [pytest.mark.stress, pytest.mark.timeout(int(STRESS_S) * 4 + 120)]

WRITERS = 3
KEYS = [f"key {number}" for number in range(400)]
COUNTERS = [f"count {number}" for number in range(4)]


@functools.cache
def pool() -> dict[str, list[bytes]]:
    """Payloads made beforehand and inherited by the forked writers, so that these spend their
    time, and meet their deaths, inside the cache."""
    rng = random.Random(0)
    sizes = [0, 60, 300, 1000, 5000, 12_000]
    return {
        key: [payloads.make(key, rng.getrandbits(63), s + rng.randrange(100)) for s in sizes]
        for key in KEYS
    }


def make(rng: random.Random, key: str) -> bytes:
    return rng.choice(pool()[key])


def write_for_ever(channel: Channel, name: str, seed: int) -> None:
    """Every kind of write, until killed."""
    rng = random.Random(seed)
    cache = Cache(name, create=False, lock_timeout=20)
    channel.send("writing")
    while True:
        key = rng.choice(KEYS)
        try:
            match rng.randrange(14):
                case 0 | 1 | 2 | 3:
                    cache[key] = make(rng, key)
                case 4:
                    cache.set(key, make(rng, key), ttl=rng.choice([0.005, 0.05, 100]))
                case 5:
                    cache.add(key, make(rng, key))
                case 6:
                    cache.delete(key)
                case 7:
                    value = cache.pop(key, None)
                    assert value is None or payloads.check(key, value) >= 0
                case 8:
                    some = rng.sample(KEYS, 8)
                    cache.set_many({key: make(rng, key) for key in some})
                case 9:
                    cache.delete_many(rng.sample(KEYS, 8))
                case 10:
                    cache.touch(key, rng.choice([None, 0.01, 100]))
                case 11:
                    seen = cache.gets(key)
                    if seen is not None:
                        cache.cas(key, make(rng, key), seen.version)
                case 12:
                    if rng.random() < 0.05:
                        cache.clear()
                    else:
                        cache.expire()
                case 13:
                    for counter in COUNTERS:
                        cache.incr(counter)
        except CacheFull:
            cache.delete_many(rng.sample(KEYS, 100))


def read_for_ever(channel: Channel, name: str) -> int:
    """Check whatever there is, until told to stop; how many values were looked at."""
    checked = 0
    with Cache(name, create=False) as cache:
        channel.send("reading")
        while not channel.told():
            checked += check_everything(cache)
    return checked


def check_everything(cache: Cache) -> int:
    """Every value by key, by batch and by iteration; how many."""
    found = {key: cache.get(key) for key in KEYS}
    checked = 0
    for key, value in cache.items():
        if isinstance(key, str) and key.startswith("count"):
            assert isinstance(value, int)
            assert value > 0
        else:
            assert isinstance(key, str)
            payloads.check(key, value)
            checked += 1
    for key, value in (found | cache.get_many(KEYS[:50])).items():
        if value is not None:
            payloads.check(key, value)
            checked += 1
    return checked


@pytest.mark.parametrize("policy", ["evict", "keep"])
@pytest.mark.parametrize("shards", [1, 2])
def test_killed_writers_harm_nobody(
    open_cache: Callable[..., Cache],
    start: Callable[..., Worker],
    cache_name: str,
    policy: str,
    shards: int,
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool()
    cache = open_cache(cache_name, size="1MiB", shards=shards, policy=policy, lock_timeout=20)
    writers = [start(write_for_ever, cache_name, rng.random()) for _ in range(WRITERS)]
    reader = start(read_for_ever, cache_name)
    assert reader.recv() == "reading"
    kills = checked = 0
    worst = 0.0
    deadline = time.monotonic() + STRESS_S / 2  # four of these run
    while time.monotonic() < deadline:
        victim = rng.randrange(WRITERS)
        assert writers[victim].recv() == "writing"
        # Nothing comes: the wait is the random moment.  What would come is the writer's end.
        ended = wait([writer._pipe for writer in writers], rng.uniform(0, 0.02))
        for writer in writers:
            if writer._pipe in ended and writer.process.exitcode is not None:
                writer.result()  # raises with its traceback
        writers[victim].kill()
        kills += 1
        began = time.monotonic()
        with contextlib.suppress(CacheFull):  # a full shard was taken and looked at all the same
            cache["survivor"] = payloads.make("survivor", kills, 500)
            survivor = cache.get("survivor")  # None: a writer has cleared the cache, or evicted it
            assert survivor is None or payloads.check("survivor", survivor) == kills
        worst = max(worst, time.monotonic() - began)
        if kills % 10 == 0:
            checked += check_everything(cache)
        writers[victim] = start(write_for_ever, cache_name, rng.random())
    for writer in writers:
        assert writer.recv() == "writing"
        writer.kill()
    reader.send("stop")
    checked += reader.result()

    print(
        f"{kills} kills, {checked} values checked, {cache.stats().recoveries} recoveries,"
        f" a survivor's slowest write {worst:.3f} s"
    )
    assert kills >= 10
    assert checked > 100
    cache.delete_many(KEYS[:200])
    for shard_key in KEYS[:50]:  # whichever shards dead writers have left: repaired now
        cache[shard_key] = payloads.make(shard_key, 1, 60)
    assert cache.verify() == []
    cache.expire()
    stats = cache.stats()
    assert len(cache) == stats.entries == len(list(cache)) == len(dict(cache.items()))
    assert stats.clients == 1
    check_everything(cache)
    cache.clear()
    assert (len(cache), cache.stats().bytes_used) == (0, 0)
    assert cache.verify() == []
    cache.close()
    assert leftovers(cache_name) == []
