"""The daemon and its workers as different users who share a group; a third user is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from support import names
from support.daemons import Daemon
from support.processes import Channel, Worker

from shmcache import Cache, NotPermitted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")

DAEMON, WORKER, STRANGER, GROUP = 61_001, 61_002, 61_003, 61_100


AS_USER = """
import os, sys
import shmcache.cli.serve  # while it may be read: the interpreter can be in root's own directory
user, *groups = map(int, sys.argv.pop(1).split(","))
os.setgroups(groups); os.setgid(user); os.setuid(user)
from shmcache.cli import main
main(prog_name="shmcache")
"""


def command_of(user: int, groups: list[int]) -> list[str]:
    """The command line's beginning, run as another user."""
    return [sys.executable, "-c", AS_USER, ",".join(map(str, [user, *groups]))]


def become(user: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setgid(user)
    os.setuid(user)


def work(channel: Channel, name: str, user: int, groups: list[int]) -> int:
    become(user, groups)
    with Cache(name, create=False, group=GROUP) as cache:
        assert cache["from root"] == 1
        cache["mine"] = os.getuid()
        for _ in range(100):
            cache.incr("n")
        channel.sync()
        return cache["n"]


def intrude(channel: Channel, name: str, group: int | None) -> str:
    become(STRANGER, [])
    try:
        Cache(name, create=False, group=group)
    except NotPermitted as error:
        return str(error)
    return "was let in"


def steal(channel: Channel, name: str) -> str:
    """A member of the group who does not name it: the cache is another's."""
    become(WORKER, [GROUP])
    try:
        Cache(name, create=False)
    except NotPermitted as error:
        return str(error)
    return "was let in"


@pytest.fixture
def shared(serve: Callable[..., Daemon], cache_name: str) -> Daemon:
    """A daemon of user DAEMON that has given its cache to GROUP."""
    return serve(
        cache_name,
        *("--size", "2MiB", "--group", str(GROUP)),
        command=command_of(DAEMON, [GROUP]),
    ).ready()


def test_workers_of_the_group_share_the_cache(
    shared: Daemon, cache_name: str, start: Callable[..., Worker]
) -> None:
    status = names.segment_path(cache_name).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (DAEMON, GROUP, 0o660)
    for path in names.leftovers(cache_name):
        assert path.stat().st_gid == GROUP, path
        assert path.stat().st_mode & 0o777 == 0o660, path
    with Cache(cache_name, create=False, group=GROUP) as cache:
        cache["from root"] = 1
        workers = [start(work, cache_name, user, [GROUP]) for user in (WORKER, STRANGER)]
        for worker in workers:
            assert worker.recv() == "ready"
        assert cache.stats().owner_pid == shared.pid
        shared.kill()  # they work on, and the next one adopts it
        for worker in workers:
            worker.send("go")
        assert max(worker.result() for worker in workers) <= 200
        assert cache["n"] == 200
        assert cache["mine"] in (WORKER, STRANGER)


def test_the_next_daemon_of_that_user_adopts_it(
    shared: Daemon, cache_name: str, serve: Callable[..., Daemon]
) -> None:
    shared.kill()
    again = serve(
        cache_name,
        *("--group", str(GROUP), "--unlink"),
        command=command_of(DAEMON, [GROUP]),
    ).ready()
    assert "(adopted)" in again.out()
    assert again.stop() == 0
    assert names.leftovers(cache_name) == []


@pytest.mark.parametrize("group", [None, GROUP])
def test_a_third_user_is_refused(
    group: int | None, shared: Daemon, cache_name: str, start: Callable[..., Worker]
) -> None:
    told = start(intrude, cache_name, group).result()
    assert cache_name in told
    assert str(DAEMON) in told
    assert "0660" in told


def test_a_member_names_the_group_that_it_trusts(
    shared: Daemon, cache_name: str, start: Callable[..., Worker]
) -> None:
    assert f"group={GROUP}" in start(steal, cache_name).result()


def test_a_group_that_the_daemon_is_not_in_is_refused(
    serve: Callable[..., Daemon], cache_name: str
) -> None:
    daemon = serve(
        cache_name,
        *("--size", "2MiB", "--group", str(GROUP)),
        command=command_of(DAEMON, []),
    )
    assert daemon.wait() == 1
    assert "no member" in daemon.log()
    assert names.leftovers(cache_name) == []
