"""An async generator in a task of its own, for a reader in another task.

Each step that the reader asks for runs there, so that time limits, cancel scopes and context variables of the generator
belong to one task from its first item to its end, and a reader can wait for several generators at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import anyio

from guardrails.core.background import Home
from guardrails.core.outcome import is_cancellation


class StreamTask:
    """One generator. All of it is used on the thread of its event loop.

    Args:
        make: gives the generator; called in the task.
        came: called when the first step has ended: with an item, at the end, or in an error.

    Attributes:
        item: the last one that came.
        ended: whether the generator has no further item.
        error: what it ended with, if it did not end well. The code that raises it sets it to None: its traceback
            holds this.
    """

    __slots__ = (
        *("_came", "_cancel", "_done", "_given", "_go", "_make", "_parked", "_stopping", "_throw"),
        *("ended", "error", "item"),
    )

    def __init__(self, make: Callable[[], AsyncGenerator[Any, Any]], came: Callable[[], object]) -> None:
        self._make = make
        self._came = came
        self._go = anyio.Event()
        self._done = anyio.Event()
        self._given: Any = None
        self._throw = False
        self._parked = False  # between two steps
        self._stopping = False
        self.item: Any = None
        self.ended = False
        self.error: BaseException | None = None
        self._cancel: Callable[[], None]

    def start(self) -> None:
        """Begin the first step."""
        self._cancel = Home().start(self._run, self._over)

    async def step(self, given: Any, *, throw: bool) -> None:
        """Have it go on with what the reader has sent, or thrown in. Returns when the step has ended."""
        came = anyio.Event()
        self._came = came.set
        self._given, self._throw = given, throw
        self._go.set()
        await came.wait()

    def halt(self) -> None:
        """Begin to end it: cancelled where it is in the middle of a step, else closed."""
        self._stopping = True
        if self._parked:
            self._go.set()
        else:
            self.cancel()

    def cancel(self) -> None:
        """Cancel its task, wherever it is."""
        self._cancel()

    async def gone(self) -> None:
        """Wait until it has ended."""
        if not self._done.is_set():
            await self._done.wait()

    async def _run(self) -> None:
        source = self._make()
        step: Callable[[Any], Awaitable[Any]] = source.asend
        try:
            while True:
                self.item = await step(self._given)
                if self._stopping:
                    return  # it has taken its cancellation for something else
                self._parked = True
                self._tell()
                await self._go.wait()
                if self._stopping:
                    return
                self._parked = False
                self._go = anyio.Event()
                step = source.athrow if self._throw else source.asend
        except StopAsyncIteration:
            self.ended = True
        except BaseException as exc:
            self.error = exc
            if is_cancellation(exc):
                raise  # the loop's own, which the task has to end with
        finally:
            try:
                await source.aclose()
            except Exception as exc:  # the reader's to see, as from a generator of its own
                self.error = exc

    def _over(self) -> None:
        # The task has ended, perhaps before its first step.
        if not self.ended and self.error is None and not self._stopping:
            self.error = asyncio.CancelledError()
        self._given = None
        self._done.set()
        self._tell()

    def _tell(self) -> None:
        came, self._came = self._came, _nothing
        came()


async def end(streams: Sequence[StreamTask]) -> None:
    """End them all, and wait for that. Where the reader is cancelled meanwhile, so are they."""
    for stream in streams:
        stream.halt()
    try:
        for stream in streams:
            await stream.gone()
    except BaseException:
        for stream in streams:
            stream.cancel()
        with anyio.CancelScope(shield=True):
            for stream in streams:
                await stream.gone()
        raise


def _nothing() -> None:
    pass


__all__ = ["StreamTask", "end"]
