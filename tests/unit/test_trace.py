"""Reading recorded traces, and values that prove themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import trace

IDENTS = st.integers(0, 2**64 - 1)


def written(path: Path, text: str) -> str:
    """Write a trace and return its path."""
    path.write_text(text)
    return str(path)


def test_the_bundled_trace_is_the_one_its_readme_describes() -> None:
    loaded = trace.load("web12")
    assert len(loaded) == 95_607
    assert len(loaded.keys) == 13_756
    assert not any(loaded.ttls)
    sizes = dict(zip(loaded.rows, loaded.sizes, strict=True))
    assert 2_900_000 < sum(sizes.values()) < 3_100_000


def test_rows_keep_their_order_size_and_ttl(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.csv", "time,key,size,op,ttl\n0,b,10,get,0\n1,a,20,set,2.5\n2,b,10,get,\n"
    )
    loaded = trace.load(path)
    assert loaded.name == "t.csv"
    assert [loaded.keys[row] for row in loaded.rows] == ["b", "a", "b"]
    assert list(loaded.sizes) == [10, 20, 10]
    assert list(loaded.ttls) == [0, 2.5, 0]
    assert loaded.request_bytes == 40
    assert not loaded.varying
    assert loaded.idents[0] != loaded.idents[1]


def test_keys_whose_size_changes_are_known(tmp_path: Path) -> None:
    loaded = trace.load(written(tmp_path / "t.csv", "key,size\na,1\nb,2\nb,3\na,1\nb,2\n"))
    assert loaded.varying == {1}


def test_gzip_is_known_by_its_bytes_and_columns_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    path.write_bytes(gzip.compress(b"size,key\n7,x\n8,y\n"))
    loaded = trace.load(str(path))
    assert loaded.keys == ("x", "y")
    assert list(loaded.sizes) == [7, 8]


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "key,size\na,1\nb,2\nc,3\n")
    assert trace.load(path, limit=2).keys == ("a", "b")
    assert trace.load(path, limit=9).keys == ("a", "b", "c")
    with pytest.raises(ValueError, match="limit"):
        trace.load(path, limit=0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column key and no column size"),
        ("key\na\n", "no column size"),
        ("key,size\n", "no requests"),
        ("key,size\na,1\nb,many\n", "line 3"),
        ("key,size\na\n", "line 2"),
        ("key,size\na,-1\n", "size -1"),
        ("key,size\na,9999999999999\n", "size 9999999999999"),
        ("key,size,ttl\na,1,-2\n", "ttl -2"),
        ("key,size,ttl\na,1,nan\n", "ttl nan"),
        ("key,size,ttl\na,1,inf\n", "ttl inf"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(trace.TraceError, match=told):
        trace.load(written(tmp_path / "bad.csv", text))


def test_an_absent_trace_names_the_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(trace.TraceError, match="web12"):
        trace.load(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize("keep", [1, 12, -1])
def test_a_cut_gzip_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b"key,size\n" + b"a,1\n" * 50)[:keep])
    with pytest.raises(trace.TraceError):
        trace.load(str(path))


@given(ident=IDENTS, size=st.integers(0, 300) | st.sampled_from([65_535, 65_600, 200_000]))
def test_a_value_has_its_size_and_is_intact(ident: int, size: int) -> None:
    value = trace.make_value(ident, size)
    assert len(value) == size
    assert value == trace.make_value(ident, size)
    assert trace.is_intact(value, ident)


@given(ident=IDENTS, size=st.integers(8, 300), data=st.data())
def test_one_flipped_bit_or_missing_byte_shows(ident: int, size: int, data: st.DataObject) -> None:
    value = bytearray(trace.make_value(ident, size))
    assert not trace.is_intact(bytes(value[:-1]), ident)
    assert not trace.is_intact(bytes(value) + b"\0", ident)
    value[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not trace.is_intact(bytes(value), ident)


@given(one=IDENTS, other=IDENTS, size=st.integers(8, 300))
def test_another_keys_value_shows(one: int, other: int, size: int) -> None:
    assert trace.is_intact(trace.make_value(other, size), one) == (one == other)


@pytest.mark.parametrize("value", [None, "text", 7, bytearray(30)])
def test_what_is_not_bytes_is_not_intact(value: object) -> None:
    assert not trace.is_intact(value, 1)
