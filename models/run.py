"""Checks the Promela models with spin: sound ones must pass, each mutation must fail as expected.

Purpose: one command (`make models`) that says whether the protocols hold within the bounds of the
models, and whether the models can tell: a mutation that takes a rule of the design away has to
violate the invariant that the rule is there for, and nothing else.
Needs spin (Debian's package `spin`) and gcc.  docs/models.md says what each model covers.

    python models/run.py            everything (some minutes, at most 2 GB for one run)
    python models/run.py --fast     what is done within a minute
    python models/run.py --only publish
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parent
MEMORY_MIB = 2048
TIMEOUT_S = 300
SAFETY = (("-DSAFETY",), ("-m500000",))
FAIR = (("-DNFAIR=5",), ("-m500000", "-a", "-f"))  # acceptance cycles under weak fairness

CYCLE = "acceptance cycle"
STUCK = "invalid end state"


@dataclass(frozen=True)
class Run:
    """One verification: a model with its -D switches, and how it must end."""

    model: str
    switches: str  # separated by blanks, without -D
    expect: str = ""  # "": passes; else what the error must contain
    slow: bool = False  # left out by --fast

    @property
    def title(self) -> str:
        """What --only matches."""
        return f"{self.model}: {self.switches or 'as it is'}"


@dataclass(frozen=True)
class Outcome:
    """What pan said of a run."""

    run: Run
    error: str  # "": none
    states: int
    depth: int
    seconds: float
    memory_mib: float

    @property
    def as_expected(self) -> bool:
        """Did it pass, or fail with what it had to fail with?"""
        if not self.run.expect:
            return not self.error
        return self.run.expect in self.error


def _mutations(model: str, base: str, table: Iterable[tuple[str, str]]) -> list[Run]:
    return [Run(model, f"{base} MUT_{name}".strip(), expect) for name, expect in table]


RUNS: list[Run] = [
    # the lock of a shard
    Run("lock", "KILLS=1 GIVE_UP"),
    Run("lock", "KILLS=0 ROUNDS=2 NO_TIMEOUT"),
    Run("lock", "N=2 KILLS=2 LIVE"),
    Run("lock", "N=2 ROUNDS=2 KILLS=2 LIVE", slow=True),
    Run("lock", "KILLS=2", slow=True),
    Run("lock", "KILLS=1 LIVE", slow=True),
    *_mutations(
        "lock",
        "KILLS=1 GIVE_UP",
        [
            ("STEAL", "INV_NOT_ROBBED"),
            ("TOKEN_OWNS", "INV_MUTEX"),
            ("BLIND_TAKEOVER", "INV_NOT_ROBBED"),
            ("GEN_WRAP", "INV_NOT_ROBBED"),
            ("NO_REPAIR", "INV_CLEAN"),
            ("DIRTY_EARLY", "INV_CLEAN"),
        ],
    ),
    Run("lock", "N=2 KILLS=2 MUT_REPAIR_EARLY", "INV_CLEAN"),
    Run("lock", "KILLS=2 GENS=2 MUT_GEN_WRAP", "INV_NOT_ROBBED", slow=True),
    Run("lock", "KILLS=0 NO_TIMEOUT MUT_FORGET_CONTENDED", STUCK),
    Run("lock", "N=2 LIVE MUT_SLOT_ONLY", CYCLE),
    Run("lock", "N=2 LIVE MUT_UNBOUNDED_WAIT", CYCLE),
    # publication, moves, eviction, reuse
    Run("publish", "READER OPS=3"),
    Run("publish", "READER OPS=2 VISITED"),
    Run("publish", "READER OPS=1 VISITED CRASHES=1"),
    Run("publish", "OPS=3 CRASHES=2"),
    Run("publish", "READER OPS=2 CRASHES=1"),
    Run("publish", "READER OPS=2 UNITS=11 WEAK"),
    Run("publish", "READER OPS=1 WEAK CRASHES=1"),
    Run("publish", "READER OPS=3 UNITS=11", slow=True),
    Run("publish", "READER OPS=3 UNITS=13", slow=True),
    Run("publish", "OPS=4 CRASHES=3", slow=True),
    Run("publish", "READER OPS=2 UNITS=11 WEAK CRASHES=1", slow=True),
    *_mutations(
        "publish",
        "READER OPS=3",
        [
            ("NO_RECHECK", "INV_NO_TEAR"),
            ("MISMATCH_NO_RECHECK", "INV_NOT_MISSED"),
            ("GAP", "INV_NOT_MISSED"),
            ("HEAD_LATE", "INV_NO_TEAR"),
            ("POSITION_WRAP", "INV_NO_TEAR"),
            ("EVICT_OWN", "INV_NOT_MISSED"),
        ],
    ),
    Run("publish", "READER OPS=4 MUT_GAP_NO_PAD", "INV_NOT_MISSED", slow=True),
    *_mutations(
        "publish",
        "OPS=3 CRASHES=2",
        [
            ("NOTE_EARLY", "INV_COUNTS"),
            ("NOTE_LATE", "INV_COUNTS"),
            ("ARM_FIRST", "INV_WALK"),
            ("REPAIR_EARLY", "INV_COUNTS"),
            ("NO_ROLLBACK", "INV_MOVE_ROOM"),
        ],
    ),
    Run("publish", "READER OPS=1 VISITED CRASHES=1 MUT_VISITED_COMPARE", "INV_WALK"),
    Run("publish", "READER OPS=2 VISITED MUT_VISITED_STORE", "INV_COUNTS"),
    Run("publish", "READER OPS=2 UNITS=11 WEAK MUT_NO_ACQUIRE", "INV_NO_TEAR"),
    Run("publish", "READER OPS=2 UNITS=11 WEAK MUT_RELAXED_PUBLISH", "INV_NO_TEAR"),
    # who is alive
    Run("liveness", "EVENTS=4"),
    Run("liveness", "EVENTS=6", slow=True),
    *_mutations(
        "liveness",
        "",
        [
            ("DESCRIPTOR", "INV_ALIVE"),
            ("DESCRIPTOR_FORKED", "INV_DEAD"),
            ("NO_DONTFORK", "INV_DEAD"),
            ("NO_WIPE", "INV_UNIQUE"),
            ("PID", "INV_DEAD"),
            ("SAME_GENERATION", "INV_DEAD"),
            ("GEN_WRAP", "INV_DEAD"),
            ("FORK_IN_WINDOW", "INV_DEAD"),
            ("POSIX_LOCK", "INV_ALIVE"),
            ("LOCK_LATE", "INV_ALIVE"),
        ],
    ),
    # create, attach, close, unlink, replace, sweep
    Run("attach", "LIVES=2"),
    Run("attach", "UNLINKER"),
    Run("attach", "LEFTOVER"),
    Run("attach", "LIVES=2 LIVE"),
    Run("attach", "N=3", slow=True),
    Run("attach", "N=3 UNLINKER", slow=True),
    Run("attach", "N=3 LEFTOVER", slow=True),
    Run("attach", "KILLS=2 SWEEPER", slow=True),
    *_mutations(
        "attach",
        "",
        [
            ("RENAME", "INV_NAMED"),
            ("NO_GATE", "INV_NAMED"),
            ("NO_STAT", "INV_NAMED"),
            ("SLOT_AFTER_LINK", "INV_NAMED"),
            ("BUILD_IN_PLACE", "INV_BUILT"),
        ],
    ),
    Run("attach", "UNLINKER MUT_CLOSE_BLIND", "INV_NAMED"),
    Run("attach", "UNLINKER MUT_DEAD_LATE", "INV_NAMED"),
    Run("attach", "LEFTOVER MUT_REPLACE_BLIND", "INV_NAMED"),
    Run("attach", "SWEEPER MUT_SWEEP_ORDER", "INV_SEMS"),
    Run("attach", "SWEEPER MUT_SWEEP_PUBLISHED", "INV_SEMS"),
    Run("attach", "LIVE MUT_DEAD_SPIN", CYCLE),
    # once per key
    Run("lease", "KILLS=1"),
    Run("lease", "KILLS=1 LIVE"),
    Run("lease", "KILLS=0 REMOVALS=2 NO_SLICE"),
    Run("lease", "KILLS=2", slow=True),
    Run("lease", "KILLS=1 REMOVALS=2", slow=True),
    Run("lease", "KILLS=2 FAILS=0 LIVE", slow=True),
    Run("lease", "N=3 KILLS=0 NO_SLICE", slow=True),
    Run("lease", "N=3 KILLS=1 REMOVALS=0 FAILS=0", slow=True),
    Run("lease", "MUT_STEAL", "INV_ONE"),
    Run("lease", "N=3 MUT_BLIND_TAKEOVER", "INV_ONE"),
    Run("lease", "KILLS=0 MUT_LATE_STORE", "INV_LATE"),
    Run("lease", "KILLS=0 MUT_KEEP_LEASE", "INV_LATE"),
    Run("lease", "KILLS=1 MUT_VALUE_FIRST", "INV_LATE"),
    Run("lease", "LIVE MUT_UNBOUNDED_WAIT", CYCLE),
    Run("lease", "LIVE MUT_SLOT_ONLY", CYCLE),
    *_mutations(
        "lease",
        "KILLS=0 NO_SLICE",
        [("WORD_LATE", STUCK), ("SAME_WORD", STUCK), ("NO_DUTY", STUCK)],
    ),
    # swap slots
    Run("swap", ""),
    Run("swap", "STORES=6 CRASHES=2"),
    *_mutations(
        "swap",
        "",
        [
            ("NO_RECHECK", "INV_NO_TEAR"),
            ("ONE_BUFFER", "INV_NO_TEAR"),
            ("NO_RELEASE", "INV_NO_TEAR"),
            ("NO_FENCE", "INV_NO_TEAR"),
            ("SEQUENCE_WRAP", "INV_NO_TEAR"),
            ("EARLY_ADVANCE", "INV_NO_TEAR"),
        ],
    ),
]


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def _error(text: str) -> str:
    """The first thing that pan found wrong; also that it could not look everywhere."""
    for pattern in (
        r"pan:\d+: (.*)",
        r"(reached -DMEMLIM bound)",
        r"(max search depth too small)",
        r"(VECTORSZ .*)",
    ):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return "" if "errors: 0" in text else "pan did not finish: " + text[-200:]


def check(run: Run) -> Outcome:
    """Generate, compile and run the verifier of one run, in a directory of its own."""
    # a mutation fails within a blink: there compiling is what takes time
    compile_flags, pan_flags = FAIR if "LIVE" in run.switches.split() else SAFETY
    defines = [f"-D{switch}" for switch in run.switches.split()]
    with tempfile.TemporaryDirectory(prefix="pan-") as name:
        where = Path(name)
        shutil.copy(MODELS / f"{run.model}.pml", where)

        def step(*command: str) -> str:
            try:
                done = subprocess.run(
                    command, cwd=where, capture_output=True, text=True, timeout=TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                return f"pan:0: no end after {TIMEOUT_S} s"
            return done.stdout + done.stderr

        said = step("spin", "-a", *defines, f"{run.model}.pml")
        if not (where / "pan.c").exists():
            return Outcome(run, "spin: " + said, 0, 0, 0.0, 0.0)
        said = step(
            "gcc", "-O0" if run.expect and not run.slow else "-O2", "-w", f"-DMEMLIM={MEMORY_MIB}",
            *compile_flags, "-o", "pan", "pan.c",
        )  # fmt: skip
        if not (where / "pan").exists():
            return Outcome(run, "gcc: " + said, 0, 0, 0.0, 0.0)
        said = step("./pan", "-n", *pan_flags)
    return Outcome(
        run,
        _error(said),
        int(_number(r"(\d+) states, stored", said)),
        int(_number(r"depth reached (\d+)", said)),
        _number(r"elapsed time ([\d.]+) seconds", said),
        _number(r"([\d.]+)\s+total actual memory usage", said),
    )


def row(outcome: Outcome) -> str:
    """One line of the table, in Markdown."""
    error = re.sub(r"\s*\(at depth.*", "", outcome.error)
    named = re.search(r"INV_\w+", error)
    said = f"fails: {named[0] if named else error}" if error else "passes"
    if not outcome.as_expected:
        said += f" (NOT AS EXPECTED: {outcome.run.expect or 'passes'})"
    return (
        f"| {outcome.run.model} | {outcome.run.switches or '-'} | {said} | {outcome.states:,} "
        f"| {outcome.depth:,} | {outcome.seconds:.1f} | {outcome.memory_mib:,.0f} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 if each run ended as it must, 1 if not, 2 without the tools."""
    parser = argparse.ArgumentParser(description="check the Promela models with spin")
    parser.add_argument("--fast", action="store_true", help="leave the long runs out")
    parser.add_argument("--only", default="", help="runs whose title matches this expression")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (default: 2)")
    options = parser.parse_args(arguments)
    for tool, package in (("spin", "spin"), ("gcc", "gcc")):
        if shutil.which(tool) is None:
            print(f"{tool} is missing: install the package {package}", file=sys.stderr)
            return 2
    runs = [r for r in RUNS if not (options.fast and r.slow) and re.search(options.only, r.title)]
    if not runs:
        print(f"no run matches {options.only!r}", file=sys.stderr)
        return 2
    print("| model | switches | result | states | depth | s | MB |")
    print("|---|---|---|---:|---:|---:|---:|")
    wrong = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(check, runs):
            print(row(outcome), flush=True)
            wrong += not outcome.as_expected
    print(f"\n{len(runs)} runs, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
