"""How a worker ended, in words. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

_PLANNED = frozenset({"drained", "drain_timeout", "stopped"})


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one worker process.

    Attributes:
        code: exit status, or the negated signal number, as `subprocess` has it; None where the application has fetched
            it, or ignores SIGCHLD.
        reason: why we ended it (``"memory"``, ``"stuck"``, ``"stopped"`` ...), or None when it ended by itself.
        stderr: the last lines of its standard error.
        oom: for a SIGKILL that was not ours: whether the kernel sent it because memory ran out. None: not known.
    """

    code: int | None
    reason: str | None
    stderr: str
    oom: bool | None = None

    @property
    def label(self) -> str:
        """One word or two for counting and labels: our reason, ``oom_kill``, the signal's name, or ``exit_N``."""
        if self.reason is not None:
            return self.reason
        if self.oom:
            return "oom_kill"
        if self.code is None:
            return "exit_unknown"
        return _signal_name(-self.code).lower() if self.code < 0 else f"exit_{self.code}"

    @property
    def from_outside(self) -> bool:
        """Whether it is known that another program ended it: a SIGKILL that neither we nor the kernel, short of memory,
        sent. What the worker was doing is then no cause, unless it sent the signal to itself.
        """
        return self.reason is None and self.code == -signal.SIGKILL and self.oom is False

    @property
    def planned(self) -> bool:
        """Whether it is the end of a drain, a replacement or the runner: nothing that the worker ran is a cause."""
        return self.reason in _PLANNED

    @property
    def for_memory(self) -> bool:
        """Whether it held too much, which may be the work of all that it ever ran."""
        return self.reason == "hard_budget" or (self.reason is None and self.oom is True)

    def describe(self) -> str:
        """For people."""
        if self.reason is not None:
            return f"was ended by the runner ({self.reason})"
        if self.code is None:
            return "ended; how is not known, since the application ignores SIGCHLD or waits for any child"
        if self.code == 0:
            return "exited with status 0 without having been asked to"
        if self.code >= 0:
            return f"exited with status {self.code}"
        if self.oom:
            return "was killed by the kernel because memory ran out (SIGKILL); set memory= below what the machine has"
        name = _signal_name(-self.code)
        by_kernel = "" if self.oom is False else "by the kernel if memory ran out, or "
        hint = {
            "SIGKILL": f"; {by_kernel}by another program",
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
