"""The requests that wait in this process, and how many bytes they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from runners.supervision.request import Request


class WaitingRequests(deque[Request]):
    """A FIFO queue that knows the bytes of what it holds: `size`."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def append(self, request: Request) -> None:
        """At the end."""
        self.size += request.size
        super().append(request)

    def extendleft(self, requests: Iterable[Request]) -> None:
        """In front, the last one first."""
        for request in requests:
            self.size += request.size
            super().appendleft(request)

    def popleft(self) -> Request:
        """The first one."""
        request = super().popleft()
        self.size -= request.size
        return request

    def remove(self, request: Request) -> None:
        """One from the middle.

        Raises:
            ValueError: it is not here.
        """
        super().remove(request)
        self.size -= request.size


__all__ = ["WaitingRequests"]
