"""What `ps` and `top` show for a worker and for its guard.

The command line has the title, ``runners: NAME worker``, as the first statement of the program: see
`runners.supervision.process`. The guard is a fork of the worker, so it writes its own role over the worker's there.
The short name of a process (``ps -o comm``, the kernel's log of an out-of-memory kill) has 15 bytes, so the role
comes first in it.

Only Linux lets a process change them. Where it does not, they stay as they are.
"""

from __future__ import annotations

import contextlib
import os

#: The roles have the same length: one is written over the other.
WORKER, GUARD = "worker", "guard "
_MOST = 15
#: The place of ``arg_start`` in ``/proc/PID/stat``, behind the name in parentheses.
_ARG_START = 45


def entitle(title: str, role: str = WORKER) -> None:
    """Show this process as the `role` of the runner that `title`, on its command line, names."""
    name = title.removeprefix("runners: ").removesuffix(f" {WORKER}")
    short = f"{role.strip()}:{name}".encode()[:_MOST].decode(errors="ignore")
    with contextlib.suppress(OSError):
        _write("/proc/self/comm", short.encode())
    if role != WORKER:
        shown = ascii(title)[1:-1]  # as the parent wrote it
        with contextlib.suppress(OSError):
            _overwrite(shown.encode(), (shown.removesuffix(WORKER) + role).encode())


def _overwrite(shown: bytes, wanted: bytes) -> None:
    """Replace text of the command line, which is in this process's memory, by other text of the same length."""
    place = _read("/proc/self/cmdline").find(shown)
    fields = _read("/proc/self/stat").rpartition(b")")[2].split()
    start = int(fields[_ARG_START]) if len(fields) > _ARG_START else 0  # gVisor has none
    if place >= 0 and start:
        _write("/proc/self/mem", wanted, at=start + place)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - nothing more is imported here
        return file.read()


def _write(path: str, data: bytes, *, at: int | None = None) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        if at is None:
            os.write(file, data)
        else:
            os.pwrite(file, data, at)
    finally:
        os.close(file)
