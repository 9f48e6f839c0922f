"""A record of the events of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar, overload

from guardrails.core.events import Event, subscribe

E = TypeVar("E", bound=Event)


class Named(Protocol):
    """A guard or a runner."""

    @property
    def name(self) -> str: ...


@overload
def capture_events(*, guard: str | Named | None = None) -> AbstractContextManager[list[Event]]: ...
@overload
def capture_events(*types: type[E], guard: str | Named | None = None) -> AbstractContextManager[list[E]]: ...
def capture_events(*types: type[Any], guard: str | Named | None = None) -> AbstractContextManager[list[Any]]:
    """Collect every event that is emitted within the block, in the list that ``as`` names.

    Args:
        types: classes of events; given, only their instances are collected.
        guard: a guard or a runner, or its name; given, only its events are collected.

    Raises:
        TypeError: an argument is something else.
    """
    for each in types:
        if not isinstance(each, type) or not issubclass(each, Event):
            msg = f"types takes classes of events, not {each!r}"
            raise TypeError(msg)
    name = guard if guard is None or isinstance(guard, str) else getattr(guard, "name", None)
    if guard is not None and not isinstance(name, str):
        msg = f"guard takes a guard or its name, not {type(guard).__name__}"
        raise TypeError(msg)
    return _captured(types or (Event,), name)


@contextmanager
def _captured(types: tuple[type[Event], ...], source: str | None) -> Iterator[list[Event]]:
    seen: list[Event] = []

    def sink(event: Event) -> None:
        if isinstance(event, types) and (source is None or event.source == source):
            seen.append(event)

    unsubscribe = subscribe(sink)
    try:
        yield seen
    finally:
        unsubscribe()
