"""The end of a child process: noticed without a thread of the application's, and its status fetched once.

A pidfd says that a process has ended, where the system has them (Linux from 5.3). Elsewhere a daemon thread of our own
waits, and not one of the event loop's executor, whose few are the application's. Neither needs SIGCHLD, which the
application may ignore or handle: then the status may be lost, but not the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path


def when_ended(loop: asyncio.AbstractEventLoop, popen: subprocess.Popen[bytes], ended: Callable[[], None]) -> None:
    """Have `ended` called on the loop once the process has ended.

    Raises:
        RuntimeError: the system has no thread left to wait in.
    """
    try:
        pidfd = os.pidfd_open(popen.pid)
    except (AttributeError, OSError):  # not Linux, or one before 5.3; or no descriptor is left
        waiting = threading.Thread(target=_wait, args=(loop, popen, ended), name="runners-exit", daemon=True)
        waiting.start()
        return

    def readable() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        ended()

    loop.add_reader(pidfd, readable)


def _wait(loop: asyncio.AbstractEventLoop, popen: subprocess.Popen[bytes], ended: Callable[[], None]) -> None:
    if hasattr(os, "waitid"):
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: the call returned when it had ended
            os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)  # its status and number stay as they are
    else:
        exit_code(popen)
    with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to report to
        loop.call_soon_threadsafe(ended)


def exit_code(popen: subprocess.Popen[bytes]) -> int | None:
    """The status of a process that has ended, as `subprocess` has it; None where other code has fetched it."""
    if popen.returncode is None:
        try:
            _, status = os.waitpid(popen.pid, 0)
        except ChildProcessError:
            popen.returncode = UNKNOWN
        else:
            popen.returncode = os.waitstatus_to_exitcode(status)
    return None if popen.returncode == UNKNOWN else popen.returncode


#: What a `Popen` says of an end whose status was lost. No process has it.
UNKNOWN = 1 << 20


def reap(session: int, proc: Path = Path("/proc")) -> None:
    """Fetch the status of what a worker has left behind, if this process inherits orphans (PID 1 of a container)."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if (fields[0], int(fields[1]), int(fields[3])) == (b"Z", os.getpid(), session):
                os.waitpid(int(folder.name), os.WNOHANG)


__all__ = ["UNKNOWN", "exit_code", "reap", "when_ended"]
