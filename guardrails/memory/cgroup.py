"""The memory limits that the kernel holds over this process: every cgroup from its own up to the root, v1 and v2.

A container's limit may sit on any level of the tree, so every level counts. What a cgroup uses is read without its
inactive file cache, which the kernel takes back before it kills (the kubelet's "working set").

Linux only; elsewhere there are no cgroups and the list is empty. Reading is a few small files: tens of microseconds.

Where the system has given a part of the v2 tree into this process's hands, groups of its own can be made there too
(`delegated_group`, `MemoryGroup`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: v1 writes "no limit" as the largest multiple of a page below 2**63.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One level of the tree. `version` is 1 or 2."""

    path: Path
    version: int

    def limit(self) -> int | None:
        """Bytes that the group may hold, or None for no limit. For v2 the smaller of `memory.max` and `memory.high`."""
        names = ("memory.max", "memory.high") if self.version == 2 else ("memory.limit_in_bytes",)
        limits = [value for name in names if (value := _number(self.path / name)) is not None and value < _UNLIMITED]
        return min(limits, default=None)

    def used(self) -> int | None:
        """Bytes that the group holds and the kernel cannot simply drop, or None when it does not say (the v2 root)."""
        v2 = self.version == 2
        total = _number(self.path / ("memory.current" if v2 else "memory.usage_in_bytes"))
        if total is None:
            return None
        cache = _stat(self.path / "memory.stat", "inactive_file" if v2 else "total_inactive_file")
        return max(0, total - cache)


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A v2 cgroup of our own making. Every method but `remove` and `oom_kills` raises OSError where the kernel
    refuses.
    """

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str) -> MemoryGroup:
        """A new group below `parent`, without a limit."""
        (parent / name).mkdir()
        return cls(parent / name)

    def add(self, pid: int) -> None:
        """Move a process here. What it took before stays on its old group's bill."""
        _write(self.path / "cgroup.procs", str(pid))

    def set_limit(self, size: int) -> None:
        """Bytes that the group may hold, file cache included, from now on; beyond, the kernel kills all of it."""
        _write(self.path / "memory.oom.group", "1")
        _write(self.path / "memory.max", str(size))

    def oom_kills(self) -> int:
        """Processes that the kernel has killed here for want of memory."""
        return _stat(self.path / "memory.events", "oom_kill")

    def remove(self) -> bool:
        """Remove the group; whether it is gone. The kernel refuses while a process is left in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()


def _marked_as_delegated(path: Path) -> bool:
    try:
        return os.getxattr(path, "user.delegate") == b"1"  # systemd's mark
    except (AttributeError, OSError):  # not Linux; no mark
        return False


def delegated_group(
    proc: Path = Path("/proc/self"), marked: Callable[[Path], bool] = _marked_as_delegated
) -> Path | None:
    """The v2 cgroup below which this process may make memory groups of its own, or None.

    That is its own group, where that hands memory on to groups below (a group with processes in it cannot, unless it
    is the root); or the group above, where systemd has delegated that to this service (``Delegate=yes`` with
    ``DelegateSubgroup=``). No other group is taken, even by root: a child in it would escape this process's limits.
    """
    try:
        memberships = (proc / "cgroup").read_text()
        mounts = (proc / "mountinfo").read_text()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in memberships.splitlines() if line.startswith("0::")), None)
    for version, root, mount in _memory_mounts(mounts):
        if version == 2 and own is not None:
            here, *above = _levels(own, root, mount)
            if _hands_memory_on(here):
                return here
            if above and marked(above[0]) and _hands_memory_on(above[0], enable=True):
                return above[0]
    return None


def _hands_memory_on(group: Path, *, enable: bool = False) -> bool:
    if not os.access(group, os.W_OK):
        return False
    control = group / "cgroup.subtree_control"
    try:
        if enable and "memory" not in control.read_text().split():
            _write(control, "+memory")
        return "memory" in control.read_text().split()
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123 - never creates a file, as these are the kernel's
        file.write(text.encode())


def own_cgroups(proc: Path = Path("/proc/self")) -> tuple[Cgroup, ...]:
    """The memory cgroups of this process, innermost first. Empty where there are none or they cannot be read."""
    try:
        memberships = (proc / "cgroup").read_text()
        mounts = (proc / "mountinfo").read_text()
    except OSError:
        return ()
    paths: dict[int, str] = {}
    for line in memberships.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    found: list[Cgroup] = []
    for version, root, mount in _memory_mounts(mounts):
        if version in paths:
            found.extend(Cgroup(level, version) for level in _levels(paths[version], root, mount))
    return tuple(group for group in found if group.used() is not None)


def _memory_mounts(mountinfo: str) -> list[tuple[int, str, Path]]:
    """Version, root within the hierarchy, and mount point of each cgroup mount that can hold memory files."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind and kind[0] == "cgroup2":
            mounts.append((2, fields[3], Path(fields[4])))
        elif kind and kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            mounts.append((1, fields[3], Path(fields[4])))
    return mounts


def _levels(path: str, root: str, mount: Path) -> list[Path]:
    # Inside a container the membership may be given from the host's root while the mount shows only a part of the tree.
    inside = path.removeprefix(root.rstrip("/")) if path == root or path.startswith(root.rstrip("/") + "/") else ""
    here = mount / inside.lstrip("/")
    if not here.is_dir():
        here = mount
    return [here, *(parent for parent in here.parents if parent == mount or mount in parent.parents)]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):  # no such file; "max"
        return None


def _stat(path: Path, key: str) -> int:
    try:
        text = path.read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
