"""Composes guards into one pipeline, around a function or a block.

::

    @breaker            fuse       ┌──────────── one frame ────────────┐
    @admit(...)        ─────▶      │ breaker ▷ admit ▷ timeout ▷ work  │
    @timeout(5)                    └───────────────────────────────────┘
    async def work(): ...

Stacked decorators fuse: each adds its layer to the pipeline that is there already, around the bare function, so that
five guards cost one coroutine and not five. Strategies split the pipeline in segments, each one frame.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from guardrails.core import drive, driven, outcome
from guardrails.core.drive import Held
from guardrails.core.guard import Call, Gate, Guard, Strategy
from guardrails.core.kinds import checked, is_async, kind_of, name_of
from guardrails.core.order import check_order
from guardrails.core.outcome import SUCCESS, Outcome

P = ParamSpec("P")
R = TypeVar("R")

_building = threading.Lock()


class Layer:
    """What makes a single guard, and a pipeline, a decorator and a block: `@layer`, `async with layer:`, `with
    layer:`.
    """

    # Not found in `__dict__`: to look there makes CPython build a real dictionary for the guard, and then every read of
    # an attribute costs half as much again, on each call.
    _alone: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """This layer as a pipeline."""
        if self._alone is None:
            alone = Pipeline((cast("Guard", self),))
            with _building:  # two threads may come here at once: the first one's stays, for open blocks are kept in it
                self._alone = self._alone or alone
        return self._alone

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Guard a function: `def`, `async def`, generator or async generator. Its signature stays."""
        return self.pipeline.wrap(fn)

    async def __aenter__(self) -> None:
        """Guard a block: enter every gate, waiting where one has to."""
        await self.pipeline.enter_block()

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """Settle every gate with what came of the block."""
        self.pipeline.leave_block(exc)

    def __enter__(self) -> None:
        """Guard a block of sync code; waiting blocks the thread."""
        self.pipeline.enter_block_blocking()

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """Settle every gate with what came of the block."""
        self.pipeline.leave_block(exc)


class Pipeline(Layer):
    """Guards in order, outermost first. Build it with `guard(...)` or by stacking decorators.

    Attributes:
        layers: the guards.
    """

    def __init__(
        self,
        layers: Sequence[Guard],
        *,
        classify: Callable[[BaseException], Outcome] = outcome.classify,
        classify_result: Callable[[Any], Outcome] = outcome.classify_result,
        check_order: bool = True,
    ) -> None:
        self.layers = tuple(layers)
        self._classify = classify
        self._classify_result = classify_result
        self._check_order = check_order
        # The entered gates of each open block, innermost last. A context variable, since tasks share the pipeline.
        self._blocks: contextvars.ContextVar[tuple[Held, ...]] = contextvars.ContextVar("blocks", default=())
        if check_order:
            _check(self.layers)

    @property
    def pipeline(self) -> Pipeline:
        """Itself."""
        return self

    def describe(self) -> str:
        """The pipeline as a person would draw it: one line a guard, outermost first, indented as calls nest."""
        lines = [
            f"{'   ' * depth}{'└─ ' if depth else ''}{layer.describe()}" for depth, layer in enumerate(self.layers)
        ]
        return "\n".join((*lines, f"{'   ' * len(self.layers)}{'└─ ' if self.layers else ''}the call"))

    def __repr__(self) -> str:
        return f"guard({', '.join(layer.name for layer in self.layers)})"

    # Functions

    def wrap(self, fn: Callable[P, R]) -> Callable[P, R]:
        """`fn` behind this pipeline. If `fn` is guarded already, both pipelines become one.

        Raises:
            TypeError: `fn` is nothing that can be guarded, or a guard here cannot guard its kind.
            ValueError: the fused order is a trap (see `guardrails.core.order`).
        """
        inner = getattr(fn, "__guarded__", None)
        # functools.wraps copies attributes: only a wrapper that knows itself is ours. Else somebody's decorator
        # stands between.
        if isinstance(inner, _Guarded) and inner.wrapper is fn:
            return inner.pipeline.inside(self).wrap(inner.fn)
        compiled = self._compile(fn)
        if compiled is fn:
            return fn  # a pipeline without guards
        guarded = functools.wraps(fn)(compiled)
        guarded.__guarded__ = _Guarded(self, fn, guarded)  # type: ignore[attr-defined]
        return cast("Callable[P, R]", guarded)

    def inside(self, outer: Pipeline) -> Pipeline:
        """The pipeline `outer` around this one."""
        return Pipeline(
            (*outer.layers, *self.layers),
            classify=outer._classify if outer._classify is not outcome.classify else self._classify,
            classify_result=(
                outer._classify_result
                if outer._classify_result is not outcome.classify_result
                else self._classify_result
            ),
            check_order=outer._check_order and self._check_order,
        )

    def _compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        kind = kind_of(fn)
        sync = kind in ("function", "generator")
        for layer in self.layers:
            if sync and isinstance(layer, Gate) and layer.interrupts:
                msg = f"{layer.name} cannot guard {name_of(fn)}, a sync {kind}: nothing can interrupt it. Make it async"
                raise TypeError(msg)
            if isinstance(layer, Strategy):
                driven.check(layer, kind, name_of(fn))
        if not self.layers:
            return fn
        compiled = checked(fn) if kind == "coroutine" and not is_async(fn) else fn
        segments = _segments(self.layers)
        call_of = drive.call_maker(fn, self._classify, self._classify_result)
        while segments:
            gates = cast("list[Gate]", segments.pop()) if isinstance(segments[-1], list) else []
            strategy = cast("Strategy", segments.pop()) if segments else None
            compiled = self._segment(compiled, strategy, gates, kind, call_of)
        return compiled

    def _segment(
        self,
        fn: Callable[..., Any],
        strategy: Strategy | None,
        gates: list[Gate],
        kind: str,
        call_of: drive.CallMaker,
    ) -> Callable[..., Any]:
        """`fn` behind `gates`, and these inside `strategy`."""
        verdicts = (self._classify, self._classify_result)
        if kind in ("coroutine", "function"):
            inside = strategy if strategy is not None and strategy.recovers else None
            if gates or inside is not None:
                fn = drive.gated(fn, gates, *verdicts, is_async=kind == "coroutine", strategy=inside, call_of=call_of)
            return fn if strategy is inside else driven.driven(fn, cast("Strategy", strategy), kind, call_of)
        if gates:
            fn = (drive.gated_stream if kind == "stream" else drive.gated_iterator)(fn, gates, self._classify)
        return fn if strategy is None else driven.driven(fn, strategy, kind, call_of)

    # Blocks

    async def enter_block(self) -> None:
        """Enter every gate for a block."""
        call = Call(None, None)
        held: Held = []
        try:
            for gate in self._block_gates():
                ticket = gate.try_enter(call)
                if ticket is None:
                    ticket = await gate.enter(call)
                held.append((gate, ticket))
        except BaseException as exc:
            truth = drive.leave(held, exc, drive.not_reached)
            try:
                if truth is exc:
                    raise
                raise truth from exc
            finally:
                del truth  # the traceback holds this frame: a reference cycle
        self._blocks.set((*self._blocks.get(), held))

    def enter_block_blocking(self) -> None:
        """Enter every gate for a block of sync code."""
        call = Call(None, None)
        held: Held = []
        try:
            for gate in self._block_gates():
                if gate.interrupts:
                    msg = f"{gate.name} cannot guard a sync block: nothing can interrupt it. Use 'async with'"
                    raise TypeError(msg)  # noqa: TRY301 - whatever was entered is left the same way
                ticket = gate.try_enter(call)
                if ticket is None:
                    ticket = gate.enter_blocking(call)
                held.append((gate, ticket))
        except BaseException as exc:
            drive.leave(held, exc, drive.not_reached)
            raise
        self._blocks.set((*self._blocks.get(), held))

    def leave_block(self, exc: BaseException | None) -> None:
        """Settle the gates of the innermost open block; raises in place of `exc` where a gate knows better."""
        blocks = self._blocks.get()
        if not blocks:
            msg = f"{self!r}: a block is left in another context than it was entered in; enter and leave it in one task"
            raise RuntimeError(msg)
        held = blocks[-1]
        self._blocks.set(blocks[:-1])
        if exc is not None:
            truth = drive.leave(held, exc, self._classify)
            try:
                if truth is not exc:
                    raise truth from exc
            finally:
                del truth, exc
            return
        while held:
            gate, ticket = held.pop()
            if gate.interrupts:
                gate.disarm(ticket, None)
            drive.settle(gate, ticket, SUCCESS)

    def _block_gates(self) -> list[Gate]:
        gates = []
        for layer in self.layers:
            if not isinstance(layer, Gate):
                msg = f"{layer.name} cannot guard a block, only a function: a block's code can run only once"
                raise TypeError(msg)
            gates.append(layer)
        return gates


