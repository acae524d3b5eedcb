"""Benchmarks of shmcache beside what people would use instead, each with its target.

Run `make bench` or, from the project's root, `python -m bench`; `--quick` for a look, `--only NAME`
for one workload.  Results go to `out/` as JSON, Markdown and plots; `--record docs/bench` writes
them to where committed ones live.

    run.py        command line: picks workloads, runs them, writes the reports
    harness.py    timing: interleaved samples, what counts as disturbed, medians, ratios
    processes.py  several processes started together for a fixed window of time
    adapters/     the systems that are compared, one class each, behind one Protocol
    peers.py      opens what the older workloads compare with; keys and values
    machine.py    what the figures were measured on
    report.py     JSON and Markdown; summary.py: the one table; plots.py: SVG and PNG
    workloads/    one file a workload; each states its premises and asserts them
    policy.py     hit ratios of the real cache on real traces, beside simulated policies
    simulate.py   those policies: FIFO, LRU, CLOCK, SIEVE, S3-FIFO
    counting.py   instructions of a get, by part: the record (records/), and the check against it

Nothing here is imported by the package, and no figure is a test: a benchmark reports.
"""
