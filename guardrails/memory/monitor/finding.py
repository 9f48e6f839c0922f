"""What a sign found: an alert that should be there now. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guardrails.memory.signals import Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that wants a person, as long as it is found.

    Attributes:
        alert: which sign, such as ``memory_growth``.
        source: what it is about: a process, a scope, a guard or a runner.
        severity: ``warning`` or ``critical``.
        message: what is seen, with its numbers.
        action: what to do.
        values: the numbers of the message, by name and in base units.
    """

    alert: str
    source: str
    severity: Severity
    message: str
    action: str
    values: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What makes two findings the same alert."""
        return self.alert, self.source
