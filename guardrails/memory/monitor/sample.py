"""One look at memory: what each process holds, what each limit has left. Plain data, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guardrails.memory.reading import Scope

#: What a process is to the one that is watched from: itself, a worker of a runner, or any other descendant.
Role = Literal["self", "child", "worker"]


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One process at one time.

    Attributes:
        name: ``self``, the worker's name as its runner gave it (such as ``embedder/0``), or the child's command.
        pid: its number; names may repeat, numbers do not while it lives.
        role: ``self``, ``worker`` or ``child``.
        private: bytes that only it holds: anonymous pages and swap.
        rss: resident bytes, those shared with others counted in full.
        pss: `private` and its share of what it has in common with others, at the last exact reading, which is a rare
            one; None before the first, and where the system does not know it.
        budget: private bytes at which its runner replaces it; None without one.
    """

    name: str
    pid: int
    role: Role
    private: int
    rss: int
    pss: int | None = None
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """All of it at one time.

    Attributes:
        at: seconds since the epoch.
        monotonic: seconds on the clock that never goes back; what durations are taken from.
        processes: this process first, then its descendants.
        scopes: the host, and each cgroup up the tree that has a limit.
        gc: collections of each generation since this process began. They are never reset.
        gc_pending: allocations that wait for the next collection of each generation, as `gc.get_count` has them.
        trimmed: whether free memory of the allocator was given back to the system since the sample before.
    """

    at: float
    monotonic: float
    processes: tuple[ProcessSample, ...]
    scopes: tuple[Scope, ...]
    gc: tuple[int, ...] = (0, 0, 0)
    gc_pending: tuple[int, ...] = (0, 0, 0)
    trimmed: bool = False

    @property
    def private(self) -> int:
        """Private bytes of all processes together."""
        return sum(process.private for process in self.processes)
