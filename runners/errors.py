"""Every error of the runners. The base classes are those of `guardrails.core.errors`.

Those marked with * are the caller's own mistakes (`CallerError`): every guard ignores them, as it does a 4xx.
A `RemoteError` counts as what the function raised: see `runners.worker.engines.verdict`.

::

    GuardrailError
    ├── Rejected
    │   ├── QueueFull                as many requests wait already as the runner's queue holds
    │   ├── RunnerUnavailable        it failed and is probing for recovery; has a true `retry_after`
    │   ├── FleetFull                no room in its fleet's memory budget in time   (also MemoryRefused)
    │   └── RunnerClosed             it is draining, closed, or not started (also RunnerError, RuntimeError)
    └── RunnerError
        ├── WrongEventLoop *         used from another loop than it started in (also RuntimeError)
        ├── InvalidInput *           the request's data is not what the runner takes   (also ValueError)
        │   ├── InvalidType *        it, or an option of it, has the wrong type       (also TypeError)
        │   └── PromptTooLong *      prompt and answer are more than the model's context; has the numbers
        ├── TemplateFailed *         the model's chat template is missing or broken, or takes too long
        ├── UnsendableValue *        arguments or a result that are not data   (also TypeError)
        ├── StreamMismatch *         a generator function called without `.stream`, or the reverse   (also TypeError)
        ├── StartFailed              the worker could not be brought up:
        │   ├── ModelNotFound                                                  (also FileNotFoundError)
        │   ├── InvalidModel         not a model, or a damaged one             (also ValueError)
        │   ├── UnsupportedModel     a model with other inputs or outputs      (also ValueError)
        │   ├── ModelChanged         a file is not the one that the other workers have loaded; `recycle()` takes it
        │   ├── TokenizerNotFound                                              (also FileNotFoundError)
        │   ├── FunctionNotFound                                               (also ImportError)
        │   ├── InvalidOption        an option does not fit the model or the machine   (also ValueError)
        │   ├── BudgetTooSmall       `memory` is below what it holds when freshly loaded; `needed` says what would do
        │   ├── WorkerNotFound       the worker program itself cannot be run
        │   └── SystemLimitReached   the system has no process, file descriptor or memory left for a worker, for now
        └── (also Failed: the request was accepted, and broke)
            ├── RunnerCrashed        the worker died under it and it may not be run twice
            ├── PoisonedRequest *    it was running in two workers that died: refused from then on
            ├── RequestTimeout                                                 (also TimeoutError)
            └── RemoteError          the function raised: `type`, `message` and `traceback` are the child's
"""

from __future__ import annotations

import builtins
import functools
from typing import Any, TypeVar

from guardrails.core.errors import CallerError, Failed, GuardrailError, MemoryRefused, MissingExtra, QueueFull, Rejected
from runners.protocol.messages import ErrorInfo

X = TypeVar("X", bound=Exception)


class RunnerError(GuardrailError):
    """Base of the runners' own errors."""


class RunnerClosed(RunnerError, Rejected, RuntimeError):
    """The runner is not running. It is a refusal, so that no breaker opens while a program shuts down.

    `reason` is ``draining``, ``closed``, ``not_started`` or ``started`` (a runner starts once); or ``interrupted``, for
    a request that was accepted and that `close` cut off: only that one may have begun.
    """

    reason = "closed"


class WrongEventLoop(RunnerError, CallerError, RuntimeError):
    """A runner belongs to the event loop that it was started in."""


class InvalidInput(RunnerError, CallerError, ValueError):
    """The request's data is not what the runner takes. The message names the item and the mend."""


class InvalidType(InvalidInput, TypeError):
    """The request's data, or an option of it, has another type than the runner takes."""


class PromptTooLong(InvalidInput):
    """The prompt, and what may be generated, are more than the model's context.

    Attributes:
        prompt: tokens of the prompt.
        wanted: tokens of the prompt and of what may be generated.
        context: tokens that there is room for.
    """

    def __init__(self, message: str, *, prompt: int, wanted: int, context: int) -> None:
        super().__init__(message)
        self.prompt = prompt
        self.wanted = wanted
        self.context = context


class TemplateFailed(RunnerError, CallerError):
    """The model's chat template is missing or broken, or takes too long."""


