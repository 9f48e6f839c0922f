"""Guards around a block of code: entered at its beginning, settled at its end, wherever that is.

::

    async with guard:          opens an entry, noted by its place: the frame that runs the `with`
        ...
                               the same frame leaves: the entry of that place is settled

What `with` calls at its end is not given the entry, so it is found by its place. A frame is the same one at both ends
of its `with`, whatever task, thread or context it runs in by then, also when a generator that was dropped is
finalised. An `ExitStack` is the place of what it holds, since its methods call from frames of their own. Code that
calls `__aenter__` and `__aexit__` from two functions has no place: there the newest entry of the running task is
taken, or else the oldest of all. A `Block` (`guard.block()`) holds its entry, and needs no search.

A place is the address of a frame, not the frame: nothing keeps the frame's variables alive. An address is used again
only after its frame has ended, and a frame cannot end inside its own `with`.

Threads: the common way in and out is one operation of a dictionary each. The rest is under a lock, which is reentrant:
the garbage collector may finalise a generator, and so leave its block, in the middle of our own code.
"""

from __future__ import annotations

import contextlib
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, overload

from guardrails.core import deadline, drive, events
from guardrails.core.drive import Held
from guardrails.core.guard import Call, Gate
from guardrails.core.observed import ObservedCall
from guardrails.core.outcome import SUCCESS
from guardrails.core.tasks import loop_here, runner_id, task_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrails.core.drive import Verdict
    from guardrails.core.guard import Guard

#: The entered gates of an open block, outermost first; the call as it was announced, if there are listeners; and the
#: task that entered.
Entry = tuple[Held, ObservedCall | None, int]

#: The globals of frames that are no place themselves.
CONTEXTLIB = vars(contextlib)


