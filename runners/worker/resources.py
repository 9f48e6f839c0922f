"""What the worker gets of the machine, applied to this process before anything large is imported.

Nothing here ends the worker: what the system refuses, or does not have, is left as it is and named in one line on
standard error, which the parent logs as a warning. Linux knows all of it; macOS has neither core affinity nor a
score for the out-of-memory killer.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from runners.spec import Grant

_SCORE = Path("/proc/self/oom_score_adj")
_MOST = 1000


def apply(text: str) -> None:
    """Apply a `Grant`, given as JSON."""
    grant = msgspec.json.decode(text, type=Grant)
    refused: list[str] = []

    def attempt(what: str, change: Callable[[], None]) -> None:
        try:
            change()
        except (OSError, ValueError) as error:
            refused.append(f"{what} ({error})")

    if grant.cpus:
        attempt("cpus", lambda: _pin(grant.cpus))
    if grant.nice:
        attempt("nice", lambda: _stand_back(grant.nice))
    if grant.open_files is not None:
        wanted = grant.open_files
        attempt("open_files", lambda: _limit_files(wanted))
    if grant.oom_score and sys.platform == "linux":  # a default, so that another system is no reason to warn
        attempt("oom_score_adj", lambda: _raise_score(grant.oom_score))
    if refused:
        print("resources left as they are:", "; ".join(refused), file=sys.stderr, flush=True)  # noqa: T201


def _pin(cpus: tuple[int, ...]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("this system has no core affinity")
    os.sched_setaffinity(0, cpus)


def _stand_back(by: int) -> None:
    os.nice(by)


def _limit_files(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        msg = f"{wanted} is above the hard limit; it is {most} now"
        raise ValueError(msg)


def _raise_score(by: int) -> None:
    # It was inherited, so it is the parent's.
    _SCORE.write_text(str(min(_MOST, int(_SCORE.read_text()) + by)))
