"""Reads a limiter's arguments: its dimensions, the limits of its tiers, and what a call costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from guardrails.core.guard import Call
from guardrails.gates.limiter.lane import Amounts, Rates

Cost = float | Mapping[str, float]
#: Whole numbers beyond it are refused: a float cannot hold them all.
_MOST = 10**300
#: The dimensions there are, and what a call takes of them when nobody says otherwise.
DIMENSIONS = {"requests": 1.0, "tokens": 0.0}


def number(argument: str, value: object, *, least: float | None = None) -> float:
    """`value` if it is a finite number above 0, or of at least `least`.

    Raises:
        TypeError: it is no number. ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number, not {type(value).__name__}"
        raise TypeError(msg)
    if isinstance(value, int) and abs(value) > _MOST:
        msg = f"{argument} takes a number of at most {_MOST:g}, not a larger one"
        raise ValueError(msg)
    if not math.isfinite(value) or not (value > 0 if least is None else value >= least):
        msg = f"{argument} takes a number {'above 0' if least is None else f'of at least {least:g}'}, not {value!r}"
        raise ValueError(msg)
    return float(value)


def amount_text(value: float) -> str:
    """`value` as a person writes it: 200,000 or 0.5."""
    return f"{value:,.12g}"


def limits_of(where: str, limit: Cost, per: float, burst: Cost | None) -> tuple[tuple[str, ...], Rates]:
    """The dimensions and the rates of one tier.

    Args:
        where: the argument that it comes from, for errors.
        limit: how much `per` seconds let in: a number of requests, or a mapping of dimensions that may hold `burst`.
        per: seconds.
        burst: what the buckets hold, by default `limit`: a number if there is one dimension, else a mapping.
    """
    wanted = dict(limit) if isinstance(limit, Mapping) else {"requests": limit}
    burst = wanted.pop("burst", None) if burst is None else burst
    unknown = wanted.keys() - DIMENSIONS.keys()
    if unknown or not wanted:
        known = " and ".join(DIMENSIONS)
        msg = f"{where} takes a number of requests, or a mapping with {known}, not {limit!r}"
        raise ValueError(msg)
    dimensions = tuple(name for name in DIMENSIONS if name in wanted)
    if burst is not None and not isinstance(burst, Mapping):
        if len(dimensions) > 1:
            msg = f"burst takes a mapping where there are two dimensions, {{'requests': ..., 'tokens': ...}}: {burst!r}"
            raise TypeError(msg)
        burst = {dimensions[0]: burst}
    bursts: Mapping[str, float] = {} if burst is None else burst
    if bursts.keys() - set(dimensions):
        msg = f"burst takes numbers for {' and '.join(dimensions)} only, not {dict(bursts)!r}"
        raise ValueError(msg)
    amounts = {name: number(where if where != "limiter" else name, wanted[name]) for name in dimensions}
    return dimensions, Rates(
        tuple(number("burst", bursts[name]) if name in bursts else amounts[name] for name in dimensions),
        tuple(amounts[name] / per for name in dimensions),
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a limiter lets in: the arguments of `limiter`, unchecked until `rates` reads them."""

    requests: float | None
    tokens: float | None
    per: float
    burst: Cost | None
    tiers: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        # Copies that cannot be changed: a change of the caller's mapping would have no effect.
        for name in ("burst", "tiers"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    def rates(self) -> tuple[tuple[str, ...], Mapping[Hashable, Rates]]:
        """The dimensions, and the rates by tier (None, where there are no tiers).

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
        """
        if self.tiers is None:
            wanted = {
                dimension: amount
                for dimension, amount in (("requests", self.requests), ("tokens", self.tokens))
                if amount is not None
            }
            if not wanted:
                msg = "limiter takes a limit: requests, tokens or both, or tiers"
                raise TypeError(msg)
            dimensions, rates = limits_of("limiter", wanted, self.per, self.burst)
            return dimensions, {None: rates}
        for argument, value in (("requests", self.requests), ("tokens", self.tokens), ("burst", self.burst)):
            if value is not None:
                msg = f"{argument} and tiers exclude each other: each tier says its own"
                raise ValueError(msg)
        if not isinstance(self.tiers, Mapping) or not self.tiers or None in self.tiers:
            msg = f"tiers takes a mapping of at least one tier to its limit, not {self.tiers!r}"
            raise TypeError(msg)
        found = {each: limits_of(f"tiers[{each!r}]", limit, self.per, None) for each, limit in self.tiers.items()}
        kinds = {dimensions for dimensions, _ in found.values()}
        if len(kinds) > 1:
            msg = "tiers takes the same dimensions for every tier: requests, tokens or both"
            raise ValueError(msg)
        return kinds.pop(), {each: rates for each, (_, rates) in found.items()}


def _frozen(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})


class Costs:
    """What calls take from the buckets.

    Attributes:
        dimensions: names, in the order of all amounts.
        fixed: what every call takes; None if that is a function of its arguments.
        weighed: the place of the dimension that a plain number speaks of: tokens where there are any, else requests.
    """

    __slots__ = ("_function", "_name", "_usual", "dimensions", "fixed", "weighed")

    def __init__(self, name: str, dimensions: tuple[str, ...], cost: Cost | Callable[..., Cost] | None) -> None:
        self._name = name
        self.dimensions = dimensions
        self.weighed = len(dimensions) - 1
        self._usual = tuple(DIMENSIONS[dimension] for dimension in dimensions)
        self._function = cost if callable(cost) else None
        self.fixed: Amounts | None = None
        if cost is None:
            self.fixed = self._usual
        elif not callable(cost):
            self.fixed = self._read("cost", cost)

    def check(self, tiers: Mapping[Hashable, Rates]) -> None:
        """Raise a ValueError if what every call takes can never be there."""
        for rates in tiers.values():
            for dimension, capacity, amount in zip(self.dimensions, rates.capacities, self.fixed or (), strict=False):
                if amount > capacity:
                    holds, takes = amount_text(capacity), amount_text(amount)
                    fits = f"{dimension}: a bucket holds {holds}, and every call takes {takes}"
                    msg = f"cost can never be paid in {fits}; raise burst"
                    raise ValueError(msg)

    def of_call(self, call: Call) -> Amounts:
        """What `call` takes."""
        if self.fixed is not None:
            return self.fixed
        if call.args is None or call.kwargs is None:
            msg = f"{self._name}: cost is a function of the call's arguments, and a block has none; use acquire(...)"
            raise TypeError(msg)
        assert self._function is not None  # noqa: S101 - either fixed or a function
        return self._read(f"{self._name}: cost(...)", self._function(*call.args, **call.kwargs))

    def of(self, amount: float | None, requests: float | None, tokens: float | None) -> Amounts:
        """What somebody says that a call takes; what they leave open is as for every call."""
        given = self.given(amount, requests, tokens)
        if not given:
            if self.fixed is None:
                msg = f"{self._name}: cost is a function of a call's arguments; say here how much to acquire"
                raise TypeError(msg)
            return self.fixed
        usual = self._usual if self.fixed is None else self.fixed
        return tuple(given.get(place, least) for place, least in enumerate(usual))

    def given(self, amount: float | None, requests: float | None, tokens: float | None) -> dict[int, float]:
        """The amounts that somebody gave, by the place of their dimension."""
        found: dict[int, float] = {}
        for dimension, value in ((None, amount), ("requests", requests), ("tokens", tokens)):
            if value is None:
                continue
            place = self.weighed if dimension is None else self._place(dimension)
            if place in found:
                msg = f"{self._name}: amount means {self.dimensions[place]} here, which is given too"
                raise TypeError(msg)
            found[place] = number(dimension or "amount", value, least=0)
        return found

    def _place(self, dimension: object) -> int:
        if dimension not in self.dimensions:
            msg = f"{self._name} limits {' and '.join(self.dimensions)} only, not {dimension!r}"
            raise ValueError(msg)
        return self.dimensions.index(str(dimension))

    def _read(self, argument: str, value: Any) -> Amounts:
        amounts = list(self._usual)
        pairs = value.items() if isinstance(value, Mapping) else ((self.dimensions[self.weighed], value),)
        for dimension, amount in pairs:
            amounts[self._place(dimension)] = number(argument, amount, least=0)
        return tuple(amounts)
