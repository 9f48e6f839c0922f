"""What a worker may not do, and what follows when it does. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Judgement = Literal["fine", "look_closer", "replace", "kill"]

#: From this share of a budget on, the cheap reading is not trusted and the exact one is taken.
_NEAR = 0.9
#: From this share of the hard budget on, the cheap reading is enough to kill: it is never wrong by so much, and a
#: worker that is growing fast answers the exact one late.
_BEYOND_DOUBT = 1.1
#: A forecast counts from this share of the room between baseline and soft budget on: below, a worker may still be
#: warming up to the size that it will keep.
_HALFWAY = 0.5
#: The time that a new worker needs is taken this many times: loads differ, and the old one goes on growing.
_LEAD = 2.0
#: Seconds on top, for the looks and the turns of the event loop in between.
_LATE = 0.25
#: A forecast replaces no worker younger than this many loads. Else one that grows to a plateau near its budget would
#: be replaced for ever.
_YOUNG = 5.0
#: A replacement runs beside its predecessor only if this many times its expected size is free.
_SAFETY = 1.2


@dataclass(frozen=True, slots=True)
class Term:
    """How long one worker serves: its own share of `max_age` and `max_requests`. None: no end.

    Attributes:
        age: seconds in service.
        requests: requests answered.
    """

    age: float | None = None
    requests: int | None = None

    def over(self, age: float, answered: int) -> str | None:
        """``max_age`` or ``max_requests`` once the term is over, else None."""
        if self.age is not None and age >= self.age:
            return "max_age"
        if self.requests is not None and answered >= self.requests:
            return "max_requests"
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on one worker.

    Attributes:
        soft: private bytes from which it is replaced, with no request lost. None: no limit.
        hard: private bytes from which it is killed at once. None: no limit.
        heartbeat: seconds that it may take for one step, or to begin one. None: as long as the requests' own timeouts
            allow.
        cancel_grace: seconds that a step may go on after everybody it was for has left.
        max_age: seconds in service after which it is replaced. None: no limit.
        max_requests: answers after which it is replaced. None: no limit.
        jitter: each worker's `max_age` and `max_requests` are shorter by up to this share, so that workers which began
            together do not go together.
    """

    soft: int | None = None
    hard: int | None = None
    heartbeat: float | None = None
    cancel_grace: float = 5.0
    max_age: float | None = None
    max_requests: int | None = None
    jitter: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: the message names the argument.
        """
        count = self.max_requests
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            msg = f"max_requests takes a whole number of at least 1, not {count!r}"
            raise ValueError(msg)
        if self.max_age is not None and not self.max_age > 0:
            msg = f"max_age takes a number of seconds above 0, not {self.max_age!r}"
            raise ValueError(msg)

    def judge_estimate(self, private: int) -> Judgement:
        """What a cheap reading means: fine, that the exact one is needed, or that no doubt is left."""
        if self.hard is not None and private >= _BEYOND_DOUBT * self.hard:
            return "kill"
        nearest = min((limit for limit in (self.soft, self.hard) if limit is not None), default=None)
        return "fine" if nearest is None or private < _NEAR * nearest else "look_closer"

    def judge(self, private: int) -> Judgement:
        """What an exact reading means."""
        if self.hard is not None and private >= self.hard:
            return "kill"
        if self.soft is not None and private >= self.soft:
            return "replace"
        return "fine"

    def worth_a_forecast(self, private: int, baseline: int) -> bool:
        """Whether a worker has used so much of its room that it matters when it will reach its soft budget."""
        return self.soft is not None and private - baseline >= _HALFWAY * (self.soft - baseline)

    def due(self, seconds_left: float | None, *, age: float, load: float) -> bool:
        """Whether a replacement must start now to be ready before the soft budget is reached.

        Args:
            seconds_left: until the budget is reached, by the forecast; None when the worker does not grow.
            age: seconds that it has been in service.
            load: seconds that a new one takes to load.
        """
        return seconds_left is not None and seconds_left <= _LEAD * load + _LATE and age >= _YOUNG * load

    def term(self, chance: random.Random) -> Term:
        """The term of one worker."""
        share = 1.0 - self.jitter * chance.random()
        return Term(
            age=None if self.max_age is None else self.max_age * share,
            requests=None if self.max_requests is None else max(1, round(self.max_requests * share)),
        )

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


def both_fit(free: int, baseline: int, growth: float, load: float) -> bool:
    """Whether a new worker fits beside those that are there until it is ready.

    Args:
        free: bytes that may still be taken.
        baseline: bytes of a freshly loaded worker.
        growth: bytes a second by which those that are there grow together.
        load: seconds that the new one takes to load.
    """
    return free > baseline * _SAFETY + max(0.0, growth) * load
