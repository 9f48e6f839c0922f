"""A worker in service: its process, its state, and the requests that it has."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec

from guardrails.core.sizes import format_size
from guardrails.memory.reading import private_and_proportional
from runners.errors import BudgetTooSmall, StartFailed, start_error
from runners.protocol.frames import ProtocolError
from runners.protocol.messages import (
    Cancel,
    Done,
    Drain,
    ErrorInfo,
    Failed,
    Item,
    LoadFailed,
    Message,
    More,
    Ready,
    Submit,
    ToParent,
)
from runners.protocol.parts import Incoming
from runners.spec import WorkerSpec, budget_fits, budget_for
from runners.supervision.environment import missing_hint
from runners.supervision.exit import Exit
from runners.supervision.memory import WorkerMemory, in_thread
from runners.supervision.process import WorkerProcess
from runners.supervision.request import Request
from runners.supervision.spawn import shortage

T = TypeVar("T")
State = Literal["starting", "ready", "draining", "exited"]
_MIB = 1024 * 1024
#: Requests are given ahead while a step takes less than this, in seconds: the last one then waits for a few
#: milliseconds at most.
_SHORT_STEP = 0.00025
_ANSWERS = (Done, Failed)
#: Seconds that a worker may take to exit once it has answered everything.
_TO_EXIT = 30.0
#: A wait that ends so many seconds late was held up by a blocked event loop.
_STALLED = 0.1
#: The answer to a request that the worker never had.
_WITHDRAWN = ErrorInfo(kind="cancelled", message="dropped: its caller has left")


class Worker:
    """One worker.

    Args:
        spec: what to run.
        on_answer: called with each answer.
        on_exit: called once, with its end, if it was ready before.
        python: the interpreter; by default this one.
        ahead: requests that may wait in it behind those that it runs, at most.

    Attributes:
        state: ``starting``, ``ready``, ``draining`` (answers what it has, gets nothing new) or ``exited``.
        capacity: requests that it runs, or keeps, at once.
        files: fingerprints of the files of its model, by path.
        generation: of its model; see `ServedModel`.
        superseded: whether it was taken out of service because another model is served now.
        in_flight: the requests that it has, by id and in the order given; each leaves when it is answered.
        recallable: whether what it has not begun can be taken back.
        limit: requests that it may have now: `capacity`, and some ahead while its steps are short.
        stalled: whether requests were taken back from it, and it has made no progress since.
        given: requests that it was ever sent whole; each one's number among them is its `place`.
        baseline: private memory when loaded and warm, in bytes.
        private: private memory at the last reading, in bytes.
        answered: requests that it has answered.
        memory: what else is known of its memory.
        last_progress: when it last did something, on the loop's clock.
        retired: whether it was asked to go; what comes in its place is not for its exit to decide.
        suspects: of its requests those that run by themselves: it is given nothing else meanwhile.
        reserved: whether it is given nothing until it is empty, and then a suspect.
        load_error: why it could not be loaded, where it said so itself.
        exit: how it ended; None while it has not.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        on_answer: Callable[[Request, Done | Failed, Incoming], None],
        on_exit: Callable[[Worker, Exit], None],
        python: str | None = None,
        ahead: int = 0,
    ) -> None:
        self.spec = spec
        self.state: State = "starting"
        self.capacity = 1
        self.limit = 1
        self.recallable = False
        self.given = 0
        self.info: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.generation = 0
        self.superseded = False
        self.in_flight: dict[int, Request] = {}
        self.baseline = 0
        self.private = 0
        self.memory = WorkerMemory()
        self.answered = 0
        self.last_progress = 0.0
        self.retired = False
        self.suspects = 0
        self._ready_by = 0.0
        self.reserved = False
        self.load_error: ErrorInfo | None = None
        self.exit: Exit | None = None
        self._most_ahead = ahead
        self._ahead = 0
        self.stalled = False
        self._stalled_at = 0
        self._seen_claimed = 0
        self._seen_progress = 0
        self._seen_sent = 0
        self._seen_slices = 0
        self._on_answer = on_answer
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.process = WorkerProcess(
            spec, on_message=self._message, on_exit=self._exited, on_sent=self._sent, python=python
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def __repr__(self) -> str:
        return f"<worker {self.pid} {self.state}, {len(self.in_flight)} in flight, {format_size(self.private)}>"

    # Coming up

    async def start(self, *, timeout: float, budget: int | None, hard: int | None = None) -> None:
        """Start the process and wait until the engine is loaded and warm. On any error nothing is left running.

        Raises:
            StartFailed: it could not be brought up; the subclass says why.
        """
        try:
            await self.process.start()  # no more than a few turns of the loop
            self._ready_by = self._loop.time() + timeout
            if self.memory.hold.take(self.pid, hard):
                self.process.moved()
            await self._in_time(self._ready)
            reading = asyncio.ensure_future(in_thread(partial(private_and_proportional, self.pid)))
            try:
                self.private, self.memory.pss = await self._in_time(reading)
            finally:
                reading.cancel()
            self.baseline = self.private
            await self._check_alive()
            self.memory.hold.arm(self.pid)
            if budget is not None and not budget_fits(budget, self.baseline):
                self._refuse_budget(budget)
        except TimeoutError:
            msg = (
                f"{self.spec.name}: the worker was not ready within {timeout:g} s; if it is large, raise start_timeout"
            )
            await self.end("start_timeout")
            raise StartFailed(msg) from None
        except BaseException as error:
            if self.pid:
                await self.end("start_failed")
            if isinstance(error, ProcessLookupError) and self.exit is not None:  # it had ended: the reading found none
                raise self._start_failure(self.exit) from None
            # RuntimeError: no thread is left to read in.
            if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, StartFailed):
                raise shortage(self.spec, error) from error
            raise
        self.state = "ready"
        self.last_progress = self._loop.time()

    async def _check_alive(self) -> None:
        if self.process.exited:
            raise self._start_failure(await self._in_time(self._exit))

    async def _in_time(self, future: asyncio.Future[T]) -> T:
        """The future's result. Time in which the event loop was blocked does not count: nothing could arrive then.

        Raises:
            TimeoutError: it has none when the start's time is over.
        """
        while not future.done():
            left = self._ready_by - self._loop.time()
            if left <= 0:
                raise TimeoutError
            await asyncio.wait((future,), timeout=left)
            now = self._loop.time()
            late = now - self._ready_by
            if late > _STALLED:
                self._ready_by = now + late
        return future.result()

    def _refuse_budget(self, budget: int) -> None:
        needed = budget_for(self.baseline)
        msg = (
            f"{self.spec.name}: memory={format_size(budget)} is too small: freshly loaded and warm the worker holds "
            f"{format_size(self.baseline)}; it needs memory={needed // _MIB}MiB or more"
        )
        raise BudgetTooSmall(msg, needed=needed)

    def _start_failure(self, exit: Exit) -> StartFailed:  # noqa: A002
        tail = f"; its last words:\n{exit.stderr}" if exit.stderr else ""
        return StartFailed(f"{self.spec.name}: the worker {exit.describe()} while it was loading{tail}")

    # At work

    @property
    def room(self) -> int:
        """Further requests that it may be given."""
        if self.state != "ready" or self.suspects or self.reserved:
            return 0
        return self.limit - len(self.in_flight)

    def give(self, request: Request, now: float) -> None:
        """Send it a request."""
        idle = not self.in_flight
        if idle:
            self.last_progress = now
        self.in_flight[request.id] = request
        request.generation = self.generation
        self.suspects += request.suspect
        request.place = 0
        if request.given_at is None:
            request.given_at = now
        left = None if request.deadline is None else max(0.0, request.deadline - now)
        message = Submit(request.id, left, request.suspect, msgspec.Raw(request.body), request.window)
        # An idle one should not wait for the loop to come round.
        if self.process.send(message, request.payload, size=request.size, now=idle):
            self.given = request.place = self.given + 1

    def _sent(self, message: Message) -> None:
        """The last of a large message is on its way: only now does the worker number it, if it is a request."""
        if isinstance(message, Submit):
            self.given += 1
            request = self.in_flight.get(message.id)
            if request is not None:
                request.place = self.given

    def cancel(self, request: Request) -> None:
        """Notify it that no caller waits for a request any more. The request stays in flight until it is answered; one
        that has not been sent whole is not sent at all.
        """
        if self.process.withdraw(request.id):
            del self.in_flight[request.id]
            self.suspects -= request.suspect
            self._on_answer(request, Failed(request.id, _WITHDRAWN), memoryview(b""))
        else:
            self.process.send(Cancel(request.id))

    def more(self, request: Request, count: int) -> None:
        """Tell it that the reader of a stream has taken so many items."""
        self.process.send(More(request.id, count))

    def has_waiting(self) -> bool:
        """Whether it has requests that it has not begun. A suspect is there by itself, and waits for nothing."""
        board = self.process.board
        if board is None or not self.recallable or self.suspects:
            return False
        begun = board.claimed()
        return any(not request.place or request.place > begun for request in self.in_flight.values())

    def held_up(self) -> bool:
        """Whether it runs something, and has begun nothing and read no large request since this was last asked."""
        board = self.process.board
        if board is None:
            return False
        seen = self._seen_claimed, self._seen_slices
        self._seen_claimed, self._seen_slices = now = board.claimed(), self.process.slices_sent
        return now == seen and board.busy_for() > 0.0

    def recall(self) -> list[Request]:
        """Take back the requests that it has not begun, in order. It is given no others until it has made progress."""
        board = self.process.board
        if board is None or not self.recallable:
            return []
        claimed = board.recall(self.given)
        if claimed is None:
            return []
        back = [request for request in self.in_flight.values() if not request.place or request.place > claimed]
        for request in back:
            if not request.place:
                self.process.withdraw(request.id)
            del self.in_flight[request.id]
        self.stalled = True
        self._stalled_at = board.progress()
        self.limit = max(1, min(self.capacity, len(self.in_flight)))
        return back

    def renew(self) -> None:
        """Settle how many requests it may have now. More than it runs at once, if they are so short that none of them
        waits for long.
        """
        board = self.process.board
        if board is None or (self.stalled and board.progress() == self._stalled_at):
            return
        self.stalled = False
        short = 0.0 < board.pace() < _SHORT_STEP
        self.limit = self.capacity + self._ahead if short else self.capacity

    def has_begun(self, request: Request) -> bool:
        """Whether it has begun a request that it has, or may have: what is not known counts as begun."""
        board = self.process.board
        if not request.place:
            return False  # not all of it was sent
        return board is None or not self.recallable or request.place <= board.claimed()

    def running(self) -> frozenset[int]:
        """The requests that it is running now, or was running when it died."""
        board = self.process.board
        return frozenset(board.running()) if board is not None else frozenset()

    def busy_for(self) -> float:
        """Seconds that it has been in its present step; 0.0 between steps."""
        board = self.process.board
        return board.busy_for() if board is not None else 0.0

    def steps(self) -> int:
        """Steps that it has finished."""
        board = self.process.board
        return board.progress() if board is not None else 0

    def note_progress(self, now: float) -> None:
        """Look at the status page for steps finished since the last look. One that can only wait for readers is no
        worse, nor is one that reads what it is sent.
        """
        board, sent = self.process.board, self.process.slices_sent
        if sent != self._seen_sent or (board is not None and board.progress() != self._seen_progress):
            self._seen_progress = 0 if board is None else board.progress()
            self._seen_sent = sent
            self.last_progress = now
        elif all(request.paused for request in self.in_flight.values()):
            self.last_progress = now

    def excuse(self, seconds: float, now: float) -> None:
        """The event loop was blocked for so long: nothing could be sent to the worker, or heard from it."""
        self.last_progress = min(now, self.last_progress + seconds)
        for request in self.in_flight.values():
            if request.abandoned_at is not None:
                request.abandoned_at = min(now, request.abandoned_at + seconds)

    # Going down

    def drain(self) -> None:
        """Give it nothing new, have it answer what it has, then exit."""
        if self.state == "ready":
            self.state = "draining"
            self.retired = True
            self.process.expect_exit("drained")
            self.process.send(Drain())

    async def leave(self, within: float | None) -> None:
        """Have it answer what it has, for as long as its requests' own deadlines allow, and end it.

        Args:
            within: seconds after which it is ended whatever it has; None: no such cap.
        """
        self.drain()
        by = None if within is None else self._loop.time() + within
        while True:
            idle, left = not self.in_flight, None if by is None else by - self._loop.time()
            if await self.wait_exit(_TO_EXIT if left is None else max(0.0, min(left, _TO_EXIT))):
                return
            if (idle and not self.in_flight) or (by is not None and self._loop.time() >= by):
                await self.end("drain_timeout")
                return

    async def end(self, reason: str) -> Exit:
        """Kill it and wait for its end."""
        self.process.kill(reason)
        return await asyncio.shield(self._exit)

    async def wait_exit(self, seconds: float) -> bool:
        """Wait for its end, for so long at most; whether it has ended."""
        await asyncio.wait((self._exit,), timeout=seconds)
        return self._exit.done()

    # What the process reports

    def _message(self, message: ToParent, payload: Incoming) -> None:
        if isinstance(message, _ANSWERS):
            request = self.in_flight.pop(message.id, None)
            if request is not None:
                self.answered += 1
                self.suspects -= request.suspect
                self.memory.answered[request.size.bit_length()] += 1
                self.last_progress = self._loop.time()
                if self.limit <= self.capacity and (self._ahead or self.stalled):
                    self.renew()
                self._on_answer(request, message, payload)
        elif isinstance(message, Item):
            request = self.in_flight.get(message.id)
            if request is not None and not request.item(message.body, payload):
                self.process.broken(ProtocolError("an item that was not asked for"))
        elif isinstance(message, Ready) and not self._ready.done():
            self.capacity = self.limit = message.capacity
            self.recallable = message.recallable
            board = self.process.board
            self._ahead = min(message.ahead, self._most_ahead) if board is not None and board.can_recall else 0
            self.info = message.info
            self.files = message.files
            self._ready.set_result(None)
        elif isinstance(message, LoadFailed) and not self._ready.done():
            hint = missing_hint(self.spec, message.error.message)
            self.load_error = msgspec.structs.replace(message.error, message=message.error.message + hint)
            self._ready.set_exception(start_error(self.load_error, self.spec.name))

    def _exited(self, exit: Exit) -> None:  # noqa: A002
        if exit.reason is None and self.memory.hold.fired():
            exit = dataclasses.replace(exit, reason="hard_budget")  # noqa: A001
        self.memory.hold.release()
        came_up = self.state != "starting"
        self.state = "exited"
        self.exit = exit
        self._exit.set_result(exit)
        if not self._ready.done():
            self._ready.set_exception(self._start_failure(exit))
            self._ready.exception()  # looked at: start() may have been cancelled, and then nobody else does
        if came_up:
            self._on_exit(self, exit)
