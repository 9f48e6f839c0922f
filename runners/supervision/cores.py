"""Which cores a worker runs on, when the workers of this process share them out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class Cores:
    """Remembers who has which cores. Shared by all runners of the process, so that two of them do not meet on one core
    while another is free.
    """

    def __init__(self) -> None:
        self._holders: Counter[int] = Counter()

    def take(self, wanted: int, available: Iterable[int]) -> tuple[int, ...]:
        """`wanted` of the available cores, those with the fewest holders; none if there are not more than wanted, since
        then there is nothing to share out.
        """
        by_load = sorted(available, key=lambda core: (self._holders[core], core))
        if wanted >= len(by_load):
            return ()
        taken = tuple(sorted(by_load[:wanted]))
        self._holders.update(taken)
        return taken

    def give_back(self, cores: Sequence[int]) -> None:
        """Cores that `take` gave."""
        self._holders.subtract(cores)
        self._holders += Counter()  # drops those that nobody holds
