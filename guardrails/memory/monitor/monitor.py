"""`MemoryMonitor`: a thread that looks once a second, and the face to what it sees.

Threads: one daemon thread of its own does everything: it reads, judges, logs, emits events and calls `on_alert`. It
waits in the kernel while it reads files, and holds Python's lock for well under a millisecond at a time, so an event
loop hardly notices it. Properties and methods may be used on any thread; none of them waits for it but `stop`.

Forks: in a forked child the monitor is stopped, with an empty history: the child is another process, most children
live for a moment, and no thread may be started in one unasked. A child that wants to be watched calls `start`. What the
parent's thread did at that moment does not matter: every lock and record is made anew.

The end: the thread keeps its monitor alive, so nobody else has to. It ends with `stop`, the ``with`` block, or the
interpreter, whichever is first.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.memory.growth import GrowingLine
from guardrails.memory.monitor.alerts import Alert, Alerts
from guardrails.memory.monitor.history import History, Point, Resolution
from guardrails.memory.monitor.log_handler import ExhaustionHandler
from guardrails.memory.monitor.observer import Observer, OnAlert
from guardrails.memory.monitor.processes import Processes
from guardrails.memory.monitor.relief import Relief
from guardrails.memory.monitor.sample import Sample
from guardrails.memory.monitor.scopes import Scopes
from guardrails.memory.monitor.signs.growth import Growth
from guardrails.memory.monitor.signs.high import HighMemory
from guardrails.memory.monitor.signs.listener import Listener
from guardrails.memory.monitor.thresholds import Marks

_log = logging.getLogger("guardrails.memory")

#: Seconds that `stop` waits for a look that is under way, at most.
_PATIENCE = 5.0
#: Seconds between two log records about looks that fail.
_COMPLAIN_EVERY = 60.0


class _Run:
    """One run of the thread."""

    def __init__(self, target: Callable[[_Run], None]) -> None:
        self.wake = threading.Event()
        self.over = False
        self.thread = threading.Thread(target=target, args=(self,), name="guardrails-monitor", daemon=True)

    def end(self) -> None:
        self.over = True
        self.wake.set()

    def join(self) -> None:
        if self.thread is not threading.current_thread():
            self.thread.join(_PATIENCE)


class MemoryMonitor:
    """Samples the memory of this process, its descendants and every runner's workers, and says what is wrong.

        async with MemoryMonitor() as monitor:       # or `with`, or monitor.start()
            ...
            monitor.alerts

    It logs a line a minute and each alert to the logger ``guardrails.memory``, and emits `MemorySampled`, `AlertRaised`
    and `AlertCleared` into the event stream. While it runs it listens to that stream, so guards make events that they
    else would not: some microseconds a call.

    Args:
        interval: seconds between two samples.
        warning: from this share of a limit on, memory is high; limits are the host's, those of the cgroups up the tree,
            and the workers' budgets.
        critical: and from this share on, it is about to run out.
        hold: seconds that it must be so, and be over, before it is said; a fifth of it for `critical`.
        children: whether descendants are watched that are no runner's workers.
        most: processes that are watched at once; of more children, the largest.
        calls: whether it listens to events, for the signs that come from calls and from workers' ends. Without, guards
            are as fast as without a monitor.
        trace: whether, when this process is found to grow, tracemalloc is switched on for two minutes, at most once an
            hour. The lines that grew come in a second `AlertRaised`, and in `growing_lines`. Allocations of Python are
            several times slower meanwhile.
        trim: whether then, at most once an hour, the allocator's free pages are given back to the system (glibc).
        log_every: seconds between two log lines; None: it logs nothing, for another sink does.
        on_alert: called with each `AlertRaised` and `AlertCleared`, on the monitor's thread. While it blocks nothing is
            sampled; what it raises is logged.
        quiet: seconds between two announcements of one alert of one source, at least.
        remind: seconds after which an alert that is still active is announced again.
        name: the `source` of its samples.
        clock: what it waits by.

    Raises:
        TypeError, ValueError: an argument makes no sense. The message names it.
    """

    def __init__(
        self,
        *,
        interval: float = 1.0,
        warning: float = 0.80,
        critical: float = 0.90,
        hold: float = 10.0,
        children: bool = True,
        most: int = 64,
        calls: bool = True,
        trace: bool = False,
        trim: bool = False,
        log_every: float | None = 60.0,
        on_alert: OnAlert | None = None,
        quiet: float = 300.0,
        remind: float = 3600.0,
        name: str = "memory",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _check_seconds("interval", interval, above=True)
        _check_seconds("hold", hold)
        _check_seconds("log_every", log_every, above=True)
        _check_seconds("quiet", quiet)
        _check_seconds("remind", remind, above=True)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            msg = f"most takes a whole number of at least 1, not {most!r}"
            raise ValueError(msg)
        if on_alert is not None and not callable(on_alert):
            msg = f"on_alert takes a function of one event, not {type(on_alert).__name__}"
            raise TypeError(msg)
        if not 0 < warning < critical <= 1:
            msg = f"0 < warning < critical <= 1 must hold, not warning={warning!r}, critical={critical!r}"
            raise ValueError(msg)
        self.name = name
        self.interval = interval
        self._clock = clock
        self._calls = calls
        self._listener = Listener()
        self._relief = Relief(trace=trace, trim=trim)
        marks = Marks(warning=warning, critical=critical, slack=min(0.05, warning / 2), seconds=hold)
        self._observer = Observer(
            name,
            processes=Processes(most=most, descendants=children),
            scopes=Scopes(),
            history=History(),
            alerts=Alerts(quiet=quiet, remind=remind),
            high=HighMemory(marks),
            growth=Growth(),
            listener=self._listener,
            relief=self._relief,
            log_every=log_every,
            on_alert=on_alert,
        )
        self._log_handler = ExhaustionHandler(self._listener.crashed)
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._last: Sample | None = None
        self._complain_from = float("-inf")
        _monitors.add(self)

    def __repr__(self) -> str:
        return f"<memory monitor {self.name!r}, {'running' if self.running else 'stopped'}>"

    # Life

    def start(self) -> Self:
        """Begin to watch, on a thread of its own. Again, it does nothing. Returns the monitor."""
        with self._lock:
            if self._run is None:
                if self._calls:
                    self._unsubscribe = events.subscribe(self._listener.hear)
                atexit.register(self.stop)
                self._begin()
        return self

    def _begin(self) -> None:
        self._run = _Run(self._watch)
        self._run.thread.start()

    def stop(self) -> None:
        """Watch no more. Waits for a look that is under way: some milliseconds. Again, it does nothing."""
        run = self._end()
        if run is not None:
            run.join()

    def _end(self) -> _Run | None:
        with self._lock:
            run, self._run = self._run, None
            if run is not None:
                run.end()
                self._let_go()
            return run

    def _let_go(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        atexit.unregister(self.stop)

    @property
    def running(self) -> bool:
        """Whether it watches."""
        return self._run is not None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        run = self._end()
        if run is not None:
            with anyio.CancelScope(shield=True):  # it is over in milliseconds, cancelled or not
                await anyio.to_thread.run_sync(run.join)

    # What it sees

    def sample(self) -> Sample:
        """The last sample, at most `interval` seconds old. Taken here and now where the monitor does not run, which
        costs 0.1 ms and 25 microseconds for each process.
        """
        last = self._last
        if last is not None and self._run is not None:
            return last
        with self._lock:
            return self._observer.read(self._clock.now(), time.time(), exact=False)

    def history(self, name: str = "self", resolution: Resolution = "seconds") -> list[Point]:
        """What was: points of (when it began, minimum, median, maximum), the oldest first.

        Args:
            name: a process's name, ``total`` for all of them together (private bytes), or a scope's (used bytes).
            resolution: ``seconds`` (each sample, the last 600), ``minutes`` (a day), or ``hours`` (two weeks).

        Raises:
            KeyError: there is no such name; the message says which there are.
            ValueError: there is no such resolution.
        """
        return self._observer.history.points(name, resolution)

    @property
    def names(self) -> tuple[str, ...]:
        """What there is a history of."""
        return self._observer.history.names

    @property
    def history_bytes(self) -> int:
        """Bytes that the history takes; 66 KB for each name at most."""
        return self._observer.history.nbytes

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The alerts that are active, the oldest first."""
        return self._observer.alerts.active

    @property
    def growing_lines(self) -> tuple[GrowingLine, ...]:
        """The lines that grew most in the last trace, the worst first; none without ``trace=True``."""
        return self._relief.lines

    @property
    def log_handler(self) -> logging.Handler:
        """A handler for `logging` that recognises out-of-memory messages of V8, Python, the kernel, CUDA, llama.cpp,
        onnxruntime and C++, for the sign ``memory_crash``. Attach it to a logger after logging was configured.
        """
        return self._log_handler

    # The thread

    def _watch(self, run: _Run) -> None:
        due = self._clock.now()
        while not run.over and self._run is run:
            run.wake.clear()
            self._look()
            now = self._clock.now()
            due = max(due + self.interval, now)  # what was missed is not made up for
            if not run.over:
                self._clock.wait_thread(run.wake, due - now)
        if self._run is None or self._run is run:
            self._observer.end()

    def _look(self) -> None:
        # The thread must outlive a bad reading and a broken sink.
        now = self._clock.now()
        try:
            self._last = self._observer.look(now, time.time())
        except Exception:
            if now >= self._complain_from:
                self._complain_from = now + _COMPLAIN_EVERY
                _log.exception("a look at memory failed; trying again in %g s", self.interval)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._last = None
        self._observer.after_fork()
        run, self._run = self._run, None
        if run is not None:
            run.over = True  # without waking it: its thread, which is not here, may have held the lock for that
            self._let_go()


_monitors: weakref.WeakSet[MemoryMonitor] = weakref.WeakSet()


def _after_fork() -> None:
    for monitor in tuple(_monitors):
        monitor._after_fork()  # noqa: SLF001 - its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check_seconds(argument: str, seconds: float | None, *, above: bool = False) -> None:
    if seconds is not None and not (seconds > 0 if above else seconds >= 0):
        msg = f"{argument} takes a number of seconds {'above' if above else 'of at least'} 0, not {seconds!r}"
        raise ValueError(msg)


__all__ = ["MemoryMonitor"]
