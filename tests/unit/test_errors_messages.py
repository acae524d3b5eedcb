"""Every message says what was wrong, with which name or size, and what to do about it."""

from __future__ import annotations

import errno
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import shmcache
from shmcache import Cache, ShmcacheError

TREE: dict[str, type[BaseException]] = {
    "CacheNotFound": FileNotFoundError,
    "CacheExists": FileExistsError,
    "CacheClosed": ValueError,
    "NotPermitted": PermissionError,
    "OutOfSharedMemory": MemoryError,
    "LayoutMismatch": ShmcacheError,
    "CorruptSegment": ShmcacheError,
    "DecodeError": ValueError,
    "LimitReached": ShmcacheError,
    "CacheFull": ShmcacheError,
    "KeyTooLarge": ValueError,
    "ValueTooLarge": ValueError,
    "SlotTooLarge": ValueError,
    "LockTimeout": TimeoutError,
    "WouldBlock": shmcache.LockTimeout,
    "InitTimeout": TimeoutError,
    "Cancelled": ShmcacheError,
    "ReentrantInit": RuntimeError,
}


@pytest.mark.parametrize("name", TREE)
def test_the_tree(name: str) -> None:
    error = getattr(shmcache, name)
    assert issubclass(error, ShmcacheError)
    assert issubclass(error, TREE[name])
    assert not issubclass(ShmcacheError, OSError)


def test_all_errors_are_in_the_tree() -> None:
    public = {name: getattr(shmcache, name) for name in shmcache.__all__}
    errors = {name for name, thing in public.items() if inspect.isclass(thing)}
    errors = {name for name in errors if issubclass(public[name], ShmcacheError)}
    assert errors == {"ShmcacheError", *TREE}


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def messages(cache: Cache) -> dict[str, tuple[Callable[[], object], tuple[str, ...]]]:
    """Calls that fail, and the words that their messages must contain."""
    limit = cache.max_value_size
    return {
        "value too large": (
            lambda: cache.set("big", bytes(limit + 300)),
            (str(limit), str(limit + 300)),
        ),
        "key too large": (lambda: cache.set("k" * 70_000, 1), ("70000", "65535")),
        "key type": (lambda: cache.set({}, 1), ("dict", "key")),  # type: ignore[arg-type]
        "key range": (lambda: cache.set(2**64, 1), ("65 bits",)),
        "value type": (lambda: cache.set("k", object()), ("object",)),
        "ttl": (lambda: cache.set("k", 1, -3), ("ttl", "-3")),
        "missing": (lambda: cache["missing"], ("missing",)),
        "exists": (lambda: Cache(cache.name, create=True, size="1MiB"), (cache.name, "create")),
        "not found": (lambda: Cache(cache.name + "x", create=False), (cache.name + "x", "create")),
        "policy": (lambda: Cache(cache.name, policy="keep"), ("keep", "evict", cache.name)),
        "unknown policy": (lambda: Cache("n", policy="lru"), ("lru", "evict", "keep")),
        "unknown codec": (lambda: Cache("n", codec="yaml"), ("yaml", "msgpack", "pickle")),
        "shards": (lambda: Cache("n", shards=3), ("3", "power of two")),
        "size": (lambda: Cache("n", size="12 parsecs"), ("12 parsecs",)),
        "small size": (lambda: Cache("n", size=1000), ("1000", "1MiB")),
        "name": (lambda: Cache("a/b"), ("a/b",)),
    }


CASES = (
    *("value too large", "key too large", "key type", "key range", "value type", "ttl", "missing"),
    *("exists", "not found", "policy", "unknown policy", "unknown codec", "shards", "size"),
    *("small size", "name"),
)


@pytest.mark.parametrize("case", CASES)
def test_messages_name_what_was_wrong(cache: Cache, case: str) -> None:
    call, words = messages(cache)[case]
    error = raised(call)
    for word in words:
        assert word in str(error), f"{word!r} is not in: {error}"
    if isinstance(error, ShmcacheError):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_every_case_is_tested(cache: Cache) -> None:
    assert set(CASES) == set(messages(cache))


def test_os_errors_carry_their_errno(cache: Cache) -> None:
    missing = raised(lambda: Cache(cache.name + "-absent", create=False))
    existing = raised(lambda: Cache(cache.name, create=True, size="1MiB"))
    assert isinstance(missing, OSError)
    assert isinstance(existing, OSError)
    assert (missing.errno, existing.errno) == (errno.ENOENT, errno.EEXIST)


def test_key_errors_hold_the_key(cache: Cache) -> None:
    key: Any
    for key in ("text", b"bytes", 7, ("a", 1)):
        for call in (cache.__getitem__, cache.__delitem__, cache.pop, cache.ttl):
            error = raised(lambda call=call, key=key: call(key))  # type: ignore[misc]
            assert type(error) is KeyError
            assert error.args == (key,)
