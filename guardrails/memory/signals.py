"""What the memory monitor says in the one stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from guardrails.core.events import Event

if TYPE_CHECKING:
    from guardrails.memory.monitor.sample import Sample

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class MemorySampled(Event):
    """The monitor has looked: once in its interval."""

    sample: Sample


@dataclass(frozen=True, slots=True)
class AlertRaised(Event):
    """Something wants a person. `source` is what it is about: a process, a scope, a guard or a runner.

    Attributes:
        alert: which one, such as ``memory_growth``.
        severity: ``warning`` or ``critical``.
        message: what was seen, a sentence with its numbers.
        action: what to do, a sentence.
        values: the numbers of the message, by name and in base units (bytes, seconds, shares).
    """

    alert: str
    severity: Severity
    message: str
    action: str
    values: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlertCleared(Event):
    """What `alert` was about is over, `seconds` after it was raised."""

    alert: str
    seconds: float
