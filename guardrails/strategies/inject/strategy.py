"""The guard that plays a bad dependency: `inject(...)`."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar, cast

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call, DrivenCall, Guard, Position, Strategy
from guardrails.core.pipeline import Layer
from guardrails.strategies.inject.rules import (
    Error,
    ErrorRule,
    Latency,
    LatencyRule,
    error_rule,
    latency_rule,
    number,
    with_arguments,
)
from guardrails.strategies.inject.switch import Switch

T = TypeVar("T")

_log = logging.getLogger("guardrails.inject")


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()


@dataclass(frozen=True, slots=True)
class FaultInjected(events.Event):
    """A call was hit. `kind` is ``latency``, ``error`` or ``result``; `latency` the seconds (infinity: a hang) that
    it takes from now until that.
    """

    kind: str
    latency: float


class Plan(NamedTuple):
    """What an `inject` does, validated."""

    latency: LatencyRule | None
    error: ErrorRule | None
    result: Any
    rate: float
    when: Callable[[tuple[Any, ...], Any], Any] | None
    after_items: int
    words: str


@fixed(
    "latency",
    "error",
    "result",
    "rate",
    "when",
    "after_items",
    "retry_after",
    "for_seconds",
    "max_faults",
    "seed",
    "random",
    "clock",
)
class Inject(Layer, Strategy):
    """Faults on purpose. Build it with `inject(...)`, which documents the arguments."""

    positions = (Position.INJECT,)
    streams = True

    def __init__(self, plan: Plan, *, random: Random, switch: Switch, clock: Clock) -> None:
        self.name = switch.name
        self._plan = plan
        self._random = random
        self._switch = switch
        self._clock = clock
        self._kind = "error" if plan.error else "latency" if plan.result is UNSET else "result"
        self._result = with_arguments("result", plan.result) if callable(plan.result) else None

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        return f"inject {self.name!r}: {'CHAOS IS ON' if self.enabled else 'off'}: {self._plan.words}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    # The switch

    @property
    def enabled(self) -> bool:
        """Whether calls may be hit now."""
        return self._switch.enabled

    @property
    def faults(self) -> int:
        """Calls that were hit since it was last switched on."""
        return self._switch.faults

    def enable(self) -> None:
        """Switch it on; `for_seconds` and `max_faults` count from now."""
        self._switch.enable()

    def disable(self) -> None:
        """Switch it off, whoever switched it on, open `active` blocks too. Threads that wait in a fault go on at once;
        tasks do not: cancel them.
        """
        self._switch.disable()

    def active(self) -> AbstractContextManager[None]:
        """On for a block: ``with chaos.active():``. Afterwards it is off, unless it is on by `enable`, or another such
        block is open. Where it is on already, the bounds go on counting.
        """
        return self._switch.active()

    # The contract

    @property
    def idle(self) -> bool:
        """Whether it is off."""
        return not self._switch.on

    async def run(self, call: DrivenCall, proceed: Callable[[], Awaitable[T]]) -> T:
        """Hit an async call, or not."""
        latency = self._draw(call)
        if latency is None:
            return await proceed()
        if latency:
            await self._clock.sleep(latency)
        if self._plan.error is not None:
            raise self._plan.error(call.args or (), call.kwargs or {})
        if self._plan.result is UNSET:
            return await proceed()
        answer = await self._answer(call)
        if inspect.isasyncgen(answer):
            msg = f"{self.name}: a result that is an async generator is for streams only; this call returns a value"
            raise TypeError(msg)
        return cast("T", answer)

    def run_blocking(self, call: DrivenCall, proceed: Callable[[], T]) -> T:
        """Hit a sync call, or not."""
        latency = self._draw(call)
        if latency is None:
            return proceed()
        if latency:
            self._switch.wait_thread(latency)
        if self._plan.error is not None:
            raise self._plan.error(call.args or (), call.kwargs or {})
        if self._plan.result is UNSET:
            return proceed()
        answer = self._made(call)
        if self._result is not None and (inspect.isawaitable(answer) or inspect.isasyncgen(answer)):
            if inspect.iscoroutine(answer):
                answer.close()
            msg = f"{self.name}: an async result cannot stand in for a sync function; give it a sync one"
            raise TypeError(msg)
        return cast("T", answer)

    async def run_stream(
        self, call: DrivenCall, proceed: Callable[[], AsyncGenerator[T, Any]]
    ) -> AsyncGenerator[T, Any]:
        """Hit a stream, or not, after its first `after_items` items."""
        left = self._plan.after_items  # until the fault; below 0 it is over
        source: AsyncGenerator[T, Any] | None = None
        step: Callable[[Any], Awaitable[T]] | None = None
        given: Any = None
        thrown = False
        try:
            while True:
                if left == 0 and not thrown:
                    left = -1
                    latency = self._draw(call)
                    if latency:
                        await self._clock.sleep(latency)
                    if latency is not None and self._kind != "latency":
                        break
                if source is None or step is None:
                    source = proceed()
                    step = source.asend
                try:
                    item = await step(given)
                except StopAsyncIteration:
                    return
                left = left - 1 if left > 0 else left
                step, thrown = source.asend, False
                try:
                    given = yield item
                except GeneratorExit:
                    raise
                except BaseException as exc:  # thrown in by the reader: the source decides what becomes of it
                    step, given, thrown = source.athrow, exc, True
        finally:
            if source is not None:
                await source.aclose()
        if self._plan.error is not None:
            raise self._plan.error(call.args or (), call.kwargs or {})
        answer = await self._answer(call)
        if not isinstance(answer, AsyncIterable):
            yield answer
            return
        try:
            async for item in answer:
                yield item
        finally:
            close = getattr(answer, "aclose", None)
            if close is not None:
                await close()

    # Inside

    def _draw(self, call: Call) -> float | None:
        """The seconds that this call is held up; None if it is not hit."""
        plan, args, kwargs = self._plan, call.args or (), call.kwargs or {}
        try:
            if plan.when is not None and not plan.when(args, kwargs):
                return None
            if plan.rate < 1 and self._random.random() >= plan.rate:
                return None
            latency = 0.0 if plan.latency is None else plan.latency(args, kwargs)
        except Exception:  # a mistake in the game must not become an outage
            _log.exception("a function given to %s failed; the call is not hit", self.name)
            return None
        rest, reached = self._switch.take()
        if rest > 0:
            latency = min(latency, rest)  # nothing outlasts the game day
            if events.sinks:
                events.emit(FaultInjected(self.name, self._kind, latency))
        self._switch.tell(reached, on=False)
        return latency if rest > 0 else None

    def _made(self, call: Call) -> Any:
        return self._plan.result if self._result is None else self._result(call.args or (), call.kwargs or {})

    async def _answer(self, call: Call) -> Any:
        answer = self._made(call)
        return await answer if self._result is not None and inspect.isawaitable(answer) else answer


def inject(
    *,
    latency: Latency | None = None,
    error: Error | None = None,
    result: Any = UNSET,
    rate: float = 1.0,
    when: Callable[..., object] | None = None,
    after_items: int = 0,
    retry_after: float | None = None,
    for_seconds: float | None = None,
    max_faults: int | None = None,
    seed: int | None = None,
    random: Random | None = None,
    enabled: bool = True,
    name: str = "inject",
    clock: Clock = SYSTEM_CLOCK,
) -> Inject:
    """Hit a share of the calls with latency, an error, another result, or latency and one of these.

    Works on async and sync functions and on async generators. A function among the arguments is called with the call's
    arguments, or with none if it takes none.

    Args:
        latency: seconds before the call, the error or the result; a pair (lowest, highest) to draw from evenly; or a
            function that returns seconds. ``math.inf`` hangs until the call is cancelled, or `for_seconds` have passed.
        error: raised in place of the call, another object each time: an exception, which is copied; a class, which is
            called with a message; a function that makes one; or an HTTP status from 400 to 599, for an `InjectedError`
            with `status_code` and `headers`.
        result: returned in place of the call: a value, the same object each time, or a function, async too. For a
            stream, an async generator's items; anything else is its only item.
        rate: share of the calls that are hit, 0 to 1.
        when: only calls for which this function is true can be hit; `rate` is a share of those.
        after_items: for streams: items that are delivered before the fault strikes. Other calls do not heed it.
        retry_after: seconds, for the headers of an HTTP status.
        for_seconds: off again by itself after this time, counted from the moment that it is switched on (built, or
            `enable`, or `active`). No latency lasts longer than that. That it is off is told with the next call.
        max_faults: off again by itself after this many faults.
        seed: makes the draws the same in every run, as far as the calls come in the same order.
        random: a generator of one's own, instead of `seed`.
        enabled: whether it is on at once; else `enable()`, or ``with chaos.active():``, switch it on.
        name: how it calls itself in errors and events.
        clock: for tests.

    If `when` or `latency` fails, that is logged and the call is not hit.

    Raises:
        TypeError: an argument has the wrong type; none of `latency`, `error` and `result` is given; or two exclude each
            other.
        ValueError: an argument is out of range.
    """
    if latency is None and error is None and result is UNSET:
        msg = "inject takes latency, error or result: what the calls are hit with"
        raise TypeError(msg)
    if error is not None and result is not UNSET:
        msg = "error and result exclude each other: a call ends in one way"
        raise TypeError(msg)
    if seed is not None and random is not None:
        msg = "seed and random exclude each other"
        raise TypeError(msg)
    generator = Random(seed) if random is None else random  # noqa: S311 - draws, not secrets
    words = []
    delays = fails = None
    if latency is not None:
        delays, phrase = latency_rule(latency, generator)
        words.append(phrase)
    if error is not None:
        fails, phrase = error_rule(error, retry_after, name)
        words.append(phrase)
    elif retry_after is not None:
        msg = "retry_after needs error=<an HTTP status> (429, 503)"
        raise ValueError(msg)
    if result is not UNSET:
        if isinstance(result, Guard | Layer) or _once(result):
            msg = f"result takes a value, or a function that makes one each time, not a {type(result).__name__}"
            raise TypeError(msg)
        words.append("another result")
    _share(rate)
    if when is not None and not callable(when):
        msg = f"when takes a function of the call's arguments, not {type(when).__name__}"
        raise TypeError(msg)
    _whole("after_items", after_items, 0)
    if max_faults is not None:
        _whole("max_faults", max_faults, 1)
    if for_seconds is not None and not 0 < number("for_seconds", for_seconds) < math.inf:
        msg = f"for_seconds takes a finite number of seconds above 0, not {for_seconds!r}"
        raise ValueError(msg)
    plan = Plan(
        latency=delays,
        error=fails,
        result=result,
        rate=rate,
        when=None if when is None else with_arguments("when", when),
        after_items=after_items,
        words=" and ".join(words) + _scope(rate, when, after_items, for_seconds, max_faults),
    )
    lasts = math.inf if for_seconds is None else for_seconds
    switch = Switch(name, for_seconds=lasts, max_faults=max_faults, clock=clock)
    if enabled:
        switch.enable()
    return Inject(plan, random=generator, switch=switch, clock=clock)


def _scope(rate: float, when: object, after_items: int, for_seconds: float | None, max_faults: int | None) -> str:
    text = " for all calls" if rate == 1 else f" for {100 * rate:g} % of the calls"
    text += " that match" if when is not None else ""
    text += f", after {after_items} item(s) of a stream" if after_items else ""
    text += f", for {for_seconds:g} s" if for_seconds is not None else ""
    return text + (f", {max_faults} times at most" if max_faults is not None else "")


def _once(result: object) -> bool:
    return inspect.isawaitable(result) or inspect.isasyncgen(result) or inspect.isgenerator(result)


def _share(rate: object) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        msg = f"rate takes a share from 0 to 1, not {type(rate).__name__}"
        raise TypeError(msg)
    if not 0 <= rate <= 1:
        msg = f"rate takes a share from 0 to 1 (0.1 is one call in ten), not {rate!r}"
        raise ValueError(msg)


def _whole(argument: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{argument} takes a whole number, not {type(value).__name__}"
        raise TypeError(msg)
    if value < least:
        msg = f"{argument} takes a whole number of at least {least}, not {value}"
        raise ValueError(msg)
