"""One pair of events for each call through a pipeline, whatever guards it has: `CallStarted`, `CallFinished`.

A pipeline looks once, when a call comes, whether anybody listens. A call that was announced is followed by exactly one
`CallFinished`, however it ends; one that was not is not.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar

from guardrails.core.clock import SYSTEM_CLOCK
from guardrails.core.events import CallFinished, CallStarted, emit
from guardrails.core.outcome import Outcome, refusal_of

#: Of all calls of this process. To take the next one needs no lock.
_numbers = itertools.count(1)
_now = SYSTEM_CLOCK.now


class ObservedCall:
    """A call that has been announced. Make it when the call begins, and `end` it once.

    Its pipeline is the one that runs here (`pipeline_here`) from beginning to end; that of a stream, between `resume`
    and `suspend`, which stand around each step.
    """

    __slots__ = ("_began", "_first", "_number", "_outer", "_over", "_source")

    def __init__(self, source: str, *, stream: bool = False) -> None:
        self._source = source
        self._number = next(_numbers)
        self._first: float | None = None
        self._outer: ObservedCall | None = None
        self._over = False
        self._began = _now()
        emit(CallStarted(source, self._number, stream))
        if not stream:
            self.resume()

    def resume(self) -> None:
        """Its code goes on here."""
        self._outer = innermost()
        _current.set(self)

    def suspend(self) -> None:
        """Its code does not run here any more."""
        current = _current.get()
        if current is self:
            _current.set(self._outer)
        elif current is not None and current._over:  # noqa: SLF001
            _current.set(innermost())

    def item(self) -> None:
        """An item of a stream has come. Only the first one counts."""
        if self._first is None:
            self._first = _now() - self._began

    def end(self, outcome: Outcome) -> None:
        """The call is over. A refusal by a guard is told apart from what else says nothing of the dependency."""
        self._over = True
        self.suspend()
        word = outcome.kind if refusal_of(outcome.exception) is None else "rejected"
        emit(CallFinished(self._source, self._number, _now() - self._began, word, self._first))


_current: ContextVar[ObservedCall | None] = ContextVar("guardrails.observed", default=None)


def innermost() -> ObservedCall | None:
    """The announced call that runs here, if there is one."""
    call = _current.get()
    while call is not None and call._over:  # left in another context  # noqa: SLF001
        call = call._outer  # noqa: SLF001
    return call


def pipeline_here() -> str | None:
    """The name of the innermost pipeline whose announced call runs here."""
    call = innermost()
    return None if call is None else call._source  # noqa: SLF001
