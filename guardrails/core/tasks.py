"""Which task, or else which thread, runs here."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

loop_here = asyncio._get_running_loop  # noqa: SLF001 - documented for framework authors, and does not raise


def _current_task(loop: object) -> asyncio.Task[Any] | None:
    return None if loop is None else asyncio.current_task()


#: The running task of a loop, or None. Before 3.12 `asyncio.current_task` is written in Python, and finds the loop
#: again.
task_of: Callable[[object], asyncio.Task[Any] | None] = (
    _current_task if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # noqa: SLF001
)


def runner_id() -> int:
    """A number for the task that runs here (asyncio's or trio's), or for the thread where there is none.

    It is unique among those that are alive, and holds no reference to the task.
    """
    loop = loop_here()
    if loop is not None:
        return id(task_of(loop))
    trio = sys.modules.get("trio")  # not imported means that no trio task can be running
    if trio is not None and trio.lowlevel.in_trio_task():
        return id(trio.lowlevel.current_task())
    return threading.get_ident()


__all__ = ["loop_here", "runner_id", "task_of"]
