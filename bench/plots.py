"""Plots of a run, from its JSON: SVG and PNG, for light and for dark pages.

    python -m bench.plots [out/bench.json] [DIRECTORY]

Each plot is left out where its workload was not run.  Colours are of Okabe and Ito's palette,
which people with any common colour blindness can tell apart; lines differ by marker as well, and
are labelled where they end.  Needs matplotlib (extra `bench`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.report import span

Document = Mapping[str, Any]

ORDER = (
    "dict", "lru_cache", "shmcache", "warp_cache", "UltraDict", "py-lmdb", "sqlite3", "diskcache",
    "memcached", "Redis", "Manager().dict",
)  # fmt: skip
INSIDE = {"dict", "lru_cache"}
"""What processes do not share: the limit, drawn hollow."""

LATENCY = (("get", "100 B"), ("set", "100 B"), ("get", "small dict"))
SCALING = ("95/5, Zipf", "50/50, Zipf")
PARTS = {
    "interpreter": "interpreter", "binding": "binding", "hash": "key, hash", "probe": "probe",
    "copy": "copy", "recheck": "recheck", "decode": "object, decode",
}  # fmt: skip
COUNTED = ("dict.get", "get, local", "get, miss", "get, 100 B", "get, int")


@dataclass(frozen=True)
class Theme:
    """Colours of one background."""

    suffix: str
    page: str
    ink: str
    faint: str
    grid: str
    ours: str
    others: str
    cycle: tuple[str, ...]


LIGHT = Theme(
    "", "#ffffff", "#1f2328", "#59636e", "#dfe3e8", "#0072B2", "#aeb6bf",
    ("#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#59636e", "#7F3C8D", "#222222"),
)  # fmt: skip
DARK = Theme(
    "-dark", "#0d1117", "#e6edf3", "#9198a1", "#2b323b", "#56B4E9", "#59636e",
    ("#FF8C42", "#2BC79A", "#E59AC6", "#E6C229", "#4C9BE8", "#B1BAC4", "#B98AE0", "#FFFFFF"),
)  # fmt: skip
MARKERS = "osD^vPX*"


def draw(document: Document, folder: Path) -> list[Path]:
    """Draw what the document has figures for; returns the files written.

    ImportError where matplotlib is missing."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "shmcache"  # the same figures make the same file
    folder.mkdir(parents=True, exist_ok=True)
    data = {w["name"]: w["data"] for w in document["workloads"] if w.get("data")}
    plots: dict[str, tuple[str, Callable[[Theme, Any], Any]]] = {
        "latency": ("peers_latency", _latency),
        "scaling": ("peers_scaling", _scaling),
        "hit_ratio": ("hit_ratio", _hit_ratio),
        "instructions": ("instructions", _instructions),
        "growth": ("growth", _growth),
    }
    written = []
    for name, (workload, plot) in plots.items():
        if workload not in data:
            continue
        for theme in (LIGHT, DARK):
            with matplotlib.rc_context():
                for setting, value in _style(theme).items():
                    matplotlib.rcParams[setting] = value  # type: ignore[index]
                figure = plot(theme, data[workload])
                for kind in ("svg", "png"):
                    path = folder / f"{name}{theme.suffix}.{kind}"
                    metadata = {"Date": None} if kind == "svg" else {"Software": None}
                    figure.savefig(path, dpi=150, metadata=metadata)
                    written.append(path)
                matplotlib.pyplot.close(figure)
    return written


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "figure.facecolor": theme.page,
        "savefig.facecolor": theme.page,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.faint,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": theme.ink,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9.5,
        "axes.labelsize": 9.5,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def _latency(theme: Theme, data: Mapping[str, Any]) -> Any:
    """Horizontal bars, one panel an operation, a logarithmic axis."""
    from matplotlib import pyplot

    panels = [(op, kind) for op, kind in LATENCY if op in data["kinds"].get(kind, {})]
    names = [n for n in ORDER if any(n in data["kinds"][kind][op] for op, kind in panels)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10.5, 3.9), sharey=True, squeeze=False)
    for axis, (operation, kind) in zip(axes[0], panels, strict=True):
        figures = data["kinds"][kind][operation]
        for place, name in enumerate(names):
            if name not in figures:
                axis.text(11.5, place, "no such operation", va="center", color=theme.faint, size=8)
                continue
            value = figures[name]["median_ns"]
            colour = theme.ours if name == "shmcache" else theme.others
            axis.barh(
                place,
                value,
                height=0.64,
                color="none" if name in INSIDE else colour,
                edgecolor=colour,
                linewidth=1.3,
            )
            axis.text(
                value * 1.12,
                place,
                span(value),
                va="center",
                size=9,
                weight="bold" if name == "shmcache" else "normal",
            )
        axis.set_xscale("log")
        axis.set_xlim(10, 400_000)
        axis.set_xticks([10, 100, 1e3, 1e4, 1e5], ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs"])
        axis.minorticks_off()
        axis.grid(axis="x")
        axis.set_title({"get": "get, a hit", "set": "set"}[operation] + f", {kind}")
        axis.tick_params(axis="both", length=0)
        axis.spines["bottom"].set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    for label in axes[0][0].get_yticklabels():
        if label.get_text() == "shmcache":
            label.set_weight("bold")
            label.set_color(theme.ours)
    figure.supxlabel(
        "median of one call, one process, logarithmic; hollow: inside the process, not shared",
        size=9,
        color=theme.faint,
    )
    return figure


def _scaling(theme: Theme, data: Mapping[str, Any]) -> Any:
    """Operations per second by number of processes, both axes logarithmic."""
    from matplotlib import pyplot

    mixes = [mix for mix in SCALING if mix in data["mixes"]] or list(data["mixes"])[:2]
    figure, axes = pyplot.subplots(1, len(mixes), figsize=(10.5, 4.6), sharey=True, squeeze=False)
    for axis, mix in zip(axes[0], mixes, strict=True):
        peers = data["mixes"][mix]["peers"]
        others = iter(zip(theme.cycle, MARKERS, strict=True))
        ends: list[tuple[float, str, str]] = []
        counts: list[int] = []
        for name in (name for name in ORDER if name in peers):
            counts = [int(count) for count in peers[name]]
            rates = [row["operations_per_second"] for row in peers[name].values()]
            if name == "shmcache":
                style: dict[str, Any] = {
                    "color": theme.ours, "marker": "o", "linewidth": 2.8, "zorder": 3,
                }  # fmt: skip
            elif name in INSIDE:
                style = {"color": theme.faint, "linestyle": "--", "linewidth": 1.5}
                name = "dict, one in each process"
            else:
                colour, marker = next(others)
                style = {"color": colour, "marker": marker, "linewidth": 1.5, "markersize": 5}
            axis.plot(counts, rates, **style)
            ends.append((rates[-1], name, style["color"]))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlim(counts[0] * 0.93, counts[-1] * 3.1)
        axis.minorticks_off()
        axis.grid(axis="y")
        axis.set_title(f"{mix} ({mix.split('/')[0]}% gets)")
        axis.set_xlabel("processes")
        axis.xaxis.set_label_coords(0.33, -0.06)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="both", length=0)
        _label_ends(axis, ends, counts[-1] * 1.08)
    axes[0][0].set_yticks(
        [1e4, 1e5, 1e6, 1e7, 1e8], ["10 thousand", "100 thousand", "1 million", "10 million", ""]
    )
    axes[0][0].set_ylabel("operations a second, all processes")
    return figure


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Names beside the ends of lines, moved apart where they would overlap (log axis)."""
    low, high = (math.log10(limit) for limit in axis.get_ylim())
    least = (high - low) * 0.052
    at = -math.inf
    for value, name, colour in sorted(ends):
        at = max(at + least, math.log10(value))
        weight = "bold" if name == "shmcache" else "normal"
        axis.text(x, 10**at, name, color=colour, va="center", size=9, weight=weight)


def _hit_ratio(theme: Theme, data: Mapping[str, Any]) -> Any:
    """Hits over LRU's in points, one panel a trace; LRU is the zero line."""
    from matplotlib import pyplot

    outcomes = data["outcomes"]
    traces = list(dict.fromkeys(outcome["trace"] for outcome in outcomes))
    columns = min(2, len(traces))
    rows = -(-len(traces) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5.25 * columns, 2.75 * rows + 0.3), squeeze=False
    )
    for axis in axes.flat[len(traces) :]:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis, trace in zip(axes.flat, traces, strict=False):
        mine = [outcome for outcome in outcomes if outcome["trace"] == trace]
        percents = sorted({outcome["percent"] for outcome in mine})
        hits = {(o["policy"], o["percent"]): 100 - o["object_miss"] for o in mine}
        others = iter(zip(theme.cycle, "sD^v", strict=False))
        for policy in dict.fromkeys(outcome["policy"] for outcome in mine):
            gains = [hits[policy, p] - hits["LRU", p] for p in percents]
            if policy == "LRU":
                style: dict[str, Any] = {"color": theme.faint, "linewidth": 1.2}
            elif policy.startswith("shmcache"):
                style = {"color": theme.ours, "marker": "o", "linewidth": 2.4, "zorder": 3}
                if "default" in policy:
                    style |= {"linestyle": (0, (4, 2)), "markerfacecolor": theme.page}
            else:
                colour, marker = next(others)
                style = {"color": colour, "marker": marker, "linewidth": 1.4, "markersize": 5}
            handles[policy] = axis.plot(range(len(percents)), gains, **style)[0]
        axis.set_xticks(
            range(len(percents)), [f"{p:g}%\nLRU {hits['LRU', p]:.1f}%" for p in percents]
        )
        axis.set_title(trace)
        axis.grid(axis="y")
        axis.tick_params(axis="both", length=0)
        axis.margins(x=0.08, y=0.12)
        axis.yaxis.set_major_formatter(lambda x, _place: f"{x:+g}" if x else "0")
        axis.spines["left"].set_visible(False)
    figure.supylabel("hits in 100 requests over LRU's", size=9.5, color=theme.faint)
    figure.supxlabel("capacity, of the trace's footprint", size=9.5, color=theme.faint)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def _instructions(theme: Theme, data: Mapping[str, Any]) -> Any:
    """Stacked bars: what a call is made of."""
    from matplotlib import pyplot

    variants = [variant for variant in COUNTED if variant in data["instructions"]]
    colours = (theme.others, theme.faint, *theme.cycle[1:3], theme.ours, *theme.cycle[3:5])
    hatches = ("", "", "//", "", "", "..", "")
    figure, axis = pyplot.subplots(figsize=(10.5, 3.1))
    for place, variant in enumerate(variants):
        left = 0.0
        for (part, title), colour, hatch in zip(PARTS.items(), colours, hatches, strict=True):
            width = data["instructions"][variant].get(part, 0.0)
            axis.barh(
                place,
                width,
                left=left,
                height=0.62,
                color=colour,
                edgecolor=theme.page,
                hatch=hatch,
                linewidth=1.2,
                label=title if place == 0 else None,
            )
            left += width
        axis.text(left + 8, place, f"{left:,.0f}", va="center")
    axis.set_yticks(range(len(variants)), variants)
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.tick_params(axis="both", length=0)
    axis.set_xlabel("instructions of one call")
    axis.spines["left"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS), handlelength=1.2, columnspacing=1.2)
    return figure


