"""The board: one page of memory that the child writes and the parent reads, at any time, even after the child is dead.

It says which requests the engine is running, since when, and how many steps it has finished. So a heartbeat costs no
message, a hang is seen from outside whatever the child's threads do, and after a crash the parent knows who was
running.

The page cannot shrink under its reader, whatever the child does with its descriptor: it is sealed. Where the system has
no seals it is read by system calls, and what is missing reads as zero.

One writer, one reader, no lock. A list is valid only while its count is not zero: the writer sets the count to zero,
writes the ids, then sets the count; a reader that races sees fewer, never wrong, ids.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_SIZE = 4096
_COUNT = struct.Struct("<Q")
_SINCE = struct.Struct("<d")
_PROGRESS = struct.Struct("<Q")
_AT_COUNT, _AT_SINCE, _AT_PROGRESS, _AT_IDS = 0, 8, 16, 24
_MAX_IDS = (_SIZE - _AT_IDS) // 8


class Board:
    """The shared page. `fd` is for the child to inherit."""

    def __init__(self, fd: int, *, mapped: bool = True) -> None:
        self.fd = fd
        self._mapped = mmap.mmap(fd, _SIZE) if mapped else None

    @classmethod
    def create(cls) -> Board:
        """A new page, of no name in any file system."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("runners-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:  # macOS
            fd, path = tempfile.mkstemp(prefix="runners-board-")
            Path(path).unlink()
        try:
            os.ftruncate(fd, _SIZE)
            return cls(fd, mapped=_seal(fd))
        except BaseException:  # mapping it needs a descriptor more, and there may be none
            os.close(fd)
            raise

    def close(self) -> None:
        """Give the page and its descriptor back."""
        if self._mapped is not None:
            self._mapped.close()
        os.close(self.fd)

    @property
    def _page(self) -> mmap.mmap | bytes:
        """What is read: as long as it should be, whatever the other side does."""
        if self._mapped is not None:
            return self._mapped
        return os.pread(self.fd, _SIZE, 0).ljust(_SIZE, b"\0")

    # The child's side

    def begin(self, ids: Sequence[int]) -> None:
        """The engine starts on these requests (only the first 509 are remembered)."""
        page = self._mapped
        assert page is not None  # noqa: S101 - the child maps it
        known = ids[:_MAX_IDS]
        _COUNT.pack_into(page, _AT_COUNT, 0)
        struct.pack_into(f"<{len(known)}Q", page, _AT_IDS, *known)
        _SINCE.pack_into(page, _AT_SINCE, time.monotonic())
        _COUNT.pack_into(page, _AT_COUNT, len(known))

    def end(self) -> None:
        """The engine has finished what it began."""
        page = self._mapped
        assert page is not None  # noqa: S101 - the child maps it
        _COUNT.pack_into(page, _AT_COUNT, 0)
        _PROGRESS.pack_into(page, _AT_PROGRESS, _PROGRESS.unpack_from(page, _AT_PROGRESS)[0] + 1)

    # The parent's side

    def running(self) -> tuple[int, ...]:
        """The requests that the engine is running, or was running when it died."""
        page = self._page
        (count,) = _COUNT.unpack_from(page, _AT_COUNT)
        ids: tuple[int, ...] = struct.unpack_from(f"<{min(count, _MAX_IDS)}Q", page, _AT_IDS)
        return ids

    def busy_for(self) -> float:
        """Seconds that the engine has been in its present step; 0.0 between steps."""
        page = self._page
        (count,) = _COUNT.unpack_from(page, _AT_COUNT)
        if not count:
            return 0.0
        (since,) = _SINCE.unpack_from(page, _AT_SINCE)
        return max(0.0, time.monotonic() - float(since))

    def progress(self) -> int:
        """Steps finished since the worker started."""
        steps: int = _PROGRESS.unpack_from(self._page, _AT_PROGRESS)[0]
        return steps


def _seal(fd: int) -> bool:
    """Fix the size of the file; whether that was possible."""
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return False
    with contextlib.suppress(OSError):  # a system, or a sandbox, that has none
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return True
    return False
