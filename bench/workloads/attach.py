"""Time to attach to a cache that another process holds, and to import the package."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.harness import Figure, Options, Result, percentile, require
from bench.machine import ROOT

SIZES = {"32MiB": 1_000, "512MiB": 1_000}
"""Size of the cache, and entries in it."""

HOLDER = """
import sys
from shmcache import Cache
with Cache(sys.argv[1], create=True, size=sys.argv[2]) as cache:
    for number in range(int(sys.argv[3])):
        cache.set(number, b"x" * 100)
    print("ready", flush=True)
    sys.stdin.readline()
"""

IMPORT = """
import time
start = time.perf_counter_ns()
import shmcache
print(time.perf_counter_ns() - start)
"""


def run(options: Options) -> Result:
    """Attach, get one key and close, again and again, in a process that has no other handle."""
    result = Result(
        "attach",
        "attach",
        "Another process holds the cache; this one, with the package imported, calls "
        "`Cache(name, create=False)`, gets one key and closes, many times.  Each call attaches "
        "anew: no other handle is open here.  Import is timed in fresh interpreters, files cached.",
        "Many processes that attach at the same instant; cold files.",
    )
    from shmcache import Cache

    repeats = 50 if options.quick else 300
    for size, entries in SIZES.items():
        name = f"bench-attach-{time.monotonic_ns()}"
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, name, size, str(entries)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None and holder.stdin is not None
            require(holder.stdout.readline() == "ready\n", "the holder has made the cache")
            attaching, first_get, closing = [], [], []
            for _ in range(repeats):
                start = time.perf_counter_ns()
                cache = Cache(name, create=False)
                attached = time.perf_counter_ns()
                require(cache.get(0) == b"x" * 100, "the attacher reads what the holder wrote")
                read = time.perf_counter_ns()
                cache.close()
                closing.append(time.perf_counter_ns() - read)
                attaching.append(attached - start)
                first_get.append(read - attached)
            holder.communicate("done\n", timeout=30)
        for label, spans in (("attach", attaching), ("first get", first_get), ("close", closing)):
            spans.sort()
            result.details[f"{label}, {size}, ns"] = {
                "median": statistics.median(spans),
                "p99": percentile(spans, 99),
                "max": spans[-1],
            }
        result.figures.append(
            Figure(f"attach, {size}, median", statistics.median(attaching) / 1e6, 5.0, unit="ms")
        )
        result.figures.append(
            Figure(f"attach, {size}, p99", percentile(attaching, 99) / 1e6, 5.0, unit="ms")
        )
    imports = [_import_ns() for _ in range(3 if options.quick else 9)]
    result.figures.append(Figure("import shmcache", statistics.median(imports) / 1e6, unit="ms"))
    return result


def _import_ns() -> int:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return int(done.stdout)
