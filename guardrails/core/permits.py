"""The books of a turnstile: which calls are in, and whether one more may be.

Two kinds. `Permits` counts calls that all cost the same, and its common case needs no lock; `Ledger` adds up costs that
differ. Both can be resized at any moment: what is in stays in, and counts.
"""

from __future__ import annotations

from collections.abc import Callable


class Permits:
    """A number of equal permits that changes with time.

    A permit that is free is an entry of `free`, so that taking one is ``free.pop()`` and giving it back
    ``free.append(permit)``: both are atomic, and need no lock. Everything else is called under the owner's lock.

    Args:
        size: permits there are.
        permit: what stands in `free`.

    Attributes:
        free: permits at hand.
        spare: permits that are not in the list yet; below 0, permits that have to be handed in, for they were withdrawn
            while a call held them: then give back by `give`.
    """

    __slots__ = ("free", "permit", "size", "spare")

    #: Entries that the list holds from the start; the others come into it as they are given back.
    _LISTED = 256

    def __init__(self, size: int, permit: int) -> None:
        self.size = 0
        self.spare = 0
        self.permit = permit
        self.free: list[int] = []
        self.resize(size)

    @property
    def in_use(self) -> int:
        """Permits that calls hold."""
        return self.size - self.spare - len(self.free)

    @property
    def reserved(self) -> int:
        """What the calls cost together."""
        return self.in_use * self.permit

    def take(self, cost: int) -> bool:  # noqa: ARG002 - all cost the same
        """Take a permit, if there is one."""
        try:
            self.free.pop()
        except IndexError:
            if self.spare <= 0:
                return False
            self.spare -= 1
        return True

    def give(self, cost: int) -> None:  # noqa: ARG002
        """Give a permit back."""
        if self.spare < 0:
            self.spare += 1
        else:
            self.free.append(self.permit)

    def resize(self, size: int) -> None:
        """Have `size` permits from now on."""
        self.spare += size - self.size
        self.size = size
        while self.spare < 0:
            try:
                self.free.pop()
            except IndexError:
                return
            self.spare += 1
        move = min(self.spare, self._LISTED - len(self.free))
        if move > 0:
            self.free.extend([self.permit] * move)
            self.spare -= move


class Ledger:
    """Calls of differing costs. Every method is called under the owner's lock.

    Args:
        size: calls that may be in at once.
        fits: whether calls that cost so much together may be in.

    Attributes:
        free: always empty: nothing is taken here without a look at the books.
    """

    __slots__ = ("_fits", "free", "in_use", "reserved", "size")

    spare = 0

    def __init__(self, size: float, fits: Callable[[int], bool]) -> None:
        self.size = size
        self.in_use = 0
        self.reserved = 0
        self.free: list[int] = []
        self._fits = fits

    def take(self, cost: int) -> bool:
        """Enter a call, if it may be in."""
        if self.in_use >= self.size or (cost and not self._fits(self.reserved + cost)):
            return False
        self.in_use += 1
        self.reserved += cost
        return True

    def give(self, cost: int) -> None:
        """Strike a call out."""
        self.in_use -= 1
        self.reserved -= cost

    def resize(self, size: float) -> None:
        """Have `size` calls at once from now on."""
        self.size = size
