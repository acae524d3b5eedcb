"""Fixtures of the whole suite, and its rule that nothing may be left in /dev/shm.

Every name comes from a fixture that looks when the test is over, and the end of the run looks once
more.  How long the load tests run is ``SHMCACHE_STRESS_SECONDS`` (see support.processes).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with something else fails no test: examples are not timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from support import names  # noqa: E402 - needs the path above
from support.daemons import Daemon  # noqa: E402 - needs the path above
from support.processes import Worker  # noqa: E402 - needs the path above


def pytest_configure(config: pytest.Config) -> None:
    """Fix the run's token before xdist starts its workers, which inherit it."""
    names.run_token()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if its caches left anything (looked at once, after every xdist worker)."""
    if hasattr(session.config, "workerinput"):
        return
    found = names.leftovers_of_run()
    if found:
        names.remove(found)
        listing = "\n  ".join(path.name for path in found)
        sys.stderr.write(f"\nERROR: the run left these in /dev/shm:\n  {listing}\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def new_name(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes unique cache names; when the test is over, none of them may have left a file."""
    made: list[str] = []

    def make() -> str:
        made.append(names.unique_name(request.node.name))
        return made[-1]

    yield make
    found = [path for name in made for path in names.leftovers(name)]
    names.remove(found)
    assert not found, f"left in /dev/shm: {[path.name for path in found]}"


@pytest.fixture
def cache_name(new_name: Callable[[], str]) -> str:
    """One unique cache name."""
    return new_name()


@pytest.fixture
def open_cache(new_name: Callable[[], str]) -> Iterator[Callable[..., Any]]:
    """Opens caches that are closed when the test is over: ``open_cache(name=None, **arguments)``.

    Without ``name`` the cache gets one of its own and 2 MiB, which is quick to make.
    """
    from shmcache import Cache

    opened: list[Cache] = []

    def open_one(name: str | None = None, **arguments: Any) -> Cache:
        if name is None:
            name = new_name()
            arguments.setdefault("size", "2MiB")
        opened.append(Cache(name, **arguments))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache: Callable[..., Any]) -> Any:
    """An empty cache of 2 MiB with the default policy and codec."""
    return open_cache()


@pytest.fixture
def start(new_name: Callable[[], str]) -> Iterator[Callable[..., Worker]]:
    """Starts workers (see support.processes); those still running at the end are killed."""
    started: list[Worker] = []

    def start_one(fn: Callable[..., Any], *args: Any, method: str = "fork") -> Worker:
        started.append(Worker(fn, *args, method=method))
        return started[-1]

    yield start_one
    for worker in started:
        worker.kill()


@pytest.fixture
def serve(new_name: Callable[[], str], tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts owner daemons: ``serve(name, *arguments, environment=..., command=...)``.

    At the end those still running are killed, and the caches that they made are removed: a daemon
    leaves its cache where it is.
    """
    started: list[Daemon] = []

    def start_one(name: str, *arguments: str, **options: Any) -> Daemon:
        options.setdefault("directory", tmp_path)
        started.append(Daemon(name, *arguments, **options))
        return started[-1]

    yield start_one
    for daemon in started:
        daemon.kill()
    for daemon in started:
        names.remove(names.leftovers(daemon.name))
