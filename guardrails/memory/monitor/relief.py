"""What is done, where it was asked for, when this process is found to grow: look for the lines, and give pages back.

::

    memory_growth of "self" ──▶ trim: malloc_trim, at once
                            └─▶ trace: tracemalloc for two minutes ──▶ the lines that grew

Each at most once an hour. Both are done on the monitor's thread, and both are felt by the process: see
`guardrails.memory.growth`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.core.sizes import format_size
from guardrails.memory.growth import AllocationTrace, GrowingLine, describe_lines, trim_now

_log = logging.getLogger("guardrails.memory")

#: Seconds of a trace, and between two reliefs.
TRACE_FOR, EVERY = 120.0, 3600.0


class Relief:
    """Used by one thread at a time.

    Args:
        trace: whether the lines are looked for.
        trim: whether pages are given back.
        make_trace: makes a trace.
        give_back: gives pages back; bytes, or None where it cannot be done.

    Attributes:
        lines: those that the last trace found, the worst first.
    """

    def __init__(
        self,
        *,
        trace: bool,
        trim: bool,
        make_trace: Callable[[], AllocationTrace] = AllocationTrace,
        give_back: Callable[[], int | None] = trim_now,
    ) -> None:
        self.lines: tuple[GrowingLine, ...] = ()
        self._wanted = (trace, trim)
        self._make_trace = make_trace
        self._give_back = give_back
        self._trace: AllocationTrace | None = None
        self._compare_at = 0.0
        self._next = float("-inf")
        self._trimmed = False

    def trimmed(self) -> bool:
        """Whether pages were given back since this was last asked."""
        trimmed, self._trimmed = self._trimmed, False
        return trimmed

    def look(self, now: float, *, growing: bool) -> str | None:
        """Do what is due at `now`, in seconds on a steady clock. What a trace has found, once, as a sentence.

        Args:
            now: the time.
            growing: whether this process is found to grow.
        """
        trace, trim = self._wanted
        if growing and now >= self._next and (trace or trim):
            self._next = now + EVERY
            if trim:
                self._trim()
            if trace:
                self._start(now)
        if self._trace is None or now < self._compare_at:
            return None
        try:
            self.lines = self._trace.compare()
        finally:
            self.end()
        return describe_lines(self.lines)

    def _trim(self) -> None:
        freed = self._give_back()
        if freed is not None:
            self._trimmed = True
            _log.info("memory_growth self: %s of free memory were given back to the system", format_size(freed))

    def _start(self, now: float) -> None:
        trace = self._make_trace()
        try:
            trace.start()
        except RuntimeError:  # the application traces by itself: it knows better
            return
        self._trace, self._compare_at = trace, now + TRACE_FOR

    def end(self) -> None:
        """End a trace that runs; in a forked child too, where tracing goes on else."""
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.stop()
