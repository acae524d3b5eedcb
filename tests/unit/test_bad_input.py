"""Bad input, each with its error from api.md; nothing that is refused may leave a trace."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.names import leftovers, segment_path
from support.processes import Channel, Worker
from support.segments import mapped, persistent

from shmcache import (
    Cache,
    DecodeError,
    NotPermitted,
    OutOfSharedMemory,
)

MIB = 1 << 20
NOBODY, STRANGER, GROUP = 65534, 65533, 65500

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as other users")


# ------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 64, "-", "_", "9", "a..b"])
def test_good_names(name: str) -> None:
    suffix = f"t{os.getpid()}"
    name = name if len(name) == 64 else f"{name}{suffix}"
    if len(name) == 64:
        name = (suffix + name)[:64]
    with Cache(name, size="1MiB") as cache:
        assert cache.name == name
        assert segment_path(name).exists()
    assert leftovers(name) == []


BAD_NAMES = ["", "x" * 65, ".a", ".", "..", "a b", "a/b", "/a", "a\0b", "a~b", "ä", "a:b", "a\n"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("create", [None, True, False])
def test_bad_names(name: str, create: bool | None) -> None:
    with pytest.raises(ValueError, match="name"):
        Cache(name, create=create)


@pytest.mark.parametrize("name", [None, 1, b"a", Path("a")], ids=repr)
def test_names_that_are_no_text(name: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Cache(name)


NONSENSE: dict[str, list[Any]] = {
    "size": [0, -1, MIB - 1, "1023KiB", "", "MiB", "1 parsec", "-1MiB", "nan"],
    "shards": [0, -1, 3, 6, 2048, 1024],
    "avg_entry_size": [0, -1],
    "policy": ["lru", "", "EVICT"],
    "codec": ["yaml", ""],
    "wait": [-1, -0.1, math.nan],
    "lock_timeout": [-1, -0.1, math.nan],
    "local_entries": [-1],
    "slots": [-1],
    "slot_capacity": [-1, "x"],
    "mode": [-1, 0o10000],
    "persist": ["yes", 2],
}


@pytest.mark.parametrize(
    ("argument", "value"), [(name, value) for name, values in NONSENSE.items() for value in values]
)
def test_arguments_that_make_no_sense(cache_name: str, argument: str, value: Any) -> None:
    arguments = {"size": "1MiB", "create": False if argument == "wait" else None, argument: value}
    with pytest.raises(ValueError, match=argument):
        Cache(cache_name, **arguments)
    assert leftovers(cache_name) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(
            ("size", None),
            ("size", 1.5),
            ("size", math.nan),
            ("shards", "4"),
            ("policy", 1),
            ("codec", 1),
        ),
        *(("wait", "1"), ("lock_timeout", "1"), ("mode", "0600"), ("avg_entry_size", "x")),
        *(("codec", object()), ("slots", "1"), ("local_entries", "1")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_arguments_of_the_wrong_type(cache_name: str, argument: str, value: Any) -> None:
    arguments = {"size": "1MiB", "create": False if argument == "wait" else None, argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        Cache(cache_name, **arguments)
    assert leftovers(cache_name) == []


def test_an_unknown_group(cache_name: str) -> None:
    with pytest.raises((ValueError, LookupError), match="no-such-group"):
        Cache(cache_name, size="1MiB", group="no-such-group")
    assert leftovers(cache_name) == []


@pytest.mark.parametrize("write", ["set", "add", "replace", "try_set", "setdefault"])
def test_values_that_cannot_be_stored(cache: Cache, write: str) -> None:
    cache["k"] = "old"

    class Local:
        pass

    for value in (Local(), [Local()], {"a": Local()}, lambda: None, (x for x in "abc")):
        with pytest.raises(TypeError, match=r"Local|list|dict|function|generator"):
            getattr(cache, write)("new", value) if write != "replace" else cache.replace("k", value)
    assert dict(cache) == {"k": "old"}


@pytest.mark.parametrize(
    "key",
    [[], {}, set(), object(), 1j, ("a", []), bytearray(b"a")],
    ids=lambda key: type(key).__name__,
)
def test_keys_of_a_foreign_type(cache: Cache, key: Any) -> None:
    for call in (
        lambda: cache.get(key),
        lambda: cache[key],
        lambda: cache.set(key, 1),
        lambda: cache.add(key, 1),
        lambda: cache.delete(key),
        lambda: cache.pop(key, None),
        lambda: cache.incr(key),
        lambda: cache.gets(key),
        lambda: cache.touch(key),
        lambda: cache.ttl(key),
        lambda: cache.get_many([key]),
        lambda: cache.alter(key, lambda value: value, default=1),
    ):
        with pytest.raises(TypeError):
            call()
    assert not cache


def test_versions_that_are_none(cache: Cache) -> None:
    cache["k"] = 1
    for version in (-1, 2**64, 2**70):
        assert cache.cas("k", 2, version) is False
    with pytest.raises(TypeError):
        cache.cas("k", 2, "version")  # type: ignore[arg-type]
    assert cache["k"] == 1


# ----------------------------------------------------------------------- a full /dev/shm


def test_more_than_there_is_in_all(cache_name: str) -> None:
    room = os.statvfs("/dev/shm")
    too_much = room.f_blocks * room.f_frsize + (1 << 30)
    with pytest.raises(OutOfSharedMemory, match="--shm-size") as caught:
        Cache(cache_name, size=too_much)
    message = str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert "emptyDir" in message
    assert "Memory" in message
    assert leftovers(cache_name) == []


def in_small_shm(code: str, options: str = "size=4m") -> subprocess.CompletedProcess[str]:
    """Run ``code`` where /dev/shm is a tmpfs of its own, of 4 MiB unless `options` say more."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare(1), to mount a small /dev/shm of its own")
    script = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", script, sys.executable, textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "mount" in done.stderr and "ermission" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    return done


