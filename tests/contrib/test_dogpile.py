"""dogpile.cache's backend and its mutex among processes, beyond dogpile's own tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.forks import in_child
from support.outages import UNOPENABLE, fill, hold_all_shards
from support.processes import HANG_S, Channel, poll_until, release

from shmcache import Cache, errors
from shmcache.contrib._connection import connect
from shmcache.contrib._mutex import LeaseMutex

pytest.importorskip("dogpile.cache")

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from shmcache.contrib.dogpile import ShmBackend


@pytest.fixture
def make(new_name: Callable[[], str]) -> Iterator[Callable[..., ShmBackend]]:
    """Makes backends: ``make(name=None, **arguments)``."""
    made = []

    def backend(name: str | None = None, **arguments: Any) -> ShmBackend:
        arguments.setdefault("size", "1MiB")
        made.append(ShmBackend({"name": name or new_name(), **arguments}))
        return made[-1]

    yield backend
    for one in made:
        one._connection.close()


@pytest.fixture
def backend(make: Any) -> ShmBackend:
    return make(distributed_lock=True)


def mutex(backend: ShmBackend, key: str = "key") -> LeaseMutex:
    made = backend.get_mutex(key)
    assert isinstance(made, LeaseMutex)
    return made


class TestBackend:
    def test_by_its_entry_point(self, cache_name: str) -> None:
        arguments = {"name": cache_name, "size": "1MiB", "distributed_lock": True, "unknown": 1}
        before = dict(arguments)
        region = make_region().configure("shmcache", expiration_time=60, arguments=arguments)
        assert arguments == before
        calls = []

        @region.cache_on_arguments()
        def double(number: int) -> int:
            calls.append(number)
            return number * 2

        assert [double(2), double(2), double(3)] == [4, 4, 6]
        assert calls == [2, 3]
        region.backend._connection.close()

    def test_without_a_name(self) -> None:
        with pytest.raises(ValueError, match="name"):
            ShmBackend({})

    def test_bytes_are_stored_as_they_are(self, backend: ShmBackend) -> None:
        backend.set_serialized_multi({"a": b"1", "b": b"\x00\xff"})
        assert backend.get_serialized_multi(["b", "x", "a", "b"]) == [
            b"\x00\xff",
            NO_VALUE,
            b"1",
            b"\x00\xff",
        ]
        backend.delete("a")
        backend.delete("a")
        backend.delete_multi(["b", "x"])
        assert backend.get_serialized("b") is NO_VALUE

    def test_an_expiration_time_of_its_own(self, make: Any) -> None:
        backend = make(expiration_time=50)
        backend.set_serialized("a", b"1")
        backend.set_serialized_multi({"b": b"1"})
        for key in "ab":
            assert 40 < backend._connection.cache.ttl(key) <= 50

    def test_without_distributed_lock_dogpile_uses_its_own(self, make: Any) -> None:
        assert make().get_mutex("a") is None


CALLS: dict[str, tuple[Callable[[ShmBackend], Any], Any]] = {
    "get": (lambda c: c.get_serialized("a"), NO_VALUE),
    "get_multi": (lambda c: c.get_serialized_multi(["a", "b"]), [NO_VALUE, NO_VALUE]),
    "set": (lambda c: c.set_serialized("a", b"1"), None),
    "set_multi": (lambda c: c.set_serialized_multi({"a": b"1"}), None),
    "delete": (lambda c: c.delete("a"), None),
    "delete_multi": (lambda c: c.delete_multi(["a"]), None),
}


class TestOutages:
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("outage", UNOPENABLE)
    def test_a_miss_or_an_error(self, make: Any, outage: str, call: str) -> None:
        arguments, error = UNOPENABLE[outage]
        run, missed = CALLS[call]
        assert run(make(**arguments)) == missed
        with pytest.raises(error):
            run(make(on_error="raise", **arguments))

    @pytest.mark.parametrize("call", [name for name in CALLS if not name.startswith("get")])
    def test_a_held_shard(self, make: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        backend, strict = make(), make(on_error="raise")
        for one in (backend, strict):
            one.get_serialized("a")
        run, missed = CALLS[call]
        with monkeypatch.context() as patch:
            hold_all_shards(patch)
            assert run(backend) == missed
            with pytest.raises(errors.LockTimeout):
                run(strict)

    def test_an_unlinked_cache(self, backend: ShmBackend) -> None:
        old = backend._connection.cache
        old.unlink()
        while backend._connection.cache is old:
            assert backend.get_serialized("a") is NO_VALUE
        backend.set_serialized("a", b"1")
        with Cache(backend._connection.name, create=False) as other:
            assert other["a"] == b"1"

    def test_what_there_is_no_room_for_drops_the_old_value(self, make: Any) -> None:
        backend = make(policy="keep", shards=1)
        backend.set_serialized("a", b"old")
        fill(backend._connection.cache)
        backend.set_serialized("a", b"x" * 10_000)
        assert backend.get_serialized("a") is NO_VALUE
        backend.set_serialized("b", b"1")
        large = b"x" * (backend._connection.cache.max_value_size + 1)
        backend.set_serialized_multi({"b": large, "c": b"1"})
        assert backend.get_serialized_multi("bc") == [NO_VALUE, b"1"]
        strict = make(backend._connection.name, policy="keep", shards=1, on_error="raise")
        with pytest.raises(errors.ValueTooLarge):
            strict.set_serialized("a", large)

    @pytest.mark.parametrize("outage", UNOPENABLE)
    def test_the_mutex_holds_among_threads_all_the_same(self, make: Any, outage: str) -> None:
        backend = make(distributed_lock=True, **UNOPENABLE[outage][0])
        first, second = mutex(backend), mutex(backend)
        assert first.acquire() is True
        assert second.acquire(False) is False
        assert second.locked()
        first.release()
        assert second.acquire(False) is True
        second.release()

    def test_the_mutex_raises_where_that_is_asked(self, make: Any) -> None:
        strict = make(distributed_lock=True, size="1TiB", on_error="raise")
        with pytest.raises(errors.OutOfSharedMemory):
            mutex(strict).acquire()
        lenient = make(strict._connection.name, distributed_lock=True)
        again = mutex(lenient)
        assert again.acquire(False) is True, "what was not acquired is not held"
        again.release()


def _hold(channel: Channel, name: str) -> None:
    lock = LeaseMutex(connect(name, size="1MiB"), "key")
    assert lock.acquire()
    channel.send("held")
    channel.recv()
    lock.release()
    channel.send("released")
    channel.recv()


def _count(channel: Channel, name: str, times: int) -> int:
    """Adds to a number by get and set, which loses some but for the mutex."""
    connection = connect(name, size="1MiB")
    lock = LeaseMutex(connection, "key")
    cache = connection.cache
    channel.sync()
    for _ in range(times):
        lock.acquire()
        number = cache.get("n", 0)
        assert cache.add("inside", os.getpid()), "somebody else is inside"
        cache.set("n", number + 1)
        cache.delete("inside")
        lock.release()
    return times


class TestMutex:
    def test_one_holder_a_key(self, backend: ShmBackend) -> None:
        first, second, other = mutex(backend), mutex(backend), mutex(backend, "other")
        assert first.acquire() is True
        assert second.acquire(False) is False
        assert first.acquire(False) is False, "it is not reentrant"
        assert other.acquire(False) is True
        assert first.locked() and second.locked()
        first.release()
        other.release()
        assert not second.locked()
        with pytest.raises(RuntimeError, match="not held"):
            second.release()

    def test_between_processes(self, backend: ShmBackend, start: Any) -> None:
        holder = start(_hold, backend._connection.name)
        assert holder.recv() == "held"
        lock = mutex(backend)
        assert lock.locked()
        assert lock.acquire(False) is False
        holder.send("release")
        assert holder.recv() == "released"
        assert not lock.locked()
        assert lock.acquire(False) is True
        lock.release()
        holder.send("end")
        holder.result()

    def test_who_waits_gets_it_when_it_is_released(self, backend: ShmBackend, start: Any) -> None:
        holder = start(_hold, backend._connection.name)
        holder.recv()
        got = threading.Event()

        def wait() -> None:
            lock = mutex(backend)
            lock.acquire()
            got.set()
            lock.release()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not got.wait(0.1)
        holder.send("release")
        assert got.wait(HANG_S)
        waiter.join()
        assert holder.recv() == "released"
        holder.send("end")
        holder.result()

    def test_a_killed_holder_loses_it_at_once(self, backend: ShmBackend, start: Any) -> None:
        holder = start(_hold, backend._connection.name)
        holder.recv()
        lock = mutex(backend)
        took: list[float] = []

        def wait() -> None:
            lock.acquire()
            took.append(time.monotonic())

        waiter = threading.Thread(target=wait)
        waiter.start()
        killed = time.monotonic()
        holder.kill()
        waiter.join(HANG_S)
        assert took and took[0] - killed < 5.0
        assert lock.acquire(False) is False
        lock.release()

    def test_a_stopped_holder_keeps_it(self, backend: ShmBackend, start: Any) -> None:
        holder = start(_hold, backend._connection.name)
        holder.recv()
        os.kill(holder.pid, signal.SIGSTOP)
        assert mutex(backend).acquire(False) is False
        os.kill(holder.pid, signal.SIGCONT)
        holder.send("release")
        holder.recv()
        lock = mutex(backend)
        assert lock.acquire(False) is True
        lock.release()
        holder.send("end")
        holder.result()

    def test_it_excludes(self, backend: ShmBackend, start: Any) -> None:
        backend._connection.cache["n"] = 0
        workers = [start(_count, backend._connection.name, 60) for _ in range(3)]
        release(workers)
        assert sum(worker.result() for worker in workers) == 180
        assert backend._connection.cache["n"] == 180
        assert backend._connection.cache.verify() == []

    def test_another_thread_may_release_it(self, backend: ShmBackend) -> None:
        lock = mutex(backend)
        lock.acquire()
        thread = threading.Thread(target=lock.release)
        thread.start()
        thread.join()
        again = mutex(backend)
        assert again.acquire(False) is True
        again.release()

    def test_a_forked_child_holds_nothing_of_its_parents(self, backend: ShmBackend) -> None:
        lock = mutex(backend)
        lock.acquire()

        def refused() -> bool:
            return mutex(backend).acquire(False) is False and mutex(backend).locked()

        assert in_child(os.fork, refused)
        assert mutex(backend).acquire(False) is False
        lock.release()
        assert in_child(os.fork, lambda: mutex(backend).acquire(False))

        def free() -> bool:  # the child has died with it
            return mutex(backend).acquire(False)

        poll_until(free, what="the dead child's mutex")

    def test_a_forked_child_cannot_release_its_parents(self, backend: ShmBackend) -> None:
        lock = mutex(backend)
        lock.acquire()

        def released() -> bool:
            try:
                lock.release()
            except RuntimeError:
                return True
            return False

        assert in_child(os.fork, released)
        assert mutex(backend).acquire(False) is False
        lock.release()
        assert not lock.locked()

    def test_a_handle_that_never_waits(self, make: Any, start: Any) -> None:
        """lock_timeout=0: writes raise WouldBlock under contention; the mutex excludes still."""
        backend = make(distributed_lock=True, lock_timeout=0.0)
        workers = [start(_count_impatiently, backend._connection.name, 60) for _ in range(3)]
        release(workers)
        assert sum(worker.result() for worker in workers) == 180


def _count_impatiently(channel: Channel, name: str, times: int) -> int:
    lock = LeaseMutex(connect(name, size="1MiB", lock_timeout=0.0), "key")
    with Cache(name) as cache:
        channel.sync()
        for _ in range(times):
            lock.acquire()
            assert cache.add("inside", os.getpid()), "somebody else is inside"
            cache.delete("inside")
            lock.release()
    return times


class TestRegionAmongProcesses:
    def test_one_process_regenerates(self, cache_name: str, start: Any) -> None:
        with Cache(cache_name, size="1MiB"):
            workers = [start(_generate, cache_name) for _ in range(4)]
            release(workers)
            results = [worker.result() for worker in workers]
        assert sum(calls for calls, _ in results) == 1
        assert len({value for _, value in results}) == 1


def _generate(channel: Channel, name: str) -> tuple[int, str]:
    arguments = {"name": name, "size": "1MiB", "distributed_lock": True}
    region = make_region().configure("shmcache", expiration_time=60, arguments=arguments)
    calls = []

    def creator() -> str:
        calls.append(1)
        time.sleep(0.1)  # the others come meanwhile
        return f"made by {os.getpid()}"

    channel.sync()
    value = region.get_or_create("key", creator)
    return len(calls), value
