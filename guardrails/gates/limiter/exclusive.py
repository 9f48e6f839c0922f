"""The lock of a limiter, and how its most frequent step does without.

Taking from one bucket is a few reads, a comparison and one write. CPython changes threads, and runs the garbage
collector and signal handlers, only where a function is called or a loop goes round again; a piece of code that does
neither is one step for everybody else. So the quick way in (`Limiter.try_enter`) takes no lock, which would cost more
than all the
rest of it: it looks whether anybody `holds` the lock, and goes the other way then.

This is true of CPython with its global lock alone: `STEADY` says whether it is that. A test looks at the compiled code.
Where a debugger or profiler written in Python runs between two lines, a call too many may be let in.
"""

from __future__ import annotations

import sys
import threading

#: Whether code without calls and loops is one step for other threads.
STEADY = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


class Exclusive:
    """A lock that others can see is held. Re-entrant: the garbage collector may finalise a guarded generator, and so
    settle a call, in the middle of our own code.

    Attributes:
        held: how many times it is held, by whichever thread.
    """

    __slots__ = ("_lock", "held")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.held = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.held += 1

    def __exit__(self, *_: object) -> None:
        self.held -= 1
        self._lock.release()
