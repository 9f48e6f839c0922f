"""What a process holds, and what the machine has left.

A process's size is its *private* memory: anonymous pages and swap. RSS also counts shared and reclaimable pages
(mapped model weights, in full, in every process that maps them); `ru_maxrss` never comes down. Neither is used here.

All of it reads `/proc` on Linux and psutil elsewhere; nothing blocks for longer than the kernel needs to answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from guardrails.memory.cgroup import Cgroup, own_cgroups

_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Scope:
    """One limit on memory and what is used of it, in bytes. `name` is ``host``, ``processes``, or a cgroup's path."""

    name: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """What is used, as a share of the limit. Infinite for a limit of 0, which a cgroup may have."""
        return self.used / self.limit if self.limit else float("inf")


def private_bytes(pid: int | None = None) -> int:
    """The exact private memory of a process in bytes: anonymous plus swap from `smaps_rollup`, USS elsewhere.

    The kernel walks the page tables for it: 0.1 ms for a small process, several for one of gigabytes.

    Raises:
        ProcessLookupError: there is no such process. PermissionError: it is somebody else's.
    """
    if not _LINUX:
        return _uss(pid)
    fields = _fields(f"/proc/{pid or 'self'}/smaps_rollup", (b"Anonymous:", b"Swap:"))
    # The file exists, but is empty, for a zombie: it holds nothing any more.
    return sum(fields.values())


def private_and_proportional(pid: int | None = None) -> tuple[int, int | None]:
    """`private_bytes`, and PSS: that plus this process's share of what it has in common with others. One reading.

    PSS is None where the system does not know it (macOS). It counts mapped files too, each page divided by the
    number of processes that map it.

    Raises:
        ProcessLookupError: there is no such process. PermissionError: it is somebody else's.
    """
    if not _LINUX:
        return _uss(pid), None
    fields = _fields(f"/proc/{pid or 'self'}/smaps_rollup", (b"Anonymous:", b"Swap:", b"Pss:", b"SwapPss:"))
    private = fields.get(b"Anonymous:", 0) + fields.get(b"Swap:", 0)
    return private, fields.get(b"Pss:", 0) + fields.get(b"SwapPss:", 0)


def mapped_bytes(pid: int | None = None) -> int:
    """What a process has resident of files and shared memory, in bytes; 0 where the system does not say (macOS)."""
    if not _LINUX:
        return 0
    return sum(_fields(f"/proc/{pid or 'self'}/status", (b"RssFile:", b"RssShmem:")).values())


def private_estimate(pid: int | None = None) -> int:
    """Nearly `private_bytes`, from counters the kernel keeps anyway: 20 microseconds whatever the size.

    The counters of each CPU are added up loosely, so it can be off by some hundred kilobytes.
    """
    if not _LINUX:
        return _uss(pid)
    return sum(_fields(f"/proc/{pid or 'self'}/status", (b"RssAnon:", b"VmSwap:")).values())


def resident_bytes(pid: int | None = None) -> int:
    """RSS in bytes, for comparison with other tools."""
    if not _LINUX:
        import psutil  # noqa: PLC0415 - costs 8 ms to import; not needed on Linux

        return int(psutil.Process(pid).memory_info().rss)
    try:
        pages = Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()
    except FileNotFoundError as error:
        raise ProcessLookupError(str(error)) from error
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")


def tree_private() -> int:
    """Private memory of this process and all its descendants, in bytes. Milliseconds: not for a hot path."""
    import psutil  # noqa: PLC0415

    total = private_estimate()
    for child in psutil.Process().children(recursive=True):
        try:
            total += private_estimate(child.pid)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue  # it ended while we looked
    return total


def machine_scopes(groups: Iterable[Cgroup] | None = None) -> tuple[Scope, ...]:
    """The host and every cgroup with a limit, up the tree. The cgroups are looked up unless `groups` gives them."""
    scopes = [_host()]
    for group in own_cgroups() if groups is None else groups:
        limit, used = group.limit(), group.used()
        if limit is not None and used is not None:
            scopes.append(Scope(str(group.path), used, limit))
    return tuple(scopes)


def headroom() -> int:
    """Bytes that this process may still take: the smallest over the host and every cgroup up the tree."""
    return min(max(0, scope.limit - scope.used) for scope in machine_scopes())


def scope_reader(process_limit: int | None) -> Callable[[], tuple[Scope, ...]]:
    """A function that reads all scopes: the machine's, and the process tree's against `process_limit` if one is
    given.
    """

    def read() -> tuple[Scope, ...]:
        scopes = machine_scopes()
        return scopes if process_limit is None else (*scopes, Scope("processes", tree_private(), process_limit))

    return read


def _host() -> Scope:
    if _LINUX:
        fields = _fields("/proc/meminfo", (b"MemTotal:", b"MemAvailable:"))
        total = fields[b"MemTotal:"]
        return Scope("host", total - fields.get(b"MemAvailable:", total), total)
    import psutil  # noqa: PLC0415

    memory = psutil.virtual_memory()
    return Scope("host", int(memory.total - memory.available), int(memory.total))


def _fields(path: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a third of the cost of Path.read_bytes, and this runs often
            text = file.read()
    except FileNotFoundError as error:
        raise ProcessLookupError(str(error)) from error
    text = b"\n" + text
    found: dict[bytes, int] = {}
    for name in names:
        at = text.find(b"\n" + name)  # cheaper than to look at every line
        if at >= 0:
            at += len(name) + 1
            found[name] = int(text[at : text.index(b"k", at)]) * 1024  # "  1234 kB"
    return found


def _uss(pid: int | None) -> int:
    import psutil  # noqa: PLC0415

    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from error
