"""How a worker ended, in words. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one worker process.

    Attributes:
        code: exit status, or the negated signal number, as `subprocess` has it.
        reason: why we ended it (``"memory"``, ``"stuck"``, ``"stopped"`` ...), or None when it ended by itself.
        stderr: the last lines of its standard error.
    """

    code: int
    reason: str | None
    stderr: str

    @property
    def label(self) -> str:
        """One word or two for counting and labels: our reason, or the signal's name, or ``exit_N``."""
        if self.reason is not None:
            return self.reason
        return _signal_name(-self.code).lower() if self.code < 0 else f"exit_{self.code}"

    def describe(self) -> str:
        """For people."""
        if self.reason is not None:
            return f"was ended by the runner ({self.reason})"
        if self.code >= 0:
            return f"exited with status {self.code}"
        name = _signal_name(-self.code)
        hint = {
            "SIGKILL": "; by the kernel if memory ran out, or by another program",
            "SIGSEGV": "; a crash in native code",
            "SIGABRT": "; native code gave up",
            "SIGILL": "; native code built for another processor",
        }.get(name, "")
        return f"was killed by {name}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
