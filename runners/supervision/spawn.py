"""What a worker gets of the machine, and why it could not be started."""

from __future__ import annotations

import errno
import os

from runners.errors import SystemLimitReached, WorkerNotFound
from runners.spec import Grant, WorkerSpec
from runners.supervision.cores import Cores

#: What to do when the system has no more of something.
_SHORTAGES = {
    errno.EMFILE: "no file descriptor is left in this process; raise its limit (ulimit -n), or close some",
    errno.ENFILE: "no file descriptor is left in this system",
    errno.EAGAIN: "no process is left for this user or container; raise the limit (ulimit -u, pids.max), or end some",
    errno.ENOMEM: "no memory is left to start a process",
    errno.ENOSPC: "no room is left for the worker's shared page",
    errno.EFBIG: "the limit on the size of files (ulimit -f) leaves no room for the worker's shared page",
}


def grant(spec: WorkerSpec, cores: Cores) -> Grant:
    """What one worker gets. If that are cores of its own, they are taken, and to be given back at its end."""
    wanted = spec.resources
    cpus = wanted.cpus if isinstance(wanted.cpus, tuple) else ()
    if wanted.cpus == "shared" and wanted.threads is not None and hasattr(os, "sched_getaffinity"):
        cpus = cores.take(wanted.threads, os.sched_getaffinity(0))
    return Grant(cpus=cpus, nice=wanted.nice, open_files=wanted.open_files, oom_score=wanted.oom_score_adj)


def cannot_start(spec: WorkerSpec, python: str, error: Exception) -> SystemLimitReached | WorkerNotFound:
    """The error for a worker process that could not be started."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return shortage(spec, error)
    return WorkerNotFound(f"{spec.name}: the worker program {python!r} cannot be run: {error}")


def shortage(spec: WorkerSpec, error: Exception) -> SystemLimitReached:
    """The error for a worker that the system refused something while it was coming up."""
    number = error.errno if isinstance(error, OSError) else None
    why = _SHORTAGES.get(number or 0, "the system refused something that it needs")
    return SystemLimitReached(f"{spec.name}: a worker cannot be started: {why} ({error})")
