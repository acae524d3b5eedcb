"""Who may create, attach to and unlink a segment, and the modes of its files."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.attachments import attach, forget, leave
from support.names import leftovers, segment_path
from support.processes import Channel, Worker

from shmcache import errors, segment
from shmcache.block import building_path

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")


@pytest.fixture
def opened(cache_name: str) -> Iterator[segment.Attachment]:
    attachment = attach(cache_name)
    yield attachment
    attachment.unlink()
    while attachment.handles:
        attachment.release()


# -------------------------------------------------------------------------------------- permissions
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(cache_name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        attachment = attach(cache_name, mode=0o664)
    finally:
        os.umask(before)
    files = leftovers(cache_name)
    assert len(files) == 2 + attachment.superblock.geometry.shard_count
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o664}
    attachment.release()


@as_root
def test_the_group_is_that_of_every_file(cache_name: str) -> None:
    group = grp.getgrgid(NOBODY).gr_name
    attachment = attach(cache_name, mode=0o660, group=group)
    assert {path.stat().st_gid for path in leftovers(cache_name)} == {NOBODY}
    assert attachment.others_can_write
    attachment.release()


def become_nobody(groups: tuple[int, ...] = ()) -> None:
    os.setgroups(groups)
    os.setgid(NOBODY - 1)
    os.setuid(NOBODY)


@as_root
def test_a_segment_that_lets_nobody_in(
    opened: segment.Attachment, start: Callable[..., Worker]
) -> None:
    def refused(channel: Channel) -> str:
        become_nobody()
        with pytest.raises(errors.NotPermitted, match="dropped its privileges"):
            opened.rejoin()
        forget()
        with pytest.raises(errors.NotPermitted) as caught:
            attach(opened.name)
        return str(caught.value)

    message = start(refused).result()
    for words in ("root (uid 0)", "mode 0600", "0o660", opened.name):
        assert words in message


@as_root
def test_a_root_segment_that_lets_a_group_in(start: Callable[..., Worker], cache_name: str) -> None:
    attachment = attach(cache_name, mode=0o660, group=NOBODY)

    def member(channel: Channel) -> int:
        become_nobody((NOBODY,))
        forget()
        theirs = attach(cache_name, create=False)
        with pytest.raises(errors.NotPermitted, match="only its owner and root"):
            theirs.unlink()
        clients = theirs.live_clients()
        channel.sync()
        theirs.release()
        return clients

    worker = start(member)
    assert worker.recv() == "ready"
    attachment.release()
    worker.send("go")  # the last one out may not unlink what is root's: it is left for adoption
    assert worker.result() == 2
    assert segment_path(cache_name).exists()
    attach(cache_name).release()
    assert leftovers(cache_name) == []


@as_root
def test_a_strangers_segment(cache_name: str) -> None:
    path = leave(cache_name)
    os.chown(path, 54321, NOBODY)
    with pytest.raises(errors.NotPermitted, match=r"uid 54321.*0600.*group=") as caught:
        attach(cache_name)
    assert isinstance(caught.value, PermissionError)
    attachment = attach(cache_name, group=NOBODY)
    assert attachment.others_can_write
    with pytest.raises(errors.NotPermitted, match="54321"):
        attach(cache_name)  # shared within the process, but not with whoever does not trust it
    attachment.release()
    assert leftovers(cache_name) == []


@as_root
def test_a_stranger_in_the_way_of_creating(start: Callable[..., Worker], cache_name: str) -> None:
    path = Path(building_path(cache_name))
    path.touch()

    def refused(channel: Channel) -> None:
        become_nobody()
        with pytest.raises(errors.NotPermitted, match="belongs to user 54321"):
            attach(cache_name)

    os.chown(path, 54321, 54321)
    start(refused).result()
    attach(cache_name).release()  # root clears it away
    assert leftovers(cache_name) == []


@as_root
def test_a_group_that_one_is_no_member_of(start: Callable[..., Worker], cache_name: str) -> None:
    def refused(channel: Channel) -> None:
        become_nobody()
        with pytest.raises(errors.NotPermitted, match="no member"):
            attach(cache_name, group=54321)

    start(refused).result()
    assert leftovers(cache_name) == []
