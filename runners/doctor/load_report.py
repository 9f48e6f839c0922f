"""Reads the report of a load test: this project's format, or k6's. Pure but for `read`.

::

    {"started": "2026-11-24T10:00:00Z", "duration": 300, "stages": [[60, 10], [180, 50], [60, 0]],
     "requests": 12000, "errors": 3, "p50_ms": 41.0, "p95_ms": 212.5, "p99_ms": 480.1}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runners.doctor.facts import LoadTest

_MOST = 16 << 20


def read(path: Path) -> LoadTest | str:
    """The report; or why it cannot be read, in a few words."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
            written = path.stat().st_mtime
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if len(content) > _MOST:
        return "it is too large to be a summary"
    try:
        data = json.loads(content)
    except ValueError:
        return "it is not JSON"
    try:
        return parse(data, written)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return f"it is neither this project's format nor k6's summary: {_short(error)}"


def parse(data: Any, written: float) -> LoadTest:
    """The report in `data`; `written` is when the file was, in seconds since the epoch, for those that do not say.

    Raises:
        KeyError, TypeError, ValueError: it is in no known format.
    """
    if not isinstance(data, Mapping):
        msg = "it is no object"
        raise TypeError(msg)
    return _k6(data, written) if isinstance(data.get("metrics"), Mapping) else _own(data)


def _own(data: Mapping[str, Any]) -> LoadTest:
    started = data["started"]
    if isinstance(started, str):
        moment = datetime.fromisoformat(started)
        started = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    return LoadTest(
        "load test",
        _number(started),
        _number(data["duration"]),
        int(_number(data["requests"])),
        int(_number(data["errors"])),
        *(None if data.get(name) is None else _number(data[name]) / 1000 for name in ("p50_ms", "p95_ms", "p99_ms")),
    )


def _k6(data: Mapping[str, Any], written: float) -> LoadTest:
    """``--summary-export``, where a metric's values stand in it, or what handleSummary gets, with ``values``."""
    metrics = {name: metric.get("values", metric) for name, metric in data["metrics"].items()}
    times = metrics["http_req_duration"]
    requests = int(_number(metrics["http_reqs"]["count"]))
    failed = metrics.get("http_req_failed", {})
    share = _number(failed.get("rate", failed.get("value", 0)))
    lasted = data.get("state", {}).get("testRunDurationMs")
    rate = metrics["http_reqs"].get("rate")
    duration = _number(lasted) / 1000 if lasted is not None else requests / _number(rate) if rate else None
    p50, p95, p99 = (
        None if times.get(name) is None else _number(times[name]) / 1000 for name in ("med", "p(95)", "p(99)")
    )
    return LoadTest("k6", written - (duration or 0), duration, requests, round(share * requests), p50, p95, p99)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        msg = "a number of at least 0 is missing"
        raise ValueError(msg)
    return float(value)


def _short(error: Exception) -> str:
    return f"there is no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)[:100]
