"""Generator functions: each call is a stream, and all that are open are advanced in turns, one item a step.

A stream without credit (its reader has not taken what it was sent) is paused: it has no turn until there is `more`. One
whose reader has left is closed in the next step, so that its `finally` blocks run as code of its own, watched like any.
Async generators run concurrently: see `runners.worker.engines.tasks`.
"""

from __future__ import annotations

import contextvars
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from runners.protocol.messages import ErrorInfo
from runners.protocol.values import pack
from runners.worker import tracing
from runners.worker.engines.arguments import Unreadable, arguments, unsendable_item
from runners.worker.engines.base import CANCELLED, EXPIRED, EngineError, Job, Replies, Running, exception_info

_END = object()
_NOTHING = msgspec.msgpack.encode(None)


class GeneratorFailed(Exception):
    """The generator raised. `info` is its exception's."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class _Items:
    """A generator, in a context of its own: what it sets is not seen by other streams."""

    def __init__(self, function: Callable[..., Generator[Any, None, Any]], job: Job) -> None:
        args, kwargs, carriers = arguments(job)
        self._context = contextvars.copy_context()
        self._context.run(tracing.attach, carriers)
        try:
            self._generator = self._context.run(function, *args, **kwargs)
        except BaseException as error:  # arguments that do not fit
            raise GeneratorFailed(exception_info(error, skip=1)) from error

    def next(self) -> Any:
        """The next item, or `_END`. Raises `GeneratorFailed`."""
        try:
            return self._context.run(next, self._generator, _END)
        except BaseException as error:  # also SystemExit: no reason to end the worker under its other callers
            raise GeneratorFailed(exception_info(error, skip=1)) from error

    def close(self) -> None:
        """Have it end where it stands. Whatever it raises then goes to standard error: there is no caller for it."""
        try:
            self._context.run(self._generator.close)
        except BaseException:
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
        function: returns a generator.
    """

    def __init__(self, path: str, function: Callable[..., Any]) -> None:
        self._path = path
        self._function = function
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
        if not running.claim(stream.job):
            self._end(stream)
            return True
        if stream.items is None and stream.job.expired:
            self._end(stream)
            replies.failed(stream.job, EXPIRED)
            return True
        running.begin([stream.job.id])
        if stream.left:
            self._leave(stream, replies, CANCELLED)
        else:
            self._advance(stream, replies)
        running.end()
        return True

    def _advance(self, stream: _Stream, replies: Replies) -> None:
        try:
            if stream.items is None:
                stream.items = _Items(self._function, stream.job)
            item = stream.items.next()
        except (GeneratorFailed, Unreadable) as error:
            self._end(stream)
            replies.failed(stream.job, error.info)
            return
        if item is _END:
            self._end(stream)
            replies.done(stream.job, _NOTHING)
            return
        try:
            body, payload = pack(item)
        except BaseException as error:
            self._leave(stream, replies, unsendable_item(self._path, error))
            return
        try:
            replies.item(stream.job, body, payload)
        except EngineError as error:
            self._leave(stream, replies, error.info())
        else:
            stream.credit -= 1
            if stream.credit > 0:
                self._turns.append(stream)

    def _leave(self, stream: _Stream, replies: Replies, error: ErrorInfo) -> None:
        self._end(stream)
        if stream.items is not None:
            stream.items.close()
        replies.failed(stream.job, error)

    def _end(self, stream: _Stream) -> None:
        if self._streams.get(stream.job.id) is stream:  # one that was taken back may have come again
            del self._streams[stream.job.id]
