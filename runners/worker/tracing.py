"""The caller's OpenTelemetry context in the worker, so that spans of the function have the right parent.

The parent sends it only if there is one. Without OpenTelemetry in the worker it is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def attach(carriers: Sequence[Any]) -> Any:
    """Make the context that was sent, if one was, the current one. Returns what `detach` takes."""
    if not carriers:
        return None
    try:
        from opentelemetry import context, propagate  # noqa: PLC0415 - an extra, and only for calls that come with one
    except ImportError:
        return None
    return context.attach(propagate.extract(carriers[0]))


def detach(token: Any) -> None:
    """Make the context before `attach` the current one again."""
    if token is not None:
        from opentelemetry import context  # noqa: PLC0415 - it is there: see above

        context.detach(token)
