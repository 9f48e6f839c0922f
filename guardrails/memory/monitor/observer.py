"""One look at everything: takes a sample, keeps it, judges it, and says what is new. Without a thread or a clock."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

from guardrails.core import events
from guardrails.memory.monitor.alerts import Alerts
from guardrails.memory.monitor.history import History
from guardrails.memory.monitor.log_line import log_fields, log_line
from guardrails.memory.monitor.processes import Processes
from guardrails.memory.monitor.relief import Relief
from guardrails.memory.monitor.sample import Sample
from guardrails.memory.monitor.scopes import Scopes
from guardrails.memory.monitor.signs.growth import TOTAL, Growth
from guardrails.memory.monitor.signs.high import HighMemory
from guardrails.memory.monitor.signs.listener import Listener
from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled

_log = logging.getLogger("guardrails.memory")
_LEVELS = {"warning": logging.WARNING, "critical": logging.ERROR}

OnAlert = Callable[[AlertRaised | AlertCleared], object]


class Observer:
    """What one monitor knows. `look` is called by one thread at a time.

    Args:
        name: the `source` of `MemorySampled`.
        processes: the watched ones.
        scopes: the limits.
        history: where samples go.
        alerts: where findings go.
        high: judges the levels.
        growth: judges the histories.
        listener: judges the calls.
        relief: what is done when this process grows.
        log_every: seconds between two lines in the log; None: it logs nothing, alerts neither.
        on_alert: called with each alert that is announced, and with its end.
    """

    def __init__(
        self,
        name: str,
        *,
        processes: Processes,
        scopes: Scopes,
        history: History,
        alerts: Alerts,
        high: HighMemory,
        growth: Growth,
        listener: Listener,
        relief: Relief,
        log_every: float | None,
        on_alert: OnAlert | None,
    ) -> None:
        self.name = name
        self.history = history
        self.alerts = alerts
        self._processes = processes
        self._scopes = scopes
        self._high = high
        self._growth = growth
        self._listener = listener
        self._relief = relief
        self._log_every = log_every
        self._log_from = float("-inf")
        self._on_alert = on_alert

    def read(self, now: float, at: float, *, trimmed: bool = False, exact: bool = True) -> Sample:
        """A sample, and nothing else.

        Args:
            now: seconds on a steady clock.
            at: seconds since the epoch.
            trimmed: see `Sample`.
            exact: whether one process may be read exactly.
        """
        return Sample(
            at=at,
            monotonic=now,
            processes=self._processes.look(now, exact=exact),
            scopes=self._scopes.look(now),
            gc=tuple(generation["collections"] for generation in gc.get_stats()),
            gc_pending=gc.get_count(),
            trimmed=trimmed,
        )

    def look(self, now: float, at: float) -> Sample:
        """A sample that is kept, judged and told."""
        sample = self.read(now, at, trimmed=self._relief.trimmed())
        values = {each.name: each.private for each in sample.processes}
        values[TOTAL] = sample.private
        values |= {scope.name: scope.used for scope in sample.scopes}
        self.history.add(now, at, values)
        grown = self._growth.judge(now, sample)
        findings = [*self._high.judge(now, sample), *grown, *self._listener.judge(now)]
        for news in self.alerts.settle(now, findings):
            self._tell(news)
        own = next((each for each in grown if each.source == "self"), None)
        lines = self._relief.look(now, growing=own is not None)
        if lines is not None and own is not None:  # news, which nobody waits for in vain: it comes once in an hour
            self._tell(AlertRaised(own.source, own.alert, own.severity, lines, own.action, dict(own.values)))
        events.emit(MemorySampled(self.name, sample))
        if self._log_every is not None and now >= self._log_from:
            self._log_from = now + self._log_every
            active = self.alerts.active
            _log.info("%s", log_line(sample, active), extra={"memory": log_fields(sample, active)})
        return sample

    def _tell(self, news: AlertRaised | AlertCleared) -> None:
        if self._log_every is not None:
            if isinstance(news, AlertRaised):
                text = f"{news.alert} {news.source}: {news.message}. {news.action}."
                _log.log(
                    _LEVELS[news.severity], "%s", text, extra={"alert": dict(news.values), "event": "alert.raised"}
                )
            else:
                _log.info(
                    "%s %s: over after %.0f s", news.alert, news.source, news.seconds, extra={"event": "alert.cleared"}
                )
        events.emit(news)
        if self._on_alert is not None:
            try:
                self._on_alert(news)
            except Exception:
                _log.exception("on_alert failed on %s", news.alert)

    def end(self) -> None:
        """The monitor ends."""
        self._relief.end()

    def after_fork(self) -> None:
        """In a forked child: nothing of what the parent was, and no lock that a thread held which is not here."""
        self.history.after_fork()
        self.alerts.after_fork()
        self._growth.after_fork()
        self._listener.after_fork()
        self._processes.after_fork()
        self._relief.end()


__all__ = ["Observer", "OnAlert"]
