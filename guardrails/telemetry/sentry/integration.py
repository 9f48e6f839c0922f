"""The same as an integration of the SDK's: its options come with `sentry_sdk.init`, and belong to that client."""

from __future__ import annotations

import threading

import sentry_sdk
from sentry_sdk.integrations import Integration

from guardrails.core.events import Event, subscribe
from guardrails.telemetry.sentry.reporter import IDENTIFIER, Reporter
from guardrails.telemetry.sentry.routes import Route, route_of
from guardrails.telemetry.sentry.settings import Settings

_lock = threading.Lock()
_subscribed = False


class GuardrailsIntegration(Integration):
    """Give it to ``sentry_sdk.init(integrations=[GuardrailsIntegration()])``.

    It reports while a client is active that has it. Its arguments are those of `install`, except `keep`: before
    `init` there is none, and nothing to keep.

    Raises:
        TypeError, ValueError: an argument is out of range; it is named.
    """

    identifier = IDENTIFIER

    def __init__(
        self,
        *,
        send_text: bool = False,
        alike: int = 3,
        in_all: int = 30,
        per: float = 300.0,
        breadcrumbs: int = 60,
        spans: bool = True,
        monitor_slug: str | None = None,
    ) -> None:
        settings = Settings(
            send_text=send_text,
            alike=alike,
            in_all=in_all,
            per=per,
            breadcrumbs=breadcrumbs,
            spans=spans,
            monitor_slug=monitor_slug,
            keep=0,
        )
        self.reporter = Reporter(settings, sentry_sdk)
        self.reporter.quiet()

    @staticmethod
    def setup_once() -> None:
        """Listen to the events. The SDK calls it for the first client only."""
        global _subscribed  # noqa: PLW0603 - the SDK has one set of integrations for the process
        with _lock:
            if not _subscribed:
                _subscribed = True
                _ = subscribe(_report)


def _report(event: Event) -> None:
    if route_of(type(event)) is Route.NOTHING:
        return
    integration = sentry_sdk.get_client().get_integration(GuardrailsIntegration)
    if integration is not None:
        integration.reporter.handle(event)
