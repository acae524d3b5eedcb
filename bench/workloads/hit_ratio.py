"""Hit ratios on recorded traces: the real cache end to end, beside four simulated policies."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path

from bench import policy
from bench.harness import Options, Result, Table, require

SIMULATED = ("FIFO", "LRU", "SIEVE", "S3-FIFO")
QUICK_TRACES = ("web12",)
QUICK_PERCENTS = (5.0, 20.0)


def run(options: Options) -> Result:
    """Replay every trace at every capacity; no time is measured, so all CPUs help."""
    percents = QUICK_PERCENTS if options.quick else policy.PERCENTS
    traces = policy.find_traces(options.traces)
    if options.quick:
        traces = [path for path in traces if path.name.partition(".")[0] in QUICK_TRACES]
    result = Result(
        "hit_ratio",
        "hit ratios on recorded traces",
        "Every row of a trace looks its key up and stores it on a miss; nothing is warm-up.  "
        f"Capacities are {', '.join(f'{p:g}' for p in percents)}% of the sum of `size + 32` over "
        "all keys.  FIFO, LRU, SIEVE and S3-FIFO are simulated (bench/simulate.py, checked against "
        "the table that comes with the traces by `python -m bench.policy --check`); shmcache is "
        "the real cache, given logs of that many bytes, with one shard and with as many as it "
        "chooses, every hit verified.",
        "Its index and fixed tables, left out for the real cache as for the simulated ones; "
        "several processes, which change the order of requests.",
    )
    require(bool(traces), "there is a trace")
    if len(traces) == 1 and not options.quick:
        result.skipped.append(
            "all traces but the bundled one: say --traces DIR or SHMCACHE_TRACES=DIR"
        )
    jobs = [(str(path), percent) for path in traces for percent in percents]
    # The longest first, so that no CPU is left with one of them at the end.
    jobs.sort(key=lambda job: -Path(job[0]).stat().st_size)
    context = multiprocessing.get_context("fork")
    with context.Pool(len(os.sched_getaffinity(0))) as pool:
        outcomes = [outcome for some in pool.imap(_job, jobs, chunksize=1) for outcome in some]
    names = [path.name.partition(".")[0] for path in traces]
    outcomes.sort(key=lambda o: (names.index(o.trace), o.percent))
    result.data["outcomes"] = [asdict(outcome) for outcome in outcomes]
    for name in names:
        mine = [o for o in outcomes if o.trace == name]
        rows = []
        for label in dict.fromkeys(o.policy for o in mine):
            cells = {o.percent: f"{100 - o.object_miss:.2f}" for o in mine if o.policy == label}
            rows.append([label] + [cells[percent] for percent in percents])
        columns = ["hits in % at a capacity of", *(f"{p:g}%" for p in percents)]
        result.tables.append(Table(f"Trace {name}", columns, rows))
    return result


def _job(job: tuple[str, float]) -> list[policy.Outcome]:
    path, percent = Path(job[0]), job[1]
    name = path.name.partition(".")[0]
    rows = policy.load(path)
    simulated = [policy.simulate(name, rows, percent, label) for label in SIMULATED]
    return simulated + [policy.replay(name, rows, percent, shards) for shards in (1, None)]
