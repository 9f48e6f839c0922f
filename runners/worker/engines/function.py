"""Runs any importable function, one call after the other, on the worker's main thread; generator functions in turns.

An `async def` function runs on one event loop of the worker's, one call at a time too. A running sync call cannot be
interrupted from here: the parent kills the worker if a call that nobody waits for any more does not end by itself.

Options: ``function``, as ``"module:name"`` or ``"module:Class.method"``.
"""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from runners.protocol.messages import ErrorInfo, stream_mismatch
from runners.protocol.values import UnsendableError, pack, unpack
from runners.worker.engines.base import (
    CANCELLED,
    EXPIRED,
    EngineError,
    Job,
    Replies,
    Running,
    StepEngine,
    exception_info,
)

if TYPE_CHECKING:
    import asyncio

    from runners.worker.engines.generators import Streams


_IS_GENERATOR = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class FunctionEngine(StepEngine):
    """One function of the caller's."""

    capacity = 16

    def __init__(self, options: dict[str, Any]) -> None:
        self._path: str = options["function"]
        self._function: Callable[..., Any]
        self._jobs: deque[Job] = deque()
        self._loop: asyncio.Runner | None = None
        self._streams: Streams | None = None  # of a generator function

    def load(self) -> dict[str, Any]:
        """Import the function."""
        self._function = _import(self._path)
        called = self._function if inspect.isroutine(self._function) else type(self._function).__call__
        if inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(called):
            self._run(_nothing())  # warm, as the first call will find it
        if any(test(each) for test in _IS_GENERATOR for each in (self._function, called)):
            from runners.worker.engines.generators import Streams  # noqa: PLC0415 - only what runs is loaded

            self._streams = Streams(self._path, self._function, lambda: self._runner().get_loop())
        return {"function": self._path, "streams": self._streams is not None}

    def submit(self, job: Job) -> None:
        """Queue a call."""
        if (self._streams is not None) != (job.window > 0):
            raise EngineError("stream_mismatch", stream_mismatch(self._path, streams=self._streams is not None))
        if self._streams is not None:
            self._streams.submit(job)
        else:
            self._jobs.append(job)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a call that waits; close a generator."""
        if self._streams is not None:
            self._streams.cancel(job_id, replies)
        for job in self._jobs:
            if job.id == job_id:
                self._jobs.remove(job)
                replies.failed(job, CANCELLED)
                return

    def more(self, job_id: int, count: int) -> None:
        """Let a generator go on."""
        if self._streams is not None:
            self._streams.more(job_id, count)

    def step(self, replies: Replies, running: Running) -> bool:
        """Make one call, or fetch one item of a generator."""
        if self._streams is not None:
            return self._streams.step(replies, running)
        if not self._jobs:
            return False
        job = self._jobs.popleft()
        if job.expired:
            replies.failed(job, EXPIRED)
            return True
        running.begin([job.id])
        try:
            self._call(job, replies)
        finally:
            running.end()
        return True

    def _call(self, job: Job, replies: Replies) -> None:
        try:
            args, kwargs = unpack(job.body, job.payload)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            replies.failed(job, ErrorInfo(kind="input", message=f"the arguments cannot be read: {error}"))
            return
        try:
            result = self._function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = self._run(result)
        except (
            BaseException
        ) as error:  # also SystemExit: the function's, and no reason to end the worker under its other callers
            replies.failed(job, exception_info(error, skip=1))
            return
        try:
            body, payload = pack(result)
        except UnsendableError as error:
            message = f"the result of {self._path} cannot be sent back: {error}; return plain data or numpy arrays"
            replies.failed(job, ErrorInfo(kind="unsendable", message=message))
            return
        replies.done(job, body, payload)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner().run(coroutine)

    def _runner(self) -> asyncio.Runner:
        if self._loop is None:
            import asyncio  # noqa: PLC0415 - a worker for a sync function does without it

            self._loop = asyncio.Runner()
        return self._loop


async def _nothing() -> None:
    pass


def _import(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            message = f"importing {module_name!r} failed: it needs {error.name!r}, which is not installed in the worker"
        else:
            message = (
                f"there is no module {module_name!r} for {path!r}: it must be importable from the runner's sys.path"
            )
        raise EngineError("function_not_found", message) from error
    except (Exception, SystemExit) as error:  # a script that ends itself when it is imported
        message = f"importing {module_name!r} failed: {type(error).__name__}: {error}"
        raise EngineError("function_not_found", message) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            message = f"module {module_name!r} has no {attribute!r}; write it as 'module:function'"
            raise EngineError("function_not_found", message) from None
    if not callable(found):
        raise EngineError("function_not_found", f"{path!r} is a {type(found).__name__} and cannot be called")
    return found  # type: ignore[no-any-return]
