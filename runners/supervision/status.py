"""What a runner says about itself to other processes of the same user: one small file, for `runners top`.

It is opt-in: the variable ``RUNNERS_STATUS=1``, or the runner's ``publish_status=True``. The file is written once a
second, in a thread, replaced in one piece, and removed when the runner closes. It holds numbers and the runner's name:
nothing of any request. One that was left by a process that is gone is not shown. In the default folder it is removed,
by `runners top` and by the next runner that publishes there; in a folder that the user named nothing is removed but a
runner's own file.

The folder is private: ``$XDG_RUNTIME_DIR/runners``, else ``/tmp/runners-UID``, or the one that RUNNERS_STATUS names.
It has mode 0700; one that belongs to somebody else, or that others may enter, is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from runners.supervision.supervisor import Supervisor

INTERVAL = 1.0
_MOST = 1 << 20
#: Seconds by which two readings of a process's start may differ: the clock of the system is set now and then.
_SAME_START = 3.0

#: A status file, or a part of one that was being written: the process and the number of its runner.
_NAME = re.compile(r"\.?([1-9][0-9]{0,9})-[1-9][0-9]{0,9}\.json", re.ASCII)

_log = logging.getLogger("runners")
_numbers = itertools.count(1)


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Sizes in bytes, times in seconds; see `runners.supervision.stats.WorkerStats`."""

    pid: int
    state: str
    private: int
    pss: int | None
    in_flight: int
    answered: int
    age: float


class RunnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One runner, at one moment.

    Attributes:
        pid: the process that has the runner.
        number: tells it from other runners of the process.
        process_started: when that process began, so that another one of the same number is told from it.
        at: when this was written. Both in seconds since the epoch.
        soft: bytes of private memory at which a worker is replaced; None for no budget.
        hard: at which it is killed.

    The rest is what `runners.supervision.stats.RunnerStats` says.
    """

    pid: int
    number: int
    process_started: float
    at: float
    name: str
    state: str
    soft: int | None
    hard: int | None
    queued: int
    submitted: int
    answered: int
    failed: int
    expired: int
    cancelled: int
    redelivered: int
    restarts: dict[str, int]
    workers: tuple[WorkerStatus, ...]


class UnsafeFolder(OSError):
    """The folder for status files belongs to another user, or others may enter it."""


# Where


def wanted(choice: bool | None, environment: Mapping[str, str] = os.environ) -> Path | None:  # noqa: FBT001 - the value
    """The folder to publish in, or None for not at all. `choice` is the runner's own; None leaves it to RUNNERS_STATUS.

    Raises:
        ValueError: RUNNERS_STATUS is neither a switch nor an absolute path.
    """
    switch = environment.get("RUNNERS_STATUS", "")
    if choice is False:
        return None
    if switch.startswith("/"):
        return Path(switch)
    if switch.lower() not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        msg = f"RUNNERS_STATUS takes 1, 0 or the absolute path of a folder, not {switch!r}"
        raise ValueError(msg)
    if choice or switch.lower() in ("1", "true", "yes", "on"):
        return default_folders(environment)[0]
    return None


def default_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where status files may be, the preferred folder first; a service and a login shell may differ in that."""
    user = os.geteuid()
    folders = [Path(f"/tmp/runners-{user}"), Path(f"/run/user/{user}/runners")]  # noqa: S108 - see `_opened`
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and Path(runtime).is_dir():
        folders.insert(0, Path(runtime) / "runners")
    return list(dict.fromkeys(folders))


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, once it is known to be private. Everything in it is named relative to that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            msg = f"the folder {str(folder)!r} is not private to this user (it must be yours, with mode 0700)"
            raise UnsafeFolder(msg)
        yield descriptor
    finally:
        os.close(descriptor)


# Writing


async def publish(supervisor: Supervisor, folder: Path) -> None:
    """Write the status every second until cancelled, then remove it. What goes wrong is logged once, harming nobody."""
    file = StatusFile(folder)
    warned = False
    try:
        while True:
            status = _status(supervisor, file.number)
            try:
                await asyncio.to_thread(file.write, status)
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread is left
                if not warned:
                    _log.warning("%s: its status cannot be published: %s", status.name, error)
                warned = True
            await asyncio.sleep(INTERVAL)
    finally:
        file.remove()


