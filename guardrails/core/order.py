"""The order of a pipeline: why one is right, and what goes wrong in another."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.core.guard import Guard, Position

#: For each pair (outer, inner) that people do get wrong: what happens then.
_TRAPS: dict[tuple[Position, Position], str] = {
    (Position.BREAKER, Position.RETRY): "a call would count once however many attempts it made, and retries "
    "would go on hammering a dependency that the breaker already knows to be down",
    (Position.LIMITER, Position.RETRY): "retries would pass the limiter unseen and exceed the rate",
    (Position.ADMISSION, Position.RETRY): "a call would keep its permit and memory while it waits to try again",
    (Position.TIMEOUT, Position.LIMITER): "time spent waiting in our own queue would be held against the dependency",
    (Position.TIMEOUT, Position.ADMISSION): "time spent waiting in our own queue would be held against the dependency",
    (Position.LIMITER, Position.BREAKER): "calls that an open breaker refuses would first wait for the rate",
    (Position.ADMISSION, Position.BREAKER): "calls that an open breaker refuses would first wait for a permit",
    (Position.ADMISSION, Position.LIMITER): "calls that wait for the rate would hold permits that others could use",
    (Position.RETRY, Position.FALLBACK): "the fallback's answer would look like success: nothing is tried again",
    (Position.RETRY, Position.CACHE): "a hit would pass through the retry machinery for nothing",
    **{
        (Position.INJECT, inner): "it would never see the faults, which stand in for the dependency's own"
        for inner in Position if inner is not Position.INJECT
    },
}  # fmt: skip


def check_order(guards: Sequence[Guard]) -> None:
    """Raise a ValueError that explains the trap if `guards` (outermost first) stand in another order than they
    should.
    """
    for number, outer in enumerate(guards):
        for inner in guards[number + 1 :]:
            if not outer.positions or not inner.positions:
                continue
            if min(outer.positions) <= max(inner.positions):
                continue
            _refuse(outer, inner)
    _check_middle(guards)


def _check_middle(guards: Sequence[Guard]) -> None:
    # A guard with two places (timeout: outermost as the deadline, innermost for the attempt) must stand in one of them.
    # One with a range of places (keyed, which may hold any gate) stands somewhere in it.
    placed = [guard for guard in guards if guard.positions]
    for number, guard in enumerate(placed):
        if not _two_places(guard):
            continue
        first, last = min(guard.positions), max(guard.positions)
        outside = [other for other in placed[:number] if not _two_places(other)]
        inside = [other for other in placed[number + 1 :] if not _two_places(other)]
        if all(min(other.positions) <= first for other in outside) or all(
            max(other.positions) >= last for other in inside
        ):
            continue
        trap = _TRAPS.get(
            (last, inside[0].positions[0]), "it is neither the deadline of the whole nor the limit of an attempt"
        )
        msg = (
            f"{guard.name} stands between {outside[-1].name} and {inside[0].name}: {trap}. Put it outermost (a "
            "deadline for everything) or innermost (a limit for each attempt), or pass check_order=False if you mean it"
        )
        raise ValueError(msg)


def _two_places(guard: Guard) -> bool:
    return max(guard.positions) - min(guard.positions) >= len(guard.positions)


def _refuse(outer: Guard, inner: Guard) -> None:
    trap = next(
        (_TRAPS[a, b] for a in outer.positions for b in inner.positions if (a, b) in _TRAPS),
        f"{inner.positions[0].name.lower()} belongs outside {outer.positions[0].name.lower()}",
    )
    right = ", ".join(position.name.lower() for position in Position)
    msg = (
        f"{outer.name} is outside {inner.name}: {trap}. The order is {right}, outermost first. "
        "If you mean this order, build it with guard(..., check_order=False)"
    )
    raise ValueError(msg)
