"""`shmcache top`: its frames at two widths, without a terminal, in one, and while caches come and
go."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console
from support.crowded import crowded
from support.processes import HANG_S

from shmcache import Cache, metrics
from shmcache.cli.top import frame
from shmcache.metrics import Rates, Reading

SHMCACHE = [sys.executable, "-m", "shmcache"]
CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")  # all but the end of a line; UTF-8 above


def drawn(reading: Reading, rates: Rates, width: int, lines: int | None = None) -> str:
    """A frame as text."""
    out = Console(width=width, file=io.StringIO(), record=True, highlight=False)
    out.print(frame(reading, rates, width, lines))
    return out.export_text()


@pytest.fixture
def interval(open_cache: Callable[..., Cache]) -> tuple[Reading, Rates]:
    """Two seconds of a cache with 8 shards: 15 hits, 5 misses and 30 sets a second."""
    cache = open_cache(shards=8)
    cache.latency_sampling = 1
    cache.update({number: bytes(100) for number in range(1000)})
    earlier = dataclasses.replace(metrics.read(cache), taken_at=0.0)
    cache.latencies("web.request").record(0.5)
    for number in range(60):
        cache[number] = 1
    for number in range(30):
        cache.get(number)
    for _ in range(10):
        cache.get("absent")
    later = dataclasses.replace(metrics.read(cache), taken_at=2.0)
    return later, Rates.between(earlier, later)


# ------------------------------------------------------------------------------- one frame
@pytest.mark.parametrize("width", [80, 200])
def test_a_frame_says_what_happened(interval: tuple[Reading, Rates], width: int) -> None:
    reading, rates = interval
    text = drawn(reading, rates, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert lines[0].startswith(reading.name)
    assert lines[0].rstrip().endswith(f"up 0:00:0{int(reading.stats.uptime_seconds)}")
    assert "evict, msgpack, 8 shards" in lines[0]
    assert lines[1].startswith("1 client, user ")
    assert "no owner daemon, 0 recoveries, rates over 2.0 s" in lines[1]
    for pattern in (
        r"^memory   \[█.*\] +\d+\.\d%  .* of .*, 1,000 entries$",
        r"^taken    [▁▂▃▄▅▆▇█·]{64}$",
        r"^waited   ·{64}$",
        r"^ +shard \d of 8 taken \S+ times a second$",
        r"^gets +20 +40\b",
        r"^hits +15 +30\b",
        r"^misses +5\.00 +10\b",
        r"^sets +30 +1,060\b",
        r"^hit ratio +75\.00% +75\.00%",
        r"shmcache\.get +20 +\d+.* [nµm]?s",
        r"web\.request +0\.50 +4\d\d\.\d\d ms +4\d\d\.\d\d ms +500\.00 ms +500\.00 ms",
    ):
        assert re.search(pattern, "\n".join(line.rstrip() for line in lines), re.MULTILINE), pattern


def test_rates_and_latencies_are_side_by_side_where_there_is_room(
    interval: tuple[Reading, Rates],
) -> None:
    wide = next(line for line in drawn(*interval, 200).splitlines() if line.startswith("gets"))
    assert "shmcache.get" in wide
    narrow = next(line for line in drawn(*interval, 80).splitlines() if line.startswith("gets"))
    assert "shmcache.get" not in narrow


@pytest.mark.parametrize("width", [80, 100, 139, 140, 200])
@pytest.mark.parametrize("shards", [1, 16, 1024])
def test_no_line_is_over_the_width(
    interval: tuple[Reading, Rates], width: int, shards: int
) -> None:
    reading = crowded(interval[0], shards=shards)
    text = drawn(reading, Rates.between(None, reading), width)
    assert max(map(len, text.splitlines())) <= width
    assert "rates since creation" in text or width <= 100  # the least important is cut first
    assert "4194303" in text


@pytest.mark.parametrize(("width", "lines"), [(80, 24), (80, 40), (200, 24), (200, 50)])
def test_a_frame_leaves_rings_out_that_the_terminal_has_no_lines_for(
    interval: tuple[Reading, Rates], width: int, lines: int
) -> None:
    reading = crowded(interval[0])
    text = drawn(reading, Rates.between(None, reading), width, lines - 1)
    assert len(text.splitlines()) <= lines - 1
    assert "shmcache.set" in text


def test_recoveries_of_the_interval_stand_out(interval: tuple[Reading, Rates]) -> None:
    reading, rates = interval
    reading = dataclasses.replace(reading, stats=dataclasses.replace(reading.stats, recoveries=9))
    assert "9 recoveries (+2)" in drawn(reading, dataclasses.replace(rates, recoveries=2), 80)


# ------------------------------------------------------------------------ without a terminal
def run(*arguments: str, **environment: str) -> str:
    """Run `top` to its end, without a terminal; what it printed."""
    done = subprocess.run(
        [*SHMCACHE, "top", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert not CONTROL.search(done.stdout)
    return done.stdout.decode()


@pytest.mark.parametrize("width", [80, 200])
def test_once_prints_one_frame_and_no_control_characters(cache: Cache, width: int) -> None:
    text = run(cache.name, "--once", "--interval", "0.1", COLUMNS=str(width))
    assert text.count("hit ratio") == 1
    assert width - 30 < max(len(line) for line in text.splitlines()) <= width
    assert cache.stats().clients == 1


def test_count_prints_so_many_frames(cache: Cache) -> None:
    text = run(cache.name, "--count", "3", "--interval", "0.05")
    assert text.count("hit ratio") == 3


def _prepare() -> None:
    """In the child: take ctrl-c from its terminal, if it has one, and from anybody."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.isatty(0) and os.getsid(0) == os.getpid():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def watch() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `shmcache top`; killed if it still runs when the test is over."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(
                [*SHMCACHE, "top", *arguments],
                # whoever runs the tests in the background of a shell has SIGINT ignored
                preexec_fn=_prepare,
                **options,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(HANG_S)
        if process.stdout is not None:
            process.stdout.close()


def test_it_survives_the_cache_being_unlinked_and_made_anew(
    open_cache: Callable[..., Cache],
    cache_name: str,
    watch: Callable[..., subprocess.Popen[bytes]],
) -> None:
    first = open_cache(cache_name, size="1MiB")
    process = watch(cache_name, "--interval", "0.05", stdout=subprocess.PIPE)
    assert process.stdout is not None

    def seen(text: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text in line.decode():
                return
        raise AssertionError(f"it ended before it said {text!r}")

    seen(" 0 entries")
    first.unlink()
    seen(f"waiting for cache {cache_name!r}")
    second = open_cache(cache_name, size="1MiB")
    second["k"] = 1
    seen(" 1 entries")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(HANG_S) == 0


# ------------------------------------------------------------------------------ a terminal
class Terminal:
    """A pseudo-terminal of that size, and what was written to it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.output = b""

    def read_until(self, pattern: bytes) -> None:
        """Read until that was written."""
        deadline = time.monotonic() + HANG_S
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, self.output
            if select.select([self.ours], [], [], 0.1)[0]:
                self.output += os.read(self.ours, 65536)

    def restored(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(80, 24)
    yield opened
    opened.close()


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
def test_in_a_terminal_it_draws_until_q_or_ctrl_c(
    cache: Cache,
    terminal: Terminal,
    watch: Callable[..., subprocess.Popen[bytes]],
    way: str,
) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = watch(
        *(cache.name, "--interval", "0.1"),
        stdin=terminal.theirs,
        stdout=terminal.theirs,
        stderr=terminal.theirs,
        start_new_session=True,
        env={**environment, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    terminal.read_until(rb"rates since creation(.|\n)*q quits(.|\n)*rates over")
    assert b"\x1b[?1049h" in terminal.output, "the alternate screen"
    assert not terminal.restored()
    os.write(terminal.ours, b"xq" if way == "q" else b"\x03")
    terminal.read_until(rb"\x1b\[\?1049l")
    assert process.wait(HANG_S) == 0
    assert terminal.restored()
    assert b"Traceback" not in terminal.output
