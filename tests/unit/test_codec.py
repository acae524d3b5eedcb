"""The codecs one can choose, one's own too, and single fields of what they encode."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from support.values import HASHABLE, VALUES, encode_by_hand, shape

from shmcache.codec import CODEC_NAMES, BoundCodec, Codec, resolve
from shmcache.errors import DecodeError

MSGPACK = resolve("msgpack")


# --------------------------------------------------------------- the other codecs


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_built_in_codec_round_trips_bytes_or_json(name: str) -> None:
    codec = resolve(name)
    value: object = b"abc" if name == "raw" else {"a": [1, None, "é", 1.5]}
    payload = codec.encode(value)
    assert type(payload) is bytes
    assert codec.decode(memoryview(payload)) == value
    assert codec.decode_bytes(codec.encode_bytes(value)) == value
    options = dict(zip(codec.fast_decode_names, codec.fast_decode_values, strict=True))
    assert codec.fast_decode(codec.fast_encode(value), **options) == value


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_built_in_codec_names_the_type_it_refuses(name: str) -> None:
    with pytest.raises(TypeError, match=f"type 'Lock' .*codec '{name}'|type 'lock' .*'{name}'"):
        resolve(name).encode_bytes(threading.Lock())


@pytest.mark.parametrize("name", [name for name in CODEC_NAMES if name != "raw"])
def test_every_built_in_codec_refuses_damaged_bytes(name: str) -> None:
    with pytest.raises(DecodeError, match=f"4 stored bytes .*codec '{name}'") as caught:
        resolve(name).decode_bytes(b"\xc1\xff\xff\xff")
    assert caught.value.__cause__ is not None


def test_raw_takes_what_is_like_bytes() -> None:
    raw = resolve("raw")
    assert raw.encode(bytearray(b"ab")) == b"ab"
    assert raw.encode(memoryview(b"abcd")[::2]) == b"ac"
    for value in ("a", 1, None, [1]):
        with pytest.raises(TypeError, match=type(value).__name__):
            raw.encode(value)


def test_json_is_compact_and_keeps_surrogates() -> None:
    codec = resolve("json")
    assert codec.encode({"é": [1, "\ud800"]}) == b'{"\xc3\xa9":[1,"\xed\xa0\x80"]}'
    assert codec.decode(codec.encode(["\ud800", 1e300])) == ["\ud800", 1e300]
    with pytest.raises(TypeError, match="bytes"):
        codec.encode([b"a"])


def test_json_recursion_is_decode_error() -> None:
    with pytest.raises(DecodeError, match="recursion"):
        resolve("json").decode_bytes(b"[" * 100_000)


def test_msgspec_makes_lists_of_tuples_and_refuses_large_ints() -> None:
    codec = resolve("msgspec")
    assert codec.decode(codec.encode({"a": (1, 2)})) == {"a": [1, 2]}
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    assert codec.decode(codec.encode(moment)) == moment
    with pytest.raises(TypeError, match="'list'"):
        codec.encode([1 << 64])


def test_msgspec_missing_names_the_extra() -> None:
    script = """
import sys
sys.modules["msgspec"] = None
from shmcache.codec import resolve
try:
    resolve("msgspec")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "shmcache[msgspec]" in done.stdout, done.stderr


