"""Benchmarks of shmcache beside what people would use instead, each with its target.

Run `python -m bench.run` from the project's root; `--quick` for a look, `--only NAME` for one
workload.  Results go to `out/` as JSON and Markdown, never into committed documents unseen.

    run.py        command line: picks workloads, runs them, writes the reports
    harness.py    timing: interleaved samples, what counts as disturbed, medians, ratios
    processes.py  several processes started together for a fixed window of time
    peers.py      opens the contestants: shmcache, py-lmdb, warp_cache; keys and values
    machine.py    what the figures were measured on
    report.py     JSON and Markdown
    workloads/    one file a workload; each states its premises and asserts them
    policy.py     hit ratios of the real cache on real traces, beside simulated policies
    simulate.py   those policies: FIFO, LRU, CLOCK, SIEVE, S3-FIFO

Nothing here is imported by the package, and no figure is a test: a benchmark reports.
"""
