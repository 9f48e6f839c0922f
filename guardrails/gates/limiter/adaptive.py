"""Adaptive rate: additive increase, multiplicative decrease, as TCP does it (D. Chiu and R. Jain, 1989). Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdaptiveRate:
    """How a limiter's rate follows what the dependency says.

    Attributes:
        decrease: a throttled call multiplies the rate by this, 0.5 to 0.9; once a `window`.
        increase: a success adds this share of the configured rate, once a `window`; above 0, at most 1.
        window: seconds between two changes.
        least: the share of the configured rate below which it never falls; above 0, at most 1.
    """

    decrease: float = 0.7
    increase: float = 0.1
    window: float = 10.0
    least: float = 0.1

    def __post_init__(self) -> None:
        for argument, lowest, highest in (("decrease", 0.5, 0.9), ("increase", 0, 1), ("least", 0, 1)):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int | float):
                msg = f"{argument} takes a number, not {type(value).__name__}"
                raise TypeError(msg)
            if not lowest <= value <= highest or value == 0:
                span = f"of {lowest} to {highest}" if lowest else f"above 0 and at most {highest}"
                msg = f"{argument} takes a number {span}, not {value!r}"
                raise ValueError(msg)
        if isinstance(self.window, bool) or not isinstance(self.window, int | float):
            msg = f"window takes a number of seconds, not {type(self.window).__name__}"
            raise TypeError(msg)
        if not 0 < self.window < math.inf:
            msg = f"window takes a number of seconds above 0, not {self.window!r}"
            raise ValueError(msg)


class Share:
    """The share of the configured rate that holds now. A call that was let in before the last change says nothing."""

    __slots__ = ("_adaptive", "_changed", "value")

    def __init__(self, adaptive: AdaptiveRate) -> None:
        self._adaptive = adaptive
        self._changed = -math.inf
        self.value = 1.0

    def on_throttled(self, taken: float, now: float) -> bool:
        """A call that was let in at `taken` was throttled. Whether the share changed."""
        if taken <= self._changed or now < self._changed + self._adaptive.window:
            return False
        return self._set(max(self._adaptive.least, self.value * self._adaptive.decrease), now)

    def on_success(self, taken: float, now: float) -> bool:
        """A call that was let in at `taken` succeeded. Whether the share changed."""
        if self.value >= 1.0 or taken <= self._changed or now < self._changed + self._adaptive.window:
            return False
        return self._set(min(1.0, self.value + self._adaptive.increase), now)

    def _set(self, value: float, now: float) -> bool:
        self._changed = now
        before, self.value = self.value, value
        return value != before
