"""The order of the end: signals drain runners before the process stops.

    async with EmbeddingRunner("models/minilm") as embedder, drain_on_signals(embedder, grace=20) as stopping:
        await serve(embedder, until=stopping.wait())

::

                    SIGTERM, SIGINT             all answered, or the grace over
    serving ─────────────────────────▶ draining ───────────────────────────────▶ stopped: the block ends
                                          │                                         ▲
                                          └──────────── SIGINT: stop now ───────────┘

While draining, new requests are refused with `RunnerClosed`; those that were accepted are answered. Then the block, if
it has not ended by itself, gets half a second to pass the last answers on, and is cancelled; what comes after it runs
as after any block. The program's exit status is its own to choose.

A handler that was there before, such as that of uvicorn around a lifespan, is called too, at once: the server then
stops taking connections while the runners drain. It is the server that ends the block, so the block has until the grace
is over before it is cancelled. A handler that raises, as one that calls `sys.exit` does, has its exception raised at
the end of the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

from runners.fleet import Fleet
from runners.runner import Runner

_log = logging.getLogger("runners")

#: Seconds that the block has after the last answer.
_TO_PASS_ON = 0.5


class Stopping:
    """Tells the block that a signal has come.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether a signal has come, and the runners refuse new requests."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return when a signal has come, and the runners refuse new requests."""
        await self._event.wait()

    def _notify(self) -> None:
        self._event.set()


@contextlib.asynccontextmanager
async def drain_on_signals(*runners: Runner | Fleet[Any], grace: float | None = None) -> AsyncIterator[Stopping]:
    """SIGTERM, or Ctrl-C, drains the runners and then ends the block; Ctrl-C while they drain ends it at once.

    The handlers that were there before are called too, and put back at the end. A callback that was given to
    `loop.add_signal_handler` stays in force beside these.

    Args:
        runners: those to drain, at the same time; a `Fleet` stands for its runners.
        grace: seconds in which accepted requests are answered; by default each runner's own `grace`.

    Raises:
        TypeError, ValueError: an argument is not a runner, or `grace` no time.
        RuntimeError: not in the main thread, which is the only one that can handle signals.
    """
    flat: list[Runner] = []
    for runner in runners:
        if isinstance(runner, Fleet):
            flat += (runner[name] for name in runner)
        elif isinstance(runner, Runner):
            flat.append(runner)
        else:
            msg = f"drain_on_signals takes runners and fleets, not {runner!r}"
            raise TypeError(msg)
    if grace is not None and not 0 <= grace < float("inf"):
        msg = f"grace takes a number of seconds of at least 0, not {grace!r}"
        raise ValueError(msg)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("drain_on_signals handles signals, which only the main thread of a program can")
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine of asyncio's
    ending = _Ending(tuple(flat), grace, task)
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        # None: it was set by something that is not Python, and cannot be put back.
        before[number] = signal.getsignal(number) or signal.SIG_DFL
        if _is_the_programs(before[number]):
            ending.earlier[number] = before[number]
        signal.signal(number, ending.on_signal)
    try:
        yield ending.stopping
    except asyncio.CancelledError:
        if not ending.was_ours():
            raise
    else:
        ending.was_ours()  # the block has dealt with the cancellation itself: it does not count any more
    finally:
        try:
            await ending.finish()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if ending.raised is not None:
        raise ending.raised


def _is_the_programs(handler: Any) -> bool:
    """Whether it is a handler that a program or a server has installed, and not the default or that of `asyncio.run`,
    which cancels the main task.
    """
    if not callable(handler) or handler in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN):
        return False
    owner = getattr(getattr(handler, "func", handler), "__self__", None)
    return not isinstance(owner, asyncio.Runner)


class _Ending:
    """What the signals set going."""

    def __init__(self, runners: tuple[Runner, ...], grace: float | None, block: asyncio.Task[Any]) -> None:
        self.stopping = Stopping()
        self._runners = runners
        self._grace = grace
        self._block = block
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._cancelled = False
        self._ended = asyncio.Event()
        self.earlier: dict[int, Callable[[int, FrameType | None], object]] = {}
        self.raised: BaseException | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler proper: it may come between any two instructions, so it only notifies the event loop."""
        self._loop.call_soon_threadsafe(self._signalled, signal.Signals(number))
        earlier = self.earlier.get(number)
        if earlier is not None:
            try:
                earlier(number, frame)
            except BaseException as error:  # it wants the program to end: so it does, after the drain
                self.raised = error

    def _signalled(self, number: signal.Signals) -> None:
        if self.stopping.signal is None:
            _log.info("%s: draining; Ctrl-C (SIGINT) stops at once", number.name)
            self.stopping.signal = number
            self._tasks.append(self._loop.create_task(self._drain()))
        elif number is signal.SIGINT and len(self._tasks) == 1:
            _log.warning("SIGINT while draining: stopping at once")
            self._tasks.append(self._loop.create_task(self._stop()))

    async def _drain(self) -> None:
        signalled = self._loop.time()
        grace = max((runner.grace if self._grace is None else self._grace for runner in self._runners), default=0.0)
        await self._close(self._grace)
        wait = _TO_PASS_ON
        if self.stopping.signal in self.earlier and self.raised is None:  # its owner ends the block
            wait = max(wait, signalled + grace - self._loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._ended.wait()
        self._cancel()

    async def _stop(self) -> None:
        await self._close(0)
        self._cancel()

    async def _close(self, grace: float | None) -> None:
        for runner in self._runners:
            if grace is not None:
                runner.grace = grace
        async with asyncio.TaskGroup() as together:
            for runner in self._runners:
                together.create_task(_close_one(runner))
            # The tasks run before the waiter that this wakes, so no request of the block slips in between.
            self.stopping._notify()  # noqa: SLF001 - it is this module's

    def _cancel(self) -> None:
        if not self._ended.is_set() and not self._cancelled:
            self._cancelled = True
            self._block.cancel()

    def was_ours(self) -> bool:
        """Whether a cancellation that reached the end of the block was ours alone. Ask once, then it is forgotten."""
        return self._cancelled and self._block.uncancel() == 0

    async def finish(self) -> None:
        """The block has ended. Wait until what was set going is done; when cancelled, hurry."""
        self._ended.set()
        try:
            while any(not task.done() for task in self._tasks):
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _close_one(runner: Runner) -> None:
    try:
        await runner.close()
    except Exception:
        _log.exception("%s: closing failed", runner.name)


__all__ = ["Stopping", "drain_on_signals"]
