"""At most so many of a kind in a while, and a word on the rest. Pure: time is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class LeftOut(Generic[K, V]):
    """What was left out of a window: how many of this kind, the last of them, and how long the window was open."""

    kind: K
    count: int
    last: V
    seconds: float


class _Window(Generic[V]):
    __slots__ = ("began", "last", "left_out", "taken")

    def __init__(self, began: float) -> None:
        self.began = began
        self.taken = 0
        self.left_out = 0
        self.last: V | None = None


class Thinner(Generic[K, V]):
    """Lets `limit` of a kind through in each window of `per` seconds, which opens with the first of them.

    Args:
        limit: of each kind, in one window.
        per: seconds.
        max_kinds: windows that are open at once; for one more the oldest is closed early.

    Every value that is given to `take` is either let through, or counted in exactly one `LeftOut`.
    """

    def __init__(self, *, limit: int, per: float, max_kinds: int = 1024) -> None:
        self.limit = limit
        self.per = per
        self.max_kinds = max_kinds
        self._windows: OrderedDict[K, _Window[V]] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def due(self) -> float | None:
        """When the oldest window closes; None without one."""
        for window in self._windows.values():
            return window.began + self.per
        return None

    def over(self, now: float) -> list[LeftOut[K, V]]:
        """Close the windows whose time has passed. Returns what they left out."""
        said: list[LeftOut[K, V]] = []
        while (due := self.due) is not None and due <= now:
            said += self._close_oldest(now)
        return said

    def take(self, kind: K, value: V, now: float) -> tuple[bool, list[LeftOut[K, V]]]:
        """Whether this one is let through; and what was left out of windows that have closed by now."""
        said = self.over(now)
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= self.max_kinds:
                said += self._close_oldest(now)
            window = self._windows[kind] = _Window(now)
        if window.taken < self.limit:
            window.taken += 1
            return True, said
        window.left_out += 1
        window.last = value
        return False, said

    def close(self, now: float) -> list[LeftOut[K, V]]:
        """Close all windows."""
        said: list[LeftOut[K, V]] = []
        while self._windows:
            said += self._close_oldest(now)
        return said

    def _close_oldest(self, now: float) -> list[LeftOut[K, V]]:
        kind, window = self._windows.popitem(last=False)
        if window.last is None:
            return []
        return [LeftOut(kind, window.left_out, window.last, min(now - window.began, self.per))]


__all__ = ["LeftOut", "Thinner"]
