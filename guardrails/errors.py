"""The errors that users catch. The tree is drawn in `guardrails.core.errors`."""

from __future__ import annotations

from importlib import import_module
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
    from guardrails.gates.breaker.refusal import CircuitOpen
    from guardrails.gates.connection import ConnectionClosed, TooManyConnections
    from guardrails.gates.limiter.signals import RateLimited
    from guardrails.strategies.inject.rules import InjectedError
    from guardrails.strategies.retry.strategy import RetriesExhausted

__all__ = [
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
    "CircuitOpen": "guardrails.gates.breaker.refusal",
    "ConnectionClosed": "guardrails.gates.connection",
    "InjectedError": "guardrails.strategies.inject.rules",
    "RateLimited": "guardrails.gates.limiter.signals",
    "RetriesExhausted": "guardrails.strategies.retry.strategy",
    "TooManyConnections": "guardrails.gates.connection",
}


if not TYPE_CHECKING:  # else every name would be one, for type checkers

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(import_module(home), name)
