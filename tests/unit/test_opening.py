"""Opening, attaching, closing and unlinking a cache: api.md "Opening a cache"."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import calls
from support.names import leftovers, segment_path
from support.processes import Channel, Worker, poll_until, release

import shmcache
from shmcache import Cache, CacheClosed, CacheExists, CacheNotFound, GeometryWarning

MIB = 1 << 20


def test_signature_is_the_documented_one() -> None:
    parameters = inspect.signature(Cache).parameters
    names = [name for name in parameters if name != "self"]
    assert names == [
        *("name", "create", "wait", "size", "shards", "avg_entry_size", "policy", "codec"),
        *("local_entries", "slots", "slot_capacity", "persist", "mode", "group", "lock_timeout"),
    ]
    keyword_only = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in keyword_only] == names[1:]


def test_defaults_fit_a_container(cache_name: str) -> None:
    with Cache(cache_name) as cache:
        assert cache.size == 32 * MIB
        assert segment_path(cache_name).stat().st_size <= 32 * MIB
        assert cache.policy == "evict"
        assert cache.codec == "msgpack"
        assert cache.persist is False
        assert cache.name == cache_name
        assert not cache.closed
        assert cache.shards & (cache.shards - 1) == 0
        assert cache.max_value_size >= 32 * MIB / 64


def test_memory_is_reserved_at_creation(cache_name: str) -> None:
    with Cache(cache_name, size="8MiB"):
        status = segment_path(cache_name).stat()
        assert status.st_blocks * 512 >= status.st_size > 7 * MIB


@pytest.mark.parametrize("size", ["1MiB", "2MiB", "64MiB", 1_500_000, "10MB"])
def test_a_64th_of_the_cache_is_a_value(open_cache: Callable[..., Cache], size: Any) -> None:
    cache = open_cache(size=size)
    assert cache.max_value_size >= cache.size / 64
    largest = bytes(cache.max_value_size)
    cache["k" * 200] = largest
    assert cache["k" * 200] == largest


@pytest.mark.parametrize("size", [1 << 20, "1MiB", "1024KiB"])
def test_sizes_are_numbers_or_text(open_cache: Callable[..., Cache], size: Any) -> None:
    assert open_cache(size=size).size == MIB


def test_decimal_and_binary_units_differ(open_cache: Callable[..., Cache]) -> None:
    assert open_cache(size="2MB").size == 2_000_000
    assert open_cache(size="2MiB").size == 2 * MIB


def test_create_true_needs_a_free_name(open_cache: Callable[..., Cache], cache_name: str) -> None:
    first = open_cache(cache_name, create=True, size="1MiB")
    first["k"] = 1
    with pytest.raises(CacheExists, match=cache_name) as caught:
        Cache(cache_name, create=True, size="1MiB")
    assert isinstance(caught.value, FileExistsError)
    assert first["k"] == 1


def test_create_false_needs_a_cache(cache_name: str) -> None:
    with pytest.raises(CacheNotFound, match=cache_name) as caught:
        Cache(cache_name, create=False)
    assert isinstance(caught.value, FileNotFoundError)
    assert leftovers(cache_name) == []


def test_waiting_for_a_cache_ends_after_wait_seconds(cache_name: str) -> None:
    began = time.monotonic()
    with pytest.raises(CacheNotFound):
        Cache(cache_name, create=False, wait=0.2)
    assert time.monotonic() - began >= 0.2


def wait_for_cache(channel: Channel, name: str) -> str:
    channel.send("waiting")
    with Cache(name, create=False, wait=30) as cache:
        return cache.name


def test_waiting_finds_a_cache_that_appears(
    open_cache: Callable[..., Cache], start: Callable[..., Worker], cache_name: str
) -> None:
    worker = start(wait_for_cache, cache_name)
    assert worker.recv() == "waiting"
    open_cache(cache_name, size="1MiB")
    assert worker.result() == cache_name


def open_and_count(channel: Channel, name: str, create: bool | None) -> str:
    channel.sync()
    try:
        cache = Cache(name, create=create, size="1MiB")
    except CacheExists:
        return "exists"
    with cache:
        cache.incr("opened")
        channel.sync()
        return "opened"


@pytest.mark.parametrize("round_", range(5))
def test_processes_that_start_at_once_share_one_cache(
    start: Callable[..., Worker], cache_name: str, round_: int
) -> None:
    workers = [start(open_and_count, cache_name, None) for _ in range(6)]
    release(workers)
    for worker in workers:
        assert worker.recv() == "ready"
    with Cache(cache_name, create=False) as cache:
        assert cache["opened"] == 6
        for worker in workers:
            worker.send("go")
        assert [worker.result() for worker in workers] == ["opened"] * 6
    assert leftovers(cache_name) == []


def test_one_of_many_creators_wins(start: Callable[..., Worker], cache_name: str) -> None:
    workers = [start(open_and_count, cache_name, True) for _ in range(6)]
    release(workers)
    outcomes: list[str] = []
    winners = []
    for worker in workers:
        kind, payload = worker._next()
        outcomes.append(payload)
        if kind == "message":
            winners.append(worker)
    assert sorted(outcomes) == ["exists"] * 5 + ["ready"]
    winners[0].send("go")
    assert winners[0].result() == "opened"


def test_an_attacher_takes_the_segments_own_geometry(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    made = open_cache(cache_name, size="3MiB", shards=2, policy="keep", codec="json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = open_cache(cache_name)
    for attribute in ("size", "shards", "policy", "codec", "persist", "max_value_size"):
        assert getattr(attached, attribute) == getattr(made, attribute), attribute
    assert (attached.shards, attached.policy, attached.codec) == (2, "keep", "json")


@pytest.mark.parametrize(
    ("asked", "both"),
    [({"size": "4MiB"}, ("4", "3")), ({"shards": 4}, ("4", "2"))],
    ids=["size", "shards"],
)
def test_another_geometry_is_a_warning_that_names_both(
    open_cache: Callable[..., Cache], cache_name: str, asked: Any, both: tuple[str, str]
) -> None:
    open_cache(cache_name, size="3MiB", shards=2)
    with pytest.warns(GeometryWarning) as caught:
        attached = open_cache(cache_name, **asked)
    message = str(caught[0].message)
    assert cache_name in message
    assert all(number in message.replace(cache_name, "") for number in both), message
    assert (attached.size, attached.shards) == (3 * MIB, 2)
    assert caught[0].filename == __file__ or "conftest" in caught[0].filename


def test_the_same_geometry_is_no_warning(open_cache: Callable[..., Cache], cache_name: str) -> None:
    open_cache(cache_name, size="3MiB", shards=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_cache(cache_name, size=3 * MIB, shards=2)


@pytest.mark.parametrize(
    ("argument", "of_segment", "other"),
    [("policy", "keep", "evict"), ("codec", "json", "msgpack")],
)
def test_another_policy_or_codec_is_an_error(
    open_cache: Callable[..., Cache], cache_name: str, argument: str, of_segment: str, other: str
) -> None:
    open_cache(cache_name, size="1MiB", **{argument: of_segment})
    with pytest.raises(ValueError, match=of_segment) as caught:
        Cache(cache_name, **{argument: other})  # type: ignore[arg-type]
    assert other in str(caught.value)
    open_cache(cache_name, **{argument: of_segment})


def test_the_segment_goes_with_the_last_handle(cache_name: str) -> None:
    first = Cache(cache_name, size="1MiB")
    second = Cache(cache_name)
    first.close()
    assert segment_path(cache_name).exists()
    second.close()
    assert leftovers(cache_name) == []


def test_a_persistent_segment_stays_until_unlinked(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB", persist=True) as cache:
        assert cache.persist is True
        cache["k"] = "kept"
    assert segment_path(cache_name).exists()
    with Cache(cache_name, create=False) as cache:
        assert cache.persist is True
        assert cache["k"] == "kept"
        cache.unlink()
    assert leftovers(cache_name) == []


def test_close_and_unlink_may_be_called_twice(cache_name: str) -> None:
    cache = Cache(cache_name, size="1MiB")
    cache.unlink()
    cache.unlink()
    assert leftovers(cache_name) == []
    cache.close()
    cache.close()
    assert cache.closed
    assert cache.name == cache_name


def test_unlink_after_close_of_a_persistent_cache(cache_name: str) -> None:
    cache = Cache(cache_name, size="1MiB", persist=True)
    cache.close()
    cache.unlink()
    assert leftovers(cache_name) == []


def test_with_closes_also_after_an_error(cache_name: str) -> None:
    with pytest.raises(RuntimeError, match="user's own"), Cache(cache_name, size="1MiB") as cache:
        raise RuntimeError("the user's own")
    assert cache.closed


@pytest.mark.parametrize("name", calls.EVERY)
def test_use_after_close_is_an_error(open_cache: Callable[..., Cache], name: str) -> None:
    cache = open_cache()
    cache.close()
    with pytest.raises(CacheClosed, match=cache.name) as caught:
        calls.EVERY[name](cache)
    assert isinstance(caught.value, ValueError)


def test_closing_one_handle_leaves_the_others_open(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    first, second = open_cache(cache_name, size="1MiB"), open_cache(cache_name)
    first["k"] = 1
    first.close()
    assert second["k"] == 1
    second["k"] = 2
    assert second["k"] == 2


@pytest.mark.parametrize("name", calls.EVERY)
def test_open_handles_notice_an_unlink(
    open_cache: Callable[..., Cache], cache_name: str, name: str
) -> None:
    cache = open_cache(cache_name, size="1MiB", persist=True)
    cache.update({"k": 1, "n": 1})
    other = open_cache(cache_name)
    other.unlink()
    gone: list[CacheNotFound] = []

    def noticed() -> bool:
        try:
            calls.EVERY[name](cache)
        except CacheNotFound as error:
            gone.append(error)
        except KeyError:
            pass  # popitem and others have emptied what this process still sees
        return bool(gone)

    poll_until(noticed, 1.5, what=f"{name} notices that its cache was unlinked")
    assert cache_name in str(gone[0])
    with pytest.raises(CacheNotFound):
        cache.get("k")


@pytest.mark.filterwarnings("ignore::shmcache.GeometryWarning")
def test_reopen_attaches_anew(open_cache: Callable[..., Cache], cache_name: str) -> None:
    cache = open_cache(cache_name, size="1MiB", policy="keep")
    cache["k"] = "old"
    open_cache(cache_name).unlink()
    new = open_cache(cache_name, create=True, size="2MiB", policy="keep")
    new["k"] = "new"
    cache.reopen()
    assert cache["k"] == "new"
    assert cache.size == 2 * MIB


def test_reopen_creates_where_nothing_is(open_cache: Callable[..., Cache], cache_name: str) -> None:
    cache = open_cache(cache_name, size="1MiB", policy="keep")
    cache["k"] = 1
    cache.unlink()
    cache.reopen()
    assert not cache.closed
    assert dict(cache) == {}
    assert (cache.size, cache.policy) == (MIB, "keep")


def test_another_thread_may_close(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    cache["k"] = b"v" * 1000
    reading = threading.Barrier(4)
    outcomes: list[str] = []

    def read_until_closed() -> None:
        reading.wait()
        try:
            while True:
                assert cache["k"] == b"v" * 1000
                cache["k"] = b"v" * 1000
        except CacheClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=read_until_closed) for _ in range(3)]
    for thread in threads:
        thread.start()
    reading.wait()
    cache.close()
    for thread in threads:
        thread.join(60)
    assert outcomes == ["closed"] * 3


def test_pickles_to_attach_by_name(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(policy="keep")
    cache["k"] = [1, 2]
    copy = pickle.loads(pickle.dumps(cache))
    with copy:
        assert copy["k"] == [1, 2]
        copy["k"] = 3
    assert cache["k"] == 3
    assert not cache.closed


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copies_are_refused(open_cache: Callable[..., Cache], copier: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="open Cache"):
        copier(open_cache(size="1MiB"))


def test_unpickling_never_creates(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB") as cache:
        pickled = pickle.dumps(cache)
    with pytest.raises(CacheNotFound, match=cache_name):
        pickle.loads(pickled)
    assert leftovers(cache_name) == []


def test_repr_names_class_and_cache(cache: Cache) -> None:
    assert "Cache" in repr(cache)
    assert cache.name in repr(cache)
    cache.close()
    assert "closed" in repr(cache)


class Reverse:
    """A codec as a user would write one; values are text, stored backwards."""

    name = "reverse"

    def encode(self, value: object) -> bytes:
        return repr(value)[::-1].encode()

    def decode(self, data: memoryview) -> object:
        return bytes(data).decode()[::-1]


def test_a_codec_of_the_users_own(open_cache: Callable[..., Cache], cache_name: str) -> None:
    cache = open_cache(cache_name, size="1MiB", codec=Reverse())
    cache["k"] = [1, 2]
    assert cache["k"] == "[1, 2]"
    assert cache.codec == "reverse"
    attached = open_cache(cache_name, codec=Reverse())
    assert attached["k"] == "[1, 2]"
    for nameless in ({}, {"codec": "msgpack"}):
        with pytest.raises(ValueError, match="reverse"):
            Cache(cache_name, **nameless)  # type: ignore[arg-type]


def test_list_caches_shows_what_exists_and_changes_nothing(
    open_cache: Callable[..., Cache], cache_name: str
) -> None:
    cache = open_cache(cache_name, size="2MiB")
    cache.update({"a": 1, "b": 2})
    before = leftovers(cache_name)
    (found,) = [entry for entry in shmcache.list_caches() if entry.name == cache_name]
    assert found.size == 2 * MIB
    assert found.entries == 2
    assert found.clients == 1
    assert found.owner is not None
    assert leftovers(cache_name) == before
    cache.close()
    assert cache_name not in [entry.name for entry in shmcache.list_caches()]


def test_everything_public_is_exported() -> None:
    expected = (
        "Cache Key Codec Stats ShardStats Versioned list_caches GeometryWarning ShmcacheError "
        "CacheNotFound CacheExists CacheClosed NotPermitted OutOfSharedMemory LayoutMismatch "
        "CorruptSegment DecodeError LimitReached CacheFull KeyTooLarge ValueTooLarge SlotTooLarge "
        "LockTimeout WouldBlock InitTimeout Cancelled ReentrantInit"
    )
    missing = [name for name in expected.split() if not hasattr(shmcache, name)]
    assert missing == []
    assert set(expected.split()) <= set(shmcache.__all__)


def test_importing_elsewhere_than_on_linux_says_so() -> None:
    code = "import sys; sys.platform = 'darwin'\nimport shmcache"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "Linux" in done.stderr.splitlines()[-1]


def test_a_normal_interpreter_exit_counts_as_closing(cache_name: str) -> None:
    code = f"from shmcache import Cache; c = Cache({cache_name!r}, size='1MiB'); c['k'] = 1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert leftovers(cache_name) == []


def test_opening_writes_nothing_elsewhere(cache_name: str, tmp_path: Path) -> None:
    """Importing and opening must not start helpers that outlive the process (resource tracker)."""
    code = f"""
import json, sys
from multiprocessing import resource_tracker
from shmcache import Cache
with Cache({cache_name!r}, size="1MiB") as c:
    c["k"] = 1
print(json.dumps(resource_tracker._resource_tracker._pid))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) is None
    assert list(tmp_path.iterdir()) == []
