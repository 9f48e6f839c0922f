"""AI APIs of somebody else's: each behind a breaker, each call with an end."""

from __future__ import annotations

from collections.abc import Iterator

from runners.config import Config, TimeoutSection
from runners.doctor import finding
from runners.doctor.facts import Facts
from runners.doctor.finding import Finding

_BREAKER = {"failure_rate": 0.5, "min_calls": 10, "open_for": 15}
_TIMEOUT = {"total": 60, "first": 15, "idle": 15}
#: Seconds after which nobody waits any more.
_LONG = 600


def breakers(config: Config, facts: Facts) -> Iterator[Finding]:
    """Every external service has a breaker."""
    for name, service in config.services.items():
        subject = finding.table("services", name)
        if service.breaker is None:
            why = "no breaker: while it is down every user waits for it, and it is kept from getting up"
            mend = finding.config({subject: {"breaker": _BREAKER}})
            yield Finding("breakers", subject, "failure", why, (mend,))
        else:
            seconds = service.breaker.open_for or service.breaker.reset_timeout
            yield Finding("breakers", subject, "ok", f"opens for {seconds:g} s")


def timeouts(config: Config, facts: Facts) -> Iterator[Finding]:
    """Every call of an external service ends."""
    for name, service in config.services.items():
        subject = finding.table("services", name)
        limit = service.timeout
        total = limit.total if isinstance(limit, TimeoutSection) else limit
        mend = finding.config({subject: {"timeout": _TIMEOUT}})
        if limit is None:
            why = "no timeout: a call that hangs keeps its place, its memory and its user for ever"
            yield Finding("timeouts", subject, "failure", why, (mend,))
        elif total is None:
            why = "no total timeout: an answer that drips on never ends"
            yield Finding("timeouts", subject, "warning", why, (mend,))
        elif total > _LONG:
            why = f"{total:g} s: whoever asked has left long before, and the place is taken all the same"
            yield Finding("timeouts", subject, "warning", why, (mend,))
        else:
            yield Finding("timeouts", subject, "ok", f"{total:g} s for all of a call")
