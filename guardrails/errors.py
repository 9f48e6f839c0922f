"""The errors that users catch. The tree is drawn in `guardrails.core.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails.core.errors import (
    Failed,
    GuardrailError,
    InternalError,
    MemoryRefused,
    MissingExtra,
    QueueFull,
    Rejected,
    TimedOut,
    WaitTimeout,
)

if TYPE_CHECKING:
    from guardrails.gates.circuit_open import CircuitOpen

__all__ = [
    "CircuitOpen",
    "Failed",
    "GuardrailError",
    "InternalError",
    "MemoryRefused",
    "MissingExtra",
    "QueueFull",
    "Rejected",
    "TimedOut",
    "WaitTimeout",
]


def __getattr__(name: str) -> object:
    if name == "CircuitOpen":  # loaded when asked for, since it imports pybreaker and with it, where installed, redis
        from guardrails.gates.circuit_open import CircuitOpen  # noqa: PLC0415

        return CircuitOpen
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
