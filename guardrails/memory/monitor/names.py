"""Names for processes: who a pid is, told by those who know. One registry for this process.

A runner calls `name_process` when a worker is up and `forget_process` when it has ended; the monitor looks here once
for each sample. It imports nothing, for runners are to start fast.

Threads and forks: both functions may be called on any thread. A forked child begins with none: the workers are its
parent's.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from itertools import count
from typing import Literal

#: More than a machine runs. Beyond, the names that were given first are dropped.
_MOST = 4096
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class ProcessName:
    """What a process is called.

    Attributes:
        name: unique among the processes that live: what it was named, and a number: ``embedder/0``.
        role: ``worker`` or ``child``.
        budget: private bytes at which it will be replaced or ended; None without such a limit.
    """

    name: str
    role: Literal["worker", "child"]
    budget: int | None = None


_names: dict[int, ProcessName] = {}
_lock = threading.Lock()


def name_process(pid: int, name: str, role: Literal["worker", "child"] = "worker", *, budget: int | None = None) -> str:
    """Give a process a name for the monitor's samples, alerts and metrics. Returns it with its number.

    The number is the lowest that no other process of the same name has, so names are as many as processes live at
    once, however many come and go. Say `forget_process` when it has ended.

    Args:
        pid: the process: a descendant of this one, or any other that may be looked at.
        name: of the runner; cut at 80 characters.
        role: ``worker`` or ``child``.
        budget: private bytes at which it will be replaced or ended.
    """
    with _lock:
        _names.pop(pid, None)
        taken = {known.name for known in _names.values()}
        unique = next(each for number in count() if (each := f"{name[:_LONGEST]}/{number}") not in taken)
        while len(_names) >= _MOST:
            del _names[next(iter(_names))]
        _names[pid] = ProcessName(unique, role, budget)
    return unique


def forget_process(pid: int) -> None:
    """The process has ended. One that was never named does no harm."""
    with _lock:
        _names.pop(pid, None)


def named_processes() -> dict[int, ProcessName]:
    """All names by pid, those given first first. The caller's own copy."""
    with _lock:
        return dict(_names)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - it may have been held by a thread that does not exist here
    _lock = threading.Lock()
    _names.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
