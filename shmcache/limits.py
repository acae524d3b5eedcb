"""What names, keys, times and sizes may be: the caps, and the checks that state them.

Place: level 0 of the house; imports nothing of it. Caps that a field of the segment imposes are
derived from that field's width and asserted against each other; a test compares them with what is
compiled from `layout.h`.
"""

import math
import re
from datetime import timedelta
from typing import Final, SupportsFloat, SupportsIndex

__all__ = [
    "CLIENTS_MIN",
    "CODEC_NAME_MAX",
    "EXPIRY_BITS",
    "KEY_DEPTH_MAX",
    "KEY_MAX",
    "KEY_MAX_INT",
    "KEY_MIN_INT",
    "LABEL_MAX",
    "NAME_MAX",
    "SHARDS_MAX",
    "SIZE_MIN",
    "TTL_MAX_MS",
    "TTL_MAX_SECONDS",
    "VALUE_MAX",
    "check_count",
    "check_label",
    "check_local_entries",
    "check_name",
    "check_timeout",
    "ttl_to_ms",
]

KEY_MAX: Final = (1 << 16) - 1
"""Bytes of a key's content: an entry's key_len has 16 bits."""

KEY_MIN_INT: Final = -(1 << 63)
"""The smallest int that is a key, and the smallest that a counter reaches."""

KEY_MAX_INT: Final = (1 << 63) - 1
"""The largest int that is a key, and the largest that a counter reaches."""

KEY_DEPTH_MAX: Final = 64
"""Tuples within tuples in a key. Python's own `hash` and `repr` of a tuple recurse on the C stack,
so that bytes must not be able to ask for the 20,000 levels that 65,535 bytes could spell."""

VALUE_MAX: Final = (1 << 32) - 1
"""Bytes of an encoded value that an entry's value_len could say; `max_value_size` is smaller."""

SIZE_MIN: Final = 1 << 20
"""Bytes of the smallest segment."""

SHARDS_MAX: Final = 1 << 10
"""Shards of a segment."""

CLIENTS_MIN: Final = 1 << 10
"""Processes that every segment takes at once, at least."""

NAME_MAX: Final = 64
"""Characters of a cache's name; all are ASCII, so bytes as well."""

LABEL_MAX: Final = 63
"""Bytes of the name of a swap slot, token or ring: 64 in its record, at least one NUL after it."""

CODEC_NAME_MAX: Final = 31
"""Bytes of a codec's name: 32 in the superblock, with at least one NUL after it."""

TTL_MAX_SECONDS: Final = 36_525 * 86_400
"""A century, in seconds: 100 years of 365.25 days. What asks for more never expires."""

TTL_MAX_MS: Final = TTL_MAX_SECONDS * 1000
"""A century, in milliseconds."""

EXPIRY_BITS: Final = 44
"""Bits of an entry's expiry, in milliseconds of CLOCK_MONOTONIC."""

_CENTURY = timedelta(seconds=TTL_MAX_SECONDS)
_MILLISECOND = timedelta(milliseconds=1)
_FILE_NAME_MAX = 255  # bytes: NAME_MAX of Linux's file systems, /dev/shm's among them
_LONGEST_FILE_NAME = f"sem.shmcache.{'n' * NAME_MAX}~{'f' * 16}~{SHARDS_MAX}"

# An expiry is uptime + ttl: a century of each fits, and the word's other bits stay free.
assert 2 * TTL_MAX_MS < 1 << EXPIRY_BITS
assert len(_LONGEST_FILE_NAME) <= _FILE_NAME_MAX
# An element of a tuple costs three bytes at least, so the cap on depth is the tighter one.
assert KEY_DEPTH_MAX * 3 < KEY_MAX < VALUE_MAX

_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}", re.ASCII)


def check_name(name: object) -> str:
    """Check the name of a cache.

    Args:
        name: 1 to 64 of `A-Za-z0-9._-`, not starting with `.`. It becomes part of file names in
            /dev/shm; `~`, which is outside this alphabet, separates it from their suffixes, so
            that the files of two caches never meet.

    Returns:
        The name, as an exact str.

    Raises:
        TypeError: it is no str.
        ValueError: it has another length, or a character that is not allowed.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a cache must be a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        shown = repr(name) if len(name) <= 2 * NAME_MAX else f"one of {len(name)} characters"
        raise ValueError(
            f"the name of a cache must be 1 to {NAME_MAX} of A-Z a-z 0-9 . _ - and must not "
            f"start with a dot, not {shown}"
        )
    return str.__str__(name)


def check_local_entries(count: object) -> int:
    """Check how many decoded values a handle is to keep, and return it.

    Raises:
        TypeError: not an int.
        ValueError: below 0.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"local_entries must be an int, not {type(count).__name__}")
    if count < 0:
        raise ValueError(f"local_entries must be 0 or more, not {count}")
    return count


