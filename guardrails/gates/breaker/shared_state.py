"""A pybreaker storage behind a breaker, and the failures in a row that breakers count in it together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from guardrails.core.events import emit
from guardrails.gates.breaker.events import BreakerStorageFailed, BreakerStorageRecovered
from guardrails.gates.breaker.windows import Counts

if TYPE_CHECKING:
    import pybreaker

    Storage = pybreaker.CircuitBreakerStorage
    Write = Callable[[Storage], object]

#: The states that a storage holds.
STATES = ("closed", "open", "half-open")
#: Writes that are kept for a storage that cannot be reached; the oldest go first.
MOST_WRITES = 1000
#: Seconds after which a storage that has not answered counts as one that cannot be reached.
NO_ANSWER = 5.0
#: Seconds that a new breaker waits for the state that others have written.
FIRST_LOOK = 1.0

_log = logging.getLogger("guardrails.breaker")


class SharedState:
    """A pybreaker storage, read and written off the hot path.

    `CircuitMemoryStorage` is used at once: it never blocks. Any other storage (`CircuitRedisStorage`, one's own) is
    touched by a short-lived thread only: writes go there in order, and what others wrote is seen up to `refresh`
    seconds late, plus the time of a round trip. Until then this process decides by what it knows.

    A storage that cannot be reached, at the first look or at any later one, is reported once (an event, the log), and
    the breaker goes on alone; what it has to write is kept, and goes there when the storage is back.

    Args:
        storage: or a function that makes it, for one that cannot be made while its server is down.
        refresh: see above.
        name: of the breaker.
    """

    def __init__(self, storage: Storage | Callable[[], Storage], refresh: float, name: str) -> None:
        import pybreaker  # noqa: PLC0415 - it loads redis and tornado where they are installed

        self.refresh = refresh
        self._name = name
        self._storage: Storage | None = None
        self._make: Callable[[], Storage] | None = None
        if isinstance(storage, pybreaker.CircuitBreakerStorage) or not callable(storage):
            self._storage = storage
        else:
            self._make = storage
        self._inline = isinstance(storage, pybreaker.CircuitMemoryStorage)
        self._lock = threading.RLock()
        self._writes: deque[Write] = deque()
        self._busy = False
        self._thread: threading.Thread | None = None
        self._reached = True
        self._ping: Callable[[], object] | None = None
        self._looked_at = float("-inf")
        self._now = self._began = 0.0
        self.state = "closed"
        self.counter = 0
        self.success_counter = 0
        self.opened_at: datetime | None = None
        self._first_look()

    def _first_look(self) -> None:
        # pybreaker waits for it, so that a new process starts with the shared state. So does this, but not for long.
        if self._inline:
            if self._attempt() and self.state not in STATES:
                msg = f"state_storage must hold one of the states {', '.join(STATES)}, not {self.state!r}"
                raise ValueError(msg)
            return
        self._run()
        thread = self._thread
        if thread is not None and thread.ident is not None:
            thread.join(min(self.refresh, FIRST_LOOK))
            if thread.is_alive():
                self._lost(None)

    @property
    def settled(self) -> bool:
        """Whether everything that was written here has reached the storage, so that what it says is newer."""
        return not self._working

    @property
    def _working(self) -> bool:
        # A thread that is no more: it was the parent process', before a fork.
        return self._busy and self._thread is not None and self._thread.is_alive()

    @property
    def age(self) -> float | None:
        """Seconds since the circuit was opened, by the wall clock that processes share; None if that is not known."""
        opened_at = self.opened_at
        if opened_at is None:
            return None
        if opened_at.tzinfo is None:  # by a storage, or a pybreaker, that writes UTC without saying so
            opened_at = opened_at.replace(tzinfo=UTC)
        return (datetime.now(UTC) - opened_at).total_seconds()

    def look(self, now: float) -> None:
        """See to it that what is known is at most `refresh` seconds old. Never waits."""
        self._now = now
        if self._inline:
            self._attempt()
        elif now - self._looked_at >= self.refresh:
            self._looked_at = now
            self._run()
            if self._reached and self._busy and now - self._began >= NO_ANSWER:
                self._lost(None)

    def failed(self) -> int:
        """Count a failure; the number of failures that is known."""
        self.counter += 1
        self._write(lambda storage: storage.increment_counter())
        return self.counter

    def succeeded(self) -> None:
        """End the row of failures."""
        if self.counter:
            self.counter = 0
            self._write(lambda storage: storage.reset_counter())

    def probe_succeeded(self) -> int:
        """Count a probe's success; the number of successes that is known."""
        self.success_counter += 1
        self._write(lambda storage: storage.increment_success_counter())
        return self.success_counter

    def moved(self, state: str) -> None:
        """Write a new state, with what pybreaker writes beside it."""
        self.state = state
        self.success_counter = 0
        opened_at = datetime.now(UTC) if state == "open" else None

        def write(storage: Storage) -> None:
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

    def _write(self, write: Write) -> None:
        self._writes.append(write)
        if len(self._writes) > MOST_WRITES:
            self._writes.popleft()
        if self._inline:
            self._attempt()
        else:
            self._run()

    def _run(self) -> None:
        with self._lock:
            if self._working:
                return
            self._busy = True
            self._began = self._now
            self._thread = threading.Thread(target=self._work, name="guardrails-breaker-storage", daemon=True)
            try:
                self._thread.start()
                return
            except RuntimeError as exc:  # the system has no thread left, or the interpreter is ending
                self._busy = False
                error = exc
        self._lost(error)

    def _work(self) -> None:
        while True:
            reached = self._attempt()
            with self._lock:
                if not reached or not self._writes:  # out of reach: the next look tries again
                    self._busy = False
                    return

    def _attempt(self) -> bool:
        """Write what is to be written, and read. Whether the storage could be reached."""
        try:
            self._exchange()
        except Exception as error:  # a storage is the user's, and so is its client
            self._lost(error)
            return False
        self._found()
        return True

    def _exchange(self) -> None:
        storage = self._reach()
        if self._ping is not None and self._writes:
            self._ping()
        while self._writes:
            write = self._writes.popleft()
            try:
                write(storage)
            except BaseException:
                self._writes.appendleft(write)
                raise
        state, counter, successes = storage.state, storage.counter, storage.success_counter
        opened_at = storage.opened_at
        if self._ping is not None:
            self._ping()  # raises if those were no answers
        if not self._writes:  # else what is known here is newer than what was just read
            self.state, self.counter, self.success_counter, self.opened_at = state, counter, successes, opened_at

    def _reach(self) -> Storage:
        storage = self._storage
        if storage is None:
            assert self._make is not None  # noqa: S101 - one of the two was given
            storage = self._storage = self._make()
        if self._ping is None:
            # CircuitRedisStorage swallows every error, and answers with a fallback: closed, no failures. Only its
            # client distinguishes that from an answer.
            self._ping = getattr(getattr(storage, "_redis", None), "ping", None)
        return storage

    def _lost(self, error: Exception | None) -> None:
        with self._lock:
            if not self._reached:
                return
            self._reached = False
        error = error or TimeoutError("no answer")
        _log.error("a breaker's state storage failed; the breaker goes on by itself", exc_info=error)
        emit(BreakerStorageFailed(self._name, type(error).__name__))

    def _found(self) -> None:
        with self._lock:
            if self._reached:
                return
            self._reached = True
        _log.warning("a breaker's state storage is back")
        emit(BreakerStorageRecovered(self._name))


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
