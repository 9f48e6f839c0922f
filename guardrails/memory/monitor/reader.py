"""What the system says of one process: cheaply and often, exactly and seldom, and who its children are.

::

    quick      /proc/<pid>/status             25 us, whatever the size of the process
    exact      /proc/<pid>/smaps_rollup       0.1 ms for a small one, some 13 ms for each gigabyte; the kernel walks
                                              the page tables, and the process cannot map memory meanwhile
    children   /proc/<pid>/task/*/children    7 us for each thread of the process

Elsewhere than on Linux psutil is asked. There the private size is the exact one only, so it is as seldom, and RSS
stands in for it before the first and where the system does not tell.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

from guardrails.memory.reading import private_and_proportional


class Quick(NamedTuple):
    """A cheap reading, in bytes.

    `private` is None where it is not cheap, `parent` the number of the parent process.
    """

    private: int | None
    rss: int
    parent: int


class Reader(Protocol):
    """Reads processes. A process that is gone, a zombie included, or is somebody else's, is None or empty."""

    def quick(self, pid: int) -> Quick | None:
        """A cheap reading."""
        ...

    def exact(self, pid: int) -> tuple[int, int | None] | None:
        """Private bytes and PSS, exactly. PSS is None where the system does not know it."""
        ...

    def children(self, pid: int) -> list[int]:
        """The processes that it has started and that live."""
        ...

    def command(self, pid: int) -> str:
        """The name of its program, without arguments."""
        ...


class ProcReader:
    """Reads Linux's `/proc`.

    Args:
        proc: where it is.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def quick(self, pid: int) -> Quick | None:
        """A cheap reading."""
        text = _read(f"{self._proc}/{pid}/status")
        rss = _number(text, b"\nVmRSS:")
        if rss is None:  # gone; or a zombie, which holds nothing any more
            return None
        private = (_number(text, b"\nRssAnon:") or 0) + (_number(text, b"\nVmSwap:") or 0)
        return Quick(private * 1024, rss * 1024, _number(text, b"\nPPid:") or 0)

    def exact(self, pid: int) -> tuple[int, int | None] | None:
        """Private bytes and PSS, exactly."""
        return _exact(pid)

    def children(self, pid: int) -> list[int]:
        """The processes that it has started and that live."""
        found: list[int] = []
        try:
            threads = os.listdir(f"{self._proc}/{pid}/task")  # noqa: PTH208 - names are what is wanted
        except OSError:
            return found
        for thread in threads:
            found.extend(map(int, _read(f"{self._proc}/{pid}/task/{thread}/children").split()))
        return found

    def command(self, pid: int) -> str:
        """The name of its program, without arguments: at most 15 characters."""
        return _read(f"{self._proc}/{pid}/comm").decode(errors="replace").strip()


class PsutilReader:
    """Reads by psutil, where there is no `/proc`, or one without lists of children."""

    def quick(self, pid: int) -> Quick | None:
        """A cheap reading; its private size is None."""
        import psutil  # noqa: PLC0415 - costs 8 ms to import; not needed on Linux

        try:
            process = psutil.Process(pid)
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    return None
                return Quick(None, int(process.memory_info().rss), process.ppid())
        except (psutil.Error, OSError):
            return None

    def exact(self, pid: int) -> tuple[int, int | None] | None:
        """Private bytes and PSS, exactly."""
        import psutil  # noqa: PLC0415

        try:
            return _exact(pid)
        except psutil.Error:
            return None

    def children(self, pid: int) -> list[int]:
        """The processes that it has started and that live. All processes of the machine are gone through."""
        import psutil  # noqa: PLC0415

        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except (psutil.Error, OSError):
            return []

    def command(self, pid: int) -> str:
        """The name of its program, without arguments."""
        import psutil  # noqa: PLC0415

        try:
            return str(psutil.Process(pid).name())
        except (psutil.Error, OSError):
            return ""


def system_reader() -> Reader:
    """The one for this system."""
    here = Path("/proc/self/task") / str(os.getpid()) / "children"
    return ProcReader() if sys.platform == "linux" and here.exists() else PsutilReader()


def _exact(pid: int) -> tuple[int, int | None] | None:
    try:
        return private_and_proportional(pid)
    except OSError:
        return None


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = os.read(descriptor, 8192)
        if len(text) == 8192:  # a list of very many children
            while more := os.read(descriptor, 65536):
                text += more
    except OSError:  # it ended between
        return b""
    finally:
        os.close(descriptor)
    return text


def _number(text: bytes, key: bytes) -> int | None:
    """The number after `key`, where a line begins."""
    begin = text.find(key)
    if begin < 0:
        return None
    begin += len(key)
    return int(text[begin : text.find(b"\n", begin)].removesuffix(b"kB"))
