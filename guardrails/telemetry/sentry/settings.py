"""What a report to Sentry may be told, checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SLUG = re.compile(r"[a-z0-9_-]{1,50}")


@dataclass(frozen=True, slots=True)
class Settings:
    """See `guardrails.telemetry.sentry.install` for each."""

    send_text: bool = False
    alike: int = 3
    in_all: int = 30
    per: float = 300.0
    breadcrumbs: int = 60
    spans: bool = True
    monitor_slug: str | None = None
    keep: int = 50

    def __post_init__(self) -> None:
        for name in ("send_text", "spans"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} takes True or False, not {getattr(self, name)!r}")
        for name, least in (("alike", 1), ("in_all", 1), ("breadcrumbs", 0), ("keep", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} takes a whole number, not {value!r}")
            if value < least:
                raise ValueError(f"{name}={value!r} must be {least} or more")
        if isinstance(self.per, bool) or not isinstance(self.per, int | float):
            raise TypeError(f"per takes a number of seconds, not {self.per!r}")
        if not 0 < self.per < math.inf:
            raise ValueError(f"per={self.per!r} must be above 0 seconds, and finite")
        if self.alike > self.in_all:
            raise ValueError(f"alike={self.alike} of one kind are more than in_all={self.in_all} of all kinds")
        if self.monitor_slug is not None:
            if not isinstance(self.monitor_slug, str):
                raise TypeError(f"monitor_slug takes a name, not {self.monitor_slug!r}")
            if not _SLUG.fullmatch(self.monitor_slug):
                raise ValueError(
                    f"monitor_slug={self.monitor_slug!r} must be 1 to 50 of a-z, 0-9, '_' and '-', as Sentry has slugs"
                )
