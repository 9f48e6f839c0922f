"""The memory limits that the kernel holds over this process: every cgroup from its own up to the root, v1 and v2.

A container's limit may sit on any level of the tree, so every level counts. What a cgroup uses is read without its
inactive file cache, which the kernel takes back before it kills (the kubelet's "working set").

Linux only; elsewhere there are no cgroups and the list is empty. Reading is a few small files: tens of microseconds.
"""

from __future__ import annotations

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
