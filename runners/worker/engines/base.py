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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from runners.protocol.messages import ErrorInfo, Submit
from runners.protocol.parts import Incoming, Payload
from runners.protocol.values import UnsendableError
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
    """One request in the worker.

    Attributes:
        window: items that it may be sent before there is `more`; 0: it is no stream.
        number: which one it is of those that this worker was sent.
        begun: whether it was claimed: from then on it is this worker's to answer.
    """

    __slots__ = ("alone", "begun", "body", "deadline", "id", "number", "payload", "window")

    def __init__(self, submit: Submit, payload: Incoming, number: int = 0) -> None:
        self.id = submit.id
        self.number = number
        self.begun = False
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

    def dropped(self, job: Job) -> None:
        """The parent has taken the job back: there is nothing to say."""
        ...


class Running(Protocol):
    """The board's writing side, as an engine sees it (see `runners.protocol.board`)."""

    def claim(self, job: Job) -> bool:
        """Begin a job, in the order of arrival. False if the parent has taken it back: forget it, without an answer."""
        ...

    def begin(self, ids: list[int]) -> None:
        """These are running now."""
        ...

    def end(self) -> None:
        """They are not any more, and their answers are given."""
        ...


class StepEngine(abc.ABC):
    """Something that a worker runs in steps.

    Attributes:
        capacity: requests that may be in the worker at once, running and waiting.
        ahead: further ones that may be here while steps are very short.
        recallable: whether jobs begin in the order in which they came, each one claimed: the parent can then take back
            those that have not begun.
    """

    capacity: int = 1
    ahead: int = 0
    recallable: bool = False

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

    def listen(self, fd: int) -> None:  # noqa: B027 - only engines that wait for more than the parent have to do with it
        """End a step, or `wait`, early when there is something to read from this descriptor."""

    def wait(self) -> bool:
        """There is nothing to do: return when there is something to read, or something has come of what goes on anyhow.
        False at once if nothing does.
        """
        return False

    def close(self) -> None:  # noqa: B027 - as above
        """The worker ends in good order: end what is left."""

    @abc.abstractmethod
    def step(self, replies: Replies, running: Running) -> bool:
        """Do one unit of work, between `running.begin` and `running.end`. False if there was nothing to do.

        An error of one job is that job's answer. One that concerns the engine as a whole may be raised: the worker
        dies of it and its jobs are redelivered. `running.end` is then not called: what was running may be to blame.
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
    outcome, retry_after = _verdict(error)
    return ErrorInfo(
        kind="exception",
        message=_text(lambda: str(error), "its __str__"),
        type=_clean(name),
        traceback=_text(lambda: "".join(traceback.format_exception(cls, error, trace)), "formatting its traceback"),
        numbers=_errno(error),
        outcome=outcome,
        retry_after=retry_after,
    )


def error_info(error: Exception) -> ErrorInfo:
    """Whatever a request failed with: one with a meaning for the parent, or any other."""
    return error.info() if isinstance(error, EngineError) else exception_info(error)


def unsendable_info(error: BaseException, what: str, advice: str) -> ErrorInfo:
    """A result that could not be packed, whatever packing it raised. `what`: "the result of m:f"."""
    if isinstance(error, UnsendableError):
        reason = str(error)
    else:
        reason = f"packing it raised {type(error).__name__}: {_text(lambda: str(error), 'its __str__')}"
    return ErrorInfo(kind="unsendable", message=_clean(f"{what} cannot be sent back: {reason}; {advice}"))


def _text(make: Callable[[], str], what: str) -> str:
    """A text that the user's code has a part in. Whatever that raises, also SystemExit: an error must always arrive."""
    try:
        return _clean(make())
    except BaseException as broken:
        return f"<{what} raised {type(broken).__name__}>"


def _verdict(error: BaseException) -> tuple[Literal["success", "failure", "throttled", "ignored"], float | None]:
    try:
        return verdict_of(error)
    except BaseException:  # as above: it looks at attributes
        return "failure", None


def _errno(error: BaseException) -> dict[str, int]:
    if not isinstance(error, OSError):
        return {}
    try:
        errno = error.errno
    except BaseException:  # a property of the user's class
        return {}
    return {"errno": errno} if isinstance(errno, int) and 0 <= errno < 1 << 31 else {}


_MAX_TEXT = 100_000


def _clean(text: str) -> str:
    # Lone surrogates cannot be encoded.
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()
