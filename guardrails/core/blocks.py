"""Guards around a block of code: entered at its beginning, settled at its end, on each task's own account."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence

from guardrails.core import drive, events
from guardrails.core.drive import Held, Verdict
from guardrails.core.guard import Call, Gate, Guard
from guardrails.core.observed import ObservedCall
from guardrails.core.outcome import SUCCESS

#: The entered gates of an open block, outermost first, and the call as it was announced, if anybody listened.
_Block = tuple[Held, ObservedCall | None]


class Blocks:
    """The open blocks of one pipeline.

    Args:
        layers: the pipeline's.
        verdict: its judgement of an exception.
        name: its name, in events.
    """

    def __init__(self, layers: Sequence[Guard], verdict: Verdict, name: str) -> None:
        self._layers = layers
        self._verdict = verdict
        self._name = name
        # Innermost last. A context variable, since tasks share the pipeline.
        self._open: contextvars.ContextVar[tuple[_Block, ...]] = contextvars.ContextVar("blocks", default=())

    async def enter(self) -> None:
        """Enter every gate, waiting where one has to."""
        call = Call(None, None)
        held: Held = []
        gates = self._gates()
        announced = ObservedCall(self._name) if events.sinks else None
        try:
            for gate in gates:
                ticket = gate.try_enter(call)
                if ticket is None:
                    ticket = await gate.enter(call)
                held.append((gate, ticket))
        except BaseException as exc:
            truth = drive.leave(held, exc, drive.not_reached)
            if announced is not None:
                announced.end(drive.judger(self._verdict)(truth))
            try:
                if truth is exc:
                    raise
                raise truth from exc
            finally:
                del truth  # the traceback holds this frame: a reference cycle
        self._open.set((*self._open.get(), (held, announced)))

    def enter_blocking(self) -> None:
        """Enter every gate for a block of sync code; waiting blocks the thread."""
        call = Call(None, None)
        held: Held = []
        gates = self._gates()
        for gate in gates:
            if gate.interrupts:
                msg = f"{gate.name} cannot guard a sync block: nothing can interrupt it. Use 'async with'"
                raise TypeError(msg)
        announced = ObservedCall(self._name) if events.sinks else None
        try:
            for gate in gates:
                ticket = gate.try_enter(call)
                if ticket is None:
                    ticket = gate.enter_blocking(call)
                held.append((gate, ticket))
        except BaseException as exc:
            drive.leave(held, exc, drive.not_reached)
            if announced is not None:
                announced.end(drive.judger(self._verdict)(exc))
            raise
        self._open.set((*self._open.get(), (held, announced)))

    def leave(self, exc: BaseException | None) -> None:
        """Settle the gates of the innermost open block; raises in place of `exc` where a gate knows better."""
        blocks = self._open.get()
        if not blocks:
            names = ", ".join(layer.name for layer in self._layers)
            msg = (
                f"guard({names}): a block is left in another context than it was entered in; "
                "enter and leave it in one task"
            )
            raise RuntimeError(msg)
        held, announced = blocks[-1]
        self._open.set(blocks[:-1])
        if exc is not None:
            truth = drive.leave(held, exc, self._verdict)
            if announced is not None:
                announced.end(drive.judger(self._verdict)(truth))
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
        if announced is not None:
            announced.end(SUCCESS)

    def _gates(self) -> list[Gate]:
        gates = []
        for layer in self._layers:
            if not isinstance(layer, Gate):
                msg = f"{layer.name} cannot guard a block, only a function: a block's code can run only once"
                raise TypeError(msg)
            gates.append(layer)
        return gates
