"""When `inject` is on: switched by hand, for a block, and off by itself when a bound is reached.

Threads: the lock guards the state, never a wait or a sink. `on` is read without it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from guardrails.core import events
from guardrails.core.clock import Clock


@dataclass(frozen=True, slots=True)
class InjectionSwitched(events.Event):
    """Injection went on or off. `reason` is ``enabled``, ``disabled``, or the bound that was reached:
    ``for_seconds``, ``max_faults``.
    """

    on: bool
    reason: str


class Switch:
    """On or off, and for how long still.

    Attributes:
        on: whether a call may be hit, as far as that can be told without looking at the clock.
        faults: calls that were hit since it was last switched on.
    """

    def __init__(self, name: str, *, for_seconds: float, max_faults: int | None, clock: Clock) -> None:
        self.name = name
        self.on = False
        self.faults = 0
        self._for_seconds = for_seconds
        self._max_faults = max_faults
        self._clock = clock
        self._lock = threading.RLock()
        self._by_hand = False
        self._blocks: set[object] = set()  # the open `active` blocks
        self._ends = math.inf
        self._asleep: set[threading.Event] = set()  # one for each thread that waits in a fault

    @property
    def enabled(self) -> bool:
        """Whether calls may be hit now."""
        return self.on and self._clock.now() < self._ends

    def enable(self) -> None:
        """On; the bounds count from now."""
        with self._lock:
            switched = self._start()
            self._by_hand = True
            self._count_anew()
        self.tell("enabled" if switched else None, on=True)

    def disable(self) -> None:
        """Off, whoever switched it on; waiting threads go on."""
        with self._lock:
            switched = self._stop()
            self._wake()
        self.tell("disabled" if switched else None, on=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """On for a block; then off again, unless it is on by hand or for another block."""
        block = object()
        with self._lock:
            switched = self._start()
            self._blocks.add(block)
            if switched:  # else a game day that is on would never end, if blocks kept coming
                self._count_anew()
        self.tell("enabled" if switched else None, on=True)
        try:
            yield
        finally:
            with self._lock:
                self._blocks.discard(block)
                switched = not self._by_hand and not self._blocks and self._stop()
                if switched:
                    self._wake()
            self.tell("disabled" if switched else None, on=False)

    def take(self) -> tuple[float, str | None]:
        """Count one fault: the seconds that it may last at most, 0.0 if there must be none; and the bound that it, or
        time, has reached, which the caller tells.
        """
        with self._lock:
            if not self.on:
                return 0.0, None
            rest = self._ends if self._ends == math.inf else self._ends - self._clock.now()
            if rest <= 0:
                self._stop()
                return 0.0, "for_seconds"
            self.faults += 1
            reached = self.faults == self._max_faults
            if reached:
                self._stop()
            return rest, "max_faults" if reached else None

    def wait_thread(self, seconds: float) -> None:
        """Block this thread for the seconds; `disable`, and the end of the last block, end it."""
        event = threading.Event()
        with self._lock:
            self._asleep.add(event)
        try:
            self._clock.wait_thread(event, seconds)
        finally:
            with self._lock:
                self._asleep.discard(event)

    def tell(self, reason: str | None, *, on: bool) -> None:
        """Emit that it was switched, if there is a reason."""
        if reason is not None and events.sinks:
            events.emit(InjectionSwitched(self.name, on, reason))

    def _start(self) -> bool:
        # Under the lock, like the rest. Whether that changed anything.
        if self.on and not self.enabled:
            self._stop()  # its time is over, and nobody has noticed yet
        switched, self.on = not self.on, True
        return switched

    def _count_anew(self) -> None:
        self.faults = 0
        self._ends = self._clock.now() + self._for_seconds

    def _stop(self) -> bool:
        switched, self.on = self.on, False
        self._by_hand = False
        self._blocks.clear()
        return switched

    def _wake(self) -> None:
        for event in self._asleep:
            event.set()
