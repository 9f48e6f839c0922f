"""The sign ``slow_at_low_load``: answers take far longer than they used to, though few are asked for. Pure.

That load is low is judged by what is asked, not by what is under way: slow answers pile up, so the more of them run at
once the slower they are, whatever the reason. What is asked is *offered*: calls a second in the busiest half minute,
times the seconds that one usually takes, which is how many would run at once if nothing were wrong.
"""

from __future__ import annotations

from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.signs.traffic import Load

NAME = "slow_at_low_load"
#: The 95th percentile is at least so many times the usual one, and by so many seconds above it. An alarm ends below
#: two thirds of the factor.
FACTOR, SECONDS = 3.0, 0.1
#: Below so many calls now, or before, it is chance.
FEWEST_NOW, FEWEST_BEFORE = 10, 50
#: Load is low if so many calls would run at once, or if it is this share of the busiest there was.
FEW, QUARTER = 2.0, 0.25
ACTION = (
    "It is not the number of users: look for swapping, a memory limit that is nearly reached (file cache is thrown out "
    "first), other programs on the same cores, a worker that has grown, and the provider itself. Recycling the workers "
    "helps if it is memory"
)


def slow_at_low_load(source: str, recent: Load, usual: Load, *, active: bool = False) -> Finding | None:
    """Whether `source` is slow though its load is low.

    Args:
        source: the guard, pipeline or runner.
        recent: its calls in the last five minutes.
        usual: what it was before.
        active: whether it was found at the last look. It then takes less to be found again.
    """
    if recent.calls < FEWEST_NOW or usual.calls < FEWEST_BEFORE or usual.p95 <= 0.0:
        return None
    offered = recent.peak * usual.mean
    if offered > max(FEW, QUARTER * usual.peak * usual.mean):
        return None
    factor = recent.p95 / usual.p95
    if factor < FACTOR * (2 / 3 if active else 1) or recent.p95 - usual.p95 < SECONDS:
        return None
    return Finding(
        NAME,
        source,
        "warning",
        f"95 % of the answers take up to {recent.p95:.3g} s, {factor:.1f} times the usual {usual.p95:.3g} s, "
        f"at {recent.rate:.2g} calls a second",
        ACTION,
        {
            "p95": round(recent.p95, 4),
            "usual_p95": round(usual.p95, 4),
            "factor": round(factor, 2),
            "rate": round(recent.rate, 4),
        },
    )
