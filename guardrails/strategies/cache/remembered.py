"""Which errors a cache remembers, and copies of errors that hold nothing of the call that raised them."""

from __future__ import annotations

import builtins
import concurrent.futures
import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

from guardrails.core.errors import Rejected

Matcher = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
_log = logging.getLogger("guardrails")

#: What says nothing about the answer: a cancellation that is an `Exception`, and a guard's refusal.
_NEVER = (concurrent.futures.CancelledError, Rejected)


def matcher(errors: Any) -> Callable[[Exception], object]:
    """A function that says whether an error is to be remembered.

    Args:
        errors: an exception class, a tuple of them, or such a function.

    Raises:
        TypeError: it is none of these, or a class of what is never remembered.
    """
    classes = errors if isinstance(errors, tuple) else (errors,)
    if all(isinstance(each, type) for each in classes):
        for each in classes:
            if not issubclass(each, Exception) or issubclass(each, _NEVER):
                msg = f"errors takes classes of errors that may be remembered, not {each.__name__}"
                raise TypeError(msg)
        return lambda error: isinstance(error, classes)
    if not callable(errors) or inspect.iscoroutinefunction(errors):
        what = "an async function" if callable(errors) else type(errors).__name__
        msg = f"errors takes an exception class, a tuple of them, or a sync function of the exception, not {what}"
        raise TypeError(msg)
    return errors  # type: ignore[no-any-return]


def to_remember(name: str, matches: Callable[[Exception], object], error: Exception) -> Exception | None:
    """A bare copy of `error`, if it is one to remember."""
    if _is_never(error):
        return None
    what = type(error).__name__
    try:
        wanted = matches(error)
    except Exception as exc:  # no text of either: it may hold an argument
        _log.warning("%s: errors failed on a %s (%s), which is not remembered", name, what, type(exc).__name__)
        return None
    if not wanted:
        return None
    found = bare_copy(error)
    if found is None:
        _log.warning("%s: a %s cannot be copied and is not remembered", name, what)
    return found


def bare_copy(error: Exception) -> Exception | None:
    """An error of the same class, arguments and attributes, without traceback, cause and context. None if it cannot be
    made.
    """
    try:
        found = _copy(error)
    except Exception:  # a class with an `__init__`, a `__copy__` or a `__reduce__` of its own, which may raise anything
        return None
    return found if type(found) is type(error) else None


def _copy(error: Exception) -> Any:
    if isinstance(error, ExceptionGroup):
        found: Any = error.derive([_copy(each) for each in error.exceptions])
        return _with_state(found, error.__dict__)
    cls = type(error)
    if _has_own(cls, "__copy__") or _has_own(cls, "__reduce__") or _has_own(cls, "__reduce_ex__"):
        return copy.copy(error)
    # Not `copy.copy`: it calls the class with `args`, which an `__init__` that builds the message takes for its own.
    reduced: Any = error.__reduce__()
    args = reduced[1]  # those of `__new__`: an OSError's `args` lack the file
    base = _builtin(cls)
    found = cls.__new__(cls, *args)
    base.__init__(found, *args)
    found.args = error.args
    return _with_state(found, reduced[2] if len(reduced) > 2 else {})


def _with_state(found: Any, state: dict[str, Any]) -> Any:
    for name, value in state.items():  # not into `__dict__`: an ImportError's name and path are none of it
        setattr(found, name, value)
    if "__notes__" in state:
        found.__notes__ = list(state["__notes__"])
    return found


def _is_never(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_never, error.exceptions))
    return isinstance(error, _NEVER) or not isinstance(error, Exception)


def _has_own(cls: type, name: str) -> bool:
    return getattr(cls, name, None) is not getattr(_builtin(cls), name, None)


def _builtin(cls: type) -> Any:
    return next(base for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base)


__all__ = ["Matcher", "bare_copy", "matcher", "to_remember"]
