"""The kernel's settings that decide how memory behaves: huge pages, swap, overcommit, shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from guardrails.core.sizes import format_size
from runners.config import Config
from runners.doctor import finding
from runners.doctor.facts import Facts, Group
from runners.doctor.finding import Finding
from runners.doctor.redis import redis_url

_MIB = 1 << 20
_SHM = "/dev/shm"  # noqa: S108 - it is only measured
_LOCAL = ("localhost", "127.0.0.1", "::1", None)


def huge_pages(config: Config, facts: Facts) -> Iterator[Finding]:
    """Memory is not taken two megabytes at a time unasked."""
    mode = facts.machine.huge_pages
    if mode == "always":
        why = "always: processes grow 2 MiB at a time, and freed pieces of it stay; Redis stalls when it saves"
        mend = finding.command("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled", "as root, at each boot")
        yield Finding("huge_pages", "kernel", "warning", why, (mend,))
    elif mode is not None:
        yield Finding("huge_pages", "kernel", "ok", f"{mode}: only where a program asks for them")


def swap(config: Config, facts: Facts) -> Iterator[Finding]:
    """What is too large is replaced, and does not go to the disk first."""
    machine = facts.machine
    if machine.system != "linux":
        return
    if not machine.swap:
        yield Finding("swap", "kernel", "ok", "there is none")
        return
    if any(not group.swaps for group in machine.groups):
        yield Finding("swap", "kernel", "ok", f"{format_size(machine.swap)}, and none of it for this cgroup")
        return
    why = f"{format_size(machine.swap)} of swap: a worker that grows is slow for minutes before anybody replaces it"
    yield Finding("swap", "kernel", "warning", why, (_no_swap(machine.groups),))


def _no_swap(groups: tuple[Group, ...]) -> finding.Mend:
    group = groups[0] if groups else None
    if group is not None and group.version == 2:
        return finding.command(f"echo 0 > {group.path / 'memory.swap.max'}", "as root")
    if group is not None:
        return finding.command(f"echo 0 > {group.path / 'memory.swappiness'}", "as root")
    return finding.command("swapoff -a", "as root, and out of /etc/fstab")


def overcommit(config: Config, facts: Facts) -> Iterator[Finding]:
    """The kernel lets large maps be made, and a Redis on this machine fork."""
    mode = facts.machine.overcommit
    if mode is None:
        return
    url = redis_url(config, facts.environment)
    local = url is not None and urlsplit(url).hostname in _LOCAL
    mend = finding.command(f"sysctl -w vm.overcommit_memory={1 if local else 0}", "as root; keep it in /etc/sysctl.d")
    if mode == 2:
        why = "2: maps and forks are refused though there is memory; a model that is only mapped counts in full"
        yield Finding("overcommit", "kernel", "warning", why, (mend,))
    elif mode == 0 and local:
        why = "0, and Redis is on this machine: the fork it saves by is refused when it holds more than is free"
        yield Finding("overcommit", "kernel", "warning", why, (mend,))
    else:
        yield Finding("overcommit", "kernel", "ok", f"{mode}")


def shared_memory(config: Config, facts: Facts) -> Iterator[Finding]:
    """There is room for what processes share."""
    machine = facts.machine
    if machine.system != "linux":
        return
    docker = machine.manager in ("docker", "podman")
    wanted = 256 * _MIB
    if docker:
        mend = finding.command(f"{machine.manager} run --shm-size=256m IMAGE", "IMAGE: yours")
    else:
        mend = finding.command(f"mount -o remount,size={wanted} /dev/shm", "as root")
    if machine.shared is None:
        why = "it is not there: multiprocessing and numeric libraries cannot share memory"
        mend = finding.command("mkdir -p /dev/shm && mount -t tmpfs -o size=268435456 tmpfs /dev/shm", "as root")
        yield Finding("shared_memory", _SHM, "warning", why, (mend,))
    elif machine.shared <= 64 * _MIB:
        why = f"{format_size(machine.shared)}, a container's default: a library that shares arrays dies of a bus error"
        yield Finding("shared_memory", _SHM, "warning", why, (mend,))
    elif machine.shared_free is not None and machine.shared_free < machine.shared // 10:
        why = (
            f"{format_size(machine.shared_free)} of {format_size(machine.shared)} are left, and what is in it is memory"
        )
        mend = finding.command("find /dev/shm -type f -mmin +60 -delete", "look first: without -delete it only lists")
        yield Finding("shared_memory", _SHM, "warning", why, (mend,))
    else:
        yield Finding("shared_memory", _SHM, "ok", format_size(machine.shared))
