"""Does it leak? A verdict on a history of memory, and a watch that asks again and again.

::

    LeakWatch           a process that is watched: bounded history, alarm               watch
      │
    verdict(samples)    one question about a history, of ten minutes or of weeks        judge
      │
    shape               which of ten shapes it has                                      pure
      │
    trend, curve, wave  slope and chance; jumps and bends; the daily wave               pure
    buckets             floors and medians of many samples                              pure

Sources: H. Theil, "A rank-invariant method of linear and polynomial regression analysis" (1950); P. K. Sen, "Estimates
of the regression coefficient based on Kendall's tau" (1968); H. B. Mann, "Nonparametric tests against trend" (1945);
M. G. Kendall, "Rank correlation methods" (1955); K. H. Hamed and A. R. Rao, "A modified Mann-Kendall trend test for
autocorrelated data" (1998); R. O. Gilbert, "Statistical methods for environmental pollution monitoring" (1987).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._lazy import lazy

if TYPE_CHECKING:
    from guardrails.memory.leak.judge import Reaches, Verdict, verdict
    from guardrails.memory.leak.shape import Shape
    from guardrails.memory.leak.watch import LeakWatch

__all__ = ["LeakWatch", "Reaches", "Shape", "Verdict", "verdict"]

# A runner's parent needs the slope of `trend` alone.
__getattr__ = lazy(
    __name__,
    {
        "LeakWatch": "memory.leak.watch",
        "Reaches": "memory.leak.judge",
        "Shape": "memory.leak.shape",
        "Verdict": "memory.leak.judge",
        "verdict": "memory.leak.judge",
    },
)
