"""The errors that users catch. The tree is drawn in `guardrails.core.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._lazy import lazy
from guardrails.core.errors import (
    CallerError,
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
    from guardrails.gates.breaker.refusal import CircuitOpen
    from guardrails.gates.connection import ConnectionClosed, TooManyConnections
    from guardrails.gates.limiter.signals import RateLimited
    from guardrails.strategies.inject.rules import InjectedError
    from guardrails.strategies.retry.strategy import RetriesExhausted

__all__ = [
    "CallerError",
    "CircuitOpen",
    "ConnectionClosed",
    "Failed",
    "GuardrailError",
    "InjectedError",
    "InternalError",
    "MemoryRefused",
    "MissingExtra",
    "QueueFull",
    "RateLimited",
    "Rejected",
    "RetriesExhausted",
    "TimedOut",
    "TooManyConnections",
    "WaitTimeout",
]

#: Errors that live beside their guard are loaded when asked for. `CircuitOpen` brings pybreaker, and with it redis.
_HOMES = {
    "CircuitOpen": "gates.breaker.refusal",
    "ConnectionClosed": "gates.connection",
    "InjectedError": "strategies.inject.rules",
    "RateLimited": "gates.limiter.signals",
    "RetriesExhausted": "strategies.retry.strategy",
    "TooManyConnections": "gates.connection",
}

if not TYPE_CHECKING:  # else every name would be one, for type checkers
    __getattr__ = lazy(__name__, _HOMES)
