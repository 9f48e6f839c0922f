"""What a call has taken from a limiter's buckets, to be corrected when it is known what it used."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from guardrails.core.waiting import Waiter, wake
from guardrails.gates.limiter.bucket import Part
from guardrails.gates.limiter.lane import Amounts, Lane, Pending
from guardrails.gates.limiter.settings import Costs


class Owner(Protocol):
    """What a reservation needs of its limiter."""

    @property
    def lock(self) -> Any: ...

    @property
    def costs(self) -> Costs: ...

    @property
    def now(self) -> Callable[[], float]: ...


class Reservation:
    """What one call holds. Build it with `limiter.acquire(...)`; safe to share between threads.

    Attributes:
        owner: its limiter.
        lane: the buckets that it took from.
        taken: when it was let in, on the limiter's clock.
        waited: seconds that it waited for.
        outer: the guarded call around this one, in the same task.
        over: whether its call has ended.
    """

    __slots__ = (
        "__weakref__",
        "_amounts",
        "_first",
        "_parts",
        "before",
        "inside",
        "lane",
        "outer",
        "over",
        "owner",
        "taken",
        "waited",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - keywords take time
        self, owner: Owner, lane: Lane, amounts: Amounts, parts: list[Part], taken: float, waited: float
    ) -> None:
        self.owner = owner
        self.lane = lane
        self.taken = taken
        self.waited = waited
        self.outer: Reservation | None = None
        self.over = False
        # Of a stream: what the reader's context had when the step began, and what the stream's code had set at the end
        # of the last one.
        self.before: Reservation | None = None
        self.inside: Reservation | None = None
        self._amounts = amounts
        self._first = parts
        self._parts: list[list[Part]] | None = None  # made when something changes, for mostly nothing does

    @property
    def requests(self) -> float:
        """Requests that it counts for now; 0 if the limiter does not limit them."""
        return self._amount("requests")

    @property
    def tokens(self) -> float:
        """Tokens that it counts for now; 0 if the limiter does not limit them."""
        return self._amount("tokens")

    def correct(
        self, amount: float | None = None, /, *, requests: float | None = None, tokens: float | None = None
    ) -> None:
        """Say what the call used in truth. May be said again; the last word counts.

        More than was reserved is charged, into debt if need be: calls wait then until the debt is paid. Less goes back,
        as far as the bucket would hold it now had it never been taken (it does not run over).

        Args:
            amount: tokens if the limiter limits them, else requests.
            requests, tokens: by name.

        Raises:
            TypeError, ValueError: not a number of at least 0, or the limiter has no such dimension.
        """
        given = self.owner.costs.given(amount, requests, tokens)
        if not given:
            msg = "correct takes what the call used: an amount, requests or tokens"
            raise TypeError(msg)
        self._set(given)

    def refund(self) -> None:
        """The call did not happen: give everything back, as `correct` does. A second time changes nothing."""
        self._set(dict.fromkeys(range(len(self._amounts)), 0.0))

    def _set(self, given: dict[int, float]) -> None:
        woken: list[Waiter[Pending]] = []
        with self.owner.lock:
            if self._parts is None:
                self._parts = [[part] for part in self._first]
            after = tuple(given.get(place, amount) for place, amount in enumerate(self._amounts))
            more = [new - old for new, old in zip(after, self._amounts, strict=True)]
            self._amounts = after
            now = self.owner.now()
            if any(change > 0 for change in more):
                woken += self.lane.charge(self._parts, more, now)
            if any(change < 0 for change in more):
                woken += self.lane.give_back(self._parts, [-change for change in more], now)
        wake(woken)

    def _amount(self, dimension: str) -> float:
        dimensions = self.owner.costs.dimensions
        return self._amounts[dimensions.index(dimension)] if dimension in dimensions else 0.0

    def __repr__(self) -> str:
        amounts = zip(self.owner.costs.dimensions, self._amounts, strict=True)
        return f"<reservation of {', '.join(f'{amount:g} {dimension}' for dimension, amount in amounts)}>"


#: The reservation of the innermost guarded call that runs in this context. One that is over may still stand here, where
#: a block was left in another context than it was entered in.
_current: ContextVar[Reservation | None] = ContextVar("reservation", default=None)


def _running(reservation: Reservation | None) -> Reservation | None:
    while reservation is not None and reservation.over:
        reservation = reservation.outer
    return reservation


def opened(reservation: Reservation) -> Reservation:
    """The guarded call or block of `reservation` starts here."""
    reservation.outer = _running(_current.get())
    _current.set(reservation)
    return reservation


def closed(reservation: Reservation) -> None:
    """The guarded call, block or stream of `reservation` has ended."""
    reservation.over = True
    outer = reservation.outer = _running(reservation.outer)
    current = _current.get()
    if current is reservation:
        _current.set(outer)
    elif current is not None and current.over:  # generators' blocks end in any order: the last one frees them all
        current.outer = _running(current.outer)
        _current.set(current.outer)


def resumed(reservation: Reservation) -> None:
    """A step of the stream of `reservation` starts here."""
    before = reservation.before = _current.get()
    inside, reservation.inside = reservation.inside, None
    reservation.outer = _running(before)
    _current.set(reservation if inside is None else inside)


def suspended(reservation: Reservation) -> None:
    """The step has ended: the reader's context is as it was before."""
    inside = found = _current.get()
    while found is not None and found is not reservation:
        found = found.outer
    if found is None:  # it was finalised in another context, in the middle of a step
        return
    reservation.inside = None if inside is reservation else inside
    _current.set(reservation.before)
    reservation.before = reservation.outer = None


def running(owner: object) -> Reservation | None:
    """The reservation of the innermost guarded call of `owner` that runs here."""
    current = _running(_current.get())
    while current is not None and current.owner is not owner:
        current = _running(current.outer)
    return current
