"""The cgroups of a process that limit other things than memory: processor time, and tasks."""

from __future__ import annotations

from pathlib import Path

from runners.doctor.facts import Counted


def levels(proc: Path, controller: str) -> list[tuple[int, Path]]:
    """Version and folder of each cgroup that `controller` may limit the process in, innermost first.

    Args:
        proc: the process' folder, ``/proc/self``.
        controller: ``cpu`` or ``pids``.
    """
    try:
        memberships = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths: dict[int, str] = {}
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    found = []
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        version = 2 if kind[:1] == ["cgroup2"] else 1 if kind[:1] == ["cgroup"] else 0
        if version in paths and (version == 2 or controller in kind[-1].split(",")):
            mount = Path(fields[4])
            # Within a container the membership may be given from the host's root, and the mount shows a part of it.
            inside = paths[version].removeprefix(fields[3].rstrip("/")).lstrip("/")
            here = mount / inside if (mount / inside).is_dir() else mount
            above = [parent for parent in here.parents if parent == mount or mount in parent.parents]
            found += [(version, level) for level in (here, *above)]
    return found


def cpu_quota(proc: Path) -> float | None:
    """Cores' worth of time that the process' cgroups allow: the smallest of all levels. None: no limit."""
    quotas = []
    for version, level in levels(proc, "cpu"):
        if version == 2:
            words = _read(level / "cpu.max").split()
            quota, period = (words[0], words[1]) if len(words) == 2 else ("max", "")
        else:
            quota, period = _read(level / "cpu.cfs_quota_us").strip(), _read(level / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def task_limit(proc: Path) -> Counted | None:
    """The limit on tasks that leaves the fewest; None where there is none."""
    limits = []
    for _, level in levels(proc, "pids"):
        limit, used = _read(level / "pids.max").strip(), _read(level / "pids.current").strip()
        if limit.isdecimal() and used.isdecimal():
            limits.append(Counted(int(limit), int(used), level / "pids.max"))
    return min(limits, key=lambda each: (each.limit or 0) - each.used, default=None)


def unit_of(proc: Path) -> str:
    """The systemd unit that the process belongs to, or nothing."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    names = [part for line in lines for part in line.split(":", 2)[-1].split("/") if part.endswith(".service")]
    return names[-1] if names else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