def check_label(what: str, name: object) -> bytes:
    """Check the name of something inside a cache.

    Args:
        what: what it is the name of, for messages: "swap slot", "token", "latency ring".
        name: 1 to `LABEL_MAX` bytes of UTF-8 without NUL.

    Returns:
        The name as UTF-8, padded with NUL to `LABEL_MAX` + 1 bytes.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty or too long, or has a NUL or a lone surrogate in it.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} must be a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the name of a {what} must be valid Unicode: {error}") from None
    if not 1 <= len(encoded) <= LABEL_MAX or 0 in encoded:
        shown = repr(name) if len(encoded) <= 2 * LABEL_MAX else f"one of {len(encoded)} bytes"
        raise ValueError(
            f"the name of a {what} must be 1 to {LABEL_MAX} bytes of UTF-8 without NUL, not {shown}"
        )
    return encoded.ljust(LABEL_MAX + 1, b"\0")


def check_count(name: str, count: object, most: int, least: int = 0) -> int:
    """Check a number of things.

    Args:
        name: of the argument, for the message.
        count: an int from `least` to `most`.
        most, least: the bounds.

    Returns:
        The number, as an exact int.

    Raises:
        TypeError: it is no int (a bool is none).
        ValueError: it is out of bounds.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an int, not {type(count).__name__}")
    if not least <= count <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {count}")
    return int(count)


def check_timeout(name: str, seconds: object) -> float:
    """Check a time to wait, such as `wait`, `lock_timeout` or `timeout`.

    Args:
        name: of the argument, for the message.
        seconds: a number of seconds, zero or more (a timedelta too); inf waits for ever.

    Returns:
        The seconds, as a float.

    Raises:
        TypeError: it is no number (a bool is none).
        ValueError: it is negative or NaN.
    """
    value = _seconds(name, seconds)
    if not value >= 0:
        raise ValueError(f"{name} must be 0 seconds or more, not {seconds!r}")
    return value


def ttl_to_ms(ttl: object) -> int:
    """Turn the ttl that a caller gives into whole milliseconds.

    Args:
        ttl: seconds, more than zero, as a number or a timedelta. `None`, inf and whatever is
            longer than a century (36,525 days) mean that the entry never expires.

    Returns:
        Milliseconds, 1 to `TTL_MAX_MS`, rounded up, so that an entry never expires early; 0 where
        it never expires. A float that is the nearest to a whole number of milliseconds counts as
        that number, though its own value may lie a hair above it.

    Raises:
        TypeError: it is no number (a bool is none).
        ValueError: it is zero, negative or NaN.

    Cost: some 200 ns; `None` some 40.
    """
    if ttl is None:
        return 0
    if isinstance(ttl, timedelta):
        if ttl <= timedelta(0):
            raise ValueError(f"ttl must be more than 0 seconds (None: never expires), not {ttl!r}")
        if ttl > _CENTURY:
            return 0
        # In whole numbers: a float of seconds would lose the microseconds of a long one.
        return -(-ttl // _MILLISECOND)
    seconds = _seconds("ttl", ttl)
    if not seconds > 0:
        raise ValueError(f"ttl must be more than 0 seconds (None: never expires), not {ttl!r}")
    if seconds > TTL_MAX_SECONDS:
        return 0
    milliseconds = round(seconds * 1000)
    if milliseconds / 1000 == seconds:
        return milliseconds
    return math.ceil(seconds * 1000)


def _seconds(name: str, value: object) -> float:
    """Turn a number (or timedelta) of seconds into a float; TypeError for anything else."""
    if type(value) is float:
        return value
    if type(value) is int:
        return _int_to_float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return _int_to_float(value.__index__())
    if isinstance(value, SupportsFloat) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")


def _int_to_float(value: int) -> float:
    """Turn an int into a float; one that is too large for a float counts as infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)
