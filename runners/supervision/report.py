"""One request of a caller, from its call to its end, for those who listen: see `RequestFinished`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from guardrails.core import events
from runners.errors import RequestTimeout
from runners.supervision.events import RequestFinished
from runners.supervision.request import Answer, Request

#: The tokens of an answer: those of the prompt, and those generated.
Counted = tuple[int | None, int | None]
Count = Callable[[Answer], Counted]


class Report:
    """Made when a request comes, if anybody listens then. Exactly one event follows, at its `end`.

    Args:
        source: the runner's name.
        operation: as in `RequestFinished`, and `model`.
        count: how to count the tokens of an answer, where that is known.

    Attributes:
        request: the first request that was accepted for it; None when it was refused.
    """

    __slots__ = ("_began", "_count", "_first", "_model", "_operation", "_source", "request")

    def __init__(self, source: str, operation: str, model: str, count: Count | None) -> None:
        self._source = source
        self._operation = operation
        self._model = model
        self._count = count
        self._first: float | None = None
        self.request: Request | None = None
        self._began = time.monotonic()

    def item(self) -> None:
        """An item of a stream was taken. Only the first one counts."""
        if self._first is None:
            self._first = time.monotonic() - self._began

    def end(self, outcome: str, error: str | None = None, answer: Answer | None = None) -> None:
        """It is over."""
        seconds = time.monotonic() - self._began
        counted: Counted = (None, None) if answer is None or self._count is None else self._count(answer)
        events.emit(
            RequestFinished(
                self._source,
                self._operation,
                self._model,
                outcome,
                error,
                seconds,
                self._queued(seconds),
                self._first,
                *counted,
            )
        )

    def failed(self, error: BaseException) -> None:
        """It is over, with this error for its caller."""
        self.end(outcome_of(error), type(error).__name__)

    def _queued(self, seconds: float) -> float:
        request = self.request
        if request is None:
            return 0.0  # refused at once
        if request.given_at is None:
            return seconds  # no worker ever had it
        return min(max(0.0, request.given_at - request.accepted), seconds)


def outcome_of(error: BaseException) -> str:
    """What became of a request that ended with `error`: ``expired``, ``cancelled`` or ``failed``."""
    if isinstance(error, RequestTimeout):
        return "expired"
    # A caller that leaves does so by a cancellation, or closes the coroutine or the generator that waits.
    return "failed" if isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError) else "cancelled"


__all__ = ["Count", "Counted", "Report", "outcome_of"]
