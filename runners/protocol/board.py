"""The status page: a page of memory that the child and its parent share, readable also after the child is dead.

It says which requests the engine is running, since when, and how many steps it has finished. So a heartbeat costs no
message, a hang is seen from outside whatever the child's threads do, and after a crash the parent knows what was
running.

It also decides who has a request that was sent and has not begun. Both sides number the requests in the order in which
they are sent. The child claims each one before it begins, in that order; the parent can take back all that are not
claimed, at any time, also while the child is busy, stopped or holds the interpreter's lock::

    sent      1 2 3 4 5 6 7
    claimed   ────▶ 3             begun: they stay, and if the child dies they count as begun
    recalled          ◀───── 7    4 to 7: the parent's again; the child drops them when it comes to them

Claiming and taking back exclude each other with a mutex in the page, so that no request is run twice, and none is lost.
`claimed` only grows: no later step, and no crash, makes a request that has begun look like one that has not.

The page cannot shrink under its reader, whatever the child does with its descriptor: it is sealed. Where the system has
no seals it is read by system calls, what is missing reads as zero, and nothing can be taken back.

The list of running requests has one writer and no lock. It is valid only while its count is not zero: the writer sets
the count to zero, writes the ids, then sets the count; a reader that races sees fewer, never wrong, ids.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from runners.protocol.mutex import SIZE, SharedMutex

_SIZE = 4096
#: Places in the page, in words of 8 bytes.
_COUNT, _SINCE, _PROGRESS, _CLAIMED, _RECALLED, _PACE, _SHARED = range(7)
_AT_MUTEX = 64
_FIRST_ID = (_AT_MUTEX + SIZE) // 8
_MAX_IDS = _SIZE // 8 - _FIRST_ID
#: The share that the last step has in the average length of a step.
_LAST = 1 / 8
#: Seconds between two tries to claim while the parent takes requests back, which takes it microseconds.
_AGAIN = 0.0001


class Board:
    """The shared page. `fd` is for the child to inherit."""

    def __init__(self, fd: int, *, mapped: bool = True) -> None:
        self.fd = fd
        self._page = mmap.mmap(fd, _SIZE) if mapped else None
        self._mutex: SharedMutex | None = None
        if self._page is not None:
            view = memoryview(self._page)
            self._words = view.cast("Q")
            self._seconds = view.cast("d")
            self._mutex = SharedMutex(self._page, _AT_MUTEX)

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
            board = cls(fd, mapped=_seal(fd))
            if board._mutex is not None:
                board._mutex.initialise()
                board._words[_SHARED] = 1
        except BaseException:  # mapping it needs a descriptor more, and there may be none
            os.close(fd)
            raise
        return board

    def close(self) -> None:
        """Give the page and its descriptor back."""
        if self._page is not None:
            del self._words, self._seconds  # they hold the page, and so does the mutex
            self._mutex = None
            self._page.close()
        os.close(self.fd)

    def _read(self) -> tuple[memoryview[int], memoryview[float]]:
        """The page, as words and as seconds: as long as it should be, whatever the other side does."""
        if self._page is not None:
            return self._words, self._seconds
        view = memoryview(os.pread(self.fd, _SIZE, 0).ljust(_SIZE, b"\0"))
        return view.cast("Q"), view.cast("d")

    # The child's side

    def claim(self, number: int) -> bool:
        """Begin the request that was the `number`th sent. False if the parent has taken it back: drop it."""
        words, mutex = self._words, self._mutex
        if mutex is None or not words[_SHARED]:  # nothing is ever taken back
            words[_CLAIMED] = number
            return True
        while mutex.take():
            time.sleep(_AGAIN)
        mine = number > words[_RECALLED]
        if mine:
            words[_CLAIMED] = number
        mutex.release()
        return mine

    def begin(self, ids: Sequence[int]) -> None:
        """The engine starts on these requests (only the first 488 are remembered)."""
        words = self._words
        known = min(len(ids), _MAX_IDS)
        words[_COUNT] = 0
        for at in range(known):
            words[_FIRST_ID + at] = ids[at]
        self._seconds[_SINCE] = time.monotonic()
        words[_COUNT] = known

    def end(self) -> None:
        """The engine has finished what it began."""
        words, seconds = self._words, self._seconds
        words[_COUNT] = 0
        words[_PROGRESS] += 1
        pace = seconds[_PACE]
        took = time.monotonic() - seconds[_SINCE]
        seconds[_PACE] = pace + (took - pace) * _LAST if pace else took

    # The parent's side

    @property
    def can_recall(self) -> bool:
        """Whether requests can be taken back here."""
        return self._mutex is not None

    def recall(self, sent: int) -> int | None:
        """Take back every request that was sent (`sent` so far) and not begun. Returns the number of the last one that
        was begun, or None if the child is just claiming one: try again a little later.
        """
        if self._mutex is None or self._mutex.take():
            return None
        claimed = self._words[_CLAIMED]
        self._words[_RECALLED] = sent
        self._mutex.release()
        return claimed

    def claimed(self) -> int:
        """The number of the last request that was begun: it and all before it count as begun."""
        number: int = self._read()[0][_CLAIMED]
        return number

    def pace(self) -> float:
        """Seconds that a step takes, on an average that the last ones make up; 0.0 before the first has ended."""
        seconds: float = self._read()[1][_PACE]
        return seconds

    def running(self) -> tuple[int, ...]:
        """The requests that the engine is running, or was running when it died."""
        words, _ = self._read()
        count = min(words[_COUNT], _MAX_IDS)
        return tuple(words[_FIRST_ID : _FIRST_ID + count])

    def busy_for(self) -> float:
        """Seconds that the engine has been in its present step; 0.0 between steps."""
        words, seconds = self._read()
        if not words[_COUNT]:
            return 0.0
        return max(0.0, time.monotonic() - seconds[_SINCE])

    def progress(self) -> int:
        """Steps finished since the worker started."""
        steps: int = self._read()[0][_PROGRESS]
        return steps


def _seal(fd: int) -> bool:
    """Fix the size of the file; whether that was possible."""
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return False
    with contextlib.suppress(OSError):  # a system, or a sandbox, that has none
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return True
    return False
