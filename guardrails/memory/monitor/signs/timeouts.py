"""The sign ``ai_timeouts``: of the calls of one source, many run out of time. Pure."""

from __future__ import annotations

from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.signs.traffic import Load

NAME = "ai_timeouts"
#: Shares of the calls of five minutes that timed out. An alarm ends below half of the first.
WARNING, CRITICAL = 0.2, 0.5
#: Below so many calls, or timeouts, it is chance.
FEWEST_CALLS, FEWEST_TIMEOUTS = 10, 3
ACTION = (
    "Look whether the provider or the runner is slow or down, and at its queue: put a breaker around it, limit how "
    "many calls run at once, and check that the timeout is longer than an answer takes. Retries make it worse"
)


def ai_timeouts(source: str, recent: Load, *, active: bool = False) -> Finding | None:
    """Whether too many calls of `source` time out, in the last five minutes.

    Args:
        source: the guard, pipeline or runner.
        recent: its calls. A call that was tried again may have timed out more than once; more than all is all.
        active: whether it was found at the last look. It then takes half the share to be found again.
    """
    if recent.calls < FEWEST_CALLS or recent.timeouts < FEWEST_TIMEOUTS:
        return None
    share = min(1.0, recent.timeouts / recent.calls)
    if share < (WARNING / 2 if active else WARNING):
        return None
    return Finding(
        NAME,
        source,
        "critical" if share >= CRITICAL else "warning",
        f"{share:.0%} of {recent.calls:.0f} calls within 5 min ran out of time",
        ACTION,
        {"share": round(share, 4), "calls": int(recent.calls), "timeouts": int(recent.timeouts)},
    )
