"""docs/layout.md against what was compiled: each struct's table, field by field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from shmcache import _core

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "layout.md"
STRUCTS = sorted(
    name.removeprefix("sizeof.") for name in _core.LAYOUT if name.startswith("sizeof.")
)


@dataclass(frozen=True)
class Row:
    offset: int
    size: int
    field: str


def section(title: str) -> str:
    """The text under a heading of the second level, up to the next one."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/layout.md has no section {title!r}"
    return found[1]


def table(struct: str) -> list[Row]:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `?(\w+)`? \|", section(struct), re.MULTILINE)
    return [Row(int(offset), int(size), field) for offset, size, field in rows]


def test_every_compiled_struct_has_a_table() -> None:
    assert STRUCTS
    for struct in STRUCTS:
        assert table(struct), struct


@pytest.mark.parametrize("struct", STRUCTS)
def test_offsets_are_the_compiled_ones(struct: str) -> None:
    compiled = {
        name.removeprefix(f"{struct}."): offset
        for name, offset in _core.LAYOUT.items()
        if name.startswith(f"{struct}.")
    }
    documented = {row.field: row.offset for row in table(struct)}
    assert {field: documented.get(field) for field in compiled} == compiled


@pytest.mark.parametrize("struct", STRUCTS)
def test_fields_tile_the_struct(struct: str) -> None:
    """Each field begins where the one before it ends, and the last one ends the struct."""
    end = 0
    for row in table(struct):
        assert row.offset == end, row
        end += row.size
    assert end == _core.LAYOUT[f"sizeof.{struct}"]


def test_constants_are_the_compiled_ones() -> None:
    rows = re.findall(r"^\| `(SHM_\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: int(number, 0) for name, number in rows}
    compiled = {name: value for name, value in _core.LAYOUT.items() if name.startswith("SHM_")}
    assert documented == compiled


@pytest.mark.parametrize(
    "title",
    ["The slot word", "The holder word", "The expiry word", "The sample word"],
    ids=str.split,
)
def test_bits_tile_the_word(title: str) -> None:
    rows = re.findall(r"^\| (\d+)(?:-(\d+))? \|", section(title), re.MULTILINE)
    end = 0
    for first, last in rows:
        assert int(first) == end, rows
        end = int(last or first) + 1
    assert end == 64
