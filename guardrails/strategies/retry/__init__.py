"""Retry: another attempt after one that failed or was throttled, as long as that helps and does no harm.

The rooms: `build` reads the arguments, `strategy` is the loop, `policy` decides after each attempt, pure but for the
functions that it was given. The waits are in `guardrails.strategies.backoff`, and who pays in `budget`: others use them
too.
"""

from guardrails.strategies.backoff import Backoff, DecorrelatedJitter, FullJitter
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.retry.build import retry
from guardrails.strategies.retry.strategy import RetriesExhausted, Retry, RetryGaveUp, RetryScheduled

__all__ = [
    "Backoff",
    "DecorrelatedJitter",
    "FullJitter",
    "RetriesExhausted",
    "Retry",
    "RetryBudget",
    "RetryGaveUp",
    "RetryScheduled",
    "retry",
]
