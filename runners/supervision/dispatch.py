"""Requests on their way: a bounded FIFO queue, workers with room, and exactly one answer each.

A request leaves here in one of these ways: answered, failed with an error of its own, expired, withdrawn by its
    caller, or
refused because the runner closed or failed. Until then it is either in the queue or in one worker's hands, never in
both.

A request that its worker has not begun can come back to the front of the queue: when the worker begins nothing for some
milliseconds, another worker with room gets what waited behind the long call.

Everything runs on the event loop's thread; nothing awaits, so nothing can come in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from itertools import islice

from guardrails.core import events
from guardrails.core.errors import QueueFull
from guardrails.core.sizes import format_size
from guardrails.core.timers import TimerWheel, wheel_of
from runners.errors import PoisonedRequest, RequestTimeout, RunnerCrashed, request_error
from runners.protocol.messages import Done, Failed
from runners.protocol.parts import Incoming, Payload
from runners.supervision.affinity import Affinity
from runners.supervision.events import RequestsRedelivered
from runners.supervision.exit import Exit
from runners.supervision.request import Request
from runners.supervision.stream import StreamRequest
from runners.supervision.suspects import Suspects
from runners.supervision.waiting import WaitingRequests
from runners.supervision.worker import Worker

#: Workers that a request may take with it until it is refused as poison.
_MAX_STRIKES = 2
#: The same, counting those that were killed from outside: no request causes that, unless it sends the signal itself.
_MAX_DEATHS = 8
#: Seconds between two looks at workers that have requests which they have not begun.
_LOOK_EVERY = 0.004


class Dispatcher:
    """The queue, and who gets what.

    Args:
        name: the runner's.
        queue: requests that may wait here, beyond those that workers have.
        queue_bytes: bytes that these may hold together.
        fresh_comes: whether a new worker is on its way.

    Attributes:
        limit: requests that may wait.
        limit_bytes: bytes that they may hold.
        workers: those in service; the supervisor adds and removes them.
        counts: what became of requests, for `RunnerStats`.
        idle: set when there is no request left, waiting or running.
    """

    def __init__(
        self, name: str, *, queue: int, queue_bytes: int = 1 << 30, fresh_comes: Callable[[], bool] = lambda: False
    ) -> None:
        self.name = name
        self.workers: list[Worker] = []
        self.counts: Counter[str] = Counter()
        self.idle = asyncio.Event()
        self.limit = queue
        self.limit_bytes = queue_bytes
        self._affinity: Affinity[Worker] = Affinity()
        self._queue = WaitingRequests()
        self._suspects = Suspects(fresh_comes)
        self._numbers = itertools.count(1)
        self._looking = False
        self._loop: asyncio.AbstractEventLoop
        self._wheel: TimerWheel

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on this event loop from now on."""
        self._loop = loop
        self._wheel = wheel_of(loop)

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue) + len(self._suspects)

    @property
    def oldest_queued(self) -> float | None:
        """When the first of them came, on the loop's clock; None if none waits."""
        first = [*islice(self._suspects, 1), *islice(self._queue, 1)]
        return min((request.accepted for request in first), default=None)

    # In

    def submit(
        self,
        body: bytes,
        payload: Payload,
        *,
        now: float,
        deadline: float | None,
        redeliver: bool,
        affinity: int | None = None,
        window: int = 0,
    ) -> Request:
        """Accept a request at `now` and give it to a worker, or queue it. Those of one `affinity` go to one worker, as
        long as that does not have much more to do than others. With a `window` it is a `StreamRequest`.

        Raises:
            QueueFull: as many, or as many bytes, wait already as may.
        """
        queue = self._queue
        worker = None if queue else self._choose(affinity)
        if worker is None:
            size = len(body) + len(payload)
            if len(queue) >= self.limit or queue.size + size > self.limit_bytes:
                raise QueueFull(self.name, detail=self._full(size))
        number, future = next(self._numbers), self._loop.create_future()
        request: Request
        if window:
            request = StreamRequest(
                number, body, payload, deadline=deadline, redeliver=redeliver, future=future, window=window
            )
        else:
            request = Request(number, body, payload, deadline=deadline, redeliver=redeliver, future=future)
        request.accepted = now
        request.affinity = affinity
        if deadline is not None:
            request.expire_at_deadline(self._wheel, self._expire)
        self.counts["submitted"] += 1
        if worker is None:
            queue.append(request)
        else:
            worker.give(request, now)
            if not self._looking:
                self._look_soon(worker)
        return request

    def _full(self, size: int) -> str:
        if len(self._queue) >= self.limit:
            return f"{self.limit} requests wait already; retry later, or raise queue="
        return (
            f"requests of {format_size(self._queue.size)} wait already, this one is {format_size(size)}, and at most "
            f"{format_size(self.limit_bytes)} may wait; retry later, or raise queue_bytes="
        )

    def pump(self) -> None:
        """Give waiting requests to workers with room, the least loaded first."""
        if self._suspects.waiting:
            self._suspects.give(self.workers, self._loop.time())
        while self._queue:
            request = self._queue[0]
            worker = self._choose(request.affinity)
            if worker is None:
                return
            self._queue.popleft()
            if request.waited_for:
                worker.give(request, self._loop.time())
                if not self._looking:
                    self._look_soon(worker)

    def _look_soon(self, worker: Worker) -> None:
        if worker.recallable and len(worker.in_flight) > 1:
            self._looking = True
            self._loop.call_later(_LOOK_EVERY, self._look)

    # Taken back

    def _look(self) -> None:
        """Take back what waits in a worker that begins nothing, and look again as long as anything waits in one."""
        self._looking = False
        waiting = False
        back: list[Request] = []
        for worker in self.workers:
            worker.renew()
            if worker.has_waiting():
                waiting = True
                # What runs one call at a time gets the next one when it has ended. Of several at once, each has a turn
                # soon, unless another worker is free.
                if worker.held_up() and (worker.capacity == 1 or self._another_is_free(worker)):
                    back += worker.recall()
        if back:
            self._queue_again(back)
        if self._queue:
            self.pump()
            waiting = waiting or any(worker.stalled for worker in self.workers)
        if waiting and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_EVERY, self._look)

    def _another_is_free(self, worker: Worker) -> bool:
        return any(other.room > 0 for other in self.workers if other is not worker)

    def _queue_again(self, requests: list[Request]) -> None:
        wanted = sorted((request for request in requests if request.waited_for), key=lambda request: request.id)
        for request in wanted:
            request.again()
        self._queue.extendleft(reversed(wanted))  # they came first, so they go first
        self.note_idle()

    def _choose(self, affinity: int | None) -> Worker | None:
        if affinity is None:
            return self._least_loaded()
        return self._affinity.choose(affinity, [(worker, worker.room, worker.capacity) for worker in self.workers])

    def _least_loaded(self) -> Worker | None:
        """The worker with the most room, the first of several; None if there is no room."""
        found, most = None, 0
        for worker in self.workers:
            room = worker.room
            if room > most:
                found, most = worker, room
        return found

    # Out

    def answered(self, request: Request, message: Done | Failed, payload: Incoming) -> None:
        """A worker has answered."""
        if isinstance(message, Done):
            self.counts["answered"] += request.waited_for
            request.answer(message.body, payload)
        elif message.error.kind in ("cancelled", "expired"):
            self.counts["expired"] += request.waited_for
            request.fail(self._timeout())
        else:
            self.counts["failed"] += request.waited_for
            request.fail(request_error(message.error, self.name))
        if self._queue or self._suspects.waiting:
            self.pump()
        self.note_idle()

    def more(self, request: StreamRequest, count: int) -> None:
        """The reader of a stream has taken so many items."""
        worker = self._holder(request)
        if worker is not None:
            request.allowed += count
            worker.more(request, count)

    def withdraw(self, request: Request) -> None:
        """The caller has left. What has not begun is dropped; what runs goes on until it ends or its grace is over."""
        if request.future.done() and not request.future.cancelled():
            return
        request.abandon(self._loop.time())
        self.counts["cancelled"] += 1
        self._release(request)

    def _expire(self, request: Request) -> None:
        if request.waited_for:
            request.abandoned_at = self._loop.time()
            request.fail(self._timeout())
            self.counts["expired"] += 1
            self._release(request)

    def _timeout(self) -> RequestTimeout:
        return RequestTimeout(f"{self.name}: no answer within the request's timeout")

    def _release(self, request: Request) -> None:
        worker = self._holder(request)
        if worker is not None:
            worker.cancel(request)
            return
        with contextlib.suppress(ValueError):  # it may be in neither, while a worker goes down
            if request in self._suspects:
                self._suspects.remove(request)
                self.pump()  # a worker that was reserved for it may take others
            else:
                self._queue.remove(request)
        self.note_idle()

    def _holder(self, request: Request) -> Worker | None:
        for worker in self.workers:
            if request.id in worker.in_flight:
                return worker
        return None

    def take_back(self, worker: Worker, exit: Exit, *, closed: Callable[[], Exception] | None) -> None:  # noqa: A002
        """A worker has died: what it had goes to another one, in front, or fails. With `closed`, all of it fails so."""
        running = worker.running()
        again: list[Request] = []
        others = worker.answered + sum(request.begun for request in worker.in_flight.values()) + len(running)
        for request in worker.in_flight.values():
            if not request.waited_for:
                continue
            ran = request.id in running
            begun = ran or request.begun or worker.has_begun(request)
            if ran:
                request.outlived(exit, by_itself=request.given_unfilled or others - ran - request.begun == 0)
            error = closed() if closed is not None else self._verdict(request, exit, begun=begun)
            if error is None:
                request.again()
                again.append(request)
            else:
                self.counts["failed"] += 1
                request.fail(error)
        worker.in_flight.clear()
        self._affinity.forget(worker)
        self._suspects.put(request for request in again if request.suspect)
        # They came first, so they go first.
        self._queue.extendleft(request for request in reversed(again) if not request.suspect)
        self.counts["redelivered"] += len(again)
        if again and events.sinks:
            events.emit(RequestsRedelivered(self.name, worker.pid, len(again)))

    def _verdict(self, request: Request, exit: Exit, *, begun: bool) -> Exception | None:  # noqa: A002
        """The error for a request that a dead worker had, and had begun or not, or None if it may run again."""
        if not begun:
            return None
        how = exit.describe()
        if (request.strikes >= _MAX_STRIKES and request.proven) or request.deaths >= _MAX_DEATHS:
            msg = f"{self.name}: {request.deaths} workers died while they ran this request; the last {how}"
            return PoisonedRequest(msg, exit=how, stderr=exit.stderr)
        if not request.redeliver:
            msg = f"{self.name}: the worker {how} while it ran this request, which may not be run twice"
            return RunnerCrashed(msg, exit=how, stderr=exit.stderr)
        if request.taken:
            msg = f"{self.name}: the worker {how} after {request.taken} items of this stream had been delivered"
            return RunnerCrashed(msg, exit=how, stderr=exit.stderr)
        return None

    def flush(self, error: Callable[[], Exception]) -> None:
        """Refuse everything that waits, each with an error of its own: a shared one would gather all tracebacks."""
        while self._queue or self._suspects:
            request = self._suspects.take() if self._suspects else self._queue.popleft()
            self.counts["failed"] += request.waited_for
            request.fail(error())
        self.note_idle()

    def note_idle(self) -> None:
        """Set `idle` if there is nothing left."""
        if self._queue or self._suspects.waiting:
            return
        for worker in self.workers:
            if worker.in_flight:
                return
        self.idle.set()
