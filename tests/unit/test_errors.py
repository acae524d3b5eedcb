"""The exception tree: what it derives from, and that it survives a process boundary."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from shmcache import errors

BASES: dict[str, type[BaseException]] = {
    "CacheNotFound": FileNotFoundError,
    "CacheExists": FileExistsError,
    "CacheClosed": ValueError,
    "NotPermitted": PermissionError,
    "OutOfSharedMemory": MemoryError,
    "LayoutMismatch": Exception,
    "CorruptSegment": Exception,
    "DecodeError": ValueError,
    "LimitReached": Exception,
    "CacheFull": Exception,
    "KeyTooLarge": ValueError,
    "ValueTooLarge": ValueError,
    "SlotTooLarge": ValueError,
    "LockTimeout": TimeoutError,
    "WouldBlock": errors.LockTimeout,
    "InitTimeout": TimeoutError,
    "Cancelled": Exception,
    "ReentrantInit": RuntimeError,
}
ERRNOS = {
    "CacheNotFound": errno.ENOENT,
    "CacheExists": errno.EEXIST,
    "NotPermitted": errno.EPERM,
    "LockTimeout": errno.ETIMEDOUT,
    "WouldBlock": errno.EWOULDBLOCK,
    "InitTimeout": errno.ETIMEDOUT,
}


def test_the_tree_is_complete() -> None:
    assert set(errors.__all__) == {*BASES, "ShmcacheError", "GeometryWarning"}


@pytest.mark.parametrize("name", BASES)
def test_each_derives_from_its_builtin_and_from_shmcache_error(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, BASES[name])
    assert issubclass(kind, errors.ShmcacheError)


def test_the_warning_is_no_error() -> None:
    assert issubclass(errors.GeometryWarning, UserWarning)
    assert not issubclass(errors.GeometryWarning, errors.ShmcacheError)


@pytest.mark.parametrize("copier", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("name", [*BASES, "ShmcacheError", "GeometryWarning"])
def test_copies_keep_type_message_and_errno(name: str, copier: object) -> None:
    error = getattr(errors, name)("cache 'app' is not what it was")
    twin = copier(error)  # type: ignore[operator]
    assert type(twin) is type(error)
    assert str(twin) == "cache 'app' is not what it was"
    assert twin.args == error.args
    assert getattr(twin, "errno", None) == ERRNOS.get(name)


@pytest.mark.parametrize("name", ["CacheFull", "LockTimeout", "WouldBlock"])
def test_keys_that_were_not_stored_are_kept_in_order(name: str) -> None:
    kind = getattr(errors, name)
    assert kind("full").keys == ()
    error = kind("full", keys=iter(["b", 1, ("a", None)]))
    assert error.keys == ("b", 1, ("a", None))
    twin = pickle.loads(pickle.dumps(error))
    assert twin.keys == error.keys
    assert str(twin) == "full"
