"""Ends what a worker has started, when the worker ends, however that comes about.

A worker may be killed, with its parent or by it, and its own children would live on. So each worker has a guard: a
process that waits until the worker is gone, then kills the worker's process group and every process that has inherited
the worker's mark in its environment (Linux), which finds those that have moved to a session of their own too.

::

    worker ──fork──▶ (ends at once) ──fork──▶ guard, in a process group of its own, no child of the worker
       └── holds a pipe ─────────────────────▶ reads it: end-of-file, the worker is gone

The guard is forked before anything is imported, so it costs a bare interpreter: some 5 MB.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from runners.worker.title import GUARD, entitle

#: Seconds between two looks at the worker's process where its pipe does not show it: a fork in native code may hold it.
_LOOK = 5.0
_LONGEST_PAUSE = 0.2
_ROUNDS = 5


def guard(variable: str, title: str = "") -> None:
    """Start the guard of this process. Call it before any thread is started.

    Args:
        variable: of the environment; what has the same value there as this process is ended with it.
        title: of this process, on its command line: see `runners.worker.title`.
    """
    # One that the application ignores is inherited, and no child's exit status could be had here.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker = os.getpid()
    reading, writing = os.pipe()
    try:
        between = os.fork()
    except OSError as error:  # the worker is of use without it
        _close(reading)
        _close(writing)
        os.write(2, f"<4>what this worker starts may outlive it: no process is left to guard it ({error})\n".encode())
        return
    if between:
        os.close(reading)
        os.waitpid(between, 0)
        os.register_at_fork(after_in_child=lambda: _close(writing))
        return
    try:
        if os.fork() == 0:
            os.setpgid(0, 0)  # what is sent to the worker's group does not reach it
            if title:
                entitle(title, GUARD)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            _close_all_but(reading)
            _wait(worker, reading)
            _end_all(worker, f"{variable}={os.environ[variable]}".encode())
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    """The guard must not hold the worker's socket and pipes open."""
    try:
        held = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - nothing more is imported here
    except OSError:
        held = list(range(256))
    for number in held:
        if number != kept:
            _close(number)


def _close(number: int) -> None:
    with contextlib.suppress(OSError):
        os.close(number)


def _wait(worker: int, reading: int) -> None:
    while not select.select([reading], [], [], _LOOK)[0]:
        if not _alive(worker):
            return
    pause = 0.001  # it is about to be gone; else its code has closed the pipe
    while _alive(worker):
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, 2 * pause)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - nothing more is imported here
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        if os.path.exists("/proc/self"):  # noqa: PTH110
            return False
    except OSError:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _end_all(worker: int, mark: bytes) -> None:
    with contextlib.suppress(OSError):
        os.killpg(worker, signal.SIGKILL)  # in the millisecond of its end: no other group has the number yet
    own = os.getpid()
    for _ in range(_ROUNDS):  # some may have started others meanwhile
        found = [pid for pid in _pids() if pid != own and mark in _environment(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:
        return []  # another user's, or it has ended
