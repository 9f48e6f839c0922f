"""What guards decide: the events of a block without the pair that is about each whole call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from guardrails.core.events import CallFinished, CallStarted, Event, subscribe


@contextmanager
def decisions() -> Iterator[list[Event]]:
    seen: list[Event] = []

    def sink(event: Event) -> None:
        if not isinstance(event, CallStarted | CallFinished):
            seen.append(event)

    end = subscribe(sink)
    try:
        yield seen
    finally:
        end()
