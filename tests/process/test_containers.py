"""In containers: a small /dev/shm, a read-only root, another user, and a /dev/shm that containers
with PID namespaces of their own share (docs/containers.md)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from support import faults, names
from support.containers import READ_ONLY_ROOT, container, shm, skip_where_refused
from support.daemons import SHMCACHE, Daemon
from support.processes import HANG_S, poll_until

from shmcache import Cache


@pytest.fixture(autouse=True)
def namespaces() -> None:
    skip_where_refused()


def run(setup: str, code: str, *arguments: str) -> str:
    """Run Python code in a container of its own; what it prints."""
    done = subprocess.run(
        container(setup, sys.executable, "-c", code, *arguments),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------- a /dev/shm of 64 MB
def test_the_default_size_fits_the_64_mb_of_a_container() -> None:
    code = """
from shmcache import Cache
with Cache("app") as cache:
    cache["a"] = 1
    for number in range(100_000):  # fills it, and some: no SIGBUS ever
        cache[number] = b"x" * 1000
    print(cache.size, cache.verify())
"""
    assert run(shm("64m"), code).split() == [str(32 << 20), "[]"]


def test_a_cache_that_does_not_fit_says_so_and_what_to_do() -> None:
    code = """
import os
from shmcache import Cache, OutOfSharedMemory
try:
    Cache("app", size="128MiB")
except OutOfSharedMemory as error:
    print(error)
print(os.listdir("/dev/shm"))
"""
    told, left = run(shm("64m"), code).splitlines()
    for word in ("128.0 MiB", "64.0 MiB", "--shm-size", "emptyDir", "medium: Memory"):
        assert word in told
    assert left == "[]"


def test_the_daemon_says_so_too() -> None:
    script = f"{' '.join(SHMCACHE)} serve app --size 128MiB || echo $?; ls -A /dev/shm"
    done = subprocess.run(
        container(shm("64m"), "sh", "-c", script),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert done.stdout == "1\n"
    assert "--shm-size" in done.stderr


# --------------------------------------------------------------------------- a read-only root
def test_a_read_only_root_with_dev_shm_is_enough(
    serve: Callable[..., Daemon], cache_name: str
) -> None:
    """The daemon and a client, each in a container that can write to /dev/shm and nowhere else."""
    setup = f"{READ_ONLY_ROOT}\nif touch /shmcache-was-here 2>/dev/null; then exit 99; fi"
    daemon = serve(cache_name, "--size", "2MiB", command=container(setup, *SHMCACHE)).ready()
    code = """
import sys
from shmcache import Cache
with Cache(sys.argv[1], create=False) as cache:
    cache["a"] = [1, 2]
    with cache.latencies().time():
        print(cache["a"], cache.slot("config").store({"b": 3}))
"""
    assert run(setup, code, cache_name) == "[1, 2] 1\n"
    with Cache(cache_name, create=False) as cache:
        assert cache["a"] == [1, 2]
        assert cache.slot("config").load() == {"b": 3}
    daemon.kill()


# ------------------------------------------------------------------------------- another user
AS_USER = """
import os, sys
from shmcache import Cache
os.setgroups([]); os.setgid(61001); os.setuid(61001)
with Cache("app", size="2MiB") as cache:
    cache["a"] = 1
    (status,) = [os.stat(f"/dev/shm/{name}") for name in ["shmcache.app"]]
    print(status.st_uid, oct(status.st_mode & 0o777), cache["a"])
