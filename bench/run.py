"""Command line: `python -m bench [--quick] [--only NAME ...] [--record DIR]`.

Prints each workload as it finishes and writes the reports, by default to `out/bench.json`,
`out/bench.md`, `out/summary.md` and plots beside them (bench/plots.py).  `--record docs/bench`
writes the same to where committed results live: a whole run, for a quiet machine.  Missing a target
is no failure (exit 0): a benchmark reports.  A premise that does not hold is one (exit 1), and so
is a workload that raises; the others still run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from bench import machine, plots, report, summary
from bench.harness import Options, Result
from bench.workloads import NAMES


def main() -> int:
    """Run the workloads that were asked for."""
    # Ends the `with` statements, which unlink what was opened, instead of leaving it behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    arguments = _arguments()
    options = replace(
        Options.quickly() if arguments.quick else Options(),
        large=arguments.large,
        traces=arguments.traces,
    )
    described = machine.describe()
    results: list[Result] = []
    failed = []
    own_cpu, before, start = time.process_time(), machine.cpu_ticks(), time.monotonic()
    for name in arguments.only or NAMES:
        began = time.monotonic()
        try:
            result = importlib.import_module(f"bench.workloads.{name}").run(options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        print(report.as_text(result), f"  ({time.monotonic() - began:.1f} s)\n", sep="\n")
        results.append(result)
        # After each workload, so that a run that is interrupted leaves what it has measured.
        described["load"] = _load(before, own_cpu, start)
        for path, text in (
            (arguments.json, report.as_json(described, results)),
            (arguments.markdown, report.as_markdown(described, results)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if results:
        print(described["load"])
        print(f"written: {arguments.json} {arguments.markdown}")
        _for_readers(arguments.json)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, more noise")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--large", action="store_true", help="10,000,000 entries even where memory looks short"
    )
    parser.add_argument(
        "--traces",
        type=Path,
        help="directory of traces; default: the environment's SHMCACHE_TRACES",
    )
    parser.add_argument("--json", type=Path, default=machine.ROOT / "out" / "bench.json")
    parser.add_argument("--markdown", type=Path, default=machine.ROOT / "out" / "bench.md")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="run everything and write there: bench.json, bench.md, summary.md and the plots",
    )
    arguments = parser.parse_args()
    if arguments.record:
        if arguments.quick or arguments.only:
            parser.error("--record is for whole runs: leave out --quick and --only")
        arguments.json = arguments.record / "bench.json"
        arguments.markdown = arguments.record / "bench.md"
    return arguments


def _for_readers(source: Path) -> None:
    """Write the summary and the plots of a run beside its JSON."""
    document = json.loads(source.read_text())
    text = summary.as_summary(document)
    if text:
        path = source.with_name("summary.md")
        path.write_text(text)
        print(f"written: {path}")
    try:
        drawn = plots.draw(document, source.parent)
    except ImportError as error:
        print(f"no plots: {error}")
        return
    if drawn:
        print(f"written: {len(drawn)} plots in {source.parent}")


def _load(before: tuple[int, int, int], own_cpu: float, start: float) -> str:
    """How much of the machine others used during the run, in words."""
    hertz = os.sysconf("SC_CLK_TCK")
    busy, _idle, stolen = (
        (now - then) / hertz for now, then in zip(machine.cpu_ticks(), before, strict=True)
    )
    times = os.times()
    mine = time.process_time() - own_cpu + times.children_user + times.children_system
    wall = time.monotonic() - start
    return (
        f"In {wall:.0f} s the run used {mine:.0f} s of CPU, other processes "
        f"{max(0.0, busy - mine):.0f} s; {stolen:.1f} s were stolen by the hypervisor."
    )


if __name__ == "__main__":
    sys.exit(main())
