"""What the doctor knows of the world: plain values, so that checks can be tried on any machine one can think of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guardrails.shared.redis_report import RedisReport


@dataclass(frozen=True, slots=True)
class Group:
    """A memory cgroup of the process, in bytes.

    Attributes:
        path: its folder.
        version: 1 or 2.
        limit: that the kernel holds; None for none.
        used: without file cache that it can drop.
        writable: whether its limit may be set by whoever asks the doctor.
        swaps: whether its memory may go to swap.
    """

    path: Path
    version: int
    limit: int | None
    used: int
    writable: bool = False
    swaps: bool = True


@dataclass(frozen=True, slots=True)
class Counted:
    """A limit on a number of things, how many there are, and the file that holds it. None: no limit."""

    limit: int | None
    used: int
    path: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the process runs. What the system does not say is None.

    Attributes:
        system: ``linux`` or ``darwin``.
        memory: bytes of the host, and `swap` bytes of swap.
        groups: the memory cgroups of the process, innermost first; those at the root of a tree, which cannot have a
            limit, are left out.
        manager: what made the cgroup: ``kubernetes``, ``docker``, ``podman``, the systemd unit's name, or empty.
        cores: that the process may use, and `quota` the cores' worth of time that its cgroups allow.
        open_files, processes: soft and hard limits; None for no limit. `may_raise`: whether it may raise hard ones.
        tasks: the pids cgroup, where there is one with a limit.
        pid_max: of the kernel.
        huge_pages: ``always``, ``madvise`` or ``never``.
        overcommit: `vm.overcommit_memory`.
        shared: bytes of ``/dev/shm``, and `shared_free` of them; None: it is not there.
        allocator: ``glibc``, ``musl``, or the one that is preloaded.
    """

    system: str = "linux"
    memory: int = 0
    swap: int = 0
    groups: tuple[Group, ...] = ()
    manager: str = ""
    cores: int = 1
    quota: float | None = None
    open_files: tuple[int | None, int | None] = (None, None)
    processes: tuple[int | None, int | None] = (None, None)
    may_raise: bool = False
    tasks: Counted | None = None
    pid_max: int | None = None
    huge_pages: str | None = None
    overcommit: int | None = None
    shared: int | None = None
    shared_free: int | None = None
    allocator: str = ""

    @property
    def kernel_limit(self) -> int | None:
        """The smallest limit of the cgroups; None for none."""
        return min((group.limit for group in self.groups if group.limit is not None), default=None)

    @property
    def cpus(self) -> float:
        """Cores' worth of time that there is."""
        return self.cores if self.quota is None else min(self.cores, self.quota)


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether something at an address answered; `detail` says what happened, without any secret."""

    reached: bool
    detail: str


@dataclass(frozen=True, slots=True)
class LoadTest:
    """The report of a load test. Times in seconds, `started` since the epoch; None where it does not say."""

    source: str
    started: float
    duration: float | None
    requests: int
    errors: int
    p50: float | None
    p95: float | None
    p99: float | None

    @property
    def error_rate(self) -> float:
        """The share of requests that failed."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything.

    Attributes:
        now: seconds since the epoch.
        environment: the variables of the process.
        models: for each path of the file, its size in bytes; None: it is not there.
        sinks: what answered, by ``sentry`` and ``otel``; missing: not asked.
        redis: its report, or why there is none; None: not asked.
        load_test: the report, or why there is none; None: not asked.
    """

    machine: Machine = field(default_factory=Machine)
    now: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, int | None] = field(default_factory=dict)
    sinks: Mapping[str, Reach] = field(default_factory=dict)
    redis: RedisReport | str | None = None
    load_test: LoadTest | str | None = None
