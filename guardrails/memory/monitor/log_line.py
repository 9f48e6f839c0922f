"""The line a minute that the monitor logs: for people in its text, for programs in its `extra`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.core.sizes import format_size
from guardrails.memory.monitor.alerts import Alert
from guardrails.memory.monitor.sample import Sample

_NAMED = 3


def log_line(sample: Sample, alerts: Sequence[Alert] = ()) -> str:
    """As ``memory private=212MiB rss=340MiB total=1.2GiB processes=5 largest=embedder/0:800MiB host=61% gc=90/8/0
    trimmed=no alerts=none``. A cgroup is the one of which most is used.
    """
    own = next((each for each in sample.processes if each.role == "self"), None)
    largest = max(sample.processes, key=lambda each: each.private, default=None)
    shares = {
        "host" if each.name == "host" else "cgroup": each.share
        for each in sorted(sample.scopes, key=lambda scope: scope.share)
    }
    parts = {
        "private": _size(own.private if own else 0),
        "rss": _size(own.rss if own else 0),
        "pss": _size(own.pss) if own and own.pss is not None else "unknown",
        "total": _size(sample.private),
        "processes": str(len(sample.processes)),
        "largest": f"{largest.name}:{_size(largest.private)}" if largest else "none",
        **{name: f"{share:.0%}" for name, share in sorted(shares.items(), reverse=True)},
        "gc": "/".join(map(str, sample.gc)),
        "trimmed": "yes" if sample.trimmed else "no",
        "alerts": _alerts(alerts),
    }
    return " ".join(("memory", *(f"{key}={value}" for key, value in parts.items())))


def log_fields(sample: Sample, alerts: Sequence[Alert] = ()) -> dict[str, object]:
    """The same in bytes, for each process and each scope: the record's attribute ``memory``."""
    return {
        "processes": {
            each.name: {"pid": each.pid, "private": each.private, "rss": each.rss, "pss": each.pss}
            for each in sample.processes
        },
        "total": sample.private,
        "scopes": {each.name: {"used": each.used, "limit": each.limit} for each in sample.scopes},
        "gc": list(sample.gc),
        "trimmed": sample.trimmed,
        "alerts": [f"{each.alert}@{each.source}" for each in alerts],
    }


def _size(size: int) -> str:
    return format_size(size).replace(" ", "")


def _alerts(alerts: Sequence[Alert]) -> str:
    named = [f"{each.alert}@{each.source}" for each in alerts[:_NAMED]]
    if len(alerts) > _NAMED:
        named.append(f"{len(alerts) - _NAMED} more")
    return ",".join(named).replace(" ", "_") or "none"
