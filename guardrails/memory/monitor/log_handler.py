"""A handler of log records that recognises that memory ran out, and says so to the monitor. It writes nothing.

    logging.getLogger().addHandler(monitor.log_handler)

It is not attached by itself: a logger with a handler counts as configured, and `logging.basicConfig` then does nothing.
Attach it after logging was configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.memory.monitor.signs.exhaustion import exhausted, exhausted_type

#: The monitor's own, whose alerts have the words in them, and the runners' supervisor's, which tells in events.
_OURS = frozenset({"guardrails.memory", "guardrails.events", "runners"})


class ExhaustionHandler(logging.Handler):
    """Looks at the message, and at the type of the exception, of every record from `level` on.

    Args:
        report: called with the logger's name and who said it (see `exhausted`); on the thread that logs.
        level: records below are not looked at.
    """

    def __init__(self, report: Callable[[str, str], None], level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record."""
        if record.name in _OURS:
            return
        try:
            cause = exhausted_type(record.exc_info[0] if record.exc_info else None) or exhausted(record.getMessage())
        except Exception:  # a message that cannot be formatted is reported by the handlers that write it
            return
        if cause is not None:
            self._report(record.name, cause)
