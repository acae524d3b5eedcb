"""Where a get goes, in counted instructions, beside the record (bench/counting.py)."""

from __future__ import annotations

from bench import counting
from bench.harness import Options, Result, Table


def run(options: Options) -> Result:
    """Count, and compare with the record."""
    result = Result(
        "instructions",
        "where the time of a get goes",
        f"Instructions by valgrind's callgrind, mean of {counting.TIMES:,} operations each, the "
        "loop subtracted; 100 hot keys (str, 20 characters; 20 of 64 KiB).  Parts: see "
        "bench/counting.py; interpreter and binding together are the call.",
        "Time: cache misses, and what a CPU does at once.  `rep movsb` counts once a byte, which "
        "it does not cost.",
    )
    try:
        counts = counting.count()
    except counting.Unavailable as error:
        result.skipped.append(str(error))
        return result
    record = counting.recorded()
    result.data = {"instructions": counts, "environment": counting.environment()}
    parts = [part for part in counting.PARTS if any(part in row for row in counts.values())]
    rows = []
    for variant, row in counts.items():
        before = (record or {}).get("instructions", {}).get(variant)
        rows.append(
            [variant]
            + [f"{row[part]:,.0f}" if part in row else "" for part in parts]
            + [f"{sum(row.values()):,.0f}", f"{counting.ours(row):,.0f}"]
            + [f"{counting.ours(before):,.0f}" if before else ""]
        )
    columns = ["", *parts, "in all", "ours", "ours in the record"]
    result.tables = [Table("Instructions of one operation", columns, rows)]
    if record is None or record["environment"] != counting.environment():
        result.details["record"] = "of another interpreter or compiler: not compared"
    else:
        worse = list(counting.compare(record["instructions"], counts))
        result.details["more than in the record"] = "; ".join(worse) or "nothing"
    return result