def test_msgspec_is_imported_only_when_asked_for() -> None:
    script = (
        "import sys, shmcache.codec as c; c.resolve('msgpack'); print('msgspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


class Landmine:
    """Blows up when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, ())


def _explode() -> None:
    raise AssertionError("was unpickled")


def test_pickle_has_its_checksum_first() -> None:
    pickled = pickle.dumps({1, 2}, pickle.HIGHEST_PROTOCOL)
    checksum = xxhash.xxh64(pickled, seed=0).intdigest().to_bytes(8, "little")
    assert resolve("pickle").encode({1, 2}) == checksum + pickled


@given(st.data())
def test_pickle_is_never_loaded_once_a_bit_has_flipped(data: st.DataObject) -> None:
    codec = resolve("pickle")
    payload = bytearray(codec.encode(Landmine()))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DecodeError, match="checksum"):
        codec.decode_bytes(bytes(payload))


@pytest.mark.parametrize("length", range(9))
def test_pickle_cut_short(length: int) -> None:
    payload = resolve("pickle").encode([1])
    with pytest.raises(DecodeError, match="checksum"):
        resolve("pickle").decode_bytes(payload[:length])


def test_pickle_that_raises_is_decode_error() -> None:
    codec = resolve("pickle")
    with pytest.raises(DecodeError, match="was unpickled"):
        codec.decode_bytes(codec.encode(Landmine()))


# --------------------------------------------------------------- a codec of one's own


class Upper:
    name = "upper"

    def encode(self, value: Any) -> bytes:
        if value == "fail":
            raise KeyError("fail")
        return value.upper().encode() if value != "text" else value  # type: ignore[no-any-return]

    def decode(self, payload: memoryview) -> Any:
        assert isinstance(payload, memoryview)
        assert payload.readonly
        return bytes(payload).decode()


def test_a_codec_of_ones_own() -> None:
    assert isinstance(Upper(), Codec)
    codec = resolve(Upper())
    assert codec.name == "upper"
    assert codec.encode_bytes("abc") == b"ABC"
    assert codec.decode_bytes(b"ABC") == "ABC"
    assert resolve(codec) is codec
    with pytest.raises(TypeError, match=r"'str' .*codec 'upper': KeyError 'fail'"):
        codec.encode_bytes("fail")
    with pytest.raises(TypeError, match="returned str, not bytes"):
        codec.encode_bytes("text")
    with pytest.raises(DecodeError, match=r"1 stored bytes .*'upper'"):
        codec.decode_bytes(b"\xff")


@pytest.mark.parametrize("name", ["", "n" * 32, "é", "a\0", "a\n", *CODEC_NAMES])
def test_names_that_a_codec_cannot_have(name: str) -> None:
    codec = Upper()
    codec.name = name
    with pytest.raises(ValueError, match="codec"):
        resolve(codec)


@pytest.mark.parametrize("codec", [None, 1, object(), Upper, json])
def test_objects_that_are_no_codec(codec: Any) -> None:
    with pytest.raises(TypeError, match="name, encode and decode"):
        resolve(codec)


def test_an_unknown_codec() -> None:
    with pytest.raises(ValueError, match="no codec 'yaml': choose one of msgpack, raw, json"):
        resolve("yaml")


def test_memory_errors_stay_what_they_are() -> None:
    class Starved(Upper):
        def encode(self, value: Any) -> bytes:
            raise MemoryError

        def decode(self, payload: memoryview) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        resolve(Starved()).encode_bytes(1)
    with pytest.raises(MemoryError):
        resolve(Starved()).decode_bytes(b"")


# --------------------------------------------------------------- one field of a value

RECORD = {
    "user": {"name": "Ada", "tags": ["a", "b", ("c", {"d": 1})]},
    1: [10, 20, 30],
    (2, "x"): {"\ud800": None},
    "zero": 0,
}


def pick(codec: BoundCodec, value: object, *path: object) -> Any:
    return codec.decode_field(codec.encode_bytes(value), path)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), RECORD),
        (("user", "name"), "Ada"),
        (("user", "tags", 1), "b"),
        (("user", "tags", -1), ("c", {"d": 1})),
        (("user", "tags", 2, 1, "d"), 1),
        ((1, -3), 10),
        ((1.0, 2), 30),
        (((2, "x"), "\ud800"), None),
        (("zero",), 0),
    ],
)
@pytest.mark.parametrize("name", ["msgpack", "pickle"])
def test_a_field(name: str, path: tuple[object, ...], field: object) -> None:
    assert shape(pick(resolve(name), RECORD, *path)) == shape(field)


@pytest.mark.parametrize(
    "path",
    [
        ("absent",),
        ("user", "tags", 3),
        ("user", "tags", -4),
        ("user", "tags", "0"),
        ("user", "tags", True),
        ("user", "name", 0),
        ("zero", "x"),
        ([],),
    ],
)
@pytest.mark.parametrize("name", ["msgpack", "pickle"])
def test_a_field_that_is_not_there(name: str, path: tuple[object, ...]) -> None:
    with pytest.raises(LookupError):
        pick(resolve(name), RECORD, *path)


@pytest.mark.parametrize("name", ["msgpack", "json", "msgspec", "pickle"])
def test_a_field_with_every_codec(name: str) -> None:
    value = {"a": [1, {"b": "x" * 100_000, "c": [2.5] * 70_000}]}
    assert pick(resolve(name), value, "a", 1, "c", 69_999) == 2.5


@given(VALUES, st.lists(HASHABLE, max_size=2), st.data())
def test_fields_agree_with_python(value: object, path: list[object], data: st.DataObject) -> None:
    holder = {"v": value, "l": [value, value]}
    steps: list[object] = data.draw(st.sampled_from([["v", *path], ["l", 1, *path]]))
    expected: object = holder
    try:
        for step in steps:
            if isinstance(expected, dict) or (
                isinstance(expected, list | tuple) and type(step) is int
            ):
                expected = expected[step]  # type: ignore[index]
            else:
                raise LookupError(step)
    except LookupError:
        with pytest.raises(LookupError):
            pick(MSGPACK, holder, *steps)
    else:
        assert shape(pick(MSGPACK, holder, *steps)) == shape(expected)


@given(st.binary(min_size=1, max_size=30))
@example(b"\x81")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x64")
def test_a_field_of_any_bytes(payload: bytes) -> None:
    with contextlib.suppress(DecodeError, LookupError):
        MSGPACK.decode_field(payload, ("a", 0))


def test_a_field_is_found_without_building_the_rest() -> None:
    """What cannot be built, but can be skipped, is in nobody's way."""
    broken_date = encode_by_hand(105, b"\0\0\0\0")
    payload = b"\x82\xa1a" + broken_date + b"\xa1b\x07"
    with pytest.raises(DecodeError):
        MSGPACK.decode_bytes(payload)
    assert MSGPACK.decode_field(payload, ("b",)) == 7
    with pytest.raises(DecodeError):
        MSGPACK.decode_field(payload, ("a",))
