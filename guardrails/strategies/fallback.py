"""Fallback: what the caller gets when the call has failed, or was refused.

It acts on failure, throttling and refusals (`Rejected`, an open circuit say: then a fallback is wanted most), never on
a cancellation, and not on the caller's own mistakes (4xx) unless `on` asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from guardrails.core import events
from guardrails.core.fixed import fixed
from guardrails.core.guard import DrivenCall, Guard, Position, Strategy
from guardrails.core.outcome import Outcome, refusal_of
from guardrails.core.pipeline import Layer

T = TypeVar("T")
On = type[Exception] | Callable[[Exception], bool]


@dataclass(frozen=True, slots=True)
class FallbackUsed(events.Event):
    """A call was answered by its fallback. `reason` is the refusal's (``open``, ``queue_full``, ...) or the outcome:
    ``failure``, ``throttled``, ``ignored``.
    """

    reason: str


@fixed("answer", "on")
class Fallback(Layer, Strategy):
    """Another answer. Build it with `fallback(...)`, which documents the arguments."""

    positions = (Position.FALLBACK,)
    recovers = True
    streams = True

    def __init__(self, answer: Any, *, on: tuple[On, ...] | None, name: str) -> None:
        self.name = name
        self._answer = answer
        self._function = self.reads_call = callable(answer)
        self._takes_error = self._function and _takes_error(answer)
        self._types = tuple(item for item in on or () if isinstance(item, type))
        self._predicates = tuple(item for item in on or () if not isinstance(item, type))
        self._narrowed = on is not None

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        # A value is not shown: it may hold what nobody should read in a log.
        what = getattr(self._answer, "__qualname__", type(self._answer).__name__) if self._function else "a value"
        asked = [*(kind.__name__ for kind in self._types), *("a predicate" for _ in self._predicates)]
        return f"fallback {self.name!r}: {what}, on {' or '.join(asked) or 'failure, throttling and refusals'}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    # The contract

    async def recover(
        self,
        call: DrivenCall,
        outcome: Outcome,
        result: Any,
        proceed: Callable[[], Awaitable[T]],  # noqa: ARG002 - the contract
    ) -> Any:
        """Answer in place of an async call."""
        error = outcome.exception
        try:
            if not self._applies(outcome):
                return _as_it_was(error, result)
            self._tell(outcome)
            if error is None:
                return await self._awaited(call, None)
            try:
                raise error  # noqa: TRY301 - so that it is the context of what the fallback raises
            except Exception:  # if the fallback fails too, the first error is the context of its own
                return await self._awaited(call, error)
        finally:
            del error, outcome  # a traceback holds this frame: a reference cycle

    def recover_blocking(self, call: DrivenCall, outcome: Outcome, result: Any, proceed: Callable[[], T]) -> Any:  # noqa: ARG002 - the contract
        """Answer in place of a sync call."""
        error = outcome.exception
        try:
            if not self._applies(outcome):
                return _as_it_was(error, result)
            self._tell(outcome)
            if error is None:
                return self._blocking(call, None)
            try:
                raise error  # noqa: TRY301 - so that it is the context of what the fallback raises
            except Exception:
                return self._blocking(call, error)
        finally:
            del error, outcome

    async def run_stream(
        self, call: DrivenCall, proceed: Callable[[], AsyncGenerator[T, Any]]
    ) -> AsyncGenerator[T, Any]:
        """Answer in place of a stream that fails before its first item. Later errors are the reader's to see."""
        source = proceed()
        step: Callable[[Any], Awaitable[T]] = source.asend
        given: Any = None
        delivered = False
        try:
            while True:
                try:
                    item = await step(given)
                except StopAsyncIteration:
                    return
                except Exception as exc:
                    outcome = call.judge(exc)
                    applies = not delivered and self._applies(outcome)
                    if applies:
                        self._tell(outcome)
                    del outcome  # the traceback holds this frame: a reference cycle
                    if not applies:
                        raise
                    other = await self._items(call, exc)
                    try:
                        async for item in other:
                            yield item
                    finally:
                        await other.aclose()
                    return
                delivered = True
                step = source.asend
                try:
                    given = yield item
                except GeneratorExit:
                    raise
                except BaseException as exc:  # thrown in by the reader: the source decides what becomes of it
                    step, given = source.athrow, exc
        finally:
            await source.aclose()

    # Inside

    def _applies(self, outcome: Outcome) -> bool:
        error = outcome.exception
        if self._narrowed:
            return isinstance(error, Exception) and (
                isinstance(error, self._types) or any(predicate(error) for predicate in self._predicates)
            )
        return outcome.kind in ("failure", "throttled") or refusal_of(error) is not None

    def _tell(self, outcome: Outcome) -> None:
        if events.sinks:
            refusal = refusal_of(outcome.exception)
            events.emit(FallbackUsed(self.name, outcome.kind if refusal is None else refusal.reason))

    def _call(self, call: DrivenCall, error: BaseException | None) -> Any:
        if not self._function:
            return self._answer
        args, kwargs = call.args or (), call.kwargs or {}
        if self._takes_error and "error" not in kwargs:
            return self._answer(*args, **kwargs, error=error)
        return self._answer(*args, **kwargs)

    async def _awaited(self, call: DrivenCall, error: BaseException | None) -> Any:
        answer = self._call(call, error)
        if self._function and inspect.isawaitable(answer):
            answer = await answer
        if inspect.isasyncgen(answer):
            msg = f"{self.name}: a fallback that is an async generator answers streams only; this call returns a value"
            raise TypeError(msg)
        return answer

    def _blocking(self, call: DrivenCall, error: BaseException | None) -> Any:
        answer = self._call(call, error)
        if inspect.isawaitable(answer) or inspect.isasyncgen(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            msg = f"{self.name}: an async fallback cannot answer a sync function; give it a sync one"
            raise TypeError(msg)
        return answer

    async def _items(self, call: DrivenCall, error: BaseException) -> AsyncGenerator[Any, None]:
        answer = self._call(call, error)
        if self._function and inspect.isawaitable(answer):
            answer = await answer
        return _items(answer)


def fallback(answer: Any, *, on: On | tuple[On, ...] | None = None, name: str = "fallback") -> Fallback:
    """Answer with `answer` when the call fails, is throttled, or is refused by a guard further in.

    Args:
        answer: a value, or a function, sync or async, guarded or not, that is called with the call's arguments; if it
            has a parameter named ``error``, it also gets the exception by that name (None when the call returned
            something that is a failure, a 503 response say). The value is the same object for every caller: give a
            function for a list or a dict. A function to be *returned* is wrapped: ``fallback(lambda *args: function)``.
            For a stream, an async generator's items are the answer; anything else is its only item.
        on: exception types, or functions of the exception, that alone are answered: ``on=CircuitOpen``,
            ``on=(TimedOut, ConnectionError)``. By default failures and throttling as the pipeline judges them, and
            every `Rejected`; not the caller's own mistakes (4xx). Cancellation is never answered.
        name: how it calls itself in events.

    If the fallback fails itself, the caller gets that error, with the first one as its ``__context__``. A stream is
    answered only before its first item: what was delivered is never followed by something else.

    Raises:
        TypeError: `answer` is a guard instead of a guarded function, or can be used only once; `on` is neither.
    """
    if isinstance(answer, Guard | Layer):
        msg = "answer takes a value or a function, not a guard: decorate a function with it, and pass that function"
        raise TypeError(msg)
    if inspect.isawaitable(answer) or inspect.isasyncgen(answer) or inspect.isgenerator(answer):
        msg = f"answer takes a value or a function, not a {type(answer).__name__}, which can be used only once"
        raise TypeError(msg)
    wanted = on if isinstance(on, tuple) or on is None else (on,)
    if wanted == ():
        msg = "on takes at least one exception type or function of an exception; leave it out for the default"
        raise ValueError(msg)
    for item in wanted or ():
        if isinstance(item, type) and not issubclass(item, Exception):
            msg = f"on takes types of Exception, not {item.__name__}: a fallback never answers a cancellation"
            raise TypeError(msg)
        if not callable(item):
            msg = f"on takes exception types or functions of an exception, not {type(item).__name__}"
            raise TypeError(msg)
    return Fallback(answer, on=wanted, name=name)


def _takes_error(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("error")
    except (TypeError, ValueError):  # a builtin that does not tell
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _as_it_was(error: BaseException | None, result: Any) -> Any:
    if error is None:
        return result
    try:
        raise error
    finally:
        del error


async def _items(answer: Any) -> AsyncGenerator[Any, None]:
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


__all__ = ["Fallback", "FallbackUsed", "fallback"]