def place_of(frame: FrameType) -> int:
    """What tells the block that `frame`, one of contextlib's, opens or leaves from all others that are open."""
    variables = frame.f_locals
    stack = variables.get("self")
    if isinstance(variables, dict):  # a copy, before 3.13, which would keep the exception at hand in a cycle
        variables.clear()
    # The callbacks are what `pop_all` hands on to another stack.
    return id(getattr(stack, "_exit_callbacks", frame if stack is None else stack))


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
        gates = [layer for layer in layers if isinstance(layer, Gate)]
        self._gates = gates if len(gates) == len(layers) else []
        self._interrupting = next((gate.name for gate in gates if gate.interrupts), None)
        self._open: dict[int, Entry] = {}  # by place
        # Those whose place was taken, by their own address: nested ones of one frame, or of one stack.
        self._more: dict[int, tuple[int, Entry]] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._open) + len(self._more)

    def __repr__(self) -> str:
        return f"guard({', '.join(layer.name for layer in self._layers)})"

    @overload
    async def enter(self, place: int) -> None: ...
    @overload
    async def enter(self, place: None) -> Entry: ...
    async def enter(self, place: int | None) -> Entry | None:
        """Enter every gate, waiting where one has to. With a place, `leave_place` finds the entry there; else it is
        returned.
        """
        call = Call(None, None)
        held: Held = []
        gates = self._gates or self._no_gates()
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
        loop = loop_here()
        entry = held, announced, runner_id() if loop is None else id(task_of(loop))
        if place is None:
            return entry
        if self._open.setdefault(place, entry) is not entry:
            self._nest(place, entry)
        return None

    def enter_blocking(self, place: int | None) -> Entry | None:
        """`enter` for a block of sync code; waiting blocks the thread."""
        call = Call(None, None)
        held: Held = []
        gates = self._gates or self._no_gates()
        if self._interrupting is not None:
            msg = f"{self._interrupting} cannot guard a sync block: nothing can interrupt it. Use 'async with'"
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
        loop = loop_here()
        entry = held, announced, runner_id() if loop is None else id(task_of(loop))
        if place is None:
            return entry
        if self._open.setdefault(place, entry) is not entry:
            self._nest(place, entry)
        return None

    def leave_place(self, place: int, exc: BaseException | None) -> None:
        """Leave the block that was entered at `place`."""
        entry = None if self._more else self._open.pop(place, None)
        self.leave(self._find(place) if entry is None else entry, exc)

    async def leave_place_async(self, place: int, exc: BaseException | None) -> None:
        """`leave_place` for ``async with``, which awaits it."""
        entry = None if self._more else self._open.pop(place, None)
        self.leave(self._find(place) if entry is None else entry, exc)

    def leave(self, entry: Entry, exc: BaseException | None) -> None:
        """Settle every gate with how the block ended; raises in place of `exc` where a gate knows better."""
        held, announced, _ = entry
        if exc is None:
            drive.finish(held)
            if self._interrupting is not None:
                deadline.tidy()
            if announced is not None:
                announced.end(SUCCESS)
            return
        truth = drive.leave(held, exc, self._verdict)
        if self._interrupting is not None:
            deadline.tidy()
        if announced is not None:
            announced.end(drive.judger(self._verdict)(truth))
        try:
            if truth is not exc:
                raise truth from exc
        finally:
            del truth, exc

    def _no_gates(self) -> list[Gate]:
        for layer in self._layers:
            if not isinstance(layer, Gate):
                msg = f"{layer.name} cannot guard a block, only a function: a block's code can run only once"
                raise TypeError(msg)
        return []

    def _nest(self, place: int, entry: Entry) -> None:
        with self._lock:
            self._more[id(entry)] = place, entry

    def _find(self, place: int) -> Entry:
        # Newest first. An entry may be gone by the time that it is to be taken, to a finaliser that ran in between.
        with self._lock:
            while True:
                more = list(self._more.values())
                here = next((entry for at, entry in reversed(more) if at == place), None)
                if here is None and place in self._open:
                    here = self._open[place]
                if here is None:
                    place, here = self._without_place(more)
                if self._take(place, here):
                    return here

    def _take(self, place: int, entry: Entry) -> bool:
        if self._more.pop(id(entry), None) is not None:
            return True
        found = self._open.pop(place, None)
        if found is None or found is entry:
            return found is not None
        if self._open.setdefault(place, found) is not found:
            self._more[id(found)] = place, found
        return False

    def _without_place(self, more: list[tuple[int, Entry]]) -> tuple[int, Entry]:
        # No frame that is left here has opened one: its two ends are in two functions.
        entries = [*self._open.items(), *more]
        if not entries:
            msg = f"{self}: a block is left that was not entered, or was left already"
            raise RuntimeError(msg)
        runner = runner_id()
        return next(((at, entry) for at, entry in reversed(entries) if entry[2] == runner), entries[0])


class Block:
    """One guarded block: ``async with guard.block():`` or ``with guard.block():``.

    ``async with guard:`` makes one itself. Make it by hand where the two ends are in two functions, of a class with
    an `__aenter__` and an `__aexit__` of its own say: what is left is then what was entered, whatever else is open.
    """

    __slots__ = ("_blocks", "_entry")

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._entry: Entry | None = None

    async def __aenter__(self) -> None:
        """Enter every gate, waiting where one has to."""
        self._check()
        self._entry = await self._blocks.enter(None)

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """Settle every gate with what came of the block."""
        self._leave(exc)

    def __enter__(self) -> None:
        """`__aenter__` for sync code; waiting blocks the thread."""
        self._check()
        self._entry = self._blocks.enter_blocking(None)

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """`__aexit__` for sync code."""
        self._leave(exc)

    def _check(self) -> None:
        if self._entry is not None:
            msg = f"{self._blocks}: this block is open; make one for each use with block()"
            raise RuntimeError(msg)

    def _leave(self, exc: BaseException | None) -> None:
        entry, self._entry = self._entry, None
        if entry is None:
            msg = f"{self._blocks}: this block is not open"
            raise RuntimeError(msg)
        self._blocks.leave(entry, exc)


__all__ = ["CONTEXTLIB", "Block", "Blocks", "place_of"]
