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

from guardrails.memory.cgroup import Cgroup, own_cgroups

_LINUX = sys.platform == "linux"
_PROC = "/proc"
#: The files with exact sizes, the cheapest first.
_EXACT = ("smaps_rollup", "smaps")


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


def private_bytes(pid: int | None = None, *, proc: str = _PROC) -> int:
    """The exact private memory of a process in bytes: anonymous plus swap from `smaps_rollup`, USS elsewhere.

    The kernel walks the page tables for it: 0.1 ms for a small process, several for one of gigabytes. Where there is no
    `smaps_rollup` (gVisor, hardened kernels), or it may not be read, it is `smaps`, and at last `statm`.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return private_and_proportional(pid, proc=proc)[0]


def private_and_proportional(pid: int | None = None, *, proc: str = _PROC) -> tuple[int, int | None]:
    """`private_bytes`, and PSS: that plus this process's share of what it has in common with others. One reading.

    PSS is None where the system does not know it (macOS, no `smaps`). It counts mapped files too, each page divided by
    the number of processes that map it.

    Raises:
        ProcessLookupError: there is no such process.
    """
    if not _LINUX:
        return _uss(pid), None
    folder = f"{proc}/{pid or 'self'}"
    for name in _EXACT:
        try:
            text = _read(f"{folder}/{name}")
        except (FileNotFoundError, PermissionError):
            continue  # a file that this kernel does not have, or does not show, is no dead process
        if text and b"Anonymous:" not in text:
            continue
        fields = _fields(text, (b"Anonymous:", b"Swap:", b"Pss:", b"SwapPss:"))
        # The file is empty for a zombie: it holds nothing any more.
        private = fields.get(b"Anonymous:", 0) + fields.get(b"Swap:", 0)
        return private, fields.get(b"Pss:", 0) + fields.get(b"SwapPss:", 0)
    return private_estimate(pid, proc=proc), None


def mapped_bytes(pid: int | None = None, *, proc: str = _PROC) -> int:
    """What a process has resident of files and shared memory, in bytes; 0 where the system does not say (macOS)."""
    if not _LINUX:
        return 0
    folder = f"{proc}/{pid or 'self'}"
    fields = _status(folder, (b"RssFile:", b"RssShmem:"))
    return sum(fields.values()) if fields else _statm(folder)[1]


def private_estimate(pid: int | None = None, *, proc: str = _PROC) -> int:
    """Nearly `private_bytes`, from counters the kernel keeps anyway: 20 microseconds whatever the size.

    The counters of each CPU are added up loosely, so it can be off by some hundred kilobytes.

    Raises:
        ProcessLookupError: there is no such process.
    """
    if not _LINUX:
        return _uss(pid)
    folder = f"{proc}/{pid or 'self'}"
    fields = _status(folder, (b"RssAnon:", b"VmSwap:"))
    if b"RssAnon:" in fields:
        return sum(fields.values())
    resident, shared = _statm(folder)
    return max(0, resident - shared) + fields.get(b"VmSwap:", 0)


def resident_bytes(pid: int | None = None) -> int:
    """RSS in bytes, for comparison with other tools."""
    if not _LINUX:
        import psutil  # noqa: PLC0415 - costs 8 ms to import; not needed on Linux

        return int(psutil.Process(pid).memory_info().rss)
    return _statm(f"{_PROC}/{pid or 'self'}")[0]


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
        fields = _fields(_read(f"{_PROC}/meminfo"), (b"MemTotal:", b"MemAvailable:"))
        total = fields[b"MemTotal:"]
        return Scope("host", total - fields.get(b"MemAvailable:", total), total)
    import psutil  # noqa: PLC0415

    memory = psutil.virtual_memory()
    return Scope("host", int(memory.total - memory.available), int(memory.total))


def _status(folder: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Counters of a process in bytes; those that this kernel does not show are missing."""
    try:
        return _fields(_read(f"{folder}/status"), names)
    except (FileNotFoundError, PermissionError):
        return {}


def _statm(folder: str) -> tuple[int, int]:
    """Resident and shared bytes.

    Raises:
        ProcessLookupError: there is no such process. OSError: the file cannot be read.
    """
    try:
        pages = _read(f"{folder}/statm").split()
    except FileNotFoundError as error:
        if not os.path.exists(folder):  # noqa: PTH110 - no Path for a check
            raise ProcessLookupError(str(error)) from error
        raise
    size = os.sysconf("SC_PAGE_SIZE")
    return int(pages[1]) * size, int(pages[2]) * size


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a third of the cost of Path.read_bytes, and this runs often
        return file.read()


def _fields(text: bytes, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """The sum of all lines of each name, in bytes: `smaps` has them once for each mapping."""
    text = b"\n" + text
    found: dict[bytes, int] = {}
    for name in names:
        line = b"\n" + name
        at = text.find(line)  # cheaper than to look at every line
        while at >= 0:
            at += len(line)
            found[name] = found.get(name, 0) + int(text[at : text.index(b"k", at)]) * 1024  # "  1234 kB"
            at = text.find(line, at)
    return found


def _uss(pid: int | None) -> int:
    import psutil  # noqa: PLC0415

    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from error
