"""What a function engine reads of a job and makes of a result. Whatever goes wrong here is that job's error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from runners.protocol.messages import ErrorInfo
from runners.protocol.values import unpack
from runners.worker.engines.base import Job, exception_info, unsendable_info

Arguments = tuple[Sequence[Any], dict[str, Any], Sequence[Any]]


class Unreadable(Exception):
    """The arguments cannot be read. `info` says why."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


def arguments(job: Job) -> Arguments:
    """Positional arguments, keywords, and the tracing context if there is one.

    Raises:
        Unreadable: the body is no call.
    """
    try:
        args, kwargs, *carriers = unpack(job.body, job.payload)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        info = ErrorInfo(kind="input", message=f"the arguments cannot be read: {error}")
        raise Unreadable(info) from error
    except Exception as error:  # MemoryError
        raise Unreadable(exception_info(error)) from error
    return args, kwargs, carriers


def unsendable_result(path: str, error: BaseException) -> ErrorInfo:
    """The result of a call cannot be packed."""
    return unsendable_info(error, f"the result of {path}", "return plain data or numpy arrays")


def unsendable_item(path: str, error: BaseException) -> ErrorInfo:
    """An item of a stream cannot be packed."""
    return unsendable_info(error, f"an item of {path}", "yield plain data or numpy arrays")
