"""The list of checks, in the order in which they are shown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from runners.config import Config
from runners.doctor import machine, memory, process, redis, services, traffic, watching
from runners.doctor.facts import Facts
from runners.doctor.finding import Finding


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        title: what holds when it passes.
        run: the check itself. Without a file the configuration is an empty one.
        without_file: whether there is anything to say then.
    """

    name: str
    title: str
    run: Callable[[Config, Facts], Iterable[Finding]]
    without_file: bool = False


CHECKS: tuple[Check, ...] = (
    Check("memory_limit", "memory limits are set, and true", memory.limit, without_file=True),
    Check("budgets", "memory budgets are set, and fit together", memory.budgets),
    Check("models", "the models are there", memory.models),
    Check("autoscaling", "workers follow the load", traffic.autoscaling),
    Check("queues", "what waits is bounded", traffic.queues),
    Check("rate_limits", "every AI endpoint has a rate limit", traffic.rate_limits),
    Check("tiers", "what each tier of users may use is written down", traffic.tiers),
    Check("breakers", "every external service has a breaker", services.breakers),
    Check("timeouts", "every external call ends", services.timeouts),
    Check("sinks", "Sentry or another sink is configured, and answers", watching.sinks),
    Check("alerts", "the signs of trouble are watched for", watching.alerts),
    Check("load_test", "it was tried under load, and held", watching.load_test),
    Check("redis", "Redis is bounded, and its keys have a TTL", redis.redis),
    Check("allocator", "freed memory goes back", process.allocator, without_file=True),
    Check("threads", "there are no more threads than cores", process.threads, without_file=True),
    Check("open_files", "there is a descriptor for every connection", process.open_files, without_file=True),
    Check("processes", "there is a task for every worker", process.processes, without_file=True),
    Check("huge_pages", "memory is not taken two megabytes at a time", machine.huge_pages, without_file=True),
    Check("swap", "what grows is replaced, and not swapped", machine.swap, without_file=True),
    Check("overcommit", "large maps and forks are not refused", machine.overcommit, without_file=True),
    Check("shared_memory", "there is room for what processes share", machine.shared_memory, without_file=True),
)
NAMES = tuple(check.name for check in CHECKS)


def chosen(only: Collection[str] = (), skip: Collection[str] = ()) -> frozenset[str]:
    """The names of the checks to make.

    Raises:
        ValueError: there is no check of that name.
    """
    for name in (*only, *skip):
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
            msg = f"there is no check {name!r}; {hint}"
            raise ValueError(msg)
    return frozenset(only or NAMES) - frozenset(skip)


def examine(
    config: Config | None, facts: Facts, *, only: Collection[str] = (), skip: Collection[str] = ()
) -> tuple[Finding, ...]:
    """All findings, check by check.

    Args:
        config: the file; None: the machine alone.
        facts: what `gather` found.
        only: the names of the checks to make; empty: all.
        skip: the names of those to leave out.

    Raises:
        ValueError: there is no check of that name.
    """
    names = chosen(only, skip)
    return tuple(
        found
        for check in CHECKS
        if check.name in names and (config is not None or check.without_file)
        for found in check.run(config or Config(), facts)
    )
