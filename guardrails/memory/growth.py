"""What grows, and what can be given back: a comparison of allocations by line, and the allocator's free pages.

Both cost something, so neither runs unless it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import tracemalloc
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import anyio.to_thread

from guardrails.core.sizes import format_size, parse_size
from guardrails.memory.reading import private_bytes

_MOST_LINES = 100
#: Of a path, only its end: what is before it says where a machine keeps things.
_PARTS = 3


class GrowingLine(NamedTuple):
    """A line of Python whose allocations have grown and are still held.

    Attributes:
        place: the end of the file's path, and the line: ``myapp/cache.py:42``.
        grown: bytes.
        blocks: pieces of memory, more than before.
    """

    place: str
    grown: int
    blocks: int


class AllocationTrace:
    """Finds the lines of Python that hold more and more, between `start` and `compare`.

    It uses the interpreter's tracemalloc. While that runs, an allocation of Python takes six times as long, and each
    block that is held costs some 100 bytes more; a comparison takes about a second of Python's time for each 200,000
    blocks. So: trace for some minutes, after an alarm, and compare in a thread of its own. Memory that C code takes by
    itself (the arena of ONNX Runtime, the cache of llama.cpp) is not seen.

        with AllocationTrace() as trace:
            await anyio.sleep(120)
            for line in trace.compare():
                print(line)

    At most one trace runs in a process; if tracemalloc runs already, it is used and left running.

    Args:
        lines: the most lines that a comparison gives, 1 to 100.
        least: growth of a line below this is left out, in bytes or as a size.
        overhead: what tracemalloc itself may hold, in bytes or as a size; from there on it is stopped, and a comparison
            gives nothing. The default is some 300,000 blocks.

    Raises:
        TypeError, ValueError: an argument is not what it takes; the message names it.
    """

    _running = threading.Lock()

    def __init__(self, *, lines: int = 10, least: str | float = "64KiB", overhead: str | float = "32MiB") -> None:
        if isinstance(lines, bool) or not isinstance(lines, int):
            raise TypeError(f"lines takes a whole number, not {type(lines).__name__}")
        if not 1 <= lines <= _MOST_LINES:
            raise ValueError(f"lines takes a whole number of 1 to {_MOST_LINES}, not {lines}")
        self._lines = lines
        self._least = parse_size(least, "least")
        self._overhead = parse_size(overhead, "overhead")
        self._before: tracemalloc.Snapshot | None = None
        self._ours = False

    @property
    def running(self) -> bool:
        """Whether it has been started and not been stopped."""
        return self._before is not None

    def start(self) -> None:
        """Begin. What is held from now on and was not before is growth.

        Raises:
            RuntimeError: this or another trace of the process runs already.
        """
        if not self._running.acquire(blocking=False):
            raise RuntimeError("a trace of allocations runs already in this process: stop it first")
        self._ours = not tracemalloc.is_tracing()
        if self._ours:
            tracemalloc.start(1)
        self._before = tracemalloc.take_snapshot()

    def compare(self) -> tuple[GrowingLine, ...]:
        """The lines that have grown most since `start`, the most first; the trace goes on.

        Raises:
            RuntimeError: it does not run.
        """
        if self._before is None:
            raise RuntimeError("the trace of allocations does not run: start it first")
        if not tracemalloc.is_tracing() or tracemalloc.get_tracemalloc_memory() > self._overhead:
            self.stop()
            return ()
        found: list[GrowingLine] = []
        for one in tracemalloc.take_snapshot().compare_to(self._before, "lineno"):
            frame = one.traceback[0]
            if one.size_diff >= self._least and frame.filename not in (__file__, tracemalloc.__file__):
                place = "/".join(frame.filename.replace("\\", "/").split("/")[-_PARTS:])
                found.append(GrowingLine(f"{place}:{frame.lineno}", one.size_diff, one.count_diff))
        found.sort(key=lambda line: -line.grown)
        return tuple(found[: self._lines])

    def stop(self) -> None:
        """End, and give back what tracing took. Does nothing when it does not run."""
        if self._before is None:
            return
        self._before = None
        if self._ours:
            tracemalloc.stop()
        self._running.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def describe_lines(lines: tuple[GrowingLine, ...]) -> str:
    """One sentence about what `AllocationTrace.compare` found."""
    if not lines:
        return "No line of Python holds much more than before: look at what C code takes."
    named = ", ".join(f"{line.place} (+{format_size(line.grown)} in {line.blocks} blocks)" for line in lines)
    return f"Held more than before: {named}."


async def trim() -> int | None:
    """Have the allocator give free pages back to the system, in a thread: `trim_now` without holding up the loop."""
    return await anyio.to_thread.run_sync(trim_now)


def trim_now() -> int | None:
    """Have the allocator give free pages back to the system (``malloc_trim``). Returns the bytes of private memory that
    it gave back, 0 and more; None where the C library has no such function (musl, macOS, Windows).

    It takes some milliseconds for each hundred megabytes, in which other threads of Python run, but wait when they
    allocate from the arena that is being looked through.
    """
    function = _malloc_trim()
    if function is None:
        return None
    before = private_bytes()
    function(0)
    return max(0, before - private_bytes())


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    function.argtypes = [ctypes.c_size_t]
    function.restype = ctypes.c_int
    return function
