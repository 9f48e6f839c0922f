"""A pybreaker storage behind a breaker, and the failures in a row that breakers count in it together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from guardrails.gates.breaker.windows import Counts

if TYPE_CHECKING:
    import pybreaker

#: Writes that are kept for a storage that cannot be reached; the oldest go first.
MOST_WRITES = 1000

_log = logging.getLogger("guardrails.breaker")


class SharedState:
    """A pybreaker storage, read and written off the hot path.

    `CircuitMemoryStorage` is used at once: it never blocks. Any other storage (`CircuitRedisStorage`, one's own) is
    touched by a short-lived thread only: writes go there in order, and what others wrote is seen up to `refresh`
    seconds late, plus the time of a round trip. Until then this process decides by what it knows. A storage that
    cannot be reached is logged, once, and the breaker goes on alone; what it has to write is kept, and goes there when
    the storage is back.
    """

    def __init__(self, storage: pybreaker.CircuitBreakerStorage, refresh: float) -> None:
        import pybreaker  # noqa: PLC0415 - it loads redis and tornado where they are installed

        self.storage = storage
        self.refresh = refresh
        self._inline = isinstance(storage, pybreaker.CircuitMemoryStorage)
        self._lock = threading.RLock()
        self._writes: deque[Callable[[], object]] = deque()
        self._busy = False
        self._reached = True
        # CircuitRedisStorage swallows every error, and answers with a fallback: closed, no failures. Only its client
        # tells that from an answer.
        self._ping: Callable[[], object] | None = getattr(getattr(storage, "_redis", None), "ping", None)
        self._looked_at = float("-inf")
        self.state = "closed"
        self.counter = 0
        self.success_counter = 0
        self.opened_at: datetime | None = None
        self._read()  # as pybreaker does: the first look waits, so that a new process starts with the shared state

    @property
    def settled(self) -> bool:
        """Whether everything that was written here has reached the storage, so that what it says is newer."""
        return not self._busy

    @property
    def age(self) -> float | None:
        """Seconds since the circuit was opened, by the wall clock that processes share; None if that is not known."""
        return None if self.opened_at is None else (datetime.now(UTC) - self.opened_at).total_seconds()

    def look(self, now: float) -> None:
        """See to it that what is known is at most `refresh` seconds old. Never waits."""
        if self._inline:
            self._read()
        elif now - self._looked_at >= self.refresh:
            self._looked_at = now
            self._run()

    def failed(self) -> int:
        """Count a failure; the number of failures that is known."""
        self.counter += 1
        self._write(self.storage.increment_counter)
        return self.counter

    def succeeded(self) -> None:
        """End the row of failures."""
        if self.counter:
            self.counter = 0
            self._write(self.storage.reset_counter)

    def probe_succeeded(self) -> int:
        """Count a probe's success; the number of successes that is known."""
        self.success_counter += 1
        self._write(self.storage.increment_success_counter)
        return self.success_counter

    def moved(self, state: str) -> None:
        """Write a new state, with what pybreaker writes beside it."""
        storage = self.storage
        self.state = state
        self.success_counter = 0
        opened_at = datetime.now(UTC) if state == "open" else None

        def write() -> None:
            if opened_at is not None:
                storage.opened_at = opened_at
            storage.reset_success_counter()
            storage.state = state
            if state == "closed":
                storage.reset_counter()

        if opened_at is not None:
            self.opened_at = opened_at
        if state == "closed":
            self.counter = 0
        self._write(write)

    def _write(self, write: Callable[[], object]) -> None:
        if self._inline:
            write()
            self._read()
            return
        self._writes.append(write)
        if len(self._writes) > MOST_WRITES:
            self._writes.popleft()
        self._run()

    def _run(self) -> None:
        with self._lock:
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._work, name="guardrails-breaker-storage", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                self._exchange()
            except Exception:
                if self._reached:
                    _log.exception("a breaker's state storage failed; the breaker goes on by itself")
                self._reached = False
            else:
                if not self._reached:
                    _log.warning("a breaker's state storage is back")
                self._reached = True
            with self._lock:
                if not self._reached or not self._writes:  # out of reach: the next look tries again
                    self._busy = False
                    return

    def _exchange(self) -> None:
        if self._ping is not None and self._writes:
            self._ping()
        while self._writes:
            write = self._writes.popleft()
            try:
                write()
            except BaseException:
                self._writes.appendleft(write)
                raise
        self._read()

    def _read(self) -> None:
        storage = self.storage
        state, counter, successes = storage.state, storage.counter, storage.success_counter
        opened_at = storage.opened_at
        if self._ping is not None:
            self._ping()  # raises if those were no answers
        if not self._writes:  # else what is known here is newer than what was just read
            self.state, self.counter, self.success_counter, self.opened_at = state, counter, successes, opened_at


class SharedFailures:
    """Trips at `limit` failures in a row, of all that share the storage together."""

    def __init__(self, limit: int, shared: SharedState) -> None:
        self.limit = limit
        self.shared = shared

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:  # noqa: ARG002 - the protocol
        """Note a call; whether the row is long enough."""
        if failed:
            return self.shared.failed() >= self.limit
        self.shared.succeeded()
        return False

    def counts(self, now: float) -> Counts:  # noqa: ARG002 - the protocol
        """The row."""
        return Counts(self.shared.counter, self.shared.counter, 0)

    def clear(self) -> None:
        """Forget the row."""
        self.shared.succeeded()

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens after {self.limit} failures in a row, counted together"
