"""Operations that are told of when they are over: what a span needs to be made afterwards.

A guarded call is announced when it begins, and its span is open meanwhile. A request of a runner comes as one event at
its end. Whoever emits such an event registers here how it is read; sinks that make spans look it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guardrails.core.events import Event
from guardrails.telemetry.instruments import load_home, place_of

Attribute = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that is over.

    Attributes:
        name: what it did, of few different values: ``chat tiny.gguf``.
        seconds: how long it took, until now.
        attributes: numbers and words; never a prompt, an argument or a result.
        error: the type of the error that it ended with; None if it ended well.
    """

    name: str
    seconds: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str | None = None


_known: dict[str, Callable[[Any], Operation]] = {}


def register(place: str, function: Callable[[Any], Operation]) -> None:
    """Have events of the class at `place` (``module:Class``) read by `function`. The last one that was given counts."""
    _known[place] = function


def is_operation(kind: type[Event]) -> bool:
    """Whether events of the class `kind` are ends of operations."""
    load_home(kind)
    return place_of(kind) in _known


def operation_of(event: Event) -> Operation:
    """The operation that `event` is the end of.

    Raises:
        KeyError: it is no such event.
    """
    kind = type(event)
    return _known[place_of(kind)](event)


__all__ = ["Attribute", "Operation", "is_operation", "operation_of", "register"]
