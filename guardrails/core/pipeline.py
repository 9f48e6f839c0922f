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

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from guardrails.core import drive, driven, outcome, streams
from guardrails.core.blocks import CONTEXTLIB, Block, Blocks, place_of
from guardrails.core.fixed import fixed
from guardrails.core.guard import Gate, Guard, Strategy
from guardrails.core.kinds import checked, is_async, kind_of
from guardrails.core.names import name_of
from guardrails.core.order import check_order
from guardrails.core.outcome import Outcome
from guardrails.core.signature import binder_of

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_building = threading.Lock()
_getframe = sys._getframe  # noqa: SLF001 - documented, and in every CPython


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

    def block(self) -> Block:
        """One guarded block, as an object: ``async with guard.block():``. For code that begins and ends in two
        functions; ``async with guard:`` makes one itself.
        """
        return Block(self.pipeline.blocks)

    # Plain functions: the frame that calls them is the one that runs the `with`.

    def __aenter__(self) -> Coroutine[Any, Any, None]:
        """Guard a block: enter every gate, waiting where one has to."""
        frame = _getframe(1)
        return self.pipeline.blocks.enter(id(frame) if frame.f_globals is not CONTEXTLIB else place_of(frame))

    def __aexit__(
        self, kind: object, exc: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        """Settle every gate with what came of the block."""
        frame = _getframe(1)
        place = id(frame) if frame.f_globals is not CONTEXTLIB else place_of(frame)
        return self.pipeline.blocks.leave_place_async(place, exc)

    def __enter__(self) -> None:
        """Guard a block of sync code; waiting blocks the thread."""
        frame = _getframe(1)
        self.pipeline.blocks.enter_blocking(id(frame) if frame.f_globals is not CONTEXTLIB else place_of(frame))

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """Settle every gate with what came of the block."""
        frame = _getframe(1)
        self.pipeline.blocks.leave_place(id(frame) if frame.f_globals is not CONTEXTLIB else place_of(frame), exc)


@fixed("classify", "classify_result", "check_order")
class Pipeline(Layer):
    """Guards in order, outermost first. Build it with `guard(...)` or by stacking decorators."""

    def __init__(
        self,
        layers: Sequence[Guard],
        *,
        name: str | None = None,
        classify: Callable[[BaseException], Outcome] = outcome.classify,
        classify_result: Callable[[Any], Outcome] = outcome.classify_result,
        check_order: bool = True,
    ) -> None:
        self._layers = tuple(layers)
        self._name = name
        self._classify = classify
        self._classify_result = classify_result
        self._judge_result = drive.combined(self.layers, classify_result)
        self._check_order = check_order
        self._blocks = Blocks(self.layers, classify, self.name)
        if check_order:
            _check(self.layers)

    @property
    def layers(self) -> tuple[Guard, ...]:
        """The guards."""
        return self._layers

    @property
    def blocks(self) -> Blocks:
        """The open blocks of code that they guard."""
        return self._blocks

    @property
    def pipeline(self) -> Pipeline:
        """Itself."""
        return self

    @property
    def name(self) -> str:
        """How it calls itself in events: the name that it was given, or else that of a guard inside.

        That is its only guard, or the first one that somebody has named; if nobody has, all their names.
        """
        return self._own_name or "+".join(layer.name for layer in self.layers) or "guard"

    @property
    def _own_name(self) -> str | None:
        if self._name is not None or len(self.layers) == 1:
            return self._name or self.layers[0].name
        # Unnamed, a guard is called what it is: `retry`, a Retry.
        return next((layer.name for layer in self.layers if layer.name != type(layer).__name__.lower()), None)

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
        if not hasattr(fn, "__qualname__"):  # a partial, or an object that can be called
            guarded.__qualname__ = name_of(fn)
            guarded.__name__ = guarded.__qualname__.rpartition(".")[2]
        guarded.__guarded__ = _Guarded(self, fn, guarded)  # type: ignore[attr-defined]
        return cast("Callable[P, R]", guarded)

    def inside(self, outer: Pipeline) -> Pipeline:
        """The pipeline `outer` around this one."""
        return Pipeline(
            (*outer.layers, *self.layers),
            name=outer._name or self._name,
            classify=_one("classify", outcome.classify, (outer._classify, self._classify)),
            classify_result=_one(
                "classify_result", outcome.classify_result, (outer._classify_result, self._classify_result)
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
        call_of = drive.call_maker(fn, self._classify, self._judge_result)
        while segments:
            gates = cast("list[Gate]", segments.pop()) if isinstance(segments[-1], list) else []
            strategy = cast("Strategy", segments.pop()) if segments else None
            inner, name = compiled, None if segments else self._own_name or name_of(fn)
            compiled = self._segment(inner, strategy, gates, kind, call_of)
            if name is not None:  # the outermost: built again, to be the one that looks whether anybody listens
                compiled = self._segment(
                    inner, strategy, gates, kind, call_of, name=name, whole=compiled, binder=binder_of(fn)
                )
        return compiled

    def _segment(
        self,
        fn: Callable[..., Any],
        strategy: Strategy | None,
        gates: list[Gate],
        kind: str,
        call_of: drive.CallMaker,
        *,
        name: str | None = None,
        whole: Callable[..., Any] | None = None,
        binder: Callable[..., object] | None = None,
    ) -> Callable[..., Any]:
        """`fn` behind `gates`, and these inside `strategy`. The outermost segment has the pipeline's `name`, and what
        it is without one, `whole`.
        """
        verdicts = (self._classify, self._judge_result)
        observed = None
        if kind in ("coroutine", "function"):
            is_async = kind == "coroutine"
            deadlines = self._deadlines(gates)
            if whole is not None and name is not None:
                observed = drive.observed(whole, name, *verdicts, is_async=is_async)
            inside = strategy if strategy is not None and strategy.recovers else None
            outside = None if strategy is inside else strategy
            if gates or inside is not None:
                fn = drive.gated(
                    fn,
                    gates,
                    *verdicts,
                    is_async=is_async,
                    strategy=inside,
                    call_of=call_of,
                    observed=observed if outside is None else None,
                    binder=binder if outside is None else None,
                    late=drive.late_verdict(self._classify, deadlines) if deadlines else None,
                    own={gate: drive.own_verdict(gate, self._classify_result) for gate in gates if self._apart(gate)},
                )
            return fn if outside is None else driven.driven(fn, outside, kind, call_of, observed, binder)
        if gates:
            gated = streams.gated_stream if kind == "stream" else streams.gated_iterator
            fn = gated(fn, gates, self._classify, *((None, None) if strategy is not None else (name, binder)))
        if strategy is None:
            return fn
        if whole is not None and name is not None:
            observed = streams.gated_stream(whole, (), self._classify, name)
        return driven.driven(fn, strategy, kind, call_of, observed, binder)

    def _deadlines(self, gates: list[Gate]) -> list[Gate]:
        # Those that may cut off a call inside one of `gates`.
        found = [layer for layer in self.layers if isinstance(layer, Gate) and layer.interrupts]
        first = next((place for place, layer in enumerate(self.layers) if layer in gates and layer not in found), None)
        return [] if first is None else [gate for gate in found if gate in self.layers[:first]]

    def _apart(self, gate: Gate) -> bool:
        # Whether it is not judged as the pipeline is.
        if not gate.judges:
            return False
        return (
            drive.failure_ifs(self.layers) != [gate.failure_if] or self._classify_result is not outcome.classify_result
        )


class _Guarded:
    """What a wrapper remembers, so that a further decorator can fuse with it."""

    __slots__ = ("fn", "pipeline", "wrapper")

    def __init__(self, pipeline: Pipeline, fn: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        self.pipeline = pipeline
        self.fn = fn
        self.wrapper = wrapper


def guard(
    *layers: Layer | Guard,
    name: str | None = None,
    classify: Callable[[BaseException], Outcome] = outcome.classify,
    classify_result: Callable[[Any], Outcome] = outcome.classify_result,
    check_order: bool = True,
) -> Pipeline:
    """One pipeline from guards and pipelines, outermost first.

    Args:
        layers: breakers, limiters and so on; a pipeline stands for its layers.
        name: how it calls itself in the events that are about a whole call; by default that of its first guard that
            has been given one, or the guarded function's.
        classify: decides the outcome of an exception for every guard here, instead of
            `guardrails.core.outcome.classify`.
        classify_result: the same for what a call returns. A breaker with a `failure_if` keeps to that besides.
        check_order: refuse an order that is a trap. Pass False to build it all the same.

    Raises:
        TypeError: a layer is not a guard, or `name` is no text.
        ValueError: the order is a trap; or two pipelines bring verdicts of which only one can hold.
    """
    if name is not None and (not isinstance(name, str) or not name):
        msg = f"name takes a text, not {name!r}"
        raise TypeError(msg)
    flat: list[Guard] = []
    for number, layer in enumerate(layers):
        if isinstance(layer, Pipeline):
            flat.extend(layer.layers)
            # What a pipeline was built with on purpose holds in the larger one too.
            classify = _one("classify", outcome.classify, (classify, layer._classify))  # noqa: SLF001
            classify_result = _one(
                "classify_result",
                outcome.classify_result,
                (classify_result, layer._classify_result),  # noqa: SLF001
            )
            check_order = check_order and layer._check_order  # noqa: SLF001
            name = name if name is not None else layer._name  # noqa: SLF001
        elif isinstance(layer, Guard):
            flat.append(layer)
        else:
            hint = f"; call it first: {layer.__name__}(...)" if inspect.isfunction(layer) else ""
            msg = f"layer {number + 1} of guard(...) is not a guard but {type(layer).__name__}{hint}"
            raise TypeError(msg)
    return Pipeline(flat, name=name, classify=classify, classify_result=classify_result, check_order=check_order)


_check = check_order


def _one(argument: str, default: F, given: tuple[F, F]) -> F:
    # Two that were given on purpose cannot both hold: each guard has one verdict on a call.
    chosen = [verdict for verdict in given if verdict is not default]
    if len(chosen) > 1 and chosen[0] != chosen[1]:
        msg = (
            f"{argument} was given to a pipeline and, another one, to a pipeline inside it, of which only one can hold "
            f"for the calls through both: give it to the outer one alone"
        )
        raise ValueError(msg)
    return chosen[0] if chosen else default


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
