"""What a worker may not do, and what follows when it does. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Judgement = Literal["fine", "look_closer", "replace", "kill"]

#: From this share of a budget on, the cheap reading is not trusted and the exact one is taken.
_NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on one worker.

    Attributes:
        soft: private bytes from which it is replaced, with no request lost. None: no limit.
        hard: private bytes from which it is killed at once. None: no limit.
        heartbeat: seconds that it may take for one step, or to begin one. None: as long as the requests' own timeouts
            allow.
        cancel_grace: seconds that a step may go on after everybody it was for has left.
    """

    soft: int | None = None
    hard: int | None = None
    heartbeat: float | None = None
    cancel_grace: float = 5.0

    def judge_estimate(self, private: int) -> Judgement:
        """What a cheap reading means: fine, or that the exact one is needed."""
        nearest = min((limit for limit in (self.soft, self.hard) if limit is not None), default=None)
        return "fine" if nearest is None or private < _NEAR * nearest else "look_closer"

    def judge(self, private: int) -> Judgement:
        """What an exact reading means."""
        if self.hard is not None and private >= self.hard:
            return "kill"
        if self.soft is not None and private >= self.soft:
            return "replace"
        return "fine"

    def stuck(
        self, *, in_flight: int, busy_for: float, since_progress: float, abandoned_for: float | None
    ) -> str | None:
        """Why the worker counts as stuck, or None.

        Args:
            in_flight: requests it has.
            busy_for: seconds in the present step, 0.0 between steps.
            since_progress: seconds since it last finished or was first given something.
            abandoned_for: seconds since the last caller of the present step left; None while one waits, or between
                steps.
        """
        if not in_flight:
            return None
        if self.heartbeat is not None and since_progress > self.heartbeat:
            return "no_progress"
        if busy_for == 0.0 and since_progress > max(self.cancel_grace, self.heartbeat or 0.0):
            return "not_responding"
        if abandoned_for is not None and abandoned_for > self.cancel_grace:
            return "abandoned"
        return None
