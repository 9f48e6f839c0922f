"""How many workers a runner should have: up fast when requests wait, down slowly when workers idle. Pure.

::

    requests wait `queue_delay`, for `up_after`   ──▶ one more    if it fits in memory
    one less would still idle, for `down_after`   ──▶ one less    drained, and only one that has nothing to do
    a worker starts, restarts or is replaced      ──▶ nothing; both clocks begin anew

One step at a time, so that a step's effect is seen before the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: A new worker is started only if this many times its expected size is free.
SAFETY = 1.2
#: A size that is given up again and again soon after it was reached is held for longer, up to so many times.
_MOST_PATIENCE = 16.0


@dataclass(frozen=True, slots=True)
class Autoscale:
    """The number of workers, between two bounds. ``workers=(1, 4)`` is short for ``workers=Autoscale(1, 4)``.

    Args:
        minimum: workers that are always there. 0: none while there is no work; the first request waits for the load.
        maximum: the most workers.
        queue_delay: seconds that a request may wait for its turn before the runner counts as too small.
        up_after: seconds for which it must have been too small before one more worker is started.
        down_after: seconds for which it must have been too large before a worker is drained.
        busy: the share of the time that workers may be busy after a step down, above 0 and below 1.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message names it.
    """

    minimum: int
    maximum: int
    queue_delay: float = 0.25
    up_after: float = 0.5
    down_after: float = 30.0
    busy: float = 0.6

    def __post_init__(self) -> None:
        """Check."""
        for argument in ("minimum", "maximum"):
            value = getattr(self, argument)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                msg = f"workers: the {argument} is a whole number of at least 0, not {value!r}"
                raise ValueError(msg)
        if self.maximum < max(1, self.minimum):
            msg = f"workers: the maximum, {self.maximum}, must be at least 1 and not below the minimum, {self.minimum}"
            raise ValueError(msg)
        for argument in ("queue_delay", "up_after", "down_after"):
            value = getattr(self, argument)
            if not 0 <= value < math.inf:
                msg = f"{argument} takes a number of seconds of at least 0, not {value!r}"
                raise ValueError(msg)
        if not 0 < self.busy < 1:
            msg = f"busy takes a share above 0 and below 1, not {self.busy!r}"
            raise ValueError(msg)

    @property
    def floor(self) -> int:
        """Workers that a runner with work has at least."""
        return max(1, self.minimum)

    @property
    def scales(self) -> bool:
        """Whether there is anything to decide."""
        return self.floor < self.maximum


def as_autoscale(workers: int | tuple[int, int] | Autoscale) -> Autoscale:
    """What the keyword `workers` means: a fixed number, ``(minimum, maximum)``, or an `Autoscale`.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(workers, Autoscale):
        return workers
    if isinstance(workers, tuple):
        if len(workers) != 2:
            msg = f"workers takes a number, or (minimum, maximum), not {workers!r}"
            raise ValueError(msg)
        return Autoscale(*workers)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        msg = f"workers takes a whole number of at least 1, not {workers!r}; or a pair (minimum, maximum) to scale"
        raise ValueError(msg)
    return Autoscale(workers, workers)


@dataclass(frozen=True, slots=True)
class Load:
    """What a runner is doing.

    Attributes:
        workers: that serve.
        busy: of these, those that have work.
        delay: seconds that the oldest request that waits for its turn has waited.
        settled: whether no worker is starting, restarting or being replaced.
    """

    workers: int
    busy: int
    delay: float
    settled: bool = True


class Scaler:
    """Decides, one look at a time."""

    def __init__(self, size: Autoscale) -> None:
        self.size = size
        self._slow_since: float | None = None
        self._held_until = -math.inf
        self._since: float | None = None  # of the time that `_busy` is the sum of, and `_last` the end of
        self._last = 0.0
        self._busy = 0.0
        self._stepped_down = -math.inf
        self._down_after = size.down_after

    def decide(self, now: float, load: Load) -> int:
        """1: start one more; -1: drain one; 0: leave it so. `now` is in seconds and never goes back."""
        size = self.size
        if not load.settled or load.workers < size.floor:  # the latter is what restarts are for
            self._slow_since = self._since = None
            return 0
        if load.workers > size.maximum:
            return -1
        # With an idle worker there, one more would not help: what waits has been given to another already.
        slow = load.delay >= size.queue_delay and load.delay > 0 and load.busy >= load.workers
        if not slow:
            self._slow_since = None
            return self._consider_less(now, load)
        self._since = None
        if self._slow_since is None:
            self._slow_since = now
        late = now - self._slow_since >= size.up_after and now >= self._held_until
        if not late or load.workers == size.maximum:
            return 0
        self._slow_since = None
        self._learn_patience(now)
        return 1

    def hold(self, until: float) -> None:
        """One more could not be had: do not ask again before."""
        self._held_until = until

    def _consider_less(self, now: float, load: Load) -> int:
        if self._since is None:
            self._since, self._last, self._busy = now, now, 0.0
            return 0
        self._busy += load.busy * (now - self._last)
        self._last = now
        watched = now - self._since
        if watched < self._down_after or watched <= 0:
            return 0
        idle = self._busy / watched <= self.size.busy * (load.workers - 1)
        if idle and load.workers > self.size.floor and load.busy >= load.workers:
            return 0  # all have something to do just now: at the next look, then
        self._since = None
        if not idle or load.workers <= self.size.floor:
            return 0
        self._stepped_down = now
        return -1

    def _learn_patience(self, now: float) -> None:
        """A step up soon after one down says that the one down was wrong: the next one has to be surer."""
        if now - self._stepped_down < 2 * self._down_after:
            self._down_after = min(2 * self._down_after, _MOST_PATIENCE * self.size.down_after)
        else:
            self._down_after = self.size.down_after


class IdleClock:
    """Since when there has been nothing to do."""

    def __init__(self, after: float | None) -> None:
        self.after = after
        self._since: float | None = None
        self._newest = -1

    def expired(self, now: float, *, newest: int, quiet: bool) -> bool:
        """Whether there has been nothing to do for `after` seconds.

        Args:
            now: seconds.
            newest: the number of the newest request: one may have come and gone between two looks.
            quiet: whether nothing waits or runs.
        """
        if not quiet or newest != self._newest or self._since is None:
            self._newest, self._since = newest, now
        return self.after is not None and quiet and now - self._since >= self.after


def fits(expected: int, free: int) -> bool:
    """Whether a worker that is expected to hold `expected` private bytes may be started with `free` bytes left."""
    return expected * SAFETY <= free


__all__ = ["SAFETY", "Autoscale", "IdleClock", "Load", "Scaler", "as_autoscale", "fits"]
