"""Names, times and caps."""

from __future__ import annotations

import enum
import math
import re
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmcache import _core, limits
from shmcache.limits import TTL_MAX_MS, TTL_MAX_SECONDS, check_name, check_timeout, ttl_to_ms

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


@given(st.text(ALPHABET, min_size=1, max_size=64).filter(lambda name: name[0] != "."))
def test_names_of_the_alphabet_are_taken(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=70))
@example("app\n")
@example("é")
@example("٣")  # a digit, but not one of ASCII
@example("a~b")
@example("a/b")
@example("a\0")
@example("")
def test_a_name_is_taken_exactly_if_the_page_says_so(name: str) -> None:
    right = 1 <= len(name) <= 64 and name[0] != "." and all(c in ALPHABET for c in name)
    if right:
        assert check_name(name) == name
    else:
        with pytest.raises(ValueError, match="name of a cache"):
            check_name(name)


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a" * 65, "a" * 10_000])
def test_dots_and_lengths(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64") as caught:
        check_name(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [None, b"app", 1, ["app"]])
def test_a_name_of_another_type(name: object) -> None:
    with pytest.raises(TypeError, match=type(name).__name__):
        check_name(name)


def test_a_name_comes_back_as_plain_str() -> None:
    class Name(enum.StrEnum):
        APP = "app"

    assert type(check_name(Name.APP)) is str


@pytest.mark.parametrize(
    "ttl",
    [None, math.inf, TTL_MAX_SECONDS + 1, 1e300, 10**400, timedelta.max, timedelta(days=36_526)],
)
def test_never(ttl: object) -> None:
    assert ttl_to_ms(ttl) == 0


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [
        (1, 1000),
        (0.5, 500),
        (5e-324, 1),
        (0.0001, 1),
        (0.0010001, 2),
        (4.001, 4001),
        (timedelta(microseconds=1), 1),
        (timedelta(microseconds=1001), 2),
        (timedelta(minutes=1), 60_000),
        (Fraction(1, 3), 334),
        (Decimal("0.25"), 250),
        (TTL_MAX_SECONDS, TTL_MAX_MS),
        (timedelta(seconds=TTL_MAX_SECONDS), TTL_MAX_MS),
        (timedelta(seconds=TTL_MAX_SECONDS, microseconds=-1), TTL_MAX_MS),
    ],
)
def test_rounded_up_to_a_millisecond(ttl: object, milliseconds: int) -> None:
    assert ttl_to_ms(ttl) == milliseconds


@given(st.integers(1, TTL_MAX_MS))
def test_whole_milliseconds_stay_what_they_are(milliseconds: int) -> None:
    assert ttl_to_ms(milliseconds / 1000) == milliseconds
    assert ttl_to_ms(timedelta(milliseconds=milliseconds)) == milliseconds


@given(st.floats(0, TTL_MAX_SECONDS, exclude_min=True))
def test_never_early_and_less_than_a_millisecond_late(seconds: float) -> None:
    milliseconds = ttl_to_ms(seconds)
    assert 1 <= milliseconds <= TTL_MAX_MS
    # The nearest float to a whole number of milliseconds may lie a hair (an ulp) above it.
    assert Fraction(milliseconds, 1000) >= Fraction(seconds) - Fraction(math.ulp(seconds))
    assert Fraction(milliseconds - 1, 1000) < Fraction(seconds)


@pytest.mark.parametrize(
    "ttl", [0, -1, 0.0, -0.0, -1e-9, math.nan, -math.inf, -(10**400), timedelta(0), -timedelta(1)]
)
def test_ttl_that_is_not_positive(ttl: object) -> None:
    with pytest.raises(ValueError, match="ttl must be more than 0"):
        ttl_to_ms(ttl)


@pytest.mark.parametrize("ttl", [True, False, "1", b"1", [1], 1j, object()])
def test_ttl_that_is_no_number(ttl: object) -> None:
    with pytest.raises(TypeError, match=f"ttl must be a number.*{type(ttl).__name__}"):
        ttl_to_ms(ttl)


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [(0, 0.0), (1.5, 1.5), (math.inf, math.inf), (10**400, math.inf), (timedelta(minutes=1), 60.0)],
)
def test_timeouts(given_: object, seconds: float) -> None:
    assert check_timeout("wait", given_) == seconds


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, -math.inf, timedelta(-1)])
def test_timeouts_that_make_no_sense(seconds: object) -> None:
    with pytest.raises(ValueError, match="wait must be 0 seconds or more"):
        check_timeout("wait", seconds)


@pytest.mark.parametrize("seconds", [None, True, "1"])
def test_timeouts_of_another_type(seconds: object) -> None:
    with pytest.raises(TypeError, match="wait must be a number"):
        check_timeout("wait", seconds)


def test_the_caps_are_those_of_the_layout() -> None:
    layout = _core.LAYOUT
    assert layout["SHM_MAX_KEY"] == limits.KEY_MAX
    assert layout["SHM_MAX_SHARDS"] == limits.SHARDS_MAX
    assert layout["SHM_NAME_SIZE"] == limits.NAME_MAX
    assert layout["SHM_CODEC_SIZE"] == limits.CODEC_NAME_MAX + 1
    header = Path(__file__).parents[2] / "shmcache" / "_core" / "src" / "layout.h"
    bits = re.search(r"#define SHM_E_EXPIRY_BITS (\d+)", header.read_text())
    assert bits is not None
    assert int(bits[1]) == limits.EXPIRY_BITS