def test_a_small_dev_shm_is_an_error_at_creation_and_never_a_sigbus() -> None:
    done = in_small_shm("""
        import os
        from shmcache import Cache, OutOfSharedMemory
        try:
            Cache("big", size="8MiB")
        except OutOfSharedMemory as error:
            print(error)
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        with Cache("fits", size="2MiB") as cache:
            try:
                Cache("second", size="3MiB")
            except OutOfSharedMemory:
                print("refused")
            for number in range(5000):
                cache[number] = bytes(1000)
            assert cache.verify() == []
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        """)
    assert done.returncode == 0, done.stderr
    assert "8" in done.stdout
    assert done.stdout.rstrip().endswith("refused")


def test_a_read_only_dev_shm_is_said() -> None:
    done = in_small_shm("""
        import os
        from shmcache import Cache, NotPermitted, list_caches
        Cache("there", size="2MiB", persist=True).close()
        os.system("mount -o remount,ro /dev/shm")
        for arguments in ({}, {"create": True}, {"create": False}):
            name = "there" if arguments.get("create") is False else "new"
            try:
                Cache(name, **arguments)
            except NotPermitted as error:
                print(error)
        assert [info.name for info in list_caches()] == ["there"]
        """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mounted read-only") == 3
    assert "remount,rw" in done.stdout


def test_what_the_system_refuses_although_there_is_room_says_so() -> None:
    done = in_small_shm(
        """
        from shmcache import Cache, OutOfSharedMemory
        try:
            Cache("many", size="1MiB")
        except OutOfSharedMemory as error:
            print(error)
        """,
        "size=4m,nr_inodes=4",
    )
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stdout
    assert "nr_inodes" in done.stdout


def test_a_system_without_dev_shm_has_no_caches() -> None:
    done = in_small_shm("""
        import os
        import shmcache
        assert os.system("mount -t tmpfs tmpfs /dev") == 0
        print(shmcache.list_caches())
        try:
            shmcache.Cache("new")
        except shmcache.OutOfSharedMemory as error:
            print(error)
        """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[]\ncannot create cache 'new': this system has no /dev/shm;")


# --------------------------------------------------------------------------- other users


def act_as(channel: Channel, uid: int, groups: list[int], action: str, name: str, how: Any) -> str:
    os.setgroups(groups)
    os.setresgid(groups[0], groups[0], groups[0])
    os.setresuid(uid, uid, uid)
    try:
        cache = Cache(name, **how)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with cache:
        if action == "hold":
            cache["k"] = "theirs"
            channel.sync()
        return "opened"


@needs_root
def test_a_private_segment_of_root_is_closed_to_others(
    start: Callable[..., Worker], cache_name: str
) -> None:
    with persistent(cache_name):
        for how in ({"create": False}, {}):
            outcome = start(act_as, NOBODY, [NOBODY], "open", cache_name, how).result()
            assert outcome.startswith("NotPermitted"), outcome
            assert cache_name in outcome
            assert "0600" in outcome or "600" in outcome


@needs_root
def test_a_shared_segment_of_root_is_open_to_others(
    start: Callable[..., Worker], cache_name: str
) -> None:
    with persistent(cache_name, mode=0o666):
        how = {"create": False}
        assert start(act_as, NOBODY, [NOBODY], "open", cache_name, how).result() == "opened"


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_strangers_segment_is_refused_even_where_it_could_be_opened(
    start: Callable[..., Worker], cache_name: str, mode: int
) -> None:
    """Root could open 0600, and anybody 0666: that it can is no reason to trust it."""
    how = {"size": "1MiB", "mode": mode}
    holder = start(act_as, NOBODY, [NOBODY], "hold", cache_name, how)
    assert holder.recv() == "ready"
    before = leftovers(cache_name)
    for create in (None, False):
        with pytest.raises(NotPermitted, match=cache_name) as caught:
            Cache(cache_name, create=create)
        assert str(NOBODY) in str(caught.value) or "nobody" in str(caught.value)
        assert "group" in str(caught.value)
    stranger = start(act_as, STRANGER, [STRANGER], "open", cache_name, {"create": False}).result()
    assert stranger.startswith("NotPermitted"), stranger
    assert leftovers(cache_name) == before
    holder.send("go")
    assert holder.result() == "opened"


@needs_root
def test_a_group_that_is_asked_for_is_accepted(
    start: Callable[..., Worker], cache_name: str
) -> None:
    how = {"size": "1MiB", "mode": 0o660, "group": GROUP}
    holder = start(act_as, NOBODY, [GROUP], "hold", cache_name, how)
    assert holder.recv() == "ready"
    for path in leftovers(cache_name):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660, path
        assert path.stat().st_gid == GROUP, path
    named = {"create": False, "group": GROUP}
    assert start(act_as, STRANGER, [GROUP], "open", cache_name, named).result() == "opened"
    unnamed = start(act_as, STRANGER, [GROUP], "open", cache_name, {"create": False}).result()
    assert unnamed.startswith("NotPermitted"), unnamed
    other = {"create": False, "group": STRANGER}
    wrong = start(act_as, STRANGER, [GROUP], "open", cache_name, other).result()
    assert wrong.startswith("NotPermitted"), wrong
    holder.send("go")
    assert holder.result() == "opened"


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_not_subject_to_the_umask(cache_name: str, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        with Cache(cache_name, size="1MiB", mode=mode):
            for path in leftovers(cache_name):
                assert stat.S_IMODE(path.stat().st_mode) == mode, path
    finally:
        os.umask(old)


def test_the_default_mode_is_private(cache_name: str) -> None:
    with Cache(cache_name, size="1MiB"):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in leftovers(cache_name)}
        assert set(modes.values()) == {0o600}, modes


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o620])
def test_pickle_is_not_for_segments_that_others_can_write(cache_name: str, mode: int) -> None:
    with pytest.raises(NotPermitted, match="pickle"):
        Cache(cache_name, size="1MiB", codec="pickle", mode=mode)
    assert leftovers(cache_name) == []
    with Cache(cache_name, size="1MiB", codec="pickle", mode=0o644) as cache:
        cache["k"] = {1, 2}
        assert cache["k"] == {1, 2}


