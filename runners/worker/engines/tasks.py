"""`async def` functions and async generators: calls run concurrently, as tasks of one event loop.

The loop runs within steps: each step goes on until a call has ended, an item is made, or there is something to read
from the parent. While there is no call at all the loop runs too, until there is something to read, so that what a
function has left running (a connection pool, a task of its own) goes on.

A stream is one task for all of it: time limits and cancel scopes that it opens belong to the task they are opened in.
One without credit (its reader has not taken what it was sent) waits between two items until there is `more`.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import msgspec

from runners.protocol.messages import ErrorInfo
from runners.protocol.parts import Payload
from runners.protocol.values import pack
from runners.worker import tracing
from runners.worker.engines.arguments import Unreadable, arguments, unsendable_item, unsendable_result
from runners.worker.engines.base import CANCELLED, EXPIRED, EngineError, Job, Replies, Running, exception_info

_NOTHING = msgspec.msgpack.encode(None)
_Answer = ErrorInfo | tuple[bytes, Payload]


class _Call:
    """One call that has begun."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.credit = job.window
        self.left = False
        self.go_on: asyncio.Future[None] | None = None  # while it waits for credit

    @property
    def paused(self) -> bool:
        return self.go_on is not None and not self.go_on.done() and not self.left

    async def wait_for_credit(self) -> None:
        while self.credit <= 0:
            self.go_on = asyncio.get_running_loop().create_future()
            try:
                await self.go_on
            finally:
                self.go_on = None

    def more(self, count: int) -> None:
        self.credit += count
        if self.credit > 0 and self.go_on is not None and not self.go_on.done():
            self.go_on.set_result(None)


class Tasks:
    """The calls of a worker whose function is asynchronous.

    Args:
        path: of the function, for messages.
        function: returns an awaitable or, with `streams`, an async generator.
        loop: the worker's event loop; nothing else runs it.
        concurrency: calls that run at once.
    """

    def __init__(
        self,
        path: str,
        function: Callable[..., Any],
        loop: asyncio.AbstractEventLoop,
        *,
        concurrency: int,
        streams: bool,
    ) -> None:
        self._path = path
        self._function = function
        self._loop = loop
        self._concurrency = concurrency
        self._live = self._stream if streams else self._call
        self._waiting: deque[Job] = deque()
        self._calls: dict[int, _Call] = {}
        self._tasks: dict[int, asyncio.Task[_Answer]] = {}
        self._replies: Replies
        self._moved = False

    def listen(self, fd: int) -> None:
        """End the loop's turn when there is something to read."""
        self._loop.add_reader(fd, self._loop.stop)

    def submit(self, job: Job) -> None:
        """Queue a call."""
        self._waiting.append(job)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a call that waits; cancel the task of one that has begun."""
        call = self._calls.get(job_id)
        if call is not None:
            call.left = True
            self._tasks[job_id].cancel()
            return
        dropped = [job for job in self._waiting if job.id == job_id]
        for job in dropped:
            self._waiting.remove(job)
            replies.dropped(job) if job is not dropped[-1] else replies.failed(job, CANCELLED)

    def more(self, job_id: int, count: int) -> None:
        """Let a stream go on."""
        call = self._calls.get(job_id)
        if call is not None:
            call.more(count)

    def wait(self) -> None:
        """Let the loop run until there is something to read, or a call that waited for its reader has ended."""
        self._run_loop()

    def step(self, replies: Replies, running: Running) -> bool:
        """Begin what may begin, and let the loop run until something has come of it, or there is something to read."""
        self._replies = replies
        worked = self._begin(running)
        active = [number for number, call in self._calls.items() if not call.paused]
        if not active:
            return worked
        running.begin(active)
        self._moved = False
        self._run_loop()
        if self._moved:
            running.end()
        return True

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        except BaseException:
            # SystemExit or KeyboardInterrupt in a task that the function started: those leave the loop.
            sys.stderr.write(f"an exception in a task that {self._path} started:\n{traceback.format_exc()}")

    def _begin(self, running: Running) -> bool:
        worked = False
        while self._waiting and len(self._calls) < self._concurrency:
            job = self._waiting.popleft()
            worked = True
            if not running.claim(job):
                continue
            if job.expired:
                self._replies.failed(job, EXPIRED)
                continue
            call = self._calls[job.id] = _Call(job)
            task = self._tasks[job.id] = self._loop.create_task(self._live(call))
            task.add_done_callback(partial(self._ended, call))
        return worked

    def _ended(self, call: _Call, task: asyncio.Task[_Answer]) -> None:
        del self._calls[call.job.id], self._tasks[call.job.id]
        if call.left or task.cancelled():
            answer: _Answer = CANCELLED
        else:
            failure = task.exception()
            answer = task.result() if failure is None else exception_info(failure)
        if isinstance(answer, ErrorInfo):
            self._replies.failed(call.job, answer)
        else:
            self._replies.done(call.job, *answer)
        self._stop()

    def _stop(self) -> None:
        self._moved = True
        self._loop.stop()

    # In a task

    async def _call(self, call: _Call) -> _Answer:
        try:
            args, kwargs, carriers = arguments(call.job)
        except Unreadable as error:
            return error.info
        tracing.attach(carriers)  # in this task's own context
        try:
            result = await self._function(*args, **kwargs)
        except BaseException as error:  # also SystemExit: no reason to end the worker under its other callers
            return exception_info(error, skip=1)
        try:
            return pack(result)
        except BaseException as error:
            return unsendable_result(self._path, error)

    async def _stream(self, call: _Call) -> _Answer:
        try:
            args, kwargs, carriers = arguments(call.job)
        except Unreadable as error:
            return error.info
        tracing.attach(carriers)
        generator: AsyncGenerator[Any, None] | None = None
        try:
            generator = self._function(*args, **kwargs)
            async for item in generator:
                failure = self._send(call, item)
                if failure is not None:
                    break
                await call.wait_for_credit()
            else:
                return _NOTHING, b""
        except BaseException as error:  # as above
            failure = exception_info(error, skip=1)
        await self._close(generator)
        return failure

    def _send(self, call: _Call, item: Any) -> ErrorInfo | None:
        try:
            body, payload = pack(item)
        except BaseException as error:
            return unsendable_item(self._path, error)
        try:
            self._replies.item(call.job, body, payload)
        except EngineError as error:
            return error.info()
        call.credit -= 1
        self._stop()
        return None

    async def _close(self, generator: AsyncGenerator[Any, None] | None) -> None:
        if generator is None:
            return
        try:
            await generator.aclose()
        except BaseException:  # there is no caller for it
            sys.stderr.write(f"an exception while a stream was being closed:\n{traceback.format_exc()}")
