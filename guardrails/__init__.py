"""Composable async guards around any call: an external AI API, a local function, a model.

    from guardrails import admit, breaker, guard, timeout

    @breaker                     # stops calling what fails
    @admit(memory="300MiB")      # waits for, or is refused, 300 MiB of headroom
    @timeout(30)                 # and cuts off what hangs
    async def caption(image: bytes) -> str: ...

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._collision import refuse_foreign_package
from guardrails._lazy import lazy

if TYPE_CHECKING:
    from guardrails.core.attempts import attempt as attempt
    from guardrails.core.deadline import deadline_in as deadline_in
    from guardrails.core.deadline import remaining as remaining
    from guardrails.core.events import subscribe as subscribe
    from guardrails.core.pipeline import guard as guard
    from guardrails.gates.admit import admit as admit
    from guardrails.gates.breaker import breaker as breaker
    from guardrails.gates.bulkhead import bulkhead as bulkhead
    from guardrails.gates.connections import connections as connections
    from guardrails.gates.keyed import keyed as keyed
    from guardrails.gates.limiter import limiter as limiter
    from guardrails.gates.timeout import timeout as timeout
    from guardrails.strategies.cache import cache as cache
    from guardrails.strategies.fallback import fallback as fallback
    from guardrails.strategies.hedge import hedge as hedge
    from guardrails.strategies.inject import inject as inject
    from guardrails.strategies.retry import retry as retry

refuse_foreign_package()

__all__ = [
    "admit",
    "attempt",
    "breaker",
    "bulkhead",
    "cache",
    "connections",
    "deadline_in",
    "fallback",
    "guard",
    "hedge",
    "inject",
    "keyed",
    "limiter",
    "remaining",
    "retry",
    "subscribe",
    "timeout",
]

_HOMES = {
    "admit": "gates.admit",
    "attempt": "core.attempts",
    "breaker": "gates.breaker",
    "bulkhead": "gates.bulkhead",
    "cache": "strategies.cache",
    "connections": "gates.connections",
    "deadline_in": "core.deadline",
    "fallback": "strategies.fallback",
    "guard": "core.pipeline",
    "hedge": "strategies.hedge",
    "inject": "strategies.inject",
    "keyed": "gates.keyed",
    "limiter": "gates.limiter",
    "remaining": "core.deadline",
    "retry": "strategies.retry",
    "subscribe": "core.events",
    "timeout": "gates.timeout",
}

if not TYPE_CHECKING:  # else every name would be one, for type checkers
    __getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
