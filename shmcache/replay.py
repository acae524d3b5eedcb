"""Replay a recorded trace over one cache from many processes, and check every hit.

Place in the flow: on top of `Cache`, below the command line, which prints what this decides.
It uses a cache as any program would, through `get` and `set`, and knows nothing of its inside.

Each worker is a process that reads through: it gets the key of a row, and on a miss sets the
value that belongs to it.  Every value proves itself (`trace.make_value`), so every hit is
checked; a single wrong byte anywhere is a wrong value in the report.

How rows are divided: of N workers, worker i takes rows i, i+N, i+2N, ... in order.  With one
worker the order is exactly the recorded one, and hit ratios are comparable with a simulator's;
with several, neighbouring rows are in flight at once, and a key that two workers miss at the same
moment is set twice, to the same value.

    parent                                worker (fork or spawn)
    open the cache, start the workers     attach by name
       <--------------------------------- ready
    go ---------------------------------> read_through its rows
       <--------------------------------- Tally so far, ten times a second
       <--------------------------------- WorkerResult, or what went wrong
    join; end of file without a result: it was killed, and its last tally counts

A worker that is killed harms no one and is reported.  A parent that is killed is noticed by its
workers (they have another parent then), which close the cache and end.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from shmcache.cache import Cache
from shmcache.errors import ShmcacheError
from shmcache.readthrough import Latency, Tally, WorkerResult, read_through
from shmcache.trace import Trace

__all__ = ["Progress", "ReplayReport", "WorkerReport", "replay"]

TALLY_SECONDS = 0.1
"""Time between two tallies that a worker sends."""
STOP_SECONDS = 10.0
"""How long workers may take to stop when asked to: longer than a set may wait for a shard."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker's part in a replay."""

    worker: int
    pid: int
    tally: Tally
    seconds: float
    """From its first request to its last; 0 where it did not live to tell."""
    operations_per_second: float
    failure: str | None
    """None if it finished its rows, else how it ended, such as `killed by SIGKILL`."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found, for a person or (`as_dict`) for a program."""

    trace: str
    cache: str
    size: int
    policy: str
    passes: int
    seconds: float
    """From the first worker's first request to the last worker's last."""
    operations_per_second: float
    total: Tally
    hit_ratio: float
    byte_hit_ratio: float
    get: Latency
    set: Latency
    evictions: int
    """Entries that the cache dropped for space meanwhile."""
    expirations: int
    entries: int
    """Entries in the cache at the end."""
    bytes_used: int
    bytes_total: int
    workers: tuple[WorkerReport, ...]
    interrupted: bool

    @property
    def ok(self) -> bool:
        """True if every worker replayed all its rows and every hit was right."""
        return not (
            self.interrupted
            or self.total.wrong
            or any(worker.failure is not None for worker in self.workers)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts, lists and numbers, with `ok`, fit for JSON."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running replay stands; handed to `on_progress`."""

    total_requests: int
    """Requests that all workers will have made at the end."""
    tally: Tally
    """All workers together."""
    seconds: float
    """Since the workers were let go."""


def replay(
    trace: Trace,
    *,
    workers: int = 1,
    name: str | None = None,
    size: int | str | None = None,
    policy: Literal["evict", "keep"] | None = None,
    shards: int | None = None,
    avg_entry_size: int | None = None,
    passes: int = 1,
    start_method: Literal["fork", "spawn"] = "fork",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ReplayReport:
    """Replay a trace as a read-through cache from `workers` processes that share one cache.

    `name` is the cache to use: attached to where it exists (its keys must then be the trace's own:
    anything else that is found under one counts as wrong), created where it does not.  Without
    one, a cache is made for the replay.  `size`, `policy`, `shards` and `avg_entry_size` are
    those of `Cache`, for a cache that is created.  The trace is replayed `passes` times over.
    `on_progress` is called in this process about ten times a second.

    On SIGINT all workers stop, and what they have done until then is reported, with `interrupted`
    set: the KeyboardInterrupt is used up.  Call it from the main thread, and with `fork` from a
    process that runs no other threads.  Raises `ValueError` for arguments that make no sense, and
    what opening a cache raises.  When it returns, all its processes have ended, and its cache is
    gone unless somebody else holds it or it persists.
    """
    if workers < 1 or workers > 1000:
        raise ValueError(f"workers must be 1 to 1000, not {workers}")
    if passes < 1:
        raise ValueError(f"passes must be at least 1, not {passes}")
    wanted = {"size": size, "policy": policy, "shards": shards, "avg_entry_size": avg_entry_size}
    chosen: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    create = None if name is not None else True
    name = name if name is not None else f"replay-{os.getpid()}-{secrets.token_hex(4)}"
    with Cache(name, create=create, **chosen) as cache:
        before = cache.stats()
        crew = _Crew(trace, name, workers, passes, start_method)
        try:
            crew.run(on_progress)
        finally:
            crew.kill()
        after = cache.stats()
        total = Tally()
        get_ns: Counter[int] = Counter()
        set_ns: Counter[int] = Counter()
        for member in crew.members:
            total.add(member.tally)
            if member.result is not None:
                get_ns += member.result.get_ns
                set_ns += member.result.set_ns
        seconds = crew.seconds()
        return ReplayReport(
            trace=trace.name,
            cache=name,
            size=cache.size,
            policy=cache.policy,
            passes=passes,
            seconds=seconds,
            operations_per_second=total.operations / seconds if seconds else 0.0,
            total=total,
            hit_ratio=total.hit_ratio,
            byte_hit_ratio=total.byte_hit_ratio,
            get=Latency.of(get_ns),
            set=Latency.of(set_ns),
            evictions=after.evictions - before.evictions,
            expirations=after.expirations - before.expirations,
            entries=after.entries,
            bytes_used=after.bytes_used,
            bytes_total=after.bytes_total,
            workers=tuple(member.report() for member in crew.members),
            interrupted=crew.interrupted,
        )


@dataclass(slots=True)
class _Member:
    """A worker as its parent sees it."""

    worker: int
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    tally: Tally = field(default_factory=Tally)
    result: WorkerResult | None = None
    failure: str | None = None

    def receive(self) -> bool:
        """Take one message; False once there will be no more."""
        try:
            message: Tally | WorkerResult | str = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.failure = f"{_ending(self.process.exitcode)}; its other rows were not replayed"
            return False
        if isinstance(message, str):
            self.failure = message
            return False
        if isinstance(message, WorkerResult):
            self.result, self.tally = message, message.tally
            if message.interrupted:
                self.failure = "interrupted; its other rows were not replayed"
            return False
        self.tally = message
        return True

    def report(self) -> WorkerReport:
        """Say what this worker did, as far as it lived to tell."""
        seconds = (self.result.ended_ns - self.result.started_ns) / 1e9 if self.result else 0.0
        return WorkerReport(
            worker=self.worker,
            pid=self.process.pid or 0,
            tally=self.tally,
            seconds=seconds,
            operations_per_second=self.tally.operations / seconds if seconds else 0.0,
            failure=self.failure,
        )


def _ending(exit_code: int | None) -> str:
    """Say in words how a process ended that did not tell so itself."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-exit_code}"


class _Crew:
    """The worker processes of one replay: started together, heard, and never left behind."""

    def __init__(
        self,
        trace: Trace,
        name: str,
        workers: int,
        passes: int,
        start_method: Literal["fork", "spawn"],
    ) -> None:
        context = (
            multiprocessing.get_context("fork")
            if start_method == "fork"
            else multiprocessing.get_context("spawn")
        )
        self.members: list[_Member] = []
        self.interrupted = False
        self._total_requests = len(trace) * passes
        self._started_ns = 0
        # Until a worker has its own way with SIGINT, it must not get one: it inherits this mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(theirs, os.getpid(), trace, name, worker, workers, passes),
                    name=f"shmcache-replay-{worker}",
                    daemon=True,
                )
                self.members.append(_Member(worker, process, ours))
                process.start()
                # With our copy closed (and none for later workers to inherit), a death is the end
                # of file.
                theirs.close()
        except BaseException:
            self.kill()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def run(self, on_progress: Callable[[Progress], None]) -> None:
        """Let the workers go once all have attached, and hear them until the last has ended."""
        waiting = {member.pipe: member for member in self.members}
        try:
            self._started_ns = time.perf_counter_ns()
            for member in self.members:
                if not member.receive():
                    del waiting[member.pipe]
            for pipe in waiting:
                with suppress(OSError):
                    pipe.send("go")
            self._started_ns = time.perf_counter_ns()
            self._hear(waiting, on_progress)
        except KeyboardInterrupt:
            self.interrupted = True
            for member in self.members:
                if member.process.is_alive() and member.process.pid is not None:
                    os.kill(member.process.pid, signal.SIGINT)
            self._hear(waiting, on_progress, deadline=time.monotonic() + STOP_SECONDS)

    def _hear(
        self,
        waiting: dict[Connection, _Member],
        on_progress: Callable[[Progress], None],
        deadline: float | None = None,
    ) -> None:
        """Take messages and tell of progress until no worker is left, or the deadline."""
        told = 0.0
        while waiting and (deadline is None or time.monotonic() < deadline):
            ready = wait(list(waiting), timeout=TALLY_SECONDS)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                if not waiting[pipe].receive():
                    del waiting[pipe]
            now = time.monotonic()
            if waiting and now - told < TALLY_SECONDS:
                continue
            told = now
            total = Tally()
            for member in self.members:
                total.add(member.tally)
            elapsed = (time.perf_counter_ns() - self._started_ns) / 1e9
            on_progress(Progress(self._total_requests, total, elapsed))
        for member in waiting.values():
            member.failure = f"did not stop within {STOP_SECONDS:g} s and was killed"

    def seconds(self) -> float:
        """Time from the first request to the last; while nobody told, since the start."""
        results = [member.result for member in self.members if member.result is not None]
        if not results:
            return (time.perf_counter_ns() - self._started_ns) / 1e9
        first = min(result.started_ns for result in results)
        return (max(result.ended_ns for result in results) - first) / 1e9

    def kill(self) -> None:
        """Leave no process behind: one that has told everything is ending by itself."""
        for member in self.members:
            if member.process.pid is None:
                continue
            if member.result is not None or member.failure is not None:
                member.process.join(STOP_SECONDS)
            if member.process.is_alive():
                member.process.kill()
            member.process.join()
            member.pipe.close()


def _work(
    pipe: Connection,
    parent: int,
    trace: Trace,
    name: str,
    worker: int,
    workers: int,
    passes: int,
) -> None:
    """Be one worker: attach, wait for the word, replay, tell."""
    stopping = False

    def on_sigint(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, on_sigint)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    told = 0.0

    def stop() -> bool:
        return stopping or os.getppid() != parent

    def tell(tally: Tally) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TALLY_SECONDS:
            told = now
            pipe.send(tally)

    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            with Cache(name, create=False) as cache:
                pipe.send(Tally())
                while not stop() and not pipe.poll(TALLY_SECONDS):
                    pass
                outcome: WorkerResult | str = read_through(
                    cache,
                    trace,
                    first=worker,
                    step=workers,
                    passes=passes,
                    stop=stop,
                    on_stride=tell,
                )
        except (ShmcacheError, OSError, MemoryError) as error:
            outcome = f"{type(error).__name__}: {error}"
        pipe.send(outcome)