class UnsendableValue(RunnerError, CallerError, TypeError):
    """Arguments or a result hold something that cannot cross to another process."""


class StreamMismatch(RunnerError, CallerError, TypeError):
    """A generator function is read with `runner.stream(...)`, any other is called with `await runner(...)`."""


class StartFailed(RunnerError):
    """The worker could not be brought up."""


class ModelNotFound(StartFailed, FileNotFoundError):
    """There is no model at the path."""


class InvalidModel(StartFailed, ValueError):
    """The file is not a model of the kind that the runner loads, or it is damaged."""


class UnsupportedModel(StartFailed, ValueError):
    """The model loads, but has other inputs or outputs than the runner can use."""


class ModelChanged(StartFailed):
    """A file of the model is not the one that the runner's other workers have loaded. The new worker was refused, so
    that answers of two models are not mixed. `recycle()` takes the new file for all workers.

    Attributes:
        path: the file; empty if it changed while it was being loaded.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TokenizerNotFound(StartFailed, FileNotFoundError):
    """The model has no tokenizer beside it, and none was given."""


class FunctionNotFound(StartFailed, ImportError):
    """The function cannot be imported in the worker."""


class InvalidOption(StartFailed, ValueError):
    """An option does not fit the model or the machine."""


class BudgetTooSmall(StartFailed):
    """The memory budget is below what the freshly loaded worker holds already.

    Attributes:
        needed: the smallest budget, in bytes, that leaves it room to work.
    """

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class WorkerNotFound(StartFailed):
    """The worker program could not be run at all."""


class SystemLimitReached(StartFailed):
    """The system has no process, file descriptor or memory left for a worker. Try again when some are free."""


class RunnerUnavailable(Rejected):
    """The runner has failed too often and is refusing while it probes for recovery; `retry_after` says until when."""

    reason = "failed"


class FleetFull(MemoryRefused):
    """The runner must load, and there was no room for it in its fleet's budget in time; `retry_after` is a load's time.

    Raise the fleet's `budget` or `max_wait`, or send less to the other runners.
    """

    reason = "fleet_full"


class RunnerCrashed(RunnerError, Failed):
    """The worker died while it ran this request, which may not be run twice, or of whose answer a part was delivered.

    Attributes:
        exit: how the worker ended, in words.
        stderr: the last lines that it wrote to its standard error.
        partial: what had been delivered, where the runner keeps it: of `LlamaRunner` the text so far. Else None.
    """

    def __init__(
        self,
        message: str,
        *,
        exit: str = "",  # noqa: A002 - the word for it
        stderr: str = "",
        partial: Any = None,
    ) -> None:
        super().__init__(message)
        self.exit = exit
        self.stderr = stderr
        self.partial = partial


class PoisonedRequest(RunnerCrashed, CallerError):
    """The request was running in two workers that died. It is not run a third time."""


class RequestTimeout(RunnerError, Failed, TimeoutError):
    """The request was not answered within its `timeout`; its work is dropped or, where that is not possible, killed."""


class RemoteError(RunnerError, Failed):
    """The function raised an exception in the worker.

    Where that was a builtin exception with a plain constructor (ValueError, KeyError, ...), or a builtin OSError
    (FileNotFoundError, TimeoutError, ...), this error is one of those too, so that `except ValueError` works across the
    process boundary. An OSError has its `errno`.

    Attributes:
        type: qualified name of the exception's class.
        message: its text.
        traceback: its formatted traceback, from the child.
        outcome: what it counts as for guards: ``ignored`` where a `CallerError` was raised, or an error about the
            values that the function was given (ValueError, TypeError, KeyError, ...); ``throttled`` for a client's 429;
            else ``failure``.
        retry_after: seconds that it asked to wait, if it did (a client's 429 has a Retry-After, say).
    """

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(f"{info.type}: {info.message}")
        self.type = info.type
        self.message = info.message
        self.traceback = info.traceback
        self.retry_after = info.retry_after
        self.outcome = info.outcome
        if isinstance(self, OSError):
            self.errno = info.numbers.get("errno")

    @property
    def __outcome__(self) -> str:
        return self.outcome

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The classes that are builtins too are made when needed: no module has them under their name.
        errno = self.errno if isinstance(self, OSError) else None
        info = ErrorInfo(
            kind="exception",
            message=self.message,
            type=self.type,
            traceback=self.traceback,
            numbers={} if errno is None else {"errno": errno},
            outcome=self.outcome,
            retry_after=self.retry_after,
        )
        return _remote_error, (info,)


class RemoteTraceback(Exception):
    """Carries the child's traceback as the cause of a `RemoteError`, so that it is printed with it."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


_START: dict[str, type[StartFailed]] = {
    "model_not_found": ModelNotFound,
    "model_invalid": InvalidModel,
    "model_unsupported": UnsupportedModel,
    "model_changed": ModelChanged,
    "tokenizer_not_found": TokenizerNotFound,
    "tokenizer_invalid": InvalidModel,
    "function_not_found": FunctionNotFound,
    "bad_option": InvalidOption,
}
#: Builtins whose instances need nothing but a message; a class of both kinds can be made.
_PLAIN = frozenset({
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "EOFError", "FloatingPointError",
    "IndexError", "KeyError", "LookupError", "MemoryError", "NotImplementedError", "OverflowError", "RecursionError",
    "ReferenceError", "RuntimeError", "TypeError", "ValueError", "ZeroDivisionError",
    "OSError", "BlockingIOError", "BrokenPipeError", "ChildProcessError", "ConnectionAbortedError", "ConnectionError",
    "ConnectionRefusedError", "ConnectionResetError", "FileExistsError", "FileNotFoundError", "InterruptedError",
    "IsADirectoryError", "NotADirectoryError", "PermissionError", "ProcessLookupError", "TimeoutError",
})  # fmt: skip


def start_error(info: ErrorInfo, runner: str) -> StartFailed | MissingExtra:
    """The error for a worker that could not load."""
    if info.kind == "missing_extra":
        extra = "llama" if info.message.partition(".")[0] in ("llama_cpp", "jinja2") else "onnx"
        return MissingExtra(f"runner {runner!r}", extra=extra, module=info.message)
    if info.kind == "budget_too_small":
        return _with_traceback(BudgetTooSmall(f"{runner}: {info.message}", needed=info.numbers["needed"]), info)
    error = _START.get(info.kind, StartFailed)(f"{runner}: {info.message}")
    return _with_traceback(error, info)


def request_error(info: ErrorInfo, runner: str) -> Exception:
    """The error for a request that failed in the worker."""
    if info.kind == "exception":
        return _remote_error(info)
    if info.kind == "unsendable":
        return UnsendableValue(f"{runner}: {info.message}")
    if info.kind == "stream_mismatch":
        return StreamMismatch(f"{runner}: {info.message}")
    if info.kind == "prompt_too_long":
        return PromptTooLong(f"{runner}: {info.message}", **info.numbers)
    if info.kind == "template":
        return TemplateFailed(f"{runner}: {info.message}")
    if info.kind == "input":
        return InvalidInput(f"{runner}: {info.message}")
    return RunnerError(f"{runner}: {info.message}")


def _remote_error(info: ErrorInfo) -> RemoteError:
    cls = _remote_builtin(info.type) if info.type in _PLAIN else RemoteError
    return _with_traceback(cls(info), info)


@functools.cache
def _remote_builtin(name: str) -> type[RemoteError]:
    return type(f"Remote{name}", (RemoteError, getattr(builtins, name)), {"__doc__": RemoteError.__doc__})


def _with_traceback(error: X, info: ErrorInfo) -> X:
    if info.traceback:
        error.__cause__ = RemoteTraceback(info.traceback)
    return error


__all__ = [
    "BudgetTooSmall",
    "FleetFull",
    "FunctionNotFound",
    "InvalidInput",
    "InvalidModel",
    "InvalidOption",
    "InvalidType",
    "MissingExtra",
    "ModelChanged",
    "ModelNotFound",
    "PoisonedRequest",
    "QueueFull",
    "RemoteError",
    "RemoteTraceback",
    "RequestTimeout",
    "RunnerClosed",
    "RunnerCrashed",
    "RunnerError",
    "RunnerUnavailable",
    "StartFailed",
    "StreamMismatch",
    "SystemLimitReached",
    "TokenizerNotFound",
    "UnsendableValue",
    "UnsupportedModel",
    "WorkerNotFound",
    "WrongEventLoop",
    "request_error",
    "start_error",
]