print(os.listdir("/dev/shm"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_user_without_rights_needs_none() -> None:
    assert run(shm("64m"), AS_USER).splitlines() == ["61001 0o600 1", "[]"]


# ------------------------------------------------ one /dev/shm, PID namespaces of their own
class Contained:
    """A Python process in a container that shares this machine's /dev/shm; lines in and out."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            container("", *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """SIGKILL to unshare, and so to the whole container; waits for the end of it."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Wait for its end. Its output ends when the last process of the container has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.stdout.close()
        self.process.wait(HANG_S)


@pytest.fixture
def contain() -> Iterator[Callable[..., Contained]]:
    started: list[Contained] = []

    def start_one(*command: str, environment: dict[str, str] | None = None) -> Contained:
        started.append(Contained(*command, environment=environment))
        return started[-1]

    yield start_one
    for each in started:
        if each.process.poll() is None:
            each.kill()


ATTACH = """
import os, sys
from shmcache import Cache
with Cache(sys.argv[1], create=False) as cache:
    cache.incr("attached")
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""

INITIALISE = """
import sys, time
from shmcache import Cache
with Cache(sys.argv[1], create=False) as cache:
    def factory():
        print("inside", flush=True)
        time.sleep(3600)
    cache.get_or_init("k", factory)
"""


def test_pids_mean_nothing_and_a_death_is_noticed(
    contain: Callable[..., Contained], cache_name: str
) -> None:
    with Cache(cache_name, size="2MiB") as cache:
        one, other = (contain(sys.executable, "-c", ATTACH, cache_name) for _ in range(2))
        assert one.line() == other.line() == "2"  # the same pid, and not this process's
        assert cache["attached"] == 2
        assert cache.stats().clients == 3
        one.kill()
        poll_until(lambda: cache.stats().clients == 2, 5, what="the death is noticed")
        other.close()
        poll_until(lambda: cache.stats().clients == 1, 5, what="the end is noticed")
        assert cache.verify() == []


def test_a_waiter_in_another_namespace_takes_over_from_a_dead_initialiser(
    contain: Callable[..., Contained], cache_name: str
) -> None:
    with Cache(cache_name, size="2MiB") as cache:
        initialiser = contain(sys.executable, "-c", INITIALISE, cache_name)
        assert initialiser.line() == "inside"
        initialiser.kill()
        assert cache.get_or_init("k", lambda: "mine", timeout=HANG_S) == "mine"


def test_a_lock_of_the_dead_of_another_namespace_is_recovered(
    contain: Callable[..., Contained], cache_name: str
) -> None:
    environment = faults.environment()
    with Cache(cache_name, size="1MiB", shards=1, lock_timeout=HANG_S) as cache:
        cache["stopped"] = b"x"
        child = contain(
            *faults.command("fault_child", cache_name, "entry_half", "kill"),
            environment=environment,
        )
        assert child.line() == "attached"
        child.close()  # killed inside the lock, with half an entry written
        cache["other"] = 1
        assert cache["other"] == 1
        assert cache.stats().recoveries == 1
        assert cache.verify() == []


def test_a_stopped_holder_in_another_namespace_is_not_robbed(
    contain: Callable[..., Contained], cache_name: str
) -> None:
    """The counterpart: its pid is nobody's here, and it lives all the same."""
    environment = faults.environment()
    with Cache(cache_name, size="1MiB", shards=1, lock_timeout=0.2) as cache:
        cache["stopped"] = b"x"
        child = contain(
            *faults.command("fault_child", cache_name, "entry_half", "stop"),
            environment=environment,
        )
        assert child.line() == "attached"

        def held() -> bool:
            try:
                cache["other"] = 1
            except TimeoutError:
                return True
            return False

        poll_until(held, what="the shard is held by the stopped process")
        assert cache.stats().recoveries == 0
        child.kill()
        cache["other"] = 2
        assert cache.stats().recoveries == 1


def test_an_owner_in_a_container_of_its_own(
    serve: Callable[..., Daemon], cache_name: str, contain: Callable[..., Contained]
) -> None:
    """A sidecar: workers in other containers, and a second daemon in one more, are served by it
    and refused by it; after its death another one adopts the cache."""
    first = serve(cache_name, "--size", "2MiB", command=container("", *SHMCACHE)).ready()
    assert "pid 2" in first.out()
    worker = contain(sys.executable, "-c", ATTACH, cache_name)
    assert worker.line() == "2"
    second = serve(cache_name, command=container("", *SHMCACHE))
    assert second.wait() == 1
    assert "owner" in second.log()
    first.kill()
    with Cache(cache_name, create=False) as cache:
        poll_until(lambda: cache.stats().owner_pid is None, what="the container has ended")
        third = serve(cache_name, "--sweep-interval", "0.05", command=container("", *SHMCACHE))
        assert "(adopted)" in third.ready().out()
        assert cache["attached"] == 1
        before = cache.stats().clients
        worker.kill()
        poll_until(lambda: cache.stats().clients == before - 1, 5, what="noticed")


def test_the_machine_finds_no_trace_of_a_container() -> None:
    """A /dev/shm of its own is gone with the container, whatever happened in it."""
    name = names.unique_name("contained")
    code = "import sys, os; from shmcache import Cache; Cache(sys.argv[1]); os._exit(0)"
    run(shm("64m"), code, name)
    assert names.leftovers(name) == []
