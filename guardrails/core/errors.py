"""Every error that the toolkit raises on its own account.

::

    GuardrailError
    ├── Rejected              we refused to run the call; it never reached the dependency
    │   ├── CircuitOpen       the breaker is open, or half-open with every probe taken (gates/breaker)
    │   ├── RateLimited       the limiter has no room for it in time (gates/limiter)
    │   ├── QueueFull         as many calls wait already as the queue holds
    │   ├── WaitTimeout       the call waited for its turn as long as it may
    │   ├── MemoryRefused     memory is critical, or the call can never fit
    │   └── TooManyConnections  the user holds as many as he may (gates/connections.py)
    ├── Failed                the call ran, and broke
    │   ├── TimedOut          it took longer than `timeout` allows (also a `TimeoutError`)
    │   ├── ConnectionClosed  idle for too long, or closed to make room (gates/connections.py)
    │   ├── RetriesExhausted  every attempt returned a failure (strategies/retry)
    │   └── InjectedError     a fault on purpose (strategies/inject)
    └── InternalError         a bug in this library: please report it

`CallerError` stands beside the tree: whatever is wrong with a call itself derives from it.

Misuse is not in the tree: a wrong argument is a `TypeError` or `ValueError` when the guard is built, and names the
argument. A missing extra is `MissingExtra`, an `ImportError` whose one line names the `pip install`.
"""

from __future__ import annotations

from typing import Any


class GuardrailError(Exception):
    """Base of all errors that come from the toolkit and not from the guarded call."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which keyword-only arguments refuse: an error that cannot be
        # unpickled breaks the process pool that carries it.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class Rejected(GuardrailError):
    """A guard refused the call before it reached the dependency. It is safe to send the call again later.

    Attributes:
        guard: name of the guard that refused.
        reason: why, as one lower-case word or two joined by ``_`` (``"open"``, ``"queue_full"``, ...): stable, for
            labels.
        retry_after: seconds until a new attempt has a chance, or None when the guard cannot know.
    """

    reason = "rejected"

    def __init__(
        self, guard: str, *, reason: str | None = None, retry_after: float | None = None, detail: str = ""
    ) -> None:
        super().__init__(guard, reason, retry_after)
        self.guard = guard
        if reason is not None:
            self.reason = reason
        self.retry_after = retry_after
        self.detail = detail

    def __str__(self) -> str:
        # Built when read, not when raised: an open circuit refuses thousands of calls a second and most are never
        # printed.
        text = f"{self.guard}: {self.detail or self.reason.replace('_', ' ')}"
        if self.retry_after is not None:
            text += f" (retry after {self.retry_after:.3g} s)"
        return text


class QueueFull(Rejected):
    """The waiting room is full: shed load upstream, raise `queue`, or add capacity."""

    reason = "queue_full"


class WaitTimeout(Rejected):
    """The call waited `max_wait` seconds for its turn and left the queue without having run."""

    reason = "wait_timeout"


class MemoryRefused(Rejected):
    """There is no memory for the call: not now (reason ``memory_critical``), or not ever (``memory_too_large``)."""

    reason = "memory_critical"


class CallerError(Exception):
    """The call itself is wrong (its data, its options), and would be wrong anywhere: it counts as `ignored`, as a 4xx.

    A breaker does not count it, a retry does not repeat it, a fallback does not answer it, unless they are asked to.
    Derive errors of your own from it.
    """

    #: Read by `guardrails.core.outcome.classify`.
    __outcome__ = "ignored"


class Failed(GuardrailError):
    """The call was let in, ran, and broke."""


class TimedOut(Failed, TimeoutError):
    """The call was cut off by a `timeout` guard.

    Attributes:
        guard: name of the guard.
        limit: which limit was passed: ``"total"``, ``"first"`` or ``"idle"``.
        seconds: that limit.
    """

    def __init__(self, guard: str, *, limit: str, seconds: float) -> None:
        super().__init__(guard)  # one argument only: OSError, the base, takes more of them for errno and a file
        self.guard = guard
        self.limit = limit
        self.seconds = seconds

    def __str__(self) -> str:
        what = {"total": "no answer", "first": "no first item", "idle": "no further item"}[self.limit]
        return f"{self.guard}: {what} within {self.seconds:g} s"


class InternalError(GuardrailError):
    """Something that must not happen, happened. This is a bug in guarded-runners: please report it with the
    traceback.
    """


class MissingExtra(ImportError):
    """An optional dependency is not installed. The message is one line with the command that installs it."""

    def __init__(self, feature: str, *, extra: str, module: str) -> None:
        super().__init__(f"{feature} needs the package {module!r}: pip install 'guarded-runners[{extra}]'", name=module)
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, {**self.__dict__, "msg": self.msg, "name": self.name})


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error
