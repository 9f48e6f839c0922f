"""One pair of events for each call through a pipeline, whatever guards it has: `CallStarted`, `CallFinished`.

A pipeline looks once, when a call comes, whether anybody listens. A call that was announced is followed by exactly one
`CallFinished`, however it ends; one that was not is not.
"""

from __future__ import annotations

import itertools

from guardrails.core.clock import SYSTEM_CLOCK
from guardrails.core.events import CallFinished, CallStarted, emit
from guardrails.core.outcome import Outcome, refusal_of

#: Of all calls of this process. To take the next one needs no lock.
_numbers = itertools.count(1)
_now = SYSTEM_CLOCK.now


class ObservedCall:
    """A call that has been announced. Make it when the call begins, and `end` it once."""

    __slots__ = ("_began", "_first", "_number", "_source")

    def __init__(self, source: str, *, stream: bool = False) -> None:
        self._source = source
        self._number = next(_numbers)
        self._first: float | None = None
        self._began = _now()
        emit(CallStarted(source, self._number, stream))

    def item(self) -> None:
        """An item of a stream has come. Only the first one counts."""
        if self._first is None:
            self._first = _now() - self._began

    def end(self, outcome: Outcome) -> None:
        """The call is over. A refusal by a guard is told apart from what else says nothing of the dependency."""
        word = outcome.kind if refusal_of(outcome.exception) is None else "rejected"
        emit(CallFinished(self._source, self._number, _now() - self._began, word, self._first))
