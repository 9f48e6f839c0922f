"""Drives a stream, an async generator or a generator, through a run of gates: entered at its first item, settled at its
end.

::

    enter all ─▶ │ arm, set context variables ─▶ next item ─▶ set back, disarm │ ─▶ the reader ─▶ ... ─▶ settle all

A stream runs in the tasks and contexts of its reader, a step at a time, and these may change from one step to the next.
So what a gate shows to the code inside (`Gate.resume`) is set for a step and set back after it: nothing stays behind
in the reader's context, and nothing is missing in a step that runs in another task.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import Any

from guardrails.core import events
from guardrails.core.drive import Held, Verdict, abandon, judge, judger, settle
from guardrails.core.guard import Call, Gate, Ticket
from guardrails.core.observed import ObservedCall
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome

#: For a gate that cut a stream off, by its place in the pipeline: what the stream ended with for the gates further in.
Cuts = dict[int, BaseException]


def gated_stream(
    fn: Callable[..., AsyncGenerator[Any, Any]],
    gates: Sequence[Gate],
    verdict: Verdict,
    name: str | None = None,
    binder: Callable[..., object] | None = None,
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """`fn`, an async generator function, behind `gates`: entered at its first item, settled at its end.

    A gate that interrupts is armed around each item only, never while the reader holds the stream. With `name`, the
    whole pipeline's, each stream is announced to the listeners of events, and its end.
    """
    judged = judger(verdict)

    async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        if binder is not None:
            binder(*args, **kwargs)
        call = Call(args, kwargs, stream=True)
        held: Held = []
        source: AsyncGenerator[Any, Any] | _Within | None = None
        outcome = IGNORED  # closing early, or never getting in, is not the dependency's failure
        refused: Outcome | None = None
        cuts: Cuts = {}
        announced = ObservedCall(name, stream=True) if events.sinks and name is not None else None
        try:
            try:
                for gate in gates:
                    ticket = gate.try_enter(call)
                    if ticket is None:
                        ticket = await gate.enter(call)
                    held.append((gate, ticket))
            except BaseException as exc:
                refused = judged(exc)
                raise
            watched = [(place, gate, ticket) for place, (gate, ticket) in enumerate(held) if gate.interrupts]
            timed = [(gate, ticket) for gate, ticket in held if gate.times_first]
            source = fn(*args, **kwargs)
            shown = [(gate, ticket) for gate, ticket in held if gate.contextual and not gate.interrupts]
            if shown:
                source = _Within(source, shown)
            step: Callable[[Any], Awaitable[Any]] = source.asend
            given: Any = None
            alone = watched[0] if len(watched) == 1 else None
            while True:
                try:
                    if announced is not None:
                        announced.resume()
                    if alone is not None:  # `_watch` without a frame of its own, and without a list
                        here, gate, ticket = alone
                        try:
                            gate.arm(ticket)
                            item = await step(given)
                        except BaseException as exc:
                            truth = _disarm(gate, ticket, here, exc, cuts)
                            try:
                                if truth is exc or truth is None:
                                    raise
                                raise truth from exc
                            finally:
                                del truth  # the traceback holds this frame: a reference cycle
                        gate.disarm(ticket, None)
                    elif watched:
                        item = await _watch(watched, step, given, cuts)
                    else:
                        item = await step(given)
                except StopAsyncIteration:
                    outcome = SUCCESS
                    return
                except BaseException as exc:
                    outcome = judge(verdict, exc)
                    raise
                finally:
                    if announced is not None:
                        announced.suspend()
                if timed:
                    _came(timed)
                if announced is not None:
                    announced.item()
                step = source.asend
                try:
                    given = yield item
                except GeneratorExit:
                    raise
                except BaseException as exc:  # thrown in by the reader: the source decides what becomes of it
                    step, given = source.athrow, exc
        finally:
            try:
                if source is not None:
                    await source.aclose()
            finally:
                _settle_all(held, outcome, cuts, verdict)
                if announced is not None:
                    announced.end(refused or outcome)
                del outcome, refused
                cuts.clear()

    return guarded


def _settle_all(held: Held, outcome: Outcome, cuts: Cuts, verdict: Verdict) -> None:
    try:
        while held:
            place = max((place for place in cuts if place < len(held) - 1), default=None)
            seen = outcome if place is None else judge(verdict, cuts[place])
            gate, ticket = held.pop()
            settle(gate, ticket, seen)
    except BaseException:
        abandon(held, None)
        raise


def _came(timed: Held) -> None:
    """The first item has come."""
    for gate, ticket in timed:
        gate.first_item(ticket)
    timed.clear()


class _Within:
    """The steps of an async generator, in each of which its gates show what they have for the code inside."""

    __slots__ = ("_shown", "_source")

    def __init__(self, source: AsyncGenerator[Any, Any], shown: Held) -> None:
        self._source = source
        self._shown = shown

    async def asend(self, value: Any) -> Any:
        with _showing(self._shown):
            return await self._source.asend(value)

    async def athrow(self, *error: Any) -> Any:
        with _showing(self._shown):
            return await self._source.athrow(*error)

    async def aclose(self) -> None:
        with _showing(self._shown):
            await self._source.aclose()


class _showing:  # noqa: N801 - used as a function
    """``with _showing(shown):`` around a step."""

    __slots__ = ("_shown",)

    def __init__(self, shown: Held) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        for gate, ticket in self._shown:
            gate.resume(ticket)

    def __exit__(self, *error: object) -> None:
        for gate, ticket in reversed(self._shown):
            gate.suspend(ticket)


async def _watch(
    watched: list[tuple[int, Gate, Ticket]], step: Callable[[Any], Awaitable[Any]], given: Any, cuts: Cuts
) -> Any:
    truth: BaseException | None = None
    item = None
    try:
        for _, gate, ticket in watched:
            gate.arm(ticket)
        item = await step(given)
    except BaseException as exc:  # every end is shown to the gates, and raised again below
        truth = exc
    for place, gate, ticket in reversed(watched):
        truth = gate.disarm(ticket, None) if truth is None else _disarm(gate, ticket, place, truth, cuts)
    if truth is not None:
        try:
            raise truth
        finally:
            del truth
    return item


def _disarm(gate: Gate, ticket: Ticket, place: int, exc: BaseException, cuts: Cuts) -> BaseException | None:
    found = gate.disarm(ticket, exc)
    if found is not exc and found is not None:
        found.__cause__ = exc
        cuts[place] = exc
    return found


def gated_iterator(
    fn: Callable[..., Generator[Any, Any, Any]],
    gates: Sequence[Gate],
    verdict: Verdict,
    name: str | None = None,
    binder: Callable[..., object] | None = None,
) -> Callable[..., Generator[Any, Any, Any]]:
    """`fn`, a generator function, behind `gates`: entered at its first item, settled at its end.

    With `name`, as `gated_stream`.
    """
    judged = judger(verdict)

    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        if binder is not None:
            binder(*args, **kwargs)
        call = Call(args, kwargs, stream=True)
        held: Held = []
        outcome = IGNORED
        refused: Outcome | None = None
        announced = ObservedCall(name, stream=True) if events.sinks and name is not None else None
        try:
            try:
                for gate in gates:
                    ticket = gate.try_enter(call)
                    if ticket is None:
                        ticket = gate.enter_blocking(call)
                    held.append((gate, ticket))
            except BaseException as exc:
                refused = judged(exc)
                raise
            try:
                items: Generator[Any, Any, Any] = fn(*args, **kwargs)
                shown = [(gate, ticket) for gate, ticket in held if gate.contextual]
                timed = [(gate, ticket) for gate, ticket in held if gate.times_first]
                if shown or timed or announced is not None:
                    items = _Steps(items, shown, timed, announced)
                result = yield from items
            except GeneratorExit:
                raise
            except BaseException as exc:
                outcome = judge(verdict, exc)
                raise
            outcome = SUCCESS
            return result
        finally:
            try:
                while held:
                    gate, ticket = held.pop()
                    settle(gate, ticket, outcome)
            except BaseException:
                abandon(held, None)
                raise
            if announced is not None:
                announced.end(refused or outcome)
            del outcome, refused  # the exception's traceback holds this frame: a reference cycle

    return guarded


class _Steps(Generator[Any, Any, Any]):
    """The steps of a generator, which `yield from` does not see."""

    __slots__ = ("_announced", "_shown", "_source", "_timed")

    def __init__(
        self, source: Generator[Any, Any, Any], shown: Held, timed: Held, announced: ObservedCall | None
    ) -> None:
        self._source = source
        self._shown = shown
        self._timed = timed
        self._announced = announced

    def send(self, value: Any) -> Any:
        with _showing(self._shown):
            item = self._source.send(value)
        return self._noted(item)

    def throw(self, *error: Any) -> Any:
        with _showing(self._shown):
            item = self._source.throw(*error)
        return self._noted(item)

    def close(self) -> None:
        with _showing(self._shown):
            self._source.close()

    def _noted(self, item: Any) -> Any:
        if self._timed:
            _came(self._timed)
        if self._announced is not None:
            self._announced.item()
        return item
