"""Decides whether an exception of the caller's function is the fault of its input or of something it depends on.

The parent gets the verdict with the error, so that guards around the runner count it as they would have counted the
exception itself: a status of an HTTP client, a refusal of a guard inside. One thing is different in a worker, where the
function stands between the data of many callers and nothing else: an error of the kinds below comes from the data that
it was given (a text that is no number, a missing field, a file that is no image). Other calls are well served, so it
is ignored, as an HTTP server's 400 is. What a system or a network reports is a failure, and so is everything unknown.
"""

from __future__ import annotations

from typing import Literal

#: Python's errors about values, as against the system's (OSError), the process' (MemoryError) and RuntimeError.
_VALUES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)
#: Errors of decoders, about the bytes that they were given, which derive from something else.
_DECODERS = frozenset({
    "PIL.Image.DecompressionBombError", "PIL.UnidentifiedImageError", "_csv.Error", "_lzma.LZMAError",
    "gzip.BadGzipFile", "struct.error", "tarfile.ReadError", "xml.etree.ElementTree.ParseError", "zipfile.BadZipFile",
    "zlib.error",
})  # fmt: skip


def verdict_of(error: BaseException) -> tuple[Literal["success", "failure", "throttled", "ignored"], float | None]:
    """The outcome that `error` counts as, and the seconds that it asks to wait."""
    from guardrails.core.outcome import classify  # noqa: PLC0415 - for errors only: a worker that has none goes without

    if not isinstance(error, Exception):  # SystemExit, of the function's own
        return "failure", None
    outcome = classify(error)
    if outcome.kind == "failure" and _is_of_input(error):
        return "ignored", None
    return outcome.kind, outcome.retry_after


def _is_of_input(error: Exception) -> bool:
    from guardrails.core.client_errors import read_error  # noqa: PLC0415 - as above
    from guardrails.core.outcome import classify  # noqa: PLC0415

    if isinstance(error, ExceptionGroup):
        return all(classify(member).kind == "ignored" or _is_of_input(member) for member in error.exceptions)
    if any(f"{cls.__module__}.{cls.__qualname__}" in _DECODERS for cls in type(error).__mro__):
        return True
    if isinstance(error, OSError):  # also where it is a ValueError besides: requests has one for a bad answer
        return error.errno is None and _raised_by(error) == "PIL"  # "image file is truncated"
    return isinstance(error, _VALUES) and read_error(error).status is None


def _raised_by(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else trace.tb_frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""
