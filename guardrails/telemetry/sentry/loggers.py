"""Which of our loggers Sentry's own logging integration leaves alone.

It makes breadcrumbs of log lines, and issues of errors among them. What `guardrails.telemetry.logs` writes is reported
already, and so are the memory monitor's alerts. Lines of runners can hold what a worker wrote, or an error of the code
that it runs; what of them matters, the reporter tells without it.
"""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Sequence
from types import ModuleType

#: Said twice otherwise.
REPORTED = ("guardrails", "guardrails.memory")
#: As patterns: the lines of workers are logged as ``runners.worker.NAME``.
WITH_TEXT = ("runners", "runners.*")

_lock = threading.Lock()
_wanted: Counter[str] = Counter()


def quiet(sdk: ModuleType, names: Sequence[str]) -> None:
    """Have them left alone, until `loud` was called as often as this."""
    with _lock:
        new = [name for name in names if not _wanted[name]]
        _wanted.update(names)
        _tell(sdk, new, "ignore_logger", "ignore_logger_for_sentry_logs")


def loud(sdk: ModuleType, names: Sequence[str]) -> None:
    """Undo one `quiet`."""
    with _lock:
        _wanted.subtract(names)
        gone = [name for name in names if not _wanted[name]]
        _tell(sdk, gone, "unignore_logger", "unignore_logger_for_sentry_logs")


def _tell(sdk: ModuleType, names: Sequence[str], *functions: str) -> None:
    module = importlib.import_module(f"{sdk.__name__}.integrations.logging")
    for function in functions:
        tell = getattr(module, function, None)
        if tell is not None:  # some came in later versions
            for name in names:
                tell(name)
