"""Alerts, crashes and traces of guards and runners, in Sentry.

    import sentry_sdk
    from guardrails.telemetry.sentry import GuardrailsIntegration

    sentry_sdk.init(dsn="...", integrations=[GuardrailsIntegration(monitor_slug="memory")])

or, whenever `sentry_sdk.init` is called, by whom and with what:

    from guardrails.telemetry import sentry

    reporter = sentry.install(monitor_slug="memory")

What is sent is made of what our own events say; no argument, no result, no prompt, no key. Importing this module loads
nothing of the SDK.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING

from guardrails._lazy import lazy
from guardrails.core.errors import MissingExtra
from guardrails.telemetry.sentry.settings import Settings

if TYPE_CHECKING:
    from guardrails.telemetry.sentry.integration import GuardrailsIntegration
    from guardrails.telemetry.sentry.reporter import Reporter

__all__ = ["GuardrailsIntegration", "Reporter", "install"]

_lock = threading.Lock()
_installed: Reporter | None = None


def install(
    *,
    send_text: bool = False,
    alike: int = 3,
    in_all: int = 30,
    per: float = 300.0,
    breadcrumbs: int = 60,
    spans: bool = True,
    monitor_slug: str | None = None,
    keep: int = 50,
) -> Reporter:
    """Report to Sentry from now on, before or after `sentry_sdk.init`.

    There is one for the process: a second call takes the place of the first, and keeps what that one has kept. A client
    with a `GuardrailsIntegration` of its own is left to that.

    Args:
        send_text: whether the messages of workers' exceptions and the last lines of their standard error are sent, and
            Sentry's logging integration takes the log lines of runners. They may hold anything, prompts too.
        alike: issues of one kind (one alert of one source, say) that are sent at once; then one every ``per / alike``
            seconds. What was held back is counted in the next one.
        in_all: the same of all kinds together.
        per: seconds.
        breadcrumbs: steps on the way (refusals, retries, fallbacks, replaced workers) that are told a minute, a twelfth
            of them of one kind; 0: none.
        spans: whether a guarded call is a span, where a sampled one is under way.
        monitor_slug: the name of a cron monitor at Sentry, which is made if there is none: it is told once a minute
            that memory is watched. None: it is not. Each process needs one of its own, or one hides another's end.
        keep: issues from before `sentry_sdk.init`, the last ones, that are sent when it comes.

    Returns:
        What reports; `stop` ends it. It is a context manager too.

    Raises:
        MissingExtra: sentry-sdk is not installed.
        TypeError, ValueError: an argument is out of range; it is named.
    """
    global _installed  # one for the process
    settings = Settings(
        send_text=send_text,
        alike=alike,
        in_all=in_all,
        per=per,
        breadcrumbs=breadcrumbs,
        spans=spans,
        monitor_slug=monitor_slug,
        keep=keep,
    )
    try:
        sdk = importlib.import_module("sentry_sdk")
    except ModuleNotFoundError as error:
        if error.name != "sentry_sdk":
            raise
        raise MissingExtra("guardrails.telemetry.sentry", extra="sentry", module="sentry-sdk") from None
    from guardrails.telemetry.sentry.reporter import Reporter  # noqa: PLC0415 - loaded when it is used

    reporter = Reporter(settings, sdk)
    with _lock:
        before, _installed = _installed, reporter
        if before is not None:
            reporter.take_over(before)
            before.stop()
        reporter.start()
    return reporter


if not TYPE_CHECKING:
    _HOMES = {
        "GuardrailsIntegration": "telemetry.sentry.integration",
        "Reporter": "telemetry.sentry.reporter",
    }
    _find = lazy(__name__, _HOMES)

    def __getattr__(name: str) -> object:
        try:
            return _find(name)
        except ModuleNotFoundError as error:
            if error.name != "sentry_sdk":
                raise
            raise MissingExtra("guardrails.telemetry.sentry", extra="sentry", module="sentry-sdk") from None
