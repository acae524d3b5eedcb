"""How figures are drawn: numbers for a narrow column, bars, and strips of heat."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.text import Text

from shmcache.cli.output import duration_text
from shmcache.metrics import fold

__all__ = [
    "bar",
    "count_text",
    "heat",
    "rate_text",
    "ratio_text",
    "seconds_text",
    "uptime_text",
]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = "▁▂▃▄▅▆▇█"
_COLOURS = ("blue", "blue", "cyan", "cyan", "green", "yellow", "dark_orange", "red")
_IDLE = "·"
_WIDEST_CELL = 8  # columns that one value takes where there are few


def seconds_text(seconds: float) -> str:
    """Return a duration for reading, such as `1.24 µs`; `-` for none."""
    return duration_text(round(seconds * 1e9)) if seconds > 0 else "-"


def rate_text(per_second: float) -> str:
    """Return a rate in at most seven places: `0`, `0.25`, `812`, `45,210`, `1.35 M`."""
    if per_second >= 1e6:
        return f"{per_second / 1e6:.2f} M"
    if per_second >= 10 or per_second == 0:
        return f"{per_second:,.0f}"
    return f"{per_second:.2f}"


def count_text(count: float) -> str:
    """Return a count in at most nine places: `999,999`, `1.23 M`, `45.6 G`."""
    if count < 1e6:
        return f"{count:,.0f}"
    for unit in ("M", "G"):
        count /= 1e6 if unit == "M" else 1e3
        if count < 1e3:
            return f"{count:.3g} {unit}"
    return f"{count / 1e3:,.0f} T"


def ratio_text(ratio: float | None) -> str:
    """Return a share in percent; `-` where there is none."""
    return "-" if ratio is None else f"{ratio:.2%}"


def uptime_text(seconds: float) -> str:
    """Return whole seconds as `0:01:02`, or `3 days, 0:01:02`."""
    return str(timedelta(seconds=int(seconds)))


def bar(share: float, width: int) -> str:
    """Return a bar of `width` columns, filled from the left by `share` (0 to 1), to an eighth."""
    filled = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, part = divmod(filled, 8)
    return (_EIGHTHS[8] * whole + (_EIGHTHS[part] if part else "")).ljust(width)


def heat(values: Sequence[float], width: int) -> Text:
    """Return a strip of at most `width` columns: some for each value, or one for some neighbours.

    The hottest is full and red, what is 0 is a dot; the others are in proportion.
    """
    folded = fold(values, width)
    cell = max(1, min(_WIDEST_CELL, width // max(1, len(folded))))
    most = max(folded, default=0.0)
    strip = Text()
    for value in folded:
        if value <= 0 or most <= 0:
            strip.append(_IDLE * cell, style="dim")
        else:
            step = min(int(value / most * len(_STEPS)), len(_STEPS) - 1)
            strip.append(_STEPS[step] * cell, style=_COLOURS[step])
    return strip
