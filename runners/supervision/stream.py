"""A streamed answer, in the parent: the request that gathers its items, and the end that its one reader holds.

::

    worker ── Item, Item ──▶ StreamRequest.buffer ──▶ Stream ──▶ reader
           ◀──── More ───────────────────────────────┘ as items are taken

At most `window` items are on the way: in the worker's socket or in the buffer. So a reader that is slow, or reads no
more, stops its own request in the worker and nothing else, and costs bounded memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Protocol, Self

import msgspec

from runners.protocol.parts import SLICE, Incoming, Payload
from runners.supervision.report import Report
from runners.supervision.request import Answer, Request


class StreamRequest(Request):
    """A request whose answer comes in items, in order, before its future resolves.

    Attributes:
        window: items that may be on the way.
        buffer: those that came and were not taken.
        allowed: items that the worker may have sent in all by now.
        received: those that it has sent.
        taken: those that the reader has; from the first one on the request is not run again.
    """

    __slots__ = ("_waiter", "allowed", "buffer", "received", "taken", "window")

    def __init__(
        self,
        number: int,
        body: bytes,
        payload: Payload,
        *,
        deadline: float | None,
        redeliver: bool,
        future: asyncio.Future[Answer],
        window: int,
    ) -> None:
        super().__init__(number, body, payload, deadline=deadline, redeliver=redeliver, future=future)
        self.window = window
        self.buffer: deque[Answer] = deque()
        self.allowed = window
        self.received = 0
        self.taken = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether its present worker has sent an item."""
        return self.received > 0

    @property
    def paused(self) -> bool:
        """Whether the worker has sent all that it may. Not once the reader has left: then it is to end the stream."""
        return self.received >= self.allowed and self.waited_for

    def item(self, body: msgspec.Raw, payload: Incoming) -> bool:
        """Keep an item for the reader, if there is one still. False if the worker may not have sent it."""
        if self.received >= self.allowed:
            return False
        self.received += 1
        if self.waited_for:
            # Copied unless large: it may be a small part of what was read from the socket at once, and would keep all.
            if isinstance(payload, memoryview) and 0 < len(payload) <= SLICE:
                payload = memoryview(bytes(payload))
            self.buffer.append((body.copy(), payload))
            self._wake()
        return True

    def again(self) -> None:
        """The next worker begins from the start; what came from the last one was not seen by anybody."""
        self.buffer.clear()
        self.allowed = self.window
        self.received = 0

    def answer(self, body: msgspec.Raw, payload: Incoming) -> None:
        """The end."""
        super().answer(body, payload)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """It ends with this, after the items that came before."""
        super().fail(error)
        self._wake()

    def abandon(self, now: float) -> None:
        """The reader has left."""
        super().abandon(now)
        self.buffer.clear()

    async def wait(self) -> None:
        """Until there is an item, or the end."""
        self._waiter = self.future.get_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Source(Protocol):
    """The dispatcher, as a reader sees it."""

    def more(self, request: StreamRequest, count: int) -> None:
        """So many items were taken."""
        ...

    def withdraw(self, request: Request) -> None:
        """The reader has left."""
        ...


class Stream:
    """The reader's end: an async iterator of items, and a block that cancels what is left when it ends.

    Args:
        request: what is read.
        source: the dispatcher.
        report: of the request, if anybody listens: it ends with the block.

    Attributes:
        answer: what the stream ended with, after its last item; None before.
    """

    def __init__(self, request: StreamRequest, source: Source, report: Report | None = None) -> None:
        self.answer: Answer | None = None
        self._request = request
        self._source = source
        self._untold = 0  # items taken that the worker does not know of
        self._batch = max(1, request.window // 2)
        self._closed = False
        self._report = report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close(exc)

    def close(self, why: BaseException | None = None) -> None:
        """Read no more. A request that has not ended is cancelled, because of `why`. Again, it does nothing."""
        if not self._closed:
            self._closed = True
            self._source.withdraw(self._request)
            report, self._report = self._report, None
            if report is not None:
                self._tell(report, why)

    def _tell(self, report: Report, why: BaseException | None) -> None:
        future = self._request.future
        if not future.cancelled():
            # What it came to in the worker, also for a reader that had left before it had seen that.
            error = future.exception()
            if error is not None:
                report.failed(error)
            else:
                report.end("answered", answer=future.result())
        elif why is None or isinstance(why, GeneratorExit):
            report.end("cancelled")  # nobody got an error
        else:
            report.end("cancelled", type(why).__name__)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        """The next item.

        Raises:
            Exception: what the request failed with, after the items that came before it.
        """
        request = self._request
        while not request.buffer:
            if self._closed:
                raise StopAsyncIteration
            if request.future.done():
                self.answer = request.future.result()
                raise StopAsyncIteration
            await request.wait()
        item = request.buffer.popleft()
        request.taken += 1
        if self._report is not None:
            self._report.item()
        self._untold += 1
        if self._untold >= self._batch and not request.future.done():
            self._source.more(request, self._untold)
            self._untold = 0
        return item


__all__ = ["Stream", "StreamRequest"]
