"""The process' own settings: its allocator, threads, open files, and how many processes it may start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from runners.config import Config
from runners.doctor import finding
from runners.doctor.facts import Facts, Machine
from runners.doctor.finding import Finding, Mend
from runners.doctor.traffic import LONG
from runners.spec import Resources

_ARENAS = "MALLOC_ARENA_MAX"
_THREADS = "OMP_NUM_THREADS"
_MOST_ARENAS = 4
#: Descriptors of a worker in this process, and of the rest of a program.
_PER_WORKER, _REST = 8, 256
_LEAST_FILES = 4_096
#: Tasks of a worker beside its numeric threads, and of the rest of a program.
_TASKS_PER_WORKER, _REST_OF_TASKS = 8, 64


def allocator(config: Config, facts: Facts) -> Iterator[Finding]:
    """Freed memory goes back."""
    machine = facts.machine
    told = facts.environment.get(_ARENAS, "")
    if machine.allocator not in ("", "glibc"):
        yield Finding("allocator", "environment", "ok", f"{machine.allocator}: {_ARENAS} is not for it")
    elif machine.system != "linux":
        return
    elif told.isdecimal() and 1 <= int(told) <= _MOST_ARENAS:
        yield Finding("allocator", "environment", "ok", f"{_ARENAS}={told}")
    else:
        most = 8 * machine.cores
        what = f"{_ARENAS}={told}" if told else f"{_ARENAS} is not set"
        why = (
            f"{what}: glibc keeps freed memory in up to {int(told) if told.isdecimal() else most} heaps of this process"
        )
        yield Finding(
            "allocator", "environment", "warning", f"{why} (workers have 2)", (finding.environment(_ARENAS, 2),)
        )


# Threads


def threads(config: Config, facts: Facts) -> Iterator[Finding]:
    """No more busy threads than the cgroup has time for."""
    machine = facts.machine
    fair = max(1, math.floor(machine.cpus))
    told = facts.environment.get(_THREADS, "").partition(",")[0]
    quota = machine.quota is not None and machine.quota < machine.cores
    has = f"{machine.cores} cores" + (f", of which the cgroup allows {machine.quota:g}" if quota else "")
    if told.isdecimal() and int(told) > fair:
        why = f"{_THREADS}={told} with {has}: threads wait for each other's turns"
        yield Finding("threads", "environment", "warning", why, (finding.environment(_THREADS, fair),))
    elif quota and not told.isdecimal():
        why = f"{has}, and {_THREADS} is not set: numeric libraries start {machine.cores} threads, and are throttled"
        yield Finding("threads", "environment", "warning", why, (finding.environment(_THREADS, fair),))
    else:
        yield Finding("threads", "environment", "ok", has)
    for name, runner in config.runners.items():
        subject = finding.table("runners", name)
        most = runner.size.maximum
        each = max(1, math.floor(machine.cpus / most))
        planned = runner.worker_threads or max(1, machine.cores // most)
        if planned > each:
            why = f"workers: {most}, threads of each: {planned}, and {has}: they take turns, and passes take longer"
            key = {"threads": each} if hasattr(runner, "threads") else {"resources": _with(runner.resources, each)}
            yield Finding("threads", subject, "warning", why, (finding.config({subject: key}),))
        else:
            yield Finding("threads", subject, "ok", f"workers: up to {most}, threads of each: {planned}")


def _with(resources: Resources | None, threads: int) -> dict[str, Any]:
    given = msgspec.structs.asdict(resources or Resources())
    usual = msgspec.structs.asdict(Resources())
    return {name: value for name, value in given.items() if value != usual[name]} | {"threads": threads}


# Descriptors and processes


def open_files(config: Config, facts: Facts) -> Iterator[Finding]:
    """There is a descriptor for every connection."""
    soft, hard = facts.machine.open_files
    need = max(_LEAST_FILES, 1 << (files_needed(config) - 1).bit_length())
    if soft is None:
        yield Finding("open_files", "limit", "ok", "no limit")
    elif soft >= need:
        yield Finding("open_files", "limit", "ok", f"{soft:,}")
    else:
        level: finding.Level = "failure" if soft < files_needed(config) else "warning"
        why = (
            f"{soft:,} open files, and {need:,} can be wanted: connections are then refused with 'too many open files'"
        )
        yield Finding("open_files", "limit", level, why, (_ulimit("-n", "LimitNOFILE", need, hard, facts.machine),))


def files_needed(config: Config) -> int:
    """Descriptors that a full house takes: all that may wait or run, and the workers'. A queue that is too long is told
    of by itself, and counts here with what is sensible.
    """
    runners = config.runners.values()
    places = sum(min(runner.queue, LONG) + _PER_WORKER * runner.size.maximum for runner in runners)
    bounds = [(each.concurrency, each.queue) for each in config.services.values()]
    bounds += [(each.concurrency, each.queue) for each in config.endpoints.values()]
    places += sum((at_once or 0) + min(queue or 0, LONG) for at_once, queue in bounds)
    return _REST + places


def processes(config: Config, facts: Facts) -> Iterator[Finding]:
    """There is a task for every thread of every worker, also while some are replaced."""
    machine = facts.machine
    need = tasks_needed(config, machine)
    soft, hard = machine.processes
    if machine.tasks is not None and machine.tasks.limit is not None:
        limit, used = machine.tasks.limit, machine.tasks.used
        if limit - used < need:
            why = f"the cgroup allows {limit:,} tasks, {used:,} are there, and {need:,} more can be wanted"
            mend = finding.command(f"echo {used + 2 * need} > {machine.tasks.path}", "as root")
            yield Finding("processes", "cgroup", "failure", why, (mend,))
        else:
            yield Finding("processes", "cgroup", "ok", f"{limit:,} tasks, {used:,} of them there")
    if soft is not None and soft < need:
        why = f"a user may have {soft:,} tasks, and {need:,} can be wanted"
        mend = _ulimit("-u", "LimitNPROC", max(4096, 2 * need), hard, machine)
        yield Finding("processes", "limit", "failure", why, (mend,))
    elif soft is not None:
        yield Finding("processes", "limit", "ok", f"{soft:,} tasks for each user")
    if machine.pid_max is not None and machine.pid_max < 4 * need:
        why = f"the kernel has {machine.pid_max:,} numbers for tasks of all programs"
        mend = finding.command("sysctl -w kernel.pid_max=65536", "as root; keep it in /etc/sysctl.d")
        yield Finding("processes", "kernel", "warning", why, (mend,))


def tasks_needed(config: Config, machine: Machine) -> int:
    """Tasks that all workers take, one more of each runner included."""
    runners = config.runners.values()
    workers = (
        (runner.size.maximum + 1) * (_TASKS_PER_WORKER + (runner.worker_threads or machine.cores)) for runner in runners
    )
    return _REST_OF_TASKS + sum(workers)


def _ulimit(option: str, setting: str, value: int, hard: int | None, machine: Machine) -> Mend:
    if hard is None or hard >= value or machine.may_raise:
        return finding.command(f"ulimit {option} {value}", f"in the shell that starts it; systemd: {setting}={value}")
    if machine.manager in ("docker", "podman"):
        name = "nofile" if option == "-n" else "nproc"
        return finding.command(f"{machine.manager} run --ulimit {name}={value} IMAGE", "IMAGE: yours")
    return finding.command(
        f"ulimit {option} {value}", f"as root, for the hard limit is {hard:,}; systemd: {setting}={value}"
    )
