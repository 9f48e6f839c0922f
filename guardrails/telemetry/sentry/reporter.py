"""The sink: what each event becomes at Sentry, and what is kept back.

::

                            ┌─▶ issue       an alert, a breaker that opened, a worker that died, a runner that failed
    event ──▶ route, by ────┼─▶ breadcrumb  a refusal, a retry, a fallback, a worker replaced ...
              its class     ├─▶ span        a guarded call begins, ends
                            ├─▶ memory      the last look at it: for issues, and for the check-in
                            └─▶ nothing     all others; this costs a look into a dictionary

Nothing here waits for anything: the SDK puts what it is given into a queue, which a thread of its own empties. What is
to be told while the SDK is not initialised is kept (`outbox`), as much as `keep` says.

Sentry's own threads are not listened to. If what sends the events is guarded too, each event would bring another.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.events import CallFinished, Event, subscribe
from guardrails.core.names import public
from guardrails.memory.signals import AlertCleared
from guardrails.telemetry.records import Record, describe
from guardrails.telemetry.sentry import loggers
from guardrails.telemetry.sentry.checkins import SCHEDULE, CheckIns
from guardrails.telemetry.sentry.frames import fatal, uncaught
from guardrails.telemetry.sentry.limits import Allowance
from guardrails.telemetry.sentry.outbox import Outbox
from guardrails.telemetry.sentry.payload import Crash, breadcrumb_of, event_of, fingerprint
from guardrails.telemetry.sentry.routes import Route, route_of
from guardrails.telemetry.sentry.settings import Settings
from guardrails.telemetry.sentry.spans import Spans, traces

if TYPE_CHECKING:
    from guardrails.memory.monitor.sample import Sample

#: The integration's name, by which the SDK finds it.
IDENTIFIER = "guardrails"
_BREADCRUMBS_KEPT = 30
_log = logging.getLogger("guardrails.telemetry")


class Reporter:
    """Turns events into what Sentry is sent. Make it with `install`, or have `GuardrailsIntegration` make it.

    Attributes:
        settings: what it may do.
    """

    def __init__(
        self,
        settings: Settings,
        sdk: ModuleType,
        *,
        clock: Clock = SYSTEM_CLOCK,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._sdk = sdk
        self._clock = clock
        self._wall = wall
        self._issues = Allowance(settings.alike, settings.in_all, settings.per, clock.now)
        crumbs = settings.breadcrumbs
        self._steps = Allowance(max(1, crumbs // 12), crumbs, 60.0, clock.now) if crumbs else None
        self._spans = Spans(sdk)
        self._checkins = CheckIns()
        self._sample: Sample | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=_BREADCRUMBS_KEPT)
        self._outbox = Outbox(sdk, settings.keep, clock)
        self._mine = threading.local()
        self._stopped = threading.Event()
        self._failed = False
        self._unsubscribe: Callable[[], None] | None = None
        self._quieted: tuple[str, ...] = ()
        if hasattr(os, "register_at_fork"):
            _begin_anew_after_fork(weakref.ref(self))

    @property
    def sent(self) -> int:
        """Issues that were handed to the SDK so far."""
        return self._outbox.sent

    @property
    def held_back(self) -> int:
        """Issues that were not, because there had been as many as may be."""
        return self._issues.held_back

    @property
    def kept(self) -> int:
        """Issues that wait for the SDK to be initialised."""
        return len(self._outbox.kept)

    def handle(self, event: Event) -> None:
        """Take an event. Never raises, never waits."""
        route = route_of(type(event))
        if route is Route.NOTHING or self._stopped.is_set():
            return
        mine = self._mine
        if getattr(mine, "busy", False):
            return  # what we have the SDK do on this thread emits events in turn
        mine.busy = True
        try:
            self._handle(event, route)
        except Exception:
            if not self._failed:  # once: it may come a thousand times a second
                self._failed = True
                _log.exception("an event could not be reported to Sentry; this is said once")
        finally:
            mine.busy = False

    def start(self) -> None:
        """Listen to the events. `install` has done it."""
        if self._unsubscribe is None:
            self.quiet()
            self._unsubscribe = subscribe(self.handle)

    def stop(self) -> None:
        """Listen no more. What is kept is dropped; what the SDK was given it still sends. Once is enough."""
        self._stopped.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        loggers.loud(self._sdk, self._quieted)
        self._quieted = ()
        self._spans.close()
        self._outbox.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def quiet(self) -> None:
        """Have Sentry's logging integration leave log lines alone that are reported here, or may hold text."""
        self._quieted = loggers.REPORTED + (() if self.settings.send_text else loggers.WITH_TEXT)
        loggers.quiet(self._sdk, self._quieted)

    def take_over(self, other: Reporter) -> None:
        """Keep what `other` has kept."""
        while other._outbox.kept:
            self._outbox.keep(other._outbox.kept.popleft())

    # What comes

    def _handle(self, event: Any, route: Route) -> None:
        if route is Route.SPAN:
            self._span(event)
        elif route is Route.STEP:
            self._step(event, None)
        else:
            client = self._outbox.client()
            if self._from_sentry() or not self._is_for_us(client):
                return
            if route is Route.SAMPLE:
                self._sample = event.sample
                self._check_in(client)
                return
            record = describe(event)
            if _wants_a_person(record):
                self._issue(event, record, client)
            else:
                self._step(event, record)

    def _span(self, event: Any) -> None:
        if isinstance(event, CallFinished):
            self._spans.finished(event)  # whatever has become of the client
        elif self.settings.spans:
            client = self._outbox.client()
            traced = client is not None and traces(client.options)
            if traced and self._is_for_us(client) and not self._from_sentry():
                self._spans.started(event, client.options)

    def _issue(self, event: Any, record: Record, client: Any) -> None:
        if record.name == "alert.raised" and record.severity == "error":
            self._checkins.raised(record.source, event.alert)
        crash = _crash_of(record) if record.name == "runner.worker_exited" else None
        held_back = self._issues.admit(tuple(fingerprint(record, crash)))
        if held_back is None:
            return
        payload = event_of(
            record,
            at=self._wall(),
            crash=crash,
            sample=self._sample,
            breadcrumbs=self._recent.copy(),  # other threads add to it
            text=self.settings.send_text,
        )
        if held_back:
            payload["contexts"]["guardrails"]["held_back"] = held_back
        self._outbox.send(client, payload)

    def _step(self, event: Any, record: Record | None) -> None:
        if isinstance(event, AlertCleared):
            self._checkins.cleared(event.source, event.alert)
        # Asked first: an open breaker refuses thousands of calls a second, and all else takes longer.
        held_back = None if self._steps is None else self._steps.admit((type(event), public(event.source)))
        if held_back is None:
            return
        client = self._outbox.client()
        if self._from_sentry() or not self._is_for_us(client):
            return
        crumb = breadcrumb_of(record or describe(event), at=self._wall(), held_back=held_back)
        self._recent.append(crumb)
        if client is not None:
            self._sdk.add_breadcrumb(dict(crumb))

    def _check_in(self, client: Any) -> None:
        slug = self.settings.monitor_slug
        due = self._checkins.due(self._clock.now()) if slug is not None and client is not None else None
        if due is not None:
            self._sdk.crons.capture_checkin(
                monitor_slug=slug,
                check_in_id=due.id,
                status=due.status,
                duration=due.duration,
                monitor_config=SCHEDULE,
            )

    # Whether

    def _is_for_us(self, client: Any) -> bool:
        if client is None:
            return True
        integration = client.get_integration(IDENTIFIER)
        return integration is None or integration.reporter is self

    def _from_sentry(self) -> bool:
        if threading.current_thread().name.startswith("sentry"):
            return True
        is_internal = getattr(self._sdk.utils, "is_internal_task", None)  # of the SDK's asynchronous transport
        return is_internal is not None and bool(is_internal())

    def _after_fork(self) -> None:
        # Whoever held a lock is not here.
        self._issues.unlock()
        if self._steps is not None:
            self._steps.unlock()
        self._outbox.forked()
        self._mine = threading.local()


def _wants_a_person(record: Record) -> bool:
    if record.name == "breaker.changed":
        return record.fields.get("new") == "open"  # forced open, somebody knows
    return record.name == "alert.raised" or record.severity == "error"


#: Ends that leave a stack behind: by a signal that `faulthandler` tells of.
_SIGNALS = frozenset({"sigsegv", "sigabrt", "sigbus", "sigfpe", "sigill"})


def _crash_of(record: Record) -> Crash:
    stderr = record.attachments.get("stderr", "")
    reason = str(record.fields.get("reason", "unknown"))
    raised = uncaught(record.attachments.get("traceback", ""))
    if not raised and reason in _SIGNALS:
        raised = fatal(stderr)
    elif not raised and reason.startswith("exit_"):
        raised = uncaught(stderr)
    return Crash(reason, raised, stderr)


def _begin_anew_after_fork(reporter: weakref.ref[Reporter]) -> None:
    def begin() -> None:
        alive = reporter()
        if alive is not None:
            alive._after_fork()  # noqa: SLF001

    os.register_at_fork(after_in_child=begin)
