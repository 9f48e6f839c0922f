"""Generator functions: each call is a stream, and all that are open are advanced in turns, one item a step.

A stream without credit (its reader has not taken what it was sent) is paused: it has no turn until there is `more`. One
whose reader has left is closed in the next step, so that its `finally` blocks run as code of its own, watched like any.

An async generator lives in one task of the worker's event loop, which goes on only in the steps of that stream.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol

import msgspec

from runners.protocol.messages import ErrorInfo
from runners.protocol.values import UnsendableError, pack, unpack
from runners.worker.engines.base import CANCELLED, EXPIRED, EngineError, Job, Replies, Running, exception_info

_END = object()
_NOTHING = msgspec.msgpack.encode(None)


class GeneratorFailed(Exception):
    """The generator raised. `info` is its exception's."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class _Items(Protocol):
    """A generator of either kind."""

    def next(self) -> Any:
        """The next item, or `_END`. Raises `GeneratorFailed`."""

    def close(self) -> None:
        """Have it end where it stands. Whatever it raises then goes to standard error: nobody waits for it."""


class _SyncItems:
    def __init__(self, generator: Generator[Any, None, Any]) -> None:
        self._generator = generator

    def next(self) -> Any:
        try:
            return next(self._generator, _END)
        except BaseException as error:  # also SystemExit: no reason to end the worker under its other callers
            raise GeneratorFailed(exception_info(error, skip=1)) from error

    def close(self) -> None:
        try:
            self._generator.close()
        except BaseException:
            _report()


class _AsyncItems:
    def __init__(self, generator: AsyncGenerator[Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._generator = generator
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._go_on: asyncio.Future[None]
        self._came: asyncio.Future[tuple[Any, ErrorInfo | None]]

    def next(self) -> Any:
        self._came = self._loop.create_future()
        if self._task is None:
            self._task = self._loop.create_task(self._live())
        else:
            self._go_on.set_result(None)
        try:
            item, error = self._loop.run_until_complete(self._came)
        except BaseException as error:  # SystemExit in a task that the generator started
            self.close()
            raise GeneratorFailed(exception_info(error)) from error
        if error is not None:
            raise GeneratorFailed(error)
        return item

    async def _live(self) -> None:
        # One task for all of it: time limits and cancel scopes that it opens belong to the task they are opened in.
        try:
            async for item in self._generator:
                self._go_on = self._loop.create_future()
                self._came.set_result((item, None))
                await self._go_on
        except BaseException as error:  # as above
            if self._came.done():  # it is being closed
                await self._generator.aclose()
            else:
                self._came.set_result((None, exception_info(error, skip=1)))
        else:
            self._came.set_result((_END, None))

    def close(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException:
            _report()


def _report() -> None:
    sys.stderr.write(f"an exception while a stream was being closed:\n{traceback.format_exc()}")


class _Stream:
    """One call."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.credit = job.window
        self.items: _Items | None = None
        self.left = False


class Streams:
    """The open streams of a worker.

    Args:
        path: of the function, for messages.
        function: returns a generator or an async generator.
        loop: gives the event loop that async generators run on.
    """

    def __init__(self, path: str, function: Callable[..., Any], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._path = path
        self._function = function
        self._loop = loop
        self._streams: dict[int, _Stream] = {}
        self._turns: deque[_Stream] = deque()

    def submit(self, job: Job) -> None:
        """Queue a call; it begins at its first turn."""
        stream = self._streams[job.id] = _Stream(job)
        self._turns.append(stream)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a call that has not begun; have one that has closed in the next step."""
        stream = self._streams.get(job_id)
        if stream is None or stream.left:
            return
        if stream in self._turns:
            self._turns.remove(stream)
        if stream.items is None:
            self._end(stream)
            replies.failed(stream.job, CANCELLED)
        else:
            stream.left = True
            self._turns.appendleft(stream)

    def more(self, job_id: int, count: int) -> None:
        """Let a stream go on."""
        stream = self._streams.get(job_id)
        if stream is None:
            return
        if stream.credit == 0 and count > 0 and not stream.left:
            self._turns.append(stream)
        stream.credit += count

    def step(self, replies: Replies, running: Running) -> bool:
        """One item of the stream whose turn it is."""
        if not self._turns:
            return False
        stream = self._turns.popleft()
        if stream.items is None and stream.job.expired:
            self._end(stream)
            replies.failed(stream.job, EXPIRED)
            return True
        running.begin([stream.job.id])
        try:
            if stream.left:
                self._leave(stream, replies, CANCELLED)
            else:
                self._advance(stream, replies)
        finally:
            running.end()
        return True

    def _advance(self, stream: _Stream, replies: Replies) -> None:
        try:
            if stream.items is None:
                stream.items = self._begin(stream.job)
            item = stream.items.next()
        except GeneratorFailed as error:
            self._end(stream)
            replies.failed(stream.job, error.info)
            return
        if item is _END:
            self._end(stream)
            replies.done(stream.job, _NOTHING)
            return
        try:
            replies.item(stream.job, *pack(item))
        except UnsendableError as error:
            message = f"an item of {self._path} cannot be sent back: {error}; yield plain data or numpy arrays"
            self._leave(stream, replies, ErrorInfo(kind="unsendable", message=message))
        except EngineError as error:
            self._leave(stream, replies, error.info())
        else:
            stream.credit -= 1
            if stream.credit > 0:
                self._turns.append(stream)

    def _begin(self, job: Job) -> _Items:
        try:
            args, kwargs = unpack(job.body, job.payload)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            message = f"the arguments cannot be read: {error}"
            raise GeneratorFailed(ErrorInfo(kind="input", message=message)) from error
        try:
            generator = self._function(*args, **kwargs)
        except BaseException as error:  # arguments that do not fit
            raise GeneratorFailed(exception_info(error, skip=1)) from error
        if isinstance(generator, AsyncGenerator):
            return _AsyncItems(generator, self._loop())
        return _SyncItems(generator)

    def _leave(self, stream: _Stream, replies: Replies, error: ErrorInfo) -> None:
        self._end(stream)
        if stream.items is not None:
            stream.items.close()
        replies.failed(stream.job, error)

    def _end(self, stream: _Stream) -> None:
        del self._streams[stream.job.id]