def test_pickle_is_not_for_segments_that_became_writable(cache_name: str) -> None:
    with persistent(cache_name, codec="pickle"):
        segment_path(cache_name).chmod(0o666)
        for how in ({}, {"codec": "pickle"}, {"create": False}):
            with pytest.raises(NotPermitted, match="pickle"):
                Cache(cache_name, **how)  # type: ignore[arg-type]


def test_a_value_that_does_not_decode_is_a_decode_error(
    open_cache: Callable[..., Cache],
) -> None:
    cache = open_cache(size="1MiB", shards=1)
    cache["k"] = ["marker-in-the-value", 1]
    with mapped(cache.name) as data:
        at = data.find(b"marker-in-the-value")
        assert at > 0
        for offset in range(at - 2, at):
            data[offset] = 0xC1  # the one byte that msgpack never uses
    with pytest.raises(DecodeError, match="k"):
        cache.get("k")
    assert "k" in cache
    cache["k"] = "healed"
    assert cache["k"] == "healed"


def test_a_pickle_is_checked_before_it_is_loaded(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache(size="1MiB", shards=1, codec="pickle")
    cache["k"] = {"marker-in-the-pickle"}
    with mapped(cache.name) as data:
        at = data.find(b"marker-in-the-pickle")
        data[at] ^= 1
    with pytest.raises(DecodeError):
        cache.get("k")
