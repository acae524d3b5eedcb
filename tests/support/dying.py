"""Dying at one fault point after another: what the fault drivers of this directory share.

A driver runs in the test build (``PYTHONPATH=build/fault:tests python -P X_fault_driver.py PATH``).
It says which paths there are, and what one death in such a path is: a fork attaches, arms the
point, and acts until the point kills it; then, while the dead child is still a zombie, the driver
looks at what is left, and goes on.  ``run`` dies at every point that the path reaches, and prints
one JSON object: which points these were, and what was wrong afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from shmcache import Cache, _core
from support.processes import wait_zombie

SURVIVOR_S = 1.0
"""Seconds that a survivor's call may take, whoever died."""

ELSEWHERE = ("record_", "swap_", "token_", "ring_")
"""Fault points of what is outside the shards begin so."""

P = TypeVar("P")


class Fork:
    """A child that attaches, arms a fault point and acts; this process never reaps it early."""

    def __init__(self, cache: Cache, point: int, passage: int, act: Callable[[Cache], object]):
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                cache.get("survivor")  # attaches: the child has an identity of its own now
                _core.set_fault(point, passage)
                act(cache)
                _core.set_fault(-1)
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def has_ended(self) -> bool:
        """Whether it is dead or done; never blocks, and leaves it a zombie."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def ended(self) -> int:
        """The exit code or the signal that ended it; it stays a zombie."""
        return wait_zombie(self.pid)

    def reap(self) -> None:
        os.waitpid(self.pid, 0)


class Failure(Exception):
    """Something was not as promised."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Failure(text)


def of_shards() -> list[str]:
    """The fault points of operations on entries."""
    return [point for point in _core.FAULT_POINTS if not point.startswith(ELSEWHERE)]


def run(
    paths: Mapping[str, P],
    points: Iterable[str],
    passages: Iterable[int],
    one_death: Callable[[P, str, int], bool],
) -> None:
    """Die at each of ``points``, at each of ``passages``, in the path that the command line names.

    ``one_death(path, point, passage)`` says whether the point was reached; Failure if a survivor
    found anything wrong.
    """
    name = sys.argv[1]
    outcomes = list(_deaths(paths[name], points, tuple(passages), one_death))
    reached = sorted({point for point, _, _ in outcomes})
    failures = [f"{name} / {p}, passage {n}: {text}" for p, n, text in outcomes if text]
    json.dump({"reached": reached, "deaths": len(outcomes), "failures": failures}, sys.stdout)


def _deaths(
    path: P,
    points: Iterable[str],
    passages: tuple[int, ...],
    one_death: Callable[[P, str, int], bool],
) -> Iterator[tuple[str, int, str | None]]:
    """(point, passage, None or what was wrong) for every death that the path can be made to die."""
    for point in points:
        for passage in passages:
            try:
                if not one_death(path, point, passage):
                    break
                yield point, passage, None
            except Exception as error:
                text = str(error) if isinstance(error, Failure) else traceback.format_exc()
                yield point, passage, text
