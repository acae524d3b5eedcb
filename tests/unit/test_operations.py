"""Every operation of api.md "Keys and values" and "Operations" in one process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from support.values import same

from shmcache import Cache, KeyTooLarge, ValueTooLarge, Versioned


def test_get(cache: Cache) -> None:
    marker = object()
    assert cache.get("k") is None
    assert cache.get("k", marker) is marker
    cache["k"] = None
    assert cache.get("k", marker) is None
    assert cache.try_get("k", marker) is None
    assert cache.try_get("missing", marker) is marker
    with pytest.raises(KeyError, match="missing"):
        cache["missing"]


def test_reads_give_private_copies(cache: Cache) -> None:
    cache["k"] = [1, 2]
    cache["k"].append(3)
    assert cache["k"] == [1, 2]


def test_add(cache: Cache) -> None:
    assert cache.add("k", 1) is True
    assert cache.add("k", 2) is False
    assert cache["k"] == 1
    cache["none"] = None
    assert cache.add("none", 1) is False


def test_replace(cache: Cache) -> None:
    assert cache.replace("k", 1) is False
    assert "k" not in cache
    cache["k"] = 1
    assert cache.replace("k", 2) is True
    assert cache["k"] == 2


def test_delete(cache: Cache) -> None:
    assert cache.delete("k") is False
    cache["k"] = None
    assert cache.delete("k") is True
    assert "k" not in cache
    with pytest.raises(KeyError):
        del cache["k"]
    cache["k"] = 1
    del cache["k"]
    assert cache.get("k") is None


def test_pop(cache: Cache) -> None:
    with pytest.raises(KeyError):
        cache.pop("k")
    assert cache.pop("k", "default") == "default"
    assert cache.pop("k", default="default") == "default"
    assert cache.pop("k", None) is None
    cache["k"] = "value"
    assert cache.pop("k") == "value"
    assert "k" not in cache


def test_setdefault(cache: Cache) -> None:
    assert cache.setdefault("k", 1) == 1
    assert cache.setdefault("k", 2) == 1
    assert cache.setdefault("none") is None
    assert cache.setdefault("none", 1) is None
    assert dict(cache) == {"k": 1, "none": None}


def test_popitem_takes_every_entry_once(cache: Cache) -> None:
    reference = {f"key {number}": number for number in range(100)}
    cache.update(reference)
    taken = [cache.popitem() for _ in range(100)]
    assert dict(taken) == reference
    with pytest.raises(KeyError):
        cache.popitem()


@pytest.mark.parametrize("foreign", [[], {}, set(), object(), 2**70, ("a", []), "k" * 70000, int])
def test_in_is_false_for_what_can_be_no_key(cache: Cache, foreign: Any) -> None:
    cache["k"] = 1
    assert foreign not in cache
    assert foreign not in cache.keys()  # noqa: SIM118 - the view is what is tested
    assert (foreign, 1) not in cache.items()
    for no_pair in (foreign, ("k",), ("k", 1, 1)):
        assert no_pair not in cache.items()


def test_signatures_are_the_documented_ones() -> None:
    documented = {
        "get": "(key, default=None)",
        "set": "(key, value, ttl=None)",
        "add": "(key, value, ttl=None)",
        "replace": "(key, value, ttl=None)",
        "delete": "(key)",
        "get_many": "(keys)",
        "set_many": "(mapping, ttl=None)",
        "delete_many": "(keys)",
        "incr": "(key, delta=1, *, initial=0, ttl=None)",
        "decr": "(key, delta=1, *, initial=0, ttl=None)",
        "cas": "(key, value, version, ttl=None)",
        "touch": "(key, ttl=None)",
        "ttl": "(key)",
    }
    for name, wanted in documented.items():
        found = inspect.signature(getattr(Cache, name))
        parameters = [p for p in found.parameters.values() if p.name != "self"]
        assert str(found.replace(parameters=parameters)) == wanted, name


def test_incr_and_decr(cache: Cache) -> None:
    assert cache.incr("n") == 1
    assert cache.incr("n", 10) == 11
    assert cache.decr("n", 4) == 7
    assert cache.incr("n", -10) == -3
    assert cache["n"] == -3
    assert cache.incr("m", 5, initial=100) == 105
    assert cache.incr("m", 5, initial=100) == 110
    assert cache.decr("d") == -1
    assert cache.decr("e", 2, initial=10) == 8
    cache["stored"] = 41
    assert cache.incr("stored") == 42
    assert cache.try_incr("stored") == 43
    assert cache.incr("zero", 0) == 0


@pytest.mark.parametrize("limit", [2**63 - 1, -(2**63)])
def test_incr_stays_within_64_bits(cache: Cache, limit: int) -> None:
    step = 1 if limit > 0 else -1
    cache["n"] = limit - step
    assert cache.incr("n", step) == limit
    with pytest.raises(OverflowError, match="n"):
        cache.incr("n", step)
    assert cache["n"] == limit
    with pytest.raises(OverflowError):
        cache.incr("absent", step, initial=limit)
    assert "absent" not in cache
    for huge in (2**63, -(2**63) - 1, 2**100):
        with pytest.raises(OverflowError, match=f"64-bit: adding {huge} to 'absent'"):
            cache.incr("absent", huge)
        with pytest.raises(OverflowError, match=f"starting at {huge} "):
            cache.incr("absent", initial=huge)
    assert "absent" not in cache


def test_decr_by_the_lowest_int_overflows_only_where_the_result_does(cache: Cache) -> None:
    cache["n"] = 0
    with pytest.raises(OverflowError):
        cache.decr("n", -(2**63))
    assert cache["n"] == 0
    cache["n"] = -1
    assert cache.decr("n", -(2**63)) == 2**63 - 1 == cache["n"]
    assert cache.decr("new", -(2**63), initial=-(2**63)) == 0
    with pytest.raises(OverflowError, match=f"subtracting {2**63} from"):
        cache.decr("n", 2**63)


@pytest.mark.parametrize("value", ["1", b"1", 1.0, True, False, None, [1]], ids=repr)
def test_incr_of_what_is_no_int_is_an_error(cache: Cache, value: Any) -> None:
    cache["k"] = value
    with pytest.raises(TypeError, match="k"):
        cache.incr("k")
    assert same(cache["k"], value)


def test_incr_of_an_int_past_64_bits_is_an_overflow(cache: Cache) -> None:
    cache["k"] = 2**70
    with pytest.raises(OverflowError):
        cache.incr("k")
    assert cache["k"] == 2**70


@pytest.mark.parametrize("delta", ["1", 1.0, None], ids=repr)
def test_a_delta_that_is_no_int_is_an_error(cache: Cache, delta: Any) -> None:
    with pytest.raises(TypeError):
        cache.incr("n", delta)
    assert "n" not in cache


def test_gets_and_cas(cache: Cache) -> None:
    assert cache.gets("k") is None
    assert cache.cas("k", 1, 0) is False
    assert "k" not in cache
    cache["k"] = "old"
    seen = cache.gets("k")
    assert isinstance(seen, Versioned)
    assert seen.value == "old"
    assert cache.gets("k") == seen
    value, version = seen
    assert (value, version) == ("old", seen.version)
    assert cache.cas("k", "new", version) is True
    assert cache["k"] == "new"
    assert cache.cas("k", "newer", version) is False
    assert cache["k"] == "new"


WRITES: dict[str, Callable[[Cache], object]] = {
    "set": lambda c: c.set("k", 1),
    "set_many": lambda c: c.set_many({"k": 1}),
    "incr": lambda c: c.incr("k", 0),
    "touch": lambda c: c.touch("k", 1000),
    "replace": lambda c: c.replace("k", 1),
    "alter": lambda c: c.alter("k", lambda value: value),
    "delete and set": lambda c: (c.delete("k"), c.set("k", 1)),
    "pop and add": lambda c: (c.pop("k"), c.add("k", 1)),
    "clear and set": lambda c: (c.clear(), c.set("k", 1)),
    "cas": lambda c: c.cas("k", 1, c.gets("k").version),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("name", WRITES)
def test_every_write_changes_the_version(cache: Cache, name: str) -> None:
    cache["k"] = 1
    before = cache.gets("k")
    assert before is not None
    WRITES[name](cache)
    after = cache.gets("k")
    assert after is not None
    assert (after.value, after.version != before.version) == (1, True)
    assert cache.cas("k", 2, before.version) is False
    assert cache["k"] == 1


def test_nothing_else_changes_the_version(open_cache: Callable[..., Cache]) -> None:
    """Reads do not, failed writes do not, and neither do writes to other keys that move it."""
    cache = open_cache(size="1MiB", shards=1, policy="keep")
    cache["k"] = "value"
    before = cache.gets("k")
    cache.get("k"), list(cache.items()), cache.ttl("k"), cache.add("k", 1), cache.verify()
    with pytest.raises(TypeError):
        cache.incr("k")
    with pytest.raises(TypeError):
        cache["k"] = object()
    for number in range(2000):  # the log wraps several times, so that the entry is moved
        cache["hot"] = bytes([number % 256]) * 4000
    assert cache.gets("k") == before


def test_alter(cache: Cache) -> None:
    with pytest.raises(KeyError, match="k"):
        cache.alter("k", lambda value: value)
    assert cache.alter("k", lambda value: [*value, 1], default=[]) == [1]
    assert cache.alter("k", lambda value: [*value, 2], default=[]) == [1, 2]
    assert cache["k"] == [1, 2]
    assert cache.alter("none", lambda value: value, default=None) is None
    assert "none" in cache


def test_alter_runs_again_when_another_write_came_between(cache: Cache) -> None:
    cache["k"] = 1
    calls: list[int] = []

    def interrupted(value: int) -> int:
        calls.append(value)
        if len(calls) == 1:
            cache["k"] = 100
        return value + 1

    assert cache.alter("k", interrupted) == 101
    assert calls == [1, 100]
    assert cache["k"] == 101


def test_alter_that_raises_changes_nothing(cache: Cache) -> None:
    cache["k"] = 1
    with pytest.raises(ZeroDivisionError):
        cache.alter("k", lambda value: value / 0)
    assert cache["k"] == 1


def test_touch_and_ttl(cache: Cache) -> None:
    assert cache.touch("k", 10) is False
    with pytest.raises(KeyError, match="k"):
        cache.ttl("k")
    cache["k"] = "value"
    assert cache.ttl("k") is None
    assert cache.touch("k", 100) is True
    left = cache.ttl("k")
    assert left is not None
    assert 90 < left <= 100
    assert cache.touch("k") is True
    assert cache.ttl("k") is None
    assert cache["k"] == "value"


@pytest.mark.parametrize("codec", ["msgpack", "json", "msgspec", "pickle"])
def test_get_field(open_cache: Callable[..., Cache], codec: str) -> None:
    cache = open_cache(codec=codec)
    cache["user"] = {"name": "Ann", "tags": ["a", "b", {"deep": 1}], "none": None, "big": "x" * 999}
    assert cache.get_field("user", "name") == "Ann"
    assert cache.get_field("user", "tags", 1) == "b"
    assert cache.get_field("user", "tags", -1, "deep") == 1
    assert cache.get_field("user", "tags") == ["a", "b", {"deep": 1}]
    assert cache.get_field("user", "none", default="d") is None
    assert cache.get_field("user", "missing") is None
    for path in [("missing",), ("tags", 9), ("name", 0, 0), ("tags", "a"), ("name", "x"), (0,)]:
        assert cache.get_field("user", *path, default="d") == "d", path
    assert cache.get_field("absent", "name", default="d") == "d"
    assert cache.get_field("user")["name"] == "Ann"
    cache["plain"] = "text"
    assert cache.get_field("plain", "field", default="d") == "d"


def test_clear_empties_and_may_be_repeated(cache: Cache) -> None:
    cache.update({number: number for number in range(500)})
    cache.clear()
    assert (len(cache), list(cache), cache.stats().entries) == (0, [], 0)
    cache.clear()
    cache["k"] = 1
    assert dict(cache) == {"k": 1}
    assert cache.verify() == []


def test_try_operations_do_as_their_namesakes_where_nobody_is_in_the_way(cache: Cache) -> None:
    cache.try_set("k", 1)
    assert cache.try_get("k") == 1
    assert cache.try_add("k", 2) is False
    assert cache.try_add("l", 2, 100) is True
    assert cache.try_delete("l") is True
    assert cache.try_delete("l") is False
    assert cache.try_pop("k") == 1
    assert cache.try_pop("k", "default") == "default"
    with pytest.raises(KeyError):
        cache.try_pop("k")
    assert cache.try_incr("n", 2, initial=1, ttl=100) == 3
    assert 90 < (cache.ttl("n") or 0) <= 100


def test_a_refused_write_leaves_the_old_value(cache: Cache) -> None:
    cache["k"] = "old"
    for wrong, error in ((object(), TypeError), (bytes(cache.max_value_size + 300), ValueTooLarge)):
        for write in (cache.set, cache.replace, cache.try_set):
            with pytest.raises(error):
                write("k", wrong)
        assert cache["k"] == "old"
    with pytest.raises(KeyTooLarge):
        cache["k" * 65536] = 1
    assert dict(cache) == {"k": "old"}
