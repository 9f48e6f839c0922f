"""The standard streams of a command: those that are closed, and a reader that goes away."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, cast

#: The exit status of a command whose reader has gone, as a shell reports one that SIGPIPE ended.
PIPE_CLOSED = 128 + signal.SIGPIPE


def run(command: Callable[[], int]) -> int:
    """Run a command; its exit status, or `PIPE_CLOSED` when its output has no reader any more."""
    _open_closed()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # else the interpreter complains at its end
            os.dup2(silent, stream.fileno())
        return PIPE_CLOSED


def _open_closed() -> None:
    """Connect standard streams that are closed with the null device.

    The interpreter has None in their place. And the next socket or file would get the number of a standard stream,
    which libraries print to.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = _null("r")
    if sys.stdout is None:
        sys.stdout = _null("w")
    if sys.stderr is None:
        sys.stderr = _null("w")


def _null(mode: str) -> TextIO:
    return cast("TextIO", Path(os.devnull).open(mode, encoding="utf-8"))


__all__ = ["PIPE_CLOSED", "run"]
