"""The limits over this process, read once a second for a fraction of what `machine_scopes` costs.

That one finds the cgroups anew each time, in files that list every mount of the machine: 1 ms, and several in large
containers. They hardly ever change, so here those that have a limit are found once a minute.
"""

from __future__ import annotations

from collections.abc import Callable

from guardrails.memory.cgroup import Cgroup, own_cgroups
from guardrails.memory.reading import Scope, machine_scopes

#: Seconds between two searches for cgroups.
FIND_EVERY = 60.0


class Scopes:
    """The host, and every cgroup up the tree that has a limit.

    Args:
        find: finds the cgroups.
        read: reads the host and these cgroups.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Cgroup, ...]] = own_cgroups,
        read: Callable[[tuple[Cgroup, ...]], tuple[Scope, ...]] = machine_scopes,
    ) -> None:
        self._find = find
        self._read = read
        self._groups: tuple[Cgroup, ...] = ()
        self._find_from = float("-inf")

    def look(self, now: float) -> tuple[Scope, ...]:
        """All of them; `now` is in seconds, on any steady clock."""
        if now >= self._find_from:
            self._groups = tuple(group for group in self._find() if group.limit() is not None)
            self._find_from = now + FIND_EVERY
        return self._read(self._groups)
