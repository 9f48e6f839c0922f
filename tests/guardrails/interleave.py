"""Runs a scenario of tasks in an order that a seed decides, on a clock that stands still while any of them can go on.

::

    ready: task 1, task 2, task 1, callback      one of them is drawn: what belongs to one task, or to none, keeps order
             ▲
    nobody ready ─▶ checks ─▶ the clock goes to the next timer, sleep or scope ─▶ nothing is due: Stuck

`explore` runs a scenario under many seeds. `sweep` counts the steps of a run and then cancels a task at each of them,
so that every await point of every task is cancelled once. The seed of a run that fails is a note on its exception:
``run(scenario, seed=7)`` does the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from guardrails.testing import FakeClock

#: How each run differs: in order only; on a slow machine; with tasks cancelled at random; with both.
WAYS = [{}, {"early": 0.1}, {"kill": 0.05}, {"early": 0.1, "kill": 0.05}]


class Stuck(AssertionError):
    """No task can go on, and no time will come at which one can."""


class Loop(asyncio.BaseEventLoop):
    """An event loop without a selector, whose time is a fake clock and whose next step is drawn by lot."""

    def __init__(self, clock: FakeClock, lots: random.Random, early: float) -> None:
        super().__init__()
        self.set_debug(False)
        self.clock = clock
        self.lots = lots
        self.early = early
        self.steps = 0
        self.before_step: Callable[[], object] = lambda: None
        self.when_idle: Callable[[], object] = lambda: None

    def time(self):
        return self.clock.now()

    def _write_to_self(self):
        """No selector waits, that would have to be woken."""

    def _process_events(self, event_list):
        raise NotImplementedError

    def _run_once(self):
        while self._scheduled and (self._scheduled[0]._cancelled or self._scheduled[0]._when <= self.time()):
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._ready.append(timer)
        if not self._ready:
            self.when_idle()
            if not self._move_time():
                raise Stuck("nobody can go on:\n" + "\n".join(map(repr, asyncio.all_tasks(self))))
            return
        if self.early and self.lots.random() < self.early:
            self._move_time()  # a slow machine: time passes though somebody could go on
        handle = self._draw()
        if not handle._cancelled:
            self.steps += 1
            self.before_step()
            handle._run()

    def _move_time(self):
        timer = self._scheduled[0]._when if self._scheduled else math.inf
        due = timer if self.clock.due is None else min(timer, self.clock.due)
        if due == math.inf:  # so long does `anyio.sleep_forever` sleep
            return False
        self.clock._go(max(due, self.clock.now()))
        return True

    def _draw(self):
        first = {}
        for place, handle in enumerate(self._ready):
            owner = getattr(handle._callback, "__self__", None)
            first.setdefault(owner if isinstance(owner, asyncio.Task) else None, place)
        places = list(first.values())
        place = places[int(self.lots.random() * len(places))]
        handle = self._ready[place]
        del self._ready[place]
        return handle


class World:
    """What a scenario sees: a clock, random numbers of its own, and tasks."""

    def __init__(self, seed: int, *, early: float = 0.0, kill: float = 0.0, victim: int = 0, cut: int = 0) -> None:
        self.clock = FakeClock()
        self.rng = random.Random(f"scenario {seed}")
        self.tasks: list[asyncio.Task[Any]] = []
        self.loop = Loop(self.clock, random.Random(f"order {seed}"), early)
        self.loop.before_step = self._before_step
        self.killed: list[asyncio.Task[Any]] = []
        self._kill = kill
        self._victim, self._cut = victim, cut
        self._killer = random.Random(f"kill {seed}")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task, which may be cancelled at any moment."""
        task = self.loop.create_task(work, name=f"task {len(self.tasks)}")
        self.tasks.append(task)
        return task

    def when_idle(self, check: Callable[[], object]) -> None:
        """Have `check` called whenever no task can go on before the clock moves."""
        self.loop.when_idle = check

    async def join(self) -> None:
        """Wait for all tasks; an error of one is raised. A task that was cancelled must end so."""
        while pending := [task for task in self.tasks if not task.done()]:
            await asyncio.wait(pending)
        for task in self.tasks:
            if not task.cancelled():
                task.result()
        for task in self.killed:
            assert task.cancelled(), f"a cancellation was swallowed: {task}"

    def _before_step(self) -> None:
        if self.loop.steps == self._cut and self._victim < len(self.tasks):
            self._cancel(self.tasks[self._victim])
        if self._kill and self.tasks and self._killer.random() < self._kill:
            self._cancel(self._killer.choice(self.tasks))

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task.cancel():
            self.killed.append(task)


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record):
        self.said.append(self.format(record))


Scenario = Callable[[World], Coroutine[Any, Any, Any]]


def run(scenario: Scenario, seed: int, **how: Any) -> World:
    """Run `scenario` once. It must leave no task behind, and nothing may be logged as an error."""
    world = World(seed, **how)
    loop, complaints = world.loop, _Complaints()
    loop.set_exception_handler(lambda _, context: complaints.said.append(str(context)))
    log = logging.getLogger("guardrails")
    log.addHandler(complaints)
    try:
        loop.run_until_complete(scenario(world))
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks were left behind: {left}"
        assert not complaints.said, complaints.said
    except BaseException as failure:
        failure.add_note(f"again: run({getattr(scenario, '__name__', 'scenario')}, seed={seed}, **{how})")
        raise
    finally:
        log.removeHandler(complaints)
        _end(loop)
    return world


def _end(loop: Loop) -> None:
    loop.before_step = loop.when_idle = lambda: None
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        with contextlib.suppress(BaseException):
            loop.run_until_complete(asyncio.wait(left))
    loop.close()


def explore(scenario: Scenario, seeds: Iterable[int] = range(40), **how: Any) -> None:
    """Run `scenario` under each seed."""
    for seed in seeds:
        run(scenario, seed, **how)


def sweep(scenario: Scenario, seed: int, **how: Any) -> int:
    """Cancel each task of a run at each step of it, in a run each. Returns the number of runs."""
    whole = run(scenario, seed, **how)
    runs = 0
    for victim in range(len(whole.tasks)):
        for cut in range(1, whole.loop.steps + 1):
            runs += 1
            run(scenario, seed, victim=victim, cut=cut, **how)
    return runs
