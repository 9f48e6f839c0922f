"""What a limiter raises and reports."""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.core.errors import Rejected
from guardrails.core.events import Event


class RateLimited(Rejected):
    """The limiter has no room for the call. `retry_after` is when it would be let in, if nobody else came.

    Reasons: ``rate_limited`` (its turn would come later than it may wait, or nobody may wait), ``queue_full``,
    ``wait_timeout`` (it waited, and then a drain or a lower rate moved its turn beyond that), ``would_block`` (a
    sync call on an event loop's thread would have to wait), ``amount_too_large`` (more than the bucket can ever hold;
    `retry_after` is None).
    """

    reason = "rate_limited"


@dataclass(frozen=True, slots=True)
class RateChanged(Event):
    """An adaptive limiter went from the share `old` of its configured rate to `new` (1.0: all of it)."""

    old: float
    new: float


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """A limiter's bucket was emptied for `retry_after` seconds, since the dependency asked for it or by hand."""

    retry_after: float
