"""What to run: the engine and its options, as plain data that crosses the process boundary.

Parent and child both read this module, so it imports neither side, nor `guardrails`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

_NICEST = 19
_MAX_OOM_SCORE = 1000
_MIB = 1 << 20
#: A budget leaves at least this much over what the freshly loaded worker holds.
_ROOM_TO_WORK = 1.25
#: By so much larger than one worker the next may come up. Loads of the same model in several threads differ by up to
#: 9 % (MiniLM, 24 starts), small ones by some pages.
_SPREAD, _SPREAD_BYTES = 1.15, 4 * _MIB


#: What `Faults.effect` may be.
EFFECTS = ("jump", "hang", "deadlock", "crash")


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Faults that a worker commits on purpose, for game days, tests and the demo. None by default.

    Attributes:
        leak: bytes that stay behind, written to, after each request.
        trigger: text that makes a request that holds it commit `effect`, whatever the engine; empty: none does.
        effect: ``"jump"`` (takes 1 GiB, 8 MiB at a time, and keeps it for 1 s), ``"hang"`` (a native call that never
            returns), ``"deadlock"`` (waits for a lock that it holds) or ``"crash"`` (a segmentation fault).

    Raises:
        ValueError: `effect` is none of these.
    """

    leak: int = 0
    trigger: str = ""
    effect: str = "jump"

    def __post_init__(self) -> None:
        """Check."""
        if self.effect not in EFFECTS:
            msg = f"effect takes one of {', '.join(map(repr, EFFECTS))}, not {self.effect!r}"
            raise ValueError(msg)


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What each worker gets of the machine beside memory.

    They are applied in the worker before it loads anything. What the system does not allow, or does not have, is left
    as it is, with one warning on the worker's standard error.

    Attributes:
        threads: threads of numeric libraries, as ``OMP_NUM_THREADS`` and the like; a variable that is set already wins.
            None: in a pool of several workers each one's share of the cores, in a pool of one what the library takes.
        cpus: the cores that workers may run on: a set of numbers for all of them, or ``"shared"``, which gives each
            one `threads` cores that as few other workers as possible have. None: all cores. macOS has no such thing.
        nice: how far workers stand back behind this process, 0 to 19.
        open_files: their limit on open files; None: this process's. Above the hard limit it is the hard limit.
        oom_score_adj: by how much more likely the kernel ends a worker than this process when memory runs out, 0 to
            1000. Linux only.

    Raises:
        ValueError: a value is out of its range. The message names it.
    """

    threads: int | None = None
    cpus: tuple[int, ...] | str | None = None
    nice: int = 0
    open_files: int | None = None
    oom_score_adj: int = 500

    def __post_init__(self) -> None:
        """Check."""
        _check("threads", self.threads, 1, optional=True)
        _check("nice", self.nice, 0, _NICEST)
        _check("open_files", self.open_files, 16, optional=True)  # fewer, and not even the engine can be imported
        _check("oom_score_adj", self.oom_score_adj, 0, _MAX_OOM_SCORE)
        if self.cpus is not None and self.cpus != "shared":
            msgspec.structs.force_setattr(self, "cpus", _cores(self.cpus))

    def shared_by(self, workers: int, *, threads: int | None = None, cores: int | None = None) -> Resources:
        """These, with the number of threads settled for each of `workers`. `threads`, where given, wins.

        Args:
            workers: how many share the machine.
            threads: what the engine was told.
            cores: by default those that this process may use.
        """
        threads = threads if threads is not None else self.threads
        if threads is None and workers > 1:
            threads = max(1, (cores or _usable_cores()) // workers)
        return msgspec.structs.replace(self, threads=threads)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the parent decided for one worker of `Resources`; it goes on the worker's command line, as JSON.

    Attributes:
        cpus: cores to run on; none: any.
        nice: added to the niceness.
        open_files: soft limit; None: as it is.
        oom_score: added to the score.
    """

    cpus: tuple[int, ...] = ()
    nice: int = 0
    open_files: int | None = None
    oom_score: int = 0


def _check(argument: str, value: object, least: int, most: int | None = None, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        between = f"of at least {least}" if most is None else f"from {least} to {most}"
        msg = f"{argument} takes a whole number {between}, not {value!r}"
        raise ValueError(msg)


def _cores(cpus: object) -> tuple[int, ...]:
    numbers = sorted(set(cpus)) if isinstance(cpus, Iterable) and not isinstance(cpus, str) else []
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        msg = f"cpus takes 'shared' or the numbers of cores, as in (0, 1), not {cpus!r}"
        raise ValueError(msg)
    return tuple(numbers)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of worker.

    Attributes:
        name: how the runner calls itself in logs, events and errors.
        engine: ``"function"`` or ``"onnx"``.
        options: what the engine takes; see its module under `runners.worker.engines`.
        sys_path: where the child finds the caller's modules.
        environment: variables that the child gets on top of those that it inherits.
        inherit_environment: the parent's variables that it inherits beside the default ones; a trailing ``*`` matches
            the rest of a name.
        resources: see `Resources`.
        faults: see `Faults`.
    """

    name: str
    engine: str
    options: dict[str, Any]
    sys_path: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    inherit_environment: tuple[str, ...] = ()
    resources: Resources = Resources()
    faults: Faults = Faults()


def budget_fits(budget: int, loaded: int) -> bool:
    """Whether a soft budget leaves a worker room to work that holds `loaded` bytes when it is loaded and warm."""
    return loaded * _ROOM_TO_WORK <= budget


def budget_for(loaded: int) -> int:
    """The budget that an error names for a worker that held `loaded` bytes: one that every further worker fits in too,
    in whole MiB.
    """
    return -(-round((loaded * _SPREAD + _SPREAD_BYTES) * _ROOM_TO_WORK) // _MIB) * _MIB


def largest_load(budget: int) -> int:
    """The most that a worker may be expected to hold when it is loaded for `budget` to be named for it."""
    return max(0, int((budget / _ROOM_TO_WORK - _SPREAD_BYTES) / _SPREAD))
