"""Inject: faults on purpose, for game days and tests. It stands innermost and plays the dependency.

::

    breaker ▷ limiter ▷ timeout ▷ inject ─┬─▶ the call
                                          ├─▶ latency, then the call
                                          └─▶ latency, then an error, or another result

So every guard outside it sees what it would see on a bad day. After A. Basiri et al., "Chaos Engineering", IEEE
Software 33(3), 2016: vary real-world events, run it in production, and keep the blast radius small, which is what
`rate`, `when`, `max_faults` and `for_seconds` are for.

The rooms: `strategy` is the guard, `rules` what it does, `switch` when it is on.
"""

from guardrails.strategies.inject.rules import InjectedError
from guardrails.strategies.inject.strategy import FaultInjected, Inject, inject
from guardrails.strategies.inject.switch import InjectionSwitched

__all__ = ["FaultInjected", "Inject", "InjectedError", "InjectionSwitched", "inject"]