def _growth(theme: Theme, data: Mapping[str, Any]) -> Any:
    """Nanoseconds of a get by number of entries, both axes logarithmic."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.0, 3.9))
    others = iter(zip(theme.cycle, MARKERS, strict=True))
    ends: list[tuple[float, str, str, int]] = []
    most = 1
    for name, row in data["nanoseconds"].items():
        counts = [int(count) for count in row]
        most = max(most, *counts)
        if name.startswith("shmcache"):
            style: dict[str, Any] = {"color": theme.ours, "marker": "o", "linewidth": 2.6}
        else:
            colour, marker = next(others)
            style = {"color": colour, "marker": marker, "linewidth": 1.4, "markersize": 5}
        if name.endswith("hot"):
            style |= {"linestyle": (0, (4, 2)), "markerfacecolor": theme.page}
        axis.plot(counts, list(row.values()), **style)
        ends.append((row[str(counts[-1])], name, style["color"], counts[-1]))
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = [10**n for n in range(3, 8) if 10**n <= most]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_yticks([10, 100, 1e3, 1e4], ["10 ns", "100 ns", "1 µs", "10 µs"])
    axis.set_xlim(800, most * 12)
    axis.minorticks_off()
    axis.grid(axis="y")
    axis.tick_params(axis="both", length=0)
    axis.spines["left"].set_visible(False)
    for last in {end[3] for end in ends}:
        some = [(value, name, colour) for value, name, colour, count in ends if count == last]
        _label_ends(axis, some, last * 1.25)
    axis.set_title("A get, by the number of entries")
    axis.set_xlabel("entries")
    return figure


def main() -> int:
    """Draw the plots of a JSON file anew."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out" / "bench.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent
    for path in draw(json.loads(source.read_text()), folder):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