def _status(supervisor: Supervisor, number: int) -> RunnerStatus:
    stats, limits = supervisor.stats(), supervisor.limits
    return RunnerStatus(
        pid=os.getpid(),
        number=number,
        process_started=0.0,  # `StatusFile.write` knows
        at=time.time(),
        name=stats.name,
        state=stats.state,
        soft=limits.soft,
        hard=limits.hard,
        queued=stats.queued,
        submitted=stats.submitted,
        answered=stats.answered,
        failed=stats.failed,
        expired=stats.expired,
        cancelled=stats.cancelled,
        redelivered=stats.redelivered,
        restarts=stats.restarts,
        workers=tuple(
            WorkerStatus(
                pid=worker.pid,
                state=worker.state,
                private=worker.private,
                pss=worker.pss,
                in_flight=worker.in_flight,
                answered=worker.answered,
                age=worker.age,
            )
            for worker in stats.workers
        ),
    )


class StatusFile:
    """The file of one runner in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.number = next(_numbers)
        self._folder = folder
        self._name = f"{os.getpid()}-{self.number}.json"
        self._started: float | None = None
        self._lock = threading.Lock()  # one writes in a thread while the other removes
        self._removed = False

    def write(self, status: RunnerStatus) -> None:
        """Replace the file. Nothing happens after `remove`.

        Raises:
            OSError: it cannot be written; `UnsafeFolder` where the folder is not private.
        """
        with self._lock:
            if self._removed:
                return
            if self._started is None:
                with contextlib.suppress(FileExistsError):
                    self._folder.mkdir(mode=0o700)
                self._started = process_started(os.getpid())
                if self._folder in default_folders():
                    read_all(self._folder)
            data = msgspec.json.encode(msgspec.structs.replace(status, process_started=self._started or 0.0))
            with _opened(self._folder) as folder:
                _replace(folder, self._name, data)

    def remove(self) -> None:
        """Remove the file, for good."""
        with self._lock:
            self._removed = True
            with contextlib.suppress(OSError), _opened(self._folder) as folder:
                os.unlink(self._name, dir_fd=folder)


def _replace(folder: int, name: str, data: bytes) -> None:
    new = f".{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o600, dir_fd=folder)
    try:
        try:
            left = memoryview(data)
            while left:  # a disk that is nearly full takes a part, and refuses the next
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise


# Reading


def read_all(folder: Path) -> list[RunnerStatus]:
    """What the runners of living processes say in `folder`, by name.

    What the dead left is removed from a default folder, which nothing else is kept in: a file whose name is that of a
    status file, and whose process is gone, or began at another time than the file says.

    Raises:
        OSError: the folder cannot be read; FileNotFoundError where there is none, `UnsafeFolder` if it is not private.
    """
    found = []
    ours = folder in default_folders()
    with _opened(folder) as descriptor:
        for name in os.listdir(descriptor):  # noqa: PTH208 - a descriptor has no Path
            parsed = _NAME.fullmatch(name)
            if parsed is None:
                continue
            status = None if name.startswith(".") else _read(descriptor, name)
            started = process_started(int(parsed[1]))
            if started is None or (status is not None and abs(started - status.process_started) > _SAME_START):
                if ours:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=descriptor)
            elif status is not None:
                found.append(status)
    return sorted(found, key=lambda status: (status.name, status.pid, status.number))


def _read(folder: int, name: str) -> RunnerStatus | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - so here
            return msgspec.json.decode(file.read(_MOST), type=RunnerStatus)
    except (OSError, msgspec.MsgspecError):  # removed meanwhile; written by another version
        return None


def process_started(pid: int) -> float | None:
    """When the process began, in seconds since the epoch; None if there is none."""
    import psutil  # noqa: PLC0415 - takes 8 ms, and is needed only where somebody asked for this

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


__all__ = ["RunnerStatus", "StatusFile", "UnsafeFolder", "WorkerStatus", "default_folders", "publish", "read_all"]
