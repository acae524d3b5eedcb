"""Hit ratios on recorded traces: the real cache beside simulated policies.

    python -m bench.policy [TRACE ...] [--traces DIR] [--percent P ...] [--check] [--json FILE]

Without arguments: every `*.csv.gz` in the directory of traces (`--traces`, else the environment's
SHMCACHE_TRACES, else a folder `traces` in the project or one or two levels above it, also in a
`shared` folder there), and the small trace that is shipped with the package.

The rule is the one that comes with the traces: every row looks its key up and inserts it on a
miss; nothing is warm-up; an object counts `size + 32` bytes; the capacity is a share of the sum of
that over all keys.

The real cache (policy `evict`) is given logs of that many bytes (`stats().bytes_total`): what
entries and the free space between them take, its index and fixed regions apart, as the simulated
ones have theirs for nothing.  An entry costs it 24 bytes (header, key of 8 bytes), rounded up to
16: 32 on average, as the rule has it.  A cache has at least 1 MiB; for smaller capacities all
sizes are multiplied by a whole number (a multiple of 16, so that rounding adds nothing), which
leaves every decision of the rule as it was.  Hits are verified: each value begins with its key.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from dataclasses import replace as _with
from pathlib import Path
from typing import Any

from bench import machine
from bench.harness import require
from bench.peers import shmcache_open
from bench.simulate import POLICIES
from shmcache import geometry

PERCENTS = (1.0, 5.0, 10.0, 20.0)
OVERHEAD = 32
"""Bytes that an object counts beside its size, by the rule of the traces."""

ENTRY_BYTES = 24
"""What an entry takes in the log beside its value: header (16) and a key of 8 bytes."""

SMALLEST = 2 << 20
"""Bytes of log below which sizes are scaled up: a cache has at least 1 MiB in all."""

CHECK_TOLERANCE = 0.1
"""Points of miss ratio that a simulation may differ from the reference table."""

Row = tuple[int, int]
"""Key, and size in bytes without overhead."""


@dataclass(frozen=True)
class Outcome:
    """Misses of one policy on one trace at one capacity, in percent."""

    trace: str
    percent: float
    capacity: int
    policy: str
    object_miss: float
    byte_miss: float
    seconds: float
    note: str = ""


def load(path: Path) -> list[Row]:
    """All rows of a trace in the form `time,key,size,op,ttl`."""
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [(int(key), int(size)) for _time, key, size, *_ in rows]


def footprint(rows: Iterable[Row]) -> int:
    """Bytes that all keys together count."""
    return sum(size + OVERHEAD for size in dict(rows).values())


def simulate(trace: str, rows: list[Row], percent: float, policy: str) -> Outcome:
    """Replay `rows` against a simulated policy."""
    capacity = int(footprint(rows) * percent / 100)
    access = POLICIES[policy](capacity).access
    began = time.monotonic()
    misses = missed_bytes = 0
    for key, size in rows:
        if not access(key, size + OVERHEAD):
            misses += 1
            missed_bytes += size
    return _outcome(trace, percent, capacity, policy, rows, misses, missed_bytes, began)


def replay(
    trace: str, rows: list[Row], percent: float, shards: int | None, probation: float | None = None
) -> Outcome:
    """Replay `rows` against the real cache; `probation`: the share of that log, if not the
    package's own (0: one log, which is a two-bit CLOCK with ghosts)."""
    shipped = geometry.PROBATION_FRACTION
    if probation is not None and probation != shipped:
        geometry.PROBATION_FRACTION = probation  # type: ignore[misc]
        try:
            outcome = replay(trace, rows, percent, shards)
        finally:
            geometry.PROBATION_FRACTION = shipped  # type: ignore[misc]
        return _with(outcome, policy=f"{outcome.policy}, probation {probation:.0%}")
    capacity = int(footprint(rows) * percent / 100)
    scale = 1 if capacity >= SMALLEST else 16 * -(-SMALLEST // (16 * capacity))
    sizes = dict(rows)
    lengths = {
        key: size if scale == 1 else scale * (size + OVERHEAD) - ENTRY_BYTES
        for key, size in sizes.items()
    }
    average = sum(lengths.values()) // len(lengths) + 8
    policy = "shmcache, " + ("default shards" if shards is None else f"{shards} shard")
    with _sized(capacity * scale, shards, average) as (cache, total):
        names = {key: key.to_bytes(8, "little") for key in lengths}
        too_large = cache.max_value_size
        get, put = cache.get, cache.set
        refused = misses = missed_bytes = wrong = 0
        began = time.monotonic()
        for key, size in rows:
            name = names[key]
            value = get(name)
            if value is not None:
                wrong += value[:8] != name[: len(value)]
                continue
            misses += 1
            missed_bytes += size
            length = lengths[key]
            if length > too_large:
                refused += 1
            else:
                put(name, name.ljust(length, b".")[:length])
        require(wrong == 0, f"every hit has its own value ({wrong} had not)")
        stats = cache.stats()
        require(stats.misses == misses, "the cache counts the same misses")
        note = (
            f"{cache.shards} shards, sizes x {scale}, logs {total:,} B for {capacity * scale:,}, "
            f"{stats.bytes_used / total:.1%} live at the end, {stats.evictions:,} evictions, "
            f"{refused:,} misses too large to keep"
        )
    return _outcome(trace, percent, capacity, policy, rows, misses, missed_bytes, began, note)


def reference(readme: Path) -> dict[tuple[str, float, str], tuple[float, float]]:
    """The table of miss ratios (object, byte) in the traces' own README."""
    found = {}
    trace, percents = "", list[float]()
    for line in readme.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heading := re.match(r"\*\*(\w+)\*\* \(capacity", line):
            trace = heading[1]
        elif cells[0] == "policy":
            percents = [float(cell.rstrip("% ")) for cell in cells[1:]]
        elif trace and cells[0] in POLICIES:
            for percent, cell in zip(percents, cells[1:], strict=True):
                objects, volume = cell.split("/")
                found[trace, percent, cells[0]] = float(objects), float(volume)
    return found


def main() -> int:
    """Run what the command line asks for."""
    arguments = _arguments()
    traces = list(arguments.trace) or find_traces(arguments.traces)
    if not traces:
        print("no traces found: name files, or say --traces DIR", file=sys.stderr)
        return 2
    known = {}
    for folder in {path.parent for path in traces}:
        if (folder / "README.md").is_file():
            known |= reference(folder / "README.md")
    outcomes: list[Outcome] = []
    off = 0
    for path in traces:
        name = path.name.partition(".")[0]
        rows = load(path)
        keys = len({key for key, _ in rows})
        print(f"{name}: {len(rows):,} requests, {keys:,} keys, {footprint(rows):,} B")
        for percent in arguments.percent:
            taken = [
                simulate(name, rows, percent, policy)
                for policy in (("LRU",) if arguments.real else POLICIES)
            ]
            for outcome in taken:
                expected = known.get((name, percent, outcome.policy))
                if expected is not None and arguments.check:
                    gap = max(
                        abs(outcome.object_miss - expected[0]),
                        abs(outcome.byte_miss - expected[1]),
                    )
                    if gap > CHECK_TOLERANCE:
                        off += 1
                        print(f"  {outcome.policy} is off by {gap:.2f} from {expected}")
            if not arguments.check:
                taken += [replay(name, rows, percent, shards) for shards in (1, None)]
                taken += [replay(name, rows, percent, 1, share) for share in arguments.probation]
            outcomes += taken
            lru = next(o for o in taken if o.policy == "LRU")
            for o in taken:
                print(
                    f"  {percent:>4g}%  {o.policy:<26} {o.object_miss:6.2f} / {o.byte_miss:6.2f}"
                    f"  x LRU {o.object_miss / lru.object_miss:.3f}  {o.seconds:5.1f} s  {o.note}",
                    flush=True,
                )
    if arguments.check:
        print(f"{off} of {len(outcomes)} simulations are off by more than {CHECK_TOLERANCE} points")
        return 1 if off else 0
    for file, text in (
        (arguments.json, _as_json(outcomes)),
        (arguments.markdown, _table(outcomes)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        print(f"written: {file}")
    return 0


class _sized:
    """A cache whose logs hold `want` bytes, found by making caches until one does.

    What the fixed regions and the index take is the cache's own affair, and is left out by asking
    the cache; the relation is close to linear, so a few attempts do.
    """

    TOLERANCE = 0.002

    def __init__(self, want: int, shards: int | None, average: int) -> None:
        self._arguments = {"shards": shards, "avg_entry_size": min(average, 1 << 20), "slots": 0}
        size = max(1 << 20, int(want * 1.1) + (1 << 18))
        for _ in range(12):
            self._open = shmcache_open(size=size, policy="evict", **self._arguments)
            cache = self._open.__enter__()
            self._total = cache.stats().bytes_total
            self._cache = cache
            if abs(self._total - want) <= self.TOLERANCE * want:
                return
            self._open.__exit__(None, None, None)
            size = max(1 << 20, size + round((want - self._total) * size / self._total))
        raise RuntimeError(f"no size gives logs of {want} bytes; the last gave {self._total}")

    def __enter__(self) -> tuple[Any, int]:
        return self._cache, self._total

    def __exit__(self, *exception: object) -> None:
        self._open.__exit__(None, None, None)


def _outcome(
    trace: str,
    percent: float,
    capacity: int,
    policy: str,
    rows: list[Row],
    misses: int,
    missed_bytes: int,
    began: float,
    note: str = "",
) -> Outcome:
    seconds = time.monotonic() - began
    volume = sum(size for _, size in rows)
    return Outcome(
        trace,
        percent,
        capacity,
        policy,
        100 * misses / len(rows),
        100 * missed_bytes / volume,
        seconds,
        note,
    )


def _as_json(outcomes: list[Outcome]) -> str:
    described = machine.describe() | {
        "command": " ".join(["python -m bench.policy", *sys.argv[1:]])
    }
    document = {"machine": described, "outcomes": [asdict(outcome) for outcome in outcomes]}
    return json.dumps(document, indent=1) + "\n"


def _table(outcomes: list[Outcome]) -> str:
    lines = [
        "# Miss ratios in % (object / byte)",
        "",
        "By the replay rule of the traces; capacity in percent of the footprint, `size + 32` bytes "
        "an object.  The real cache has logs of that many bytes.",
    ]
    for trace in dict.fromkeys(outcome.trace for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.trace == trace]
        percents = list(dict.fromkeys(outcome.percent for outcome in mine))
        lines += ["", f"## {trace}", ""]
        lines.append("| policy | " + " | ".join(f"{p:g} %" for p in percents) + " |")
        lines.append("|---" * (len(percents) + 1) + "|")
        for policy in dict.fromkeys(outcome.policy for outcome in mine):
            cells = [f"{o.object_miss:.2f} / {o.byte_miss:.2f}" for o in mine if o.policy == policy]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
        lines.append("")
        lines += [f"* {o.policy}, {o.percent:g} %: {o.note}" for o in mine if o.note]
    return "\n".join(lines) + "\n"


def find_traces(folder: Path | None = None) -> list[Path]:
    """Every trace in `folder` (None: see the module's docstring), and the one that is shipped."""
    root = machine.ROOT
    folders = [folder] if folder else []
    if not folders and "SHMCACHE_TRACES" in os.environ:
        folders = [Path(os.environ["SHMCACHE_TRACES"])]
    if not folders:
        above = (root, root.parent, root.parent.parent)
        folders = [place / inner for place in above for inner in ("traces", "shared/traces")]
    found = next((sorted(f.glob("*.csv.gz")) for f in folders if f.is_dir()), [])
    shipped = sorted((root / "shmcache" / "data").glob("*.csv.gz"))
    names = {path.name for path in found}
    return found + [path for path in shipped if path.name not in names]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", nargs="*", type=Path, help="a trace: gzip CSV")
    parser.add_argument("--traces", type=Path, help="directory of traces")
    parser.add_argument("--percent", type=float, nargs="+", default=list(PERCENTS))
    parser.add_argument(
        "--check", action="store_true", help="simulators only, against the traces' own table"
    )
    parser.add_argument("--real", action="store_true", help="simulate LRU only")
    parser.add_argument(
        "--probation",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="replay also with these shares of the probation log, 0 to 0.5 (one shard)",
    )
    parser.add_argument("--json", type=Path, default=machine.ROOT / "out" / "policy.json")
    parser.add_argument("--markdown", type=Path, default=machine.ROOT / "out" / "policy.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
