"""The interface between the worker and what it runs.

A `StepEngine` works in steps on the worker's main thread: between two steps the worker reads what has come (new
requests, cancellations), within one it does nothing else. One step is one function call, or one pass of a model.

::

    load ─▶ submit, submit, cancel ─▶ step ─▶ submit ─▶ step ─▶ ...
"""

from __future__ import annotations

import abc
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

import msgspec

from runners.protocol.messages import ErrorInfo, Submit
from runners.protocol.parts import Incoming, Payload
from runners.worker.engines.verdict import verdict_of


class EngineError(Exception):
    """An error with a meaning for the parent. `kind` chooses the class of the error that the caller gets."""

    def __init__(self, kind: str, message: str, **numbers: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.numbers = numbers

    def info(self, *, trace: bool = False) -> ErrorInfo:
        """As it crosses to the parent. With `trace`, with the traceback of what it came from: for a load only, since
        that of a request can quote what its caller gave.
        """
        cause = self.__cause__ if trace else None
        trace_text = "" if cause is None else "".join(traceback.format_exception(cause))
        return ErrorInfo(kind=self.kind, message=_clean(str(self)), traceback=_clean(trace_text), numbers=self.numbers)


class Job:
    """One request in the worker. `window`: items that it may be sent before there is `more`; 0: it is no stream."""

    __slots__ = ("alone", "body", "deadline", "id", "payload", "window")

    def __init__(self, submit: Submit, payload: Incoming) -> None:
        self.id = submit.id
        self.alone = submit.alone
        self.body: msgspec.Raw = submit.body
        self.payload = payload
        self.window = submit.window
        self.deadline = None if submit.timeout is None else time.monotonic() + submit.timeout

    @property
    def expired(self) -> bool:
        """Whether its caller has stopped waiting."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Replies(Protocol):
    """Where answers go: exactly one for each job, after its items. They are sent together when the worker flushes."""

    def item(self, job: Job, body: bytes, payload: Payload = b"") -> None:
        """The next piece of a streamed answer. Not more of them than `job.window` and `StepEngine.more` have allowed.

        Raises:
            EngineError: it is too large to be sent. Answer the job with that.
        """
        ...

    def done(self, job: Job, body: bytes, payload: Payload = b"") -> None:
        """The answer, in the engine's own terms (msgpack), with raw array bytes beside it."""
        ...

    def failed(self, job: Job, error: ErrorInfo) -> None:
        """No answer, and why."""
        ...


class Running(Protocol):
    """The board's writing side, as an engine sees it (see `runners.protocol.board`)."""

    def begin(self, ids: list[int]) -> None: ...

    def end(self) -> None: ...


class StepEngine(abc.ABC):
    """Something that a worker runs in steps.

    Attributes:
        capacity: requests that may be in the worker at once, running and waiting.
    """

    capacity: int = 1

    def files(self) -> list[Path]:
        """The files that `load` loads and that all workers must have alike; asked before and after it.

        Raises:
            EngineError: as `load`.
        """
        return []

    @abc.abstractmethod
    def load(self) -> dict[str, Any]:
        """Load, and run once at the largest size that requests can have, so that memory is at its working level.

        Returns facts for `Ready.info`.

        Raises:
            EngineError: it cannot be loaded, with the kind that says why.
        """

    @abc.abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job. Cheap: the work is done in `step`.

        Raises:
            EngineError: the job is malformed; it is answered with this error.
        """

    @abc.abstractmethod
    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a job that has not started, answering it with `CANCELLED`; nothing happens if it is running or
        unknown. A stream that has started is ended in the next step, and answered so too.
        """

    def more(self, job_id: int, count: int) -> None:  # noqa: B027 - only engines that stream have to do with it
        """The reader of a stream has taken `count` items: so many more may be sent. An unknown id is that of a stream
        that has ended meanwhile.
        """

    @abc.abstractmethod
    def step(self, replies: Replies, running: Running) -> bool:
        """Do one unit of work, between `running.begin` and `running.end`. False if there was nothing to do.

        An error of one job is that job's answer. One that concerns the engine as a whole may be raised: the worker
        dies of it and its jobs are redelivered.
        """


CANCELLED = ErrorInfo(kind="cancelled", message="dropped: its caller has left")
EXPIRED = ErrorInfo(kind="expired", message="dropped: its deadline passed before it was started")


def exception_info(error: BaseException, *, skip: int = 0) -> ErrorInfo:
    """An exception of the user's code: type, message, and the traceback without the first `skip` frames (ours)."""
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        message = str(error)
    except Exception as broken:
        message = f"<its __str__ raised {type(broken).__name__}>"
    text = "".join(traceback.format_exception(cls, error, trace))
    # Lone surrogates cannot be encoded, and an error message must always arrive.
    errno = error.errno if isinstance(error, OSError) else None
    numbers = {"errno": errno} if isinstance(errno, int) and 0 <= errno < 1 << 31 else {}
    outcome, retry_after = verdict_of(error)
    return ErrorInfo(
        kind="exception",
        message=_clean(message),
        type=_clean(name),
        traceback=_clean(text),
        numbers=numbers,
        outcome=outcome,
        retry_after=retry_after,
    )


_MAX_TEXT = 100_000


def _clean(text: str) -> str:
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()
