"""Recorded cache traces, and values that prove themselves.

Place in the flow: read by `replay`, which asks a cache for the keys of a trace and checks what
comes back.  Knows no cache, no process and no terminal.

A trace is a CSV file, gzipped or not, one request a row, with a header that names its columns:

    key     text, used as the cache key
    size    bytes of the value
    ttl     seconds until the value expires, 0 or nothing: never        (optional)
    time    when, in the source's own unit: the order of the rows is what counts   (ignored)
    op      get or set as recorded: a replay reads through for both     (ignored)

A value is made from its key and size alone, so that every process makes the same one, and says so
itself: anybody who holds key and value can tell whether the two belong together and whether a
byte is missing, foreign or from another value (`make_value`, `is_intact`).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import random
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO, TypeGuard, cast

import xxhash

__all__ = ["BUNDLED", "Trace", "TraceError", "is_intact", "load", "make_value"]

BUNDLED = ("web12",)
"""Names of the traces that ship inside the package; `data/README.md` tells their origin."""

MAX_VALUE_BYTES = 1 << 30
"""A row that asks for more is taken for a damaged file, not for a value."""


class TraceError(ValueError):
    """A trace that cannot be found or read; says which file, which line, and what to do."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in memory: its distinct keys, and for each row which key, what size and which ttl.

    `rows`, `sizes` and `ttls` have one item for each request, in the recorded order.
    """

    name: str
    """File name or name of the bundled trace, for reports."""
    keys: tuple[str, ...]
    """The distinct keys in order of first appearance."""
    idents: array[int]
    """For each key a 64-bit hash of it, which its values carry."""
    rows: array[int]
    """For each row an index into `keys`."""
    sizes: array[int]
    """For each row the bytes of the value."""
    ttls: array[float]
    """For each row the seconds that a stored value lives; 0: for ever."""
    varying: frozenset[int]
    """Indexes of the keys whose rows do not all tell the same size; any of them may be cached."""

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.rows)

    @property
    def request_bytes(self) -> int:
        """Bytes asked for, over all rows."""
        return sum(self.sizes)


def load(source: str, *, limit: int | None = None) -> Trace:
    """Read a trace from a file, or one that ships with the package by its name.

    `source` is a path, or one of `BUNDLED`; a file of that name wins.  `limit` takes the first
    that many rows only.  Raises `TraceError` for a file that is absent, is no such CSV, or has no
    row.  Costs about 0.9 µs and 16 bytes for each row.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 row, not {limit}")
    with _opened(source) as lines:
        return _parse(lines, Path(source).name, limit)


@contextmanager
def _opened(source: str) -> Iterator[io.TextIOBase]:
    """Open a trace as text, unpacking it where it is gzipped."""
    try:
        if source in BUNDLED and not Path(source).exists():
            shipped = resources.files("shmcache") / "data" / f"{source}.csv.gz"
            stream: BinaryIO = io.BytesIO(shipped.read_bytes())
        else:
            stream = open(source, "rb")  # noqa: SIM115 - closed below, with what is wrapped around it
    except OSError as error:
        raise TraceError(
            f"cannot read the trace {source!r}: {error.strerror or error}; "
            f"give a CSV file or one of the bundled traces: {', '.join(BUNDLED)}"
        ) from error
    with stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        binary = gzip.GzipFile(fileobj=stream) if packed else stream
        try:
            yield io.TextIOWrapper(cast(io.BufferedReader, binary), encoding="utf-8", newline="")
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise TraceError(f"the trace {source!r} is damaged: {error}") from error


def _parse(lines: io.TextIOBase, name: str, limit: int | None) -> Trace:
    """Read all rows, or the first `limit`; raises `TraceError` naming file and line."""
    reader = csv.reader(lines)
    header = next(reader, [])
    missing = {"key", "size"} - set(header)
    if missing:
        raise TraceError(
            f"the trace {name!r} has no column {' and no column '.join(sorted(missing))}; "
            "its first line must name the columns, such as time,key,size,op,ttl"
        )
    key_at, size_at = header.index("key"), header.index("size")
    ttl_at = header.index("ttl") if "ttl" in header else None
    numbers: dict[str, int] = {}
    first_sizes: list[int] = []
    varying: set[int] = set()
    rows, sizes, ttls = array("I"), array("I"), array("d")
    for row in reader:
        if limit is not None and len(rows) == limit:
            break
        try:
            size = int(row[size_at])
            ttl = float(row[ttl_at] or 0) if ttl_at is not None else 0.0
            key = row[key_at]
        except (ValueError, IndexError) as error:
            raise TraceError(f"the trace {name!r}, line {reader.line_num}: {error}") from error
        if not 0 <= size <= MAX_VALUE_BYTES or not 0 <= ttl < math.inf:
            raise TraceError(
                f"the trace {name!r}, line {reader.line_num}: size {size} must be 0 to "
                f"{MAX_VALUE_BYTES} bytes and ttl {ttl} 0 or more seconds"
            )
        number = numbers.setdefault(key, len(numbers))
        if number == len(first_sizes):
            first_sizes.append(size)
        elif size != first_sizes[number]:
            varying.add(number)
        rows.append(number)
        sizes.append(size)
        ttls.append(ttl)
    if not rows:
        raise TraceError(f"the trace {name!r} has no requests")
    keys = tuple(numbers)
    idents = array("Q", (xxhash.xxh3_64_intdigest(key.encode()) for key in keys))
    return Trace(name, keys, idents, rows, sizes, ttls, frozenset(varying))


# ------------------------------------------------------------------- values that prove themselves
#
#   0   u64  ident of the key        both little endian; a value of fewer than 24 bytes is instead
#   8   u64  bytes of the value      the start of a hash of ident and size
#  16   u64  xxh3_64(body, seed = ident)
#  24        body: a window of one fixed random pattern, placed by the ident

_HEADER = struct.Struct("<QQQ")
_PATTERN = random.Random(0x73686D).randbytes(1 << 16)
_WINDOWS = 1 << 12
"""Windows start at `ident` modulo this, so that neighbours in memory seldom hold equal bytes."""


def make_value(ident: int, size: int) -> bytes:
    """Return the one value of `size` bytes that belongs to the key with this ident.

    Costs one copy and one hash of the body; asks nothing of any cache.
    """
    if size < _HEADER.size:
        short = xxhash.xxh3_128_digest(_HEADER.pack(ident, size, 0))
        return (short + short)[:size]
    start, length = ident % _WINDOWS, size - _HEADER.size
    pattern = _PATTERN
    if start + length > len(pattern):
        pattern *= (start + length) // len(pattern) + 1
    body = pattern[start : start + length]
    return _HEADER.pack(ident, size, xxhash.xxh3_64_intdigest(body, ident)) + body


def is_intact(value: object, ident: int) -> TypeGuard[bytes]:
    """Tell whether `value` is exactly what `make_value` made for this ident, at any size.

    Costs one hash of the body.  A value of n < 8 bytes proves itself with n bytes only.
    """
    if type(value) is not bytes:
        return False
    if len(value) < _HEADER.size:
        return value == make_value(ident, len(value))
    whose, size, digest = _HEADER.unpack_from(value)
    if whose != ident or size != len(value):
        return False
    return bool(digest == xxhash.xxh3_64_intdigest(memoryview(value)[_HEADER.size :], ident))
