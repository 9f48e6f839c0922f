"""Whether it was the kernel, out of memory, that killed a worker.

A SIGKILL does not say who sent it. But the kernel counts the processes that it kills for want of memory, for each
memory cgroup (`memory.events`; v1: `memory.oom_control`) and for the whole machine (`/proc/vmstat`), and it counts
before it kills. So a count that has risen since the worker was alive, by more than the deaths that are explained
already, means an OOM kill; one that has not risen means that somebody else sent the signal.

The narrowest count that can be read decides: that of the worker's cgroup. It is shared with whatever else is in that
cgroup, so the look before is renewed every ten seconds (`LOOK_EVERY`), and an OOM kill of another program can be
mistaken for that of a worker only if somebody kills the worker within twenty seconds of it.

Linux only; elsewhere nothing is known. A look is a few small files: about 0.1 ms. Finding them, once for each worker,
takes up to 0.6 ms.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from guardrails.memory.cgroup import own_cgroups

LOOK_EVERY = 10.0
_FILES = {1: "memory.oom_control", 2: "memory.events"}


class OomWatch:
    """Tells an OOM kill of one process from another SIGKILL.

    Args:
        pid: the process; it is alive now.
        explained: deaths explained as OOM kills so far, by the file that counts them. Shared with the other workers'
            watches, so that one OOM kill does not explain two deaths.
        proc: where the system's process files are.
    """

    def __init__(self, pid: int, explained: Counter[Path], *, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._explained = explained
        self._proc = proc
        self._files: list[Path] = []
        self._before: dict[Path, int] = {}
        # The look before the last one is what counts: the last one may have come after the kernel's count and before
        # the news of the death.
        self._next: dict[Path, int] = {}
        self.look_afresh()

    def look_afresh(self) -> None:
        """Forget earlier looks: the process is new, or has been moved to another cgroup."""
        groups = own_cgroups(self._proc / str(self._pid))
        v1 = [group for group in groups if group.version == 1]
        # v2 counts in every group up the tree, v1 in the innermost only.
        counted = [*(group for group in groups if group.version == 2), *v1[:1]]
        self._files = [*(group.path / _FILES[group.version] for group in counted), self._proc / "vmstat"]
        self._before = self._next = self._look()

    def look(self) -> None:
        """Renew the look before. Call it every `LOOK_EVERY` seconds while the process lives."""
        self._before, self._next = self._next, self._look()

    def killed(self) -> bool | None:
        """Whether the kernel killed it for want of memory; None if that cannot be known. Ask once, after a SIGKILL."""
        rises = {path: now - before for path, before in self._before.items() if (now := self._count(path)) is not None}
        for rise in rises.values():  # the first is that of the narrowest cgroup that is still there
            if rise <= 0:
                return False
            self._explained.update(path for path, rise in rises.items() if rise > 0)
            return True
        return None

    def _look(self) -> dict[Path, int]:
        return {path: count for path in self._files if (count := self._count(path)) is not None}

    def _count(self, path: Path) -> int | None:
        """OOM kills that are not explained yet."""
        kills = oom_kills(path)
        return None if kills is None else kills - self._explained[path]


def oom_kills(path: Path) -> int | None:
    """The count of OOM kills in one of the kernel's files, or None if it does not say."""
    try:
        text = path.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None
