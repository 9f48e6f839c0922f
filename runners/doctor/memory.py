"""Memory: is there a limit, is it true, and does what runs fit into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardrails.core.sizes import format_size
from runners.config import Config, RunnerSection
from runners.doctor import finding
from runners.doctor.facts import Facts, Machine
from runners.doctor.finding import Finding, Mend

_MIB = 1 << 20
#: A hard budget is at least so many times the soft one, so that there is room for a replacement to load.
_HARD_FACTOR = 1.25
#: What is suggested for a worker whose budget is not set, at most, beside the size of its model.
_USUAL = {"embedding": 512 * _MIB, "llama": 2048 * _MIB, "function": 256 * _MIB}
#: What a worker holds beside its model, at least.
_LEAST = {"embedding": 256 * _MIB, "llama": 512 * _MIB, "function": 64 * _MIB}


# The limit


def limit(config: Config, facts: Facts) -> Iterator[Finding]:
    """The kernel holds a limit over the process, and the file knows it."""
    machine = facts.machine
    kernel = machine.kernel_limit
    if machine.system != "linux":
        why = "this system has no cgroups: the runners' budgets are all that holds"
        yield Finding("memory_limit", "cgroup", "ok", why)
    elif kernel is None:
        why = (
            f"no cgroup of this process has a memory limit: a leak takes all {format_size(machine.memory)} of the "
            "machine, and the kernel then kills what it likes"
        )
        yield Finding("memory_limit", "cgroup", "failure", why, (_set_limit(config, machine),))
    else:
        group = next(group for group in machine.groups if group.limit == kernel)
        why = f"the kernel holds {format_size(kernel)} ({group.path}), {group.used / kernel:.0%} of it used"
        yield Finding("memory_limit", "cgroup", "ok", why)
    told = config.machine.memory
    if told is None:
        return
    most = machine.memory if kernel is None else min(kernel, machine.memory or kernel)
    if most and told > most:
        why = (
            f"the file says {format_size(told)}, and there are {format_size(most)}: budgets are checked against a dream"
        )
        mend = finding.config({"machine": {"memory": finding.size_text(most)}})
        yield Finding("memory_limit", "machine.memory", "failure", why, (mend,))
    else:
        yield Finding("memory_limit", "machine.memory", "ok", f"{format_size(told)} of {format_size(most)} there are")


def _set_limit(config: Config, machine: Machine) -> Mend:
    told = config.machine.memory
    wanted = told if told is not None and told <= machine.memory else machine.memory * 4 // 5
    size = int(wanted) // _MIB * _MIB
    group = machine.groups[0] if machine.groups else None
    if machine.manager == "kubernetes":
        text = f"kubectl set resources deployment NAME --limits=memory={size // _MIB}Mi"
        return finding.command(text, "NAME: your deployment")
    if machine.manager.endswith(".service"):
        return finding.command(f"systemctl set-property {machine.manager} MemoryMax={size}", "as root")
    if group is not None and group.writable:
        name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
        return finding.command(f"echo {size} > {group.path / name}")
    if machine.manager:
        return finding.command(f"{machine.manager} update --memory {size // _MIB}m NAME", "NAME: your container")
    return finding.command(f"systemd-run --scope -p MemoryMax={size} PROGRAM", "PROGRAM: what starts yours")


def available(config: Config, machine: Machine) -> int:
    """Bytes for the application and its runners together: the smallest of all limits. 0: nobody knows."""
    limits = (config.machine.memory, machine.kernel_limit, machine.memory or None)
    return min((int(each) for each in limits if each is not None), default=0)


# The budgets


def budgets(config: Config, facts: Facts) -> Iterator[Finding]:
    """Every runner has a budget, and all of them fit beside the application."""
    if not config.runners:
        return
    there = available(config, facts.machine)
    without = [name for name, runner in config.runners.items() if runner.hard is None]
    for name, runner in config.runners.items():
        yield _budget(config, name, without, there, facts.models.get(getattr(runner, "path", "")) or 0)
    if there:
        yield _together(config, there)


def _budget(config: Config, name: str, without: list[str], there: int, model: int) -> Finding:
    runner = config.runners[name]
    subject = finding.table("runners", name)
    if runner.hard is None:
        why = "no memory budget: a leak in a worker is held by nothing but the machine's end"
        others = sum(each.size.maximum * (each.hard or 0) for each in config.runners.values())
        share = (there - config.machine.reserve - others) / len(without) / runner.size.maximum / 1.5
        least = _LEAST[runner.engine] + model
        size = max(least, min(_USUAL[runner.engine] + model, share)) if there else _USUAL[runner.engine] + model
        mend = finding.config({subject: {"memory": finding.size_text(size)}})
        return Finding("budgets", subject, "failure", why, (mend,))
    soft = "no replacement before that" if runner.memory is None else f"replaced at {format_size(runner.memory)}"
    return Finding("budgets", subject, "ok", f"a worker is {soft}, killed at {format_size(runner.hard)}")


def _together(config: Config, there: int) -> Finding:
    soft = config.machine.reserve + needed(config, hard=False)
    hard = config.machine.reserve + needed(config, hard=True)
    reserve = f"{format_size(config.machine.reserve)} for the application"
    if hard <= there:
        why = f"{reserve} and {format_size(hard - config.machine.reserve)} of workers at most fit {format_size(there)}"
        return Finding("budgets", "together", "ok", why)
    if soft > there:
        level: finding.Level = "failure"
        why = (
            f"{reserve} and the workers' budgets are {format_size(soft)}: more than the {format_size(there)} there are"
        )
    else:
        level = "warning"
        why = (
            f"{reserve} and the workers at their hard budgets are {format_size(hard)}, more than the "
            f"{format_size(there)} there are: the kernel kills before the watchdog does"
        )
    mend = finding.config(_fitted(config, there))
    return Finding("budgets", "together", level, f"{why}. Fewer workers or smaller budgets, or a larger limit", (mend,))


def needed(config: Config, *, hard: bool, without: str | None = None) -> int:
    """Bytes that all workers but those of `without` may hold, at their soft or hard budgets."""
    total = 0
    for name, runner in config.runners.items():
        if name != without and name not in config.in_fleet:
            total += runner.size.maximum * _budget_of(runner, hard=hard)
    return total + (int(config.fleet.budget) if config.fleet is not None else 0)


def _budget_of(runner: RunnerSection, *, hard: bool) -> int:
    return int((runner.hard if hard else runner.memory or runner.hard) or 0)


def _fitted(config: Config, there: int) -> dict[str, dict[str, Any]]:
    """What makes it fit, by table: fewer workers first, for a budget that is too small for its model is no mend; then
    smaller budgets for those that have the largest.
    """
    tables: dict[str, dict[str, Any]] = {}
    room = there - config.machine.reserve
    if room < there // 4:  # the application's part leaves next to nothing
        tables["machine"] = {"reserve": finding.size_text(there // 4)}
        room = there - there // 4
    alone = {name: each for name, each in config.runners.items() if name not in config.in_fleet and each.hard}
    fleet = int(config.fleet.budget) if config.fleet is not None else 0
    counts = fewer_workers({name: (each.hard or 0, each.size.maximum) for name, each in alone.items()}, room - fleet)
    most = largest_that_fit([*((each.hard or 0, counts[name]) for name, each in alone.items()), (fleet, 1)], room)
    for name, runner in config.runners.items():
        keys: dict[str, Any] = {}
        if name in alone and counts[name] < runner.size.maximum:
            least = min(runner.size.minimum, counts[name])
            keys["workers"] = counts[name] if least == counts[name] else [least, counts[name]]
        if name in alone and (runner.hard or 0) > most:
            keys |= _budgets(min(int(runner.memory or most), int(most / _HARD_FACTOR)), most)
        elif name in config.in_fleet and (runner.memory or 0) > min(fleet, most) // runner.size.floor:
            soft = min(fleet, most) // runner.size.floor
            keys |= _budgets(soft, soft * _HARD_FACTOR)
        if keys:
            tables[finding.table("runners", name)] = keys
    if fleet > most:
        tables["fleet"] = {"budget": finding.size_text(most)}
    return tables


def _budgets(soft: float, hard: float) -> dict[str, str]:
    return {"memory": finding.size_text(soft), "memory_hard": finding.size_text(hard)}


def fewer_workers(sizes: Mapping[str, tuple[int, int]], room: int) -> dict[str, int]:
    """So many workers of each that all fit into `room`, or one of each: those that take most together give way.

    Args:
        sizes: bytes of a worker, and how many there are at most, by name.
        room: bytes.
    """
    counts = {name: number for name, (_, number) in sizes.items()}
    while (over := sum(sizes[name][0] * number for name, number in counts.items()) - room) > 0:
        several = [name for name, number in counts.items() if number > 1]
        if not several:
            break
        name = max(several, key=lambda each: sizes[each][0] * counts[each])
        others = [sizes[each][0] * counts[each] for each in several if each != name]
        # Down to where the next one takes more, but no further than must be.
        size = sizes[name][0]
        steps = max(1, min(-(-over // size), (size * counts[name] - max(others, default=0)) // size))
        counts[name] = max(1, counts[name] - steps)
    return counts


def largest_that_fit(sizes: Sequence[tuple[int, int]], room: int) -> int:
    """The size to which the larger ones must be cut so that all fit: ``[(size, how often), ...]`` into `room`."""
    left, number = room, sum(times for _, times in sizes)
    for size, times in sorted(sizes):
        if size * number > left:
            return left // number
        left -= size * times
        number -= times
    return max((size for size, _ in sizes), default=0)


# Models


def models(config: Config, facts: Facts) -> Iterator[Finding]:
    """What the runners load is there."""
    for name, runner in config.runners.items():
        path = getattr(runner, "path", None)
        if path is None:
            continue
        subject = finding.table("runners", name)
        size = facts.models.get(path)
        if size is None:
            why = f"there is no file or folder {path!r}, from the folder of the file on"
            mend = finding.config({subject: {"path": "PATH"}}, "PATH: where the model is")
            yield Finding("models", subject, "failure", why, (mend,))
        else:
            yield Finding("models", subject, "ok", f"{path} is there, {format_size(size)}")