class _Guarded:
    """What a wrapper remembers, so that a further decorator can fuse with it."""

    __slots__ = ("fn", "pipeline", "wrapper")

    def __init__(self, pipeline: Pipeline, fn: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        self.pipeline = pipeline
        self.fn = fn
        self.wrapper = wrapper


def guard(
    *layers: Layer | Guard,
    classify: Callable[[BaseException], Outcome] = outcome.classify,
    classify_result: Callable[[Any], Outcome] = outcome.classify_result,
    check_order: bool = True,
) -> Pipeline:
    """One pipeline from guards and pipelines, outermost first.

    Args:
        layers: breakers, limiters and so on; a pipeline stands for its layers.
        classify: decides the outcome of an exception for every guard here, instead of
            `guardrails.core.outcome.classify`.
        classify_result: the same for what a call returns.
        check_order: refuse an order that is a trap. Pass False to build it all the same.

    Raises:
        TypeError: a layer is not a guard.
        ValueError: the order is a trap; the message says why.
    """
    flat: list[Guard] = []
    for number, layer in enumerate(layers):
        if isinstance(layer, Pipeline):
            flat.extend(layer.layers)
            # What a pipeline was built with on purpose holds in the larger one too, unless that says otherwise.
            classify = layer._classify if classify is outcome.classify else classify  # noqa: SLF001
            if classify_result is outcome.classify_result:
                classify_result = layer._classify_result  # noqa: SLF001
            check_order = check_order and layer._check_order  # noqa: SLF001
        elif isinstance(layer, Guard):
            flat.append(layer)
            if classify_result is outcome.classify_result and isinstance(layer, Layer):
                classify_result = layer.pipeline._classify_result  # noqa: SLF001 - breaker(failure_if=...) brings its own
        else:
            hint = f"; call it first: {layer.__name__}(...)" if inspect.isfunction(layer) else ""
            msg = f"layer {number + 1} of guard(...) is not a guard but {type(layer).__name__}{hint}"
            raise TypeError(msg)
    return Pipeline(flat, classify=classify, classify_result=classify_result, check_order=check_order)


_check = check_order


def _segments(layers: Sequence[Guard]) -> list[Strategy | list[Gate]]:
    segments: list[Strategy | list[Gate]] = []
    for layer in layers:
        if isinstance(layer, Strategy):
            segments.append(layer)
        elif isinstance(layer, Gate):
            if segments and isinstance(segments[-1], list):
                segments[-1].append(layer)
            else:
                segments.append([layer])
        else:
            msg = f"{layer.name} is neither a Gate nor a Strategy"
            raise TypeError(msg)
    return segments
