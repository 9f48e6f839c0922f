"""What is known of one worker's memory, and the kernel's hold on it.

An exact reading has the kernel walk page tables: 0.1 ms for a small worker, several for one of gigabytes. It is taken
in a thread of this module's own, since those of the event loop's executor may all be busy with what the application
does there.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from guardrails.memory.cgroup import MemoryGroup, delegated_group
from guardrails.memory.reading import mapped_bytes
from runners.supervision.forecast import Trend, size_class
from runners.supervision.limits import Term

T = TypeVar("T")

_log = logging.getLogger("runners")
_names = itertools.count(1)
_PREFIX = "guarded-runner"
#: What the kernel counts for a worker beyond its private memory and its mapped files: page tables, socket buffers.
_KERNEL = 32 << 20
_SIZES = 64
#: The longest a trend waits between two readings, in seconds.
_SLOWEST = 10.0


async def in_thread(read: Callable[[], T]) -> T:
    """Run a reading in the thread for it.

    Raises:
        RuntimeError: the system has no thread left.
    """
    return await asyncio.get_running_loop().run_in_executor(_threads(), read)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="runners-memory")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not live on in a fork


class WorkerMemory:
    """The record of one worker.

    Attributes:
        pss: its proportional share in bytes at the last exact reading; None where the system does not know it.
        trend: what it holds between its steps.
        steps: the steps that it had finished at the last look.
        hold: what holds the hard budget.
        term: how long it serves.
        since: when it came into service, on the loop's clock.
        load: seconds that it took to load.
        answered: requests answered since the last look, by the bit length of their size in bytes.
        learned: its size at the last look that was learned from, in bytes.
        exact_at: when the last exact reading was taken; `exact_from`: when the next may be.
        reading: whether an exact reading is under way.
    """

    __slots__ = (
        "answered",
        "exact_at",
        "exact_from",
        "hold",
        "learned",
        "load",
        "pss",
        "reading",
        "since",
        "steps",
        "term",
        "trend",
    )

    def __init__(self) -> None:
        self.pss: int | None = None
        self.trend = Trend()
        self.hold = Hold()
        self.term = Term()
        self.since = self.load = 0.0
        self.answered = [0] * _SIZES
        self.learned = self.steps = 0
        self.exact_at = self.exact_from = 0.0
        self.reading = False

    def begin(self, now: float, *, load: float, term: Term, baseline: int) -> None:
        """The worker is loaded and warm; it took `load` seconds."""
        self.since = self.exact_at = now
        self.load = load
        self.term = term
        self.learned = baseline
        self.trend.spacing = min(_SLOWEST, load / 4)  # 24 readings then span three times what must be foreseen

    def grown(self, private: int) -> tuple[int, dict[int, int]] | None:
        """What was answered since the last call, by size class, and by how much the worker grew; None if nothing was.

        Args:
            private: its size now, in bytes.
        """
        answered: dict[int, int] = {}
        for bits, count in enumerate(self.answered):
            if count:
                bound = size_class(bits)
                answered[bound] = answered.get(bound, 0) + count
        if not answered:
            return None
        self.answered[:] = [0] * _SIZES
        grown, self.learned = private - self.learned, private
        return grown, answered


class Hold:
    """What holds the hard budget of one worker: a cgroup where one can be made, and the watchdog in any case.

    The kernel acts at once, also while the watchdog sleeps or the event loop is blocked; but it counts the file cache
    of what the worker maps too. So the group's limit is the hard budget and what the worker has mapped when warm.

    Nothing here raises: without a group the watchdog alone holds the budget.

    Args:
        find: where groups can be made; by default `delegated_group`, looked at once in a process.
    """

    def __init__(self, find: Callable[[], Path | None] | None = None) -> None:
        self.kind: Literal["cgroup", "watchdog"] | None = None
        self._find = find or _group_for_workers
        self._hard: int | None = None
        self._group: MemoryGroup | None = None

    def take(self, pid: int, hard: int | None) -> bool:
        """Hold this process, which has just been started, to `hard` bytes; the limit itself is set by `arm`.

        Whether it has been moved to a group of its own.
        """
        if hard is None:
            return False
        self._hard, self.kind = hard, "watchdog"
        parent = self._find()
        if parent is None:
            return False
        try:
            self._group = MemoryGroup.create(parent, f"{_PREFIX}-{os.getpid()}-{next(_names)}")
            self._group.add(pid)
        except OSError as error:
            self._let_go(error)
        return self._group is not None

    def arm(self, pid: int) -> None:
        """The worker is warm: set the limit."""
        if self._group is None or self._hard is None:
            return
        try:
            self._group.set_limit(self._hard + mapped_bytes(pid) + _KERNEL)
        except OSError as error:
            self._let_go(error)
        else:
            self.kind = "cgroup"

    def _let_go(self, error: OSError) -> None:
        _log.debug("a cgroup for a worker cannot be used, the watchdog holds its hard budget: %s", error)
        self.release()

    def fired(self) -> bool:
        """Whether the kernel has killed here. Ask before `release`."""
        return self._group is not None and self._group.oom_kills() > 0

    def release(self) -> None:
        """The worker has ended: remove the group, and those of earlier ones that could not be removed yet."""
        if self._group is not None:
            parent, self._group = self._group.path.parent, None
            sweep(parent)


def sweep(parent: Path, proc: Path = Path("/proc")) -> None:
    """Remove the groups of workers that have ended: this process's, and those of processes that are gone.

    The kernel refuses to remove a group that holds a process.
    """
    for path in parent.glob(f"{_PREFIX}-*-*"):
        owner = path.name.split("-")[2]
        if owner == str(os.getpid()) or not (proc / owner).exists():
            MemoryGroup(path).remove()


@functools.cache
def _group_for_workers() -> Path | None:
    group = delegated_group()
    if group is None:
        _log.debug("no cgroup is delegated to this process: hard budgets are held by the watchdog alone")
    else:
        _log.debug("hard budgets are also set in cgroups below %s", group)
        sweep(group)
    return group
