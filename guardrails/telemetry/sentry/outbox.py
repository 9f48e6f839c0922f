"""Where issues go out: to the SDK, which queues them for a thread of its own; kept here while there is no client."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from types import ModuleType
from typing import Any

from guardrails.core.clock import Clock

#: Seconds between two looks whether the SDK is initialised by now: at first, and at most.
FIRST_LOOK, LAST_LOOK = 0.1, 5.0
_log = logging.getLogger("guardrails.telemetry")


class Outbox:
    """Sends issues, and keeps the last `keep` of those from before `sentry_sdk.init`.

    `init` tells nobody that it was called. So while something is kept, and only then, a thread looks out for a client.

    Args:
        sdk: the module `sentry_sdk`.
        keep: how many.
        clock: what the thread waits by.

    Attributes:
        sent: issues handed to the SDK so far.
        kept: those that wait.
    """

    def __init__(self, sdk: ModuleType, keep: int, clock: Clock) -> None:
        self.sent = 0
        self.kept: deque[dict[str, Any]] = deque(maxlen=keep)
        self._sdk = sdk
        self._clock = clock
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    def client(self) -> Any:
        """The SDK's client here and now; None before `init`."""
        client = self._sdk.get_client()
        return client if client.is_active() else None

    def send(self, client: Any, payload: dict[str, Any]) -> None:
        """Give an issue to the client, after those that were kept, or keep it without one."""
        if client is None:
            self.keep(payload)
            return
        self.flush(client)
        # The trace that it comes in the middle of is all that is taken from the context.
        trace = self._sdk.get_current_scope().get_trace_context()
        if trace:
            payload["contexts"]["trace"] = trace
        self._capture(client, payload)

    def keep(self, payload: dict[str, Any]) -> None:
        """Keep it until there is a client."""
        self.kept.append(payload)
        if not self.kept:
            return  # `keep` is 0
        with self._lock:
            if self._watcher is None and not self._stopped.is_set():
                self._watcher = threading.Thread(target=self._watch, name="guardrails-sentry", daemon=True)
                self._watcher.start()

    def flush(self, client: Any) -> None:
        """Send what is kept."""
        while self.kept:
            try:
                payload = self.kept.popleft()
            except IndexError:
                return  # another thread was faster
            try:
                self._capture(client, payload)
            except Exception:
                _log.exception("an issue from before Sentry was initialised could not be sent")

    def stop(self) -> None:
        """Drop what is kept. The thread, if there is one, ends."""
        self._stopped.set()
        self.kept.clear()
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(1.0)

    def forked(self) -> None:
        """In the child of a fork: the parent sends what it has kept, by a thread that is not here."""
        self._lock = threading.Lock()
        self._watcher = None
        self.kept.clear()

    def _capture(self, client: Any, payload: dict[str, Any]) -> None:
        # In a context of its own, with nothing but the global scope: what the application has put on the others speaks
        # of the request that is under way, its body for one, and this is about the process.
        scope = self._sdk.get_global_scope().fork()
        contextvars.Context().run(client.capture_event, payload, scope=scope)
        self.sent += 1

    def _watch(self) -> None:
        pause = FIRST_LOOK
        while not self._clock.wait_thread(self._stopped, pause):
            pause = min(pause * 1.5, LAST_LOOK)
            client = self.client()
            if client is not None:
                self.flush(client)
            with self._lock:
                if not self.kept:
                    self._watcher = None
                    return
