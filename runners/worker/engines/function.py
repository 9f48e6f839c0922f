"""Runs any importable function: plain ones one call after the other on the worker's main thread, generator functions in
turns, `async def` functions and async generators concurrently on one event loop.

A running sync call cannot be interrupted from here: the parent kills the worker if a call that has no caller left does
not end by itself.

Options: ``function``, as ``"module:name"`` or ``"module:Class.method"``; of a class whose instances can be called, one
is made here. ``concurrency``: calls that an asynchronous function runs at once. ``initializer``: ``"module:name"``,
called once before anything else.
"""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from runners.protocol.messages import stream_mismatch
from runners.protocol.values import pack
from runners.worker import tracing
from runners.worker.engines.arguments import Unreadable, arguments, unsendable_result
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
    from runners.worker.engines.tasks import Tasks

#: Calls that an asynchronous function runs at once, and generators that are open at once.
_CONCURRENCY = 16
#: Calls that wait here, while they are very short, behind the one that runs.
_AHEAD = 15


class FunctionEngine(StepEngine):
    """One function of the caller's."""

    recallable = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._path: str = options["function"]
        self._concurrency: int | None = options.get("concurrency")
        self._initializer: str | None = options.get("initializer")
        self._function: Callable[..., Any]
        self._jobs: deque[Job] = deque()
        self._loop: asyncio.Runner | None = None
        self._others: Streams | Tasks | None = None  # what runs a function that is not a plain one
        self._tasks: Tasks | None = None  # the same, if it is asynchronous
        self._streams = False

    def load(self) -> dict[str, Any]:
        """Run the initializer, import the function, and make its object if it is a class."""
        if self._initializer is not None:
            self._once(_import(self._initializer), self._initializer)
        function = _import(self._path)
        if inspect.isclass(function) and any("__call__" in vars(base) for base in function.__mro__):
            function = self._once(function, self._path)
        self._function = function
        called = (function, function if inspect.isroutine(function) else type(function).__call__)
        coroutine = any(inspect.iscoroutinefunction(each) for each in called)
        async_streams = any(inspect.isasyncgenfunction(each) for each in called)
        sync_streams = any(inspect.isgeneratorfunction(each) for each in called)
        self._streams = async_streams or sync_streams
        if coroutine or async_streams:
            from runners.worker.engines.tasks import Tasks  # noqa: PLC0415 - only what runs is loaded

            self._run(_nothing())  # warm, as the first call will find it
            self.capacity = self._concurrency or _CONCURRENCY
            loop = self._runner().get_loop()
            self._others = self._tasks = Tasks(
                self._path, function, loop, concurrency=self.capacity, streams=async_streams
            )
        elif sync_streams:
            from runners.worker.engines.generators import Streams  # noqa: PLC0415

            self.capacity = self._concurrency or _CONCURRENCY
            self._others = Streams(self._path, function)
        elif self._concurrency not in (None, 1):
            message = (
                f"concurrency={self._concurrency}: {self._path!r} is a plain function, which runs one call at a time; "
                "make it an 'async def' function, or raise workers="
            )
            raise EngineError("bad_option", message)
        else:
            self.ahead = _AHEAD
        return {"function": self._path, "streams": self._streams}

    def _once(self, function: Callable[[], Any], path: str) -> Any:
        try:
            result = function()
            return self._run(result) if inspect.iscoroutine(result) else result
        except BaseException as error:  # also SystemExit: why it could not be loaded must arrive
            info = exception_info(error)
            raise EngineError("initializer", f"{path} raised {info.type}: {info.message}") from error

    def listen(self, fd: int) -> None:
        """Let the event loop, if there is one, wait for the parent too."""
        if self._tasks is not None:
            self._tasks.listen(fd)

    def wait(self) -> bool:
        """Let the event loop, if there is one, run until there is something to read or to send."""
        if self._tasks is None:
            return False
        self._tasks.wait()
        return True

    def close(self) -> None:
        """End what is left on the event loop."""
        if self._loop is not None:
            self._loop.close()

    def submit(self, job: Job) -> None:
        """Queue a call."""
        if self._streams != (job.window > 0):
            raise EngineError("stream_mismatch", stream_mismatch(self._path, streams=self._streams))
        if self._others is not None:
            self._others.submit(job)
        else:
            self._jobs.append(job)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a call that waits; cancel a task; close a generator."""
        if self._others is not None:
            self._others.cancel(job_id, replies)
            return
        dropped = [job for job in self._jobs if job.id == job_id]  # two, if it was taken back and came again
        for job in dropped:
            self._jobs.remove(job)
        if dropped:
            replies.failed(dropped[-1], CANCELLED)

    def more(self, job_id: int, count: int) -> None:
        """Let a generator go on."""
        if self._others is not None:
            self._others.more(job_id, count)

    def step(self, replies: Replies, running: Running) -> bool:
        """Make one call, or let generators or tasks go on."""
        if self._others is not None:
            return self._others.step(replies, running)
        if not self._jobs:
            return False
        job = self._jobs.popleft()
        if not running.claim(job):
            return True
        if job.expired:
            replies.failed(job, EXPIRED)
            return True
        running.begin([job.id])
        self._call(job, replies)
        running.end()
        return True

    def _call(self, job: Job, replies: Replies) -> None:
        try:
            args, kwargs, carriers = arguments(job)
        except Unreadable as error:
            replies.failed(job, error.info)
            return
        token = tracing.attach(carriers) if carriers else None
        try:
            result = self._function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = self._run(result)
        except (
            BaseException
        ) as error:  # also SystemExit: the function's, and no reason to end the worker under its other callers
            replies.failed(job, exception_info(error, skip=1))
            return
        finally:
            if token is not None:
                tracing.detach(token)
        try:
            body, payload = pack(result)
        except BaseException as error:  # whatever its own methods raise, a time zone's for one
            replies.failed(job, unsendable_result(self._path, error))
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
