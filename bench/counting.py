"""Where the time of a get goes, in instructions counted by callgrind: the record, and the check.

    python -m bench.counting            count, print, compare with the record
    python -m bench.counting --check    the same; exit 1 where our own code takes more than before
    python -m bench.counting --record   replace the record (bench/records/instructions.json)

Instructions are no time: they do not see cache misses, and a `rep movsb` counts once a byte.  But
they are the same in every run, also on a busy machine, so a change of the hot path shows even where
it is smaller than the noise of any clock.  Only our own code is compared, not the interpreter's.

Each instruction is attributed to the file and line that it was compiled from, so that inlined
functions of the core show under their own header.  Parts:

    interpreter  the loop around the call, and CPython's way into the method
    binding      Cython's wrapper: arguments, references, what decides between paths
    hash         the key's bytes and their hash
    probe        the index, the entry's header, the comparison of keys
    copy         the value's bytes
    recheck      that they were not overwritten meanwhile; the visited bits
    decode       the object: allocation and release, and the codec (encoding too)
    lock, write  of sets: the shard's lock; log, index and counts
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import ROOT
from bench.workloads._counted import VARIANTS

RECORD = Path(__file__).with_name("records") / "instructions.json"
SCRIPT = Path(__file__).with_name("workloads") / "_counted.py"
TIMES = 2_000
"""Operations of each loop."""

TOLERANCE = 0.02
LEAST = 4.0
"""Instructions, or the share above, by which our own code may grow before it counts as more."""

PARTS = (
    "interpreter", "binding", "hash", "probe", "copy", "recheck", "decode", "lock", "write",
    "other",
)  # fmt: skip
OURS = ("binding", "hash", "probe", "copy", "recheck", "lock", "write")
"""What is compared: decode is mostly the interpreter's own allocator."""

CALLS = {"ceval.c", "listobject.c", "call.c", "methodobject.c", "methodobject.h", "descrobject.c"}
"""Files of CPython that a call goes through, whatever is called."""


class Counted(NamedTuple):
    """Where instructions were counted."""

    object: str
    file: str
    function: str


class Unavailable(Exception):
    """Nothing can be counted here; the message says why."""


