"""A thread that does what a sink must not: whatever takes time."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("guardrails.telemetry")
_END = object()


class Worker:
    """Calls `work` with each thing that is `put`, in order, on a daemon thread that begins with the first.

    Args:
        work: called with a thing; if it raises, that is logged.
        lost: called with how many things came while the queue was full, once there is room again.
        name: the thread's.
        size: things that may wait.
    """

    def __init__(
        self, work: Callable[[Any], object], lost: Callable[[int], object], *, name: str, size: int = 1000
    ) -> None:
        self._work = work
        self._told_lost = lost
        self._name = name
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._lost = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def put(self, thing: Any) -> None:
        """Have it worked on, soon. Never blocks: a thing for which there is no room is counted, and lost."""
        if self._thread is None or not self._thread.is_alive():  # also in the child of a fork, which has no thread
            self._start()
        try:
            self._queue.put_nowait(thing)
        except queue.Full:
            with self._lock:
                self._lost += 1

    def stop(self, patience: float = 5.0) -> None:
        """Work on what waits, for so many seconds at most, and end the thread. Again, it does nothing."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
            thread = self._thread
        atexit.unregister(self.stop)
        if not stopped and thread is not None and thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(_END, timeout=patience)
            if thread is not threading.current_thread():
                thread.join(patience)

    def _start(self) -> None:
        with self._lock:
            if self._stopped or (self._thread is not None and self._thread.is_alive()):
                return
            if self._thread is None:
                atexit.register(self.stop)
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        thing = None
        while thing is not _END:
            thing = self._queue.get()
            if thing is not _END:
                self._do(self._work, thing)
            with self._lock:
                lost, self._lost = self._lost, 0
            if lost:
                self._do(self._told_lost, lost)

    def _do(self, function: Callable[[Any], object], thing: Any) -> None:
        try:
            function(thing)
        except Exception:  # as for sinks: it is logged, and the next one has its turn
            _log.exception("%s failed", self._name)


__all__ = ["Worker"]
