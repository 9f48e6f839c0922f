"""Requests that were running when their worker died: each runs next by itself, on a fresh worker where one comes.

So an innocent request is not blamed for a worker that others filled or damaged, and one that is guilty takes no other
request with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from runners.supervision.request import Request
from runners.supervision.worker import Worker

#: A worker that holds no more than so many times what it did when it was loaded, and so many bytes, has not been filled
#: by others: what a small one gathers in its first thousand calls is not much of any budget.
_UNFILLED, _UNFILLED_BYTES = 1.25, 16 << 20


class Suspects:
    """The queue of suspects, served before other requests.

    Args:
        fresh_comes: whether a new worker is on its way.

    Attributes:
        waiting: the queue itself, to look at.
    """

    def __init__(self, fresh_comes: Callable[[], bool]) -> None:
        self.fresh_comes = fresh_comes
        self.waiting: deque[Request] = deque()
        self._reserved: Worker | None = None

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.waiting)

    def put(self, requests: Iterable[Request]) -> None:
        """Requests of a worker that died: before those of earlier ones, in their own order."""
        self.waiting.extendleft(reversed(list(requests)))

    def remove(self, request: Request) -> None:
        """Its caller has left.

        Raises:
            ValueError: it does not wait here.
        """
        self.waiting.remove(request)
        if not self.waiting:
            self._release()

    def take(self) -> Request:
        """The first one."""
        return self.waiting.popleft()

    def give(self, workers: Iterable[Worker], now: float) -> None:
        """Give them to workers that have nothing else to do.

        While a new worker is on its way they wait for it. Where none is, the worker with the least to do is given
        nothing else until it is empty.
        """
        while self.waiting:
            if not self.waiting[0].waited_for:
                self.take()
                continue
            free = [worker for worker in workers if worker.state == "ready" and not worker.in_flight]
            worker = next((worker for worker in free if not worker.answered), None)
            if worker is None and not self.fresh_comes():
                worker = free[0] if free else None
                if worker is None:
                    self._reserve(workers)
            if worker is None:
                return
            self._release()
            request = self.take()
            request.given_unfilled = worker.private <= worker.baseline * _UNFILLED + _UNFILLED_BYTES
            worker.give(request, now)
        self._release()

    def _reserve(self, workers: Iterable[Worker]) -> None:
        ready = [worker for worker in workers if worker.state == "ready"]
        if ready and not any(worker.reserved or worker.suspects for worker in ready):
            self._reserved = min(ready, key=lambda worker: len(worker.in_flight))
            self._reserved.reserved = True

    def _release(self) -> None:
        """What was reserved is not needed: another worker takes the suspect, or its caller has left."""
        if self._reserved is not None:
            self._reserved.reserved = False
            self._reserved = None


__all__ = ["Suspects"]