def count() -> dict[str, dict[str, float]]:
    """Instructions of one operation by part, for each of `VARIANTS`; the loop is subtracted.

    Takes some 10 seconds.  Raises Unavailable where there is no valgrind, or it fails."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unavailable("no valgrind here (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory(prefix="shmcache-bench-callgrind-") as folder:
        command = [
            valgrind, "--tool=callgrind", "--dump-before=getppid", "--compress-strings=no",
            "--compress-pos=no", f"--callgrind-out-file={folder}/out",
            sys.executable, str(SCRIPT), str(TIMES),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"valgrind failed: {done.stderr.strip()[-300:]}")
        # Marker, warm-up, marker, marker, loop, marker: the loops are every fourth file.
        files = [Path(folder, f"out.{4 * place + 4}") for place in range(len(VARIANTS))]
        if not all(file.is_file() for file in files):
            raise Unavailable("callgrind did not see the markers (getppid of libc)")
        by_variant = {
            variant: _by_part(parse(file.read_text().splitlines()))
            for variant, file in zip(VARIANTS, files, strict=True)
        }
    loop = by_variant.pop(VARIANTS[0])
    return {
        variant: {
            part: round((counts[part] - loop[part]) / TIMES, 1)
            for part in PARTS
            if counts[part] - loop[part] >= TIMES / 20
        }
        for variant, counts in by_variant.items()
    }


def parse(lines: list[str]) -> Counter[Counted]:
    """Sum up a callgrind file (uncompressed strings and positions): self cost by place."""
    counts: Counter[Counted] = Counter()
    place = {"ob": "", "fl": "", "fn": ""}
    calls = False
    for line in lines:
        key, _, value = line.partition("=")
        if key in {"fi", "fe"}:
            key = "fl"
        if key in place:
            place[key] = value.rpartition("/")[2]
        elif key == "calls":
            calls = True  # the next line has what the callee cost
        elif line[:1].isdigit():
            if not calls:
                counts[Counted(place["ob"], place["fl"], place["fn"])] += int(line.split()[1])
            calls = False
    return counts


def part_of(at: Counted) -> str:
    """The part that instructions at this place belong to."""
    if at.object.startswith("_binding"):
        return _part_of_ours(at)
    if "python" in at.object:
        return "interpreter" if at.file in CALLS else "decode"
    if re.search(r"mem(cpy|move|set)", at.function):
        return "copy"
    if "memcmp" in at.function:
        return "probe"
    if re.search(r"pthread|futex|clock|lll_lock", at.function):
        return "lock"
    if re.search(r"malloc|free|sbrk", at.function):
        return "decode"  # of objects beyond the size that CPython allocates by itself
    return "other"


def ours(parts: Mapping[str, float]) -> float:
    """Instructions of our own code."""
    return sum(parts.get(part, 0.0) for part in OURS)


def compare(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """A line for each variant in which our own code takes more instructions than it did."""
    for variant, parts in after.items():
        if variant not in before:
            continue
        was, now = ours(before[variant]), ours(parts)
        if now - was > max(LEAST, TOLERANCE * was):
            grown = ", ".join(
                f"{part} {before[variant].get(part, 0):g} -> {parts.get(part, 0):g}"
                for part in OURS
                if parts.get(part, 0) != before[variant].get(part, 0)
            )
            yield f"{variant}: {was:.0f} instructions of our own became {now:.0f} ({grown})"


def environment() -> dict[str, str]:
    """What the counts depend on besides our own code."""
    return {
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
    }


def recorded() -> dict[str, Any] | None:
    """The record: `environment`, and `instructions` by variant and part."""
    if not RECORD.is_file():
        return None
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


def main() -> int:
    """Count, and do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.counting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="exit 1 where it takes more")
    choice.add_argument("--record", action="store_true", help="replace the record")
    arguments = parser.parse_args()
    try:
        counts = count()
    except Unavailable as error:
        print(f"skipped: {error}")
        return 0
    for variant, parts in counts.items():
        print(
            f"{variant:<16} {sum(parts.values()):>9,.0f}  ours {ours(parts):>9,.0f}   "
            + "  ".join(f"{part} {value:,.0f}" for part, value in parts.items())
        )
    if arguments.record:
        RECORD.parent.mkdir(exist_ok=True)
        document = {"environment": environment(), "instructions": counts}
        RECORD.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {RECORD}")
        return 0
    record = recorded()
    if record is None:
        print("there is no record")
        return 0
    if record["environment"] != environment():
        print(f"not compared: the record is of {record['environment']}, this is {environment()}")
        return 0
    worse = list(compare(record["instructions"], counts))
    print(*worse, sep="\n")
    print(f"{len(worse)} of {len(counts)} take more than in the record")
    return 1 if worse and arguments.check else 0


def _by_part(counts: Counter[Counted]) -> Counter[str]:
    parts: Counter[str] = Counter()
    for at, instructions in counts.items():
        parts[part_of(at)] += instructions
    return parts


def _part_of_ours(at: Counted) -> str:
    if at.file == "hash.h" or "encode_key" in at.function:
        return "hash"
    if re.search(r"msgpack|unpack|decode|encode|copy_value|_pack", at.function):
        return "decode"
    if at.file == "lock.h":
        return "lock"
    if at.function.startswith("shm_find"):
        return "probe"
    if at.file in {"write.h", "room.h", "log.h", "epoch.h", "lease.h"}:
        return "write"
    if at.file in {"read.h", "view.h", "atomics.h", "layout.h", "swap.h"}:
        return "recheck" if re.search(r"fetch|local|load", at.function) else "write"
    return "write" if at.function.startswith("shm_") else "binding"


if __name__ == "__main__":
    sys.exit(main())
