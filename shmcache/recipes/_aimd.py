"""How a limit on concurrency follows latency: additive increase, multiplicative decrease.

Place: level 6, beneath `limiter.py`; knows nothing of caches. The rule is that of TCP's congestion
avoidance (Chiu and Jain, 1989: AIMD converges to fair shares), with latency for loss:

    slow        the smoothed latency is past the target: limit x `BACKOFF`, once per round trip,
                that is, not again before a call that began after the decrease has ended
    not slow    and at least half of the limit in use: limit + 1/limit, so one more after as many
                calls as the limit is

The target is given in seconds, or follows from the lowest smoothed latency seen (`TOLERANCE` times
that, and a millisecond at least, for what schedulers do to short calls). That floor rises slowly,
so that a service that has become slower for good is not held down for ever.

Smoothing (an exponential mean) is what makes it follow a level and not an outlier: one call of ten
times the usual latency does not reach twice the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Aimd"]

BACKOFF: Final = 0.9  # as in Netflix's concurrency-limits; TCP's half is for links, not servers
SMOOTHING: Final = 0.1  # weight of a new sample in the mean
TOLERANCE: Final = 2.0
JITTER_S: Final = 1e-3
RISE: Final = 1e-3  # of the way from the floor to the mean, with each sample


@dataclass(slots=True)
class Aimd:
    """The limit, and what it follows from.

    Attributes:
        limit: a float, so that additions of 1/limit add up.
        mean_s: smoothed latency; 0 before the first sample.
        floor_s: the lowest of it, rising slowly; 0 before the first sample.
        cooled: the last ticket that was out when the limit was last decreased.
    """

    limit: float
    mean_s: float = 0.0
    floor_s: float = 0.0
    cooled: int = 0

    def learn(
        self,
        seconds: float,
        *,
        ok: bool,
        ticket: int,
        newest: int,
        in_flight: int,
        bounds: tuple[int, int],
        target_s: float | None,
    ) -> None:
        """Take one call into account.

        Args:
            seconds: how long it took.
            ok: whether it succeeded: a failure may be quick, and speaks for no increase.
            ticket: its number, and `newest` the last one that was given out.
            in_flight: calls under way, this one included.
            bounds: the least and the most that the limit may be.
            target_s: latency that is still good; None: from the floor.
        """
        self.mean_s += (seconds - self.mean_s) * (SMOOTHING if self.mean_s else 1.0)
        if not self.floor_s or self.mean_s < self.floor_s:
            self.floor_s = self.mean_s
        self.floor_s += (self.mean_s - self.floor_s) * RISE
        target = target_s
        if target is None:
            target = max(TOLERANCE * self.floor_s, self.floor_s + JITTER_S)
        if self.mean_s > target:
            if ticket > self.cooled:
                self.limit *= BACKOFF
                self.cooled = newest
        elif ok and 2 * in_flight >= self.limit:
            self.limit += 1 / max(1.0, self.limit)
        self.limit = min(max(self.limit, bounds[0]), bounds[1])
