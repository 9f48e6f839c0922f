"""Several runners that share one memory budget: `Fleet`.

::

    request ──▶ runner not loaded? ──▶ its turn: one load at a time
                                         │ does it fit beside what is loaded?
        ├── yes ──▶ load, answer
        ├── no, but others have nothing to do ──▶ unload the one used longest ago
        ├── no, for `patience` seconds ──▶ the same with one that is busy: it answers what it has
        └── not within `max_wait` ──▶ refused: FleetFull, with a retry_after

What is loaded counts with the private memory that its workers were last seen to hold, and not with less than they held
when they were loaded. What is to be loaded counts with what it held the last time; before, with its `memory`.

When what is loaded outgrows the budget, an idle runner is unloaded. Where all are busy for `patience` seconds, the
worker that has kept the most is replaced, if that is enough (a leak); else the runner that was used longest ago answers
what it has and is unloaded, and what waits for it waits for room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from guardrails.core import events
from guardrails.core.errors import MemoryRefused
from guardrails.core.sizes import format_size, parse_size
from runners.errors import FleetFull, RunnerClosed
from runners.runner import Runner
from runners.supervision.events import FleetOverBudget
from runners.supervision.pool import Pool
from runners.supervision.tasks import keep
from runners.supervision.worker import Worker

R = TypeVar("R", bound=Runner)

_log = logging.getLogger("runners")

#: Seconds between two looks: for room while somebody waits for it, and at what is loaded while nobody does.
_LOOK = 0.02
_IDLE_LOOK = 0.2
#: What a busy runner held when it was unloaded counts for its next load, and this share of it at its next unloading.
_FADE = 0.9
#: Seconds before another worker of a runner is replaced for the budget, doubled each time up to the second. One that
#: fills up again at once needs what it holds: then runners take turns.
_REPLACE_AGAIN, _LONGEST = 10.0, 640.0
_DONE = {
    "replaced": "its worker that kept the most is replaced",
    "unloaded": "it answers what it has and is unloaded; what waits for it waits for room",
    "none": "nothing can be replaced or unloaded now; raise the fleet's budget, or give it less to do at a time",
}


@dataclass(frozen=True, slots=True)
class FleetStats:
    """A snapshot of a fleet. Sizes are private bytes.

    Attributes:
        budget: what all may hold together.
        used: what they hold, or are about to.
        loaded: the names of those that have workers, used longest ago first.
        evictions: runners that were unloaded for another one, or for the budget.
        refused: times that a load found no room in time.
        replaced: workers that were replaced since all runners together held more than the budget.
        over_for: seconds since they began to hold more than the budget, for more than half of the time; 0.0 while they
            do not.
    """

    budget: int
    used: int
    loaded: tuple[str, ...]
    evictions: int
    refused: int
    replaced: int = 0
    over_for: float = 0.0


class Fleet(Mapping[str, R]):
    """Runners under one budget. Each is loaded when it is first asked, and unloaded when another needs its place.

    Args:
        budget: private bytes that all of them may hold together, as a size (``"4GiB"``).
        runners: the runners by name, not started yet. Each needs `memory`, which counts until it has been loaded once.
        max_wait: seconds that a load may wait for room and for its turn; then what waits for it is refused.
        patience: seconds after which a load that waits may have a runner drained that is not idle, so that steady work
            for one cannot keep out another; and seconds for which busy runners may hold more than the budget.

    Raises:
        TypeError, ValueError: an argument is not what it should be, a runner is started already or in another fleet,
            has no `memory`, has ``queue=0``, or can never fit; the message names it.
    """

    def __init__(
        self,
        *,
        budget: str | float,
        runners: Mapping[str, R],
        max_wait: float = 60,
        patience: float = 2,
    ) -> None:
        self.budget = parse_size(budget, "budget")
        for argument, seconds in (("max_wait", max_wait), ("patience", patience)):
            if not seconds >= 0:
                msg = f"{argument} takes a number of seconds of at least 0, not {seconds!r}"
                raise ValueError(msg)
        if not runners:
            msg = "runners takes at least one runner, by name"
            raise ValueError(msg)
        self.max_wait = max_wait
        self.patience = patience
        self._runners = dict(runners)
        self._pools = {name: _pool(name, runner, self.budget) for name, runner in self._runners.items()}
        if len(set(map(id, self._pools.values()))) < len(self._pools):
            msg = "runners has the same runner under two names"
            raise ValueError(msg)
        for pool in self._pools.values():
            pool.room, pool.lazy = self, True
        self._turns: asyncio.Lock | None = None
        self._granted: tuple[Pool, int] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._held: dict[Pool, int] = {}  # what a worker held when its runner was unloaded while it was busy
        self._replace_from: dict[Pool, tuple[float, float]] = {}  # when, and the pause after that
        self._over_since: float | None = None
        self._over = 0.0  # seconds over the budget since then, less those within it
        self._evictions = 0
        self._refused = 0
        self._replaced = 0

    # The runners

    def __getitem__(self, name: str) -> R:
        """The runner of that name.

        Raises:
            KeyError: there is none; the message names those that there are.
        """
        try:
            return self._runners[name]
        except KeyError:
            msg = f"the fleet has no runner {name!r}; it has {', '.join(map(repr, self._runners))}"
            raise KeyError(msg) from None

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._runners)

    def __len__(self) -> int:
        """How many runners."""
        return len(self._runners)

    # Life

    async def start(self) -> Self:
        """Get ready; nothing is loaded yet.

        Raises:
            StartFailed: a runner can tell already that it will not load: there is no file at its path, for example.
        """
        if self._turns is not None:
            raise RunnerClosed(
                "fleet", reason="started", detail="a fleet starts once; make a new one, with new runners"
            )
        self._turns = asyncio.Lock()
        try:
            for runner in self._runners.values():
                await runner.start()
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.get_running_loop().create_task(keep("fleet", "budget", self._keep))
        return self

    async def close(self) -> None:
        """Close all runners, each within its grace."""
        await self._end(*(runner.close() for runner in self._runners.values()))

    def kill(self) -> None:
        """End all workers of all runners at once, from any thread, without the event loop; see `Runner.kill`."""
        for runner in self._runners.values():
            runner.kill()

    async def __aenter__(self) -> Self:
        """`start`."""
        return await self.start()

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """`close`; at once if the block failed."""
        await self._end(*(runner.__aexit__(kind, exc, trace) for runner in self._runners.values()))

    async def _end(self, *closing: Any) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        await asyncio.gather(*closing)

    def __repr__(self) -> str:
        return f"<Fleet of {len(self)}, {format_size(self.used())} of {format_size(self.budget)} used>"

    # Memory

    def used(self) -> int:
        """Private bytes that the runners hold, or are about to."""
        return sum(self._used_by(pool) for pool in self._pools.values())

    def _used_by(self, pool: Pool) -> int:
        held = sum(max(worker.private, worker.baseline) for worker in pool.workers)
        held += len(pool.coming) * pool.expected
        if self._granted is not None and self._granted[0] is pool:
            held = max(held, self._granted[1])
        if pool.supervisor.replacing:  # one that goes first leaves its place to the one that comes
            held = max(held, pool.target * pool.expected)
        return held

    def _claimed(self) -> int:
        """Private bytes that the runners hold, or will at the top of their steps."""
        return sum(
            max(self._used_by(pool), sum(self._top(pool, worker) for worker in pool.workers))
            for pool in self._pools.values()
        )

    def _top(self, pool: Pool, worker: Worker) -> int:
        """Private bytes of a worker at the top of its steps; of one that is new, what the last one held there."""
        trend = worker.memory.trend
        held = 0 if trend.known else self._held.get(pool, 0)
        return max(worker.private, int(trend.top()), held)

    def _expected(self, pool: Pool) -> int:
        """Private bytes of one more worker, never so many that the runner could not be loaded at all."""
        return max(pool.expected, min(self._held.get(pool, 0), self.budget // pool.size.floor))

    def free(self) -> int:
        """Bytes of the budget that are left for more workers of a loaded runner; none while another waits for room."""
        return 0 if self._loading else max(0, self.budget - self.used())

    def stats(self) -> FleetStats:
        """A snapshot."""
        loaded = sorted((name for name, pool in self._pools.items() if pool.workers or pool.coming), key=self._used_at)
        over = 0.0 if self._over_since is None else time.monotonic() - self._over_since
        return FleetStats(self.budget, self.used(), tuple(loaded), self._evictions, self._refused, self._replaced, over)

    def _used_at(self, name: str) -> float:
        return self._pools[name].supervisor.used

    @asynccontextmanager
    async def turn(self, pool: Pool, workers: int) -> AsyncIterator[None]:
        """Wait until so many more workers of `pool` fit, unloading others; bring them up within the context.

        Raises:
            FleetFull: not within `max_wait`. MemoryRefused: they never will.
        """
        assert self._turns is not None  # noqa: S101 - it is the started runners that call this
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.max_wait):
                await self._turns.acquire()
        except TimeoutError:
            raise self._full(pool) from None
        try:
            need = await self._make_room(pool, workers, began)
            held = sum(max(worker.private, worker.baseline) for worker in pool.workers)
            self._granted = (pool, held + need)
            yield
        finally:
            self._granted = None
            self._turns.release()

    async def _make_room(self, pool: Pool, workers: int, began: float) -> int:
        """Bytes that it needs, once they are there."""
        loop = asyncio.get_running_loop()
        while True:
            need = workers * self._expected(pool)
            if need > self.budget:
                detail = (
                    f"loaded it holds {format_size(need)}, more than the fleet's budget of {format_size(self.budget)}"
                )
                raise MemoryRefused(pool.name, reason="memory_too_large", detail=detail)
            if self._claimed() + need <= self.budget:
                return need
            waited = loop.time() - began
            if waited >= self.max_wait:
                raise self._full(pool)
            if not pool.supervisor.dispatcher.queued and not pool.serving:
                raise FleetFull(pool.name, detail="nobody waits for it any more")  # all have left, or timed out
            if not self._going and not self._evict_idle(pool) and waited >= self.patience:
                self._evict_busy(pool)
            await asyncio.sleep(_LOOK)

    def _full(self, pool: Pool) -> FleetFull:
        self._refused += 1
        busy = ", ".join(repr(name) for name in self.stats().loaded)
        detail = f"no room in the fleet's {format_size(self.budget)} within {self.max_wait:g} s beside {busy}"
        slowest = max(other.supervisor.load_seconds for other in self._pools.values())
        return FleetFull(pool.name, retry_after=max(1.0, slowest), detail=detail)

    # Unloading

    @property
    def _loading(self) -> bool:
        """Whether a runner waits for room, or loads."""
        return self._turns is not None and self._turns.locked()

    @property
    def _going(self) -> bool:
        """Whether memory is about to become free."""
        return any(worker.state == "draining" for pool in self._pools.values() for worker in pool.workers)

    def _others(self, pool: Pool | None) -> list[Pool]:
        """Those that could make room, the one used longest ago first."""
        names = sorted(self._pools, key=self._used_at)
        return [self._pools[name] for name in names if self._pools[name] is not pool]

    def _evict_idle(self, pool: Pool | None) -> bool:
        for other in self._others(pool):
            if other.unload("evicted"):
                self._evictions += 1
                self._held.pop(other, None)
                return True
        return False

    def _evict_busy(self, pool: Pool | None) -> Pool | None:
        """Unload one that is busy; which one."""
        for other in self._others(pool):
            held = max((self._top(other, worker) for worker in other.workers), default=0)
            if other.unload("evicted", busy=True):
                self._evictions += 1
                self._held[other] = max(held, int(self._held.get(other, 0) * _FADE))
                return other
        return None

    async def _keep(self) -> None:
        """Come back to the budget when those that are loaded have outgrown it."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_IDLE_LOOK)
            now, used = time.monotonic(), self.used()
            passed, last = now - last, now
            if used <= self.budget:
                self._over -= passed
                if self._over <= 0:
                    self._over, self._over_since = 0.0, None
                continue
            if self._over_since is None:
                self._over_since = now - passed
            self._over += passed
            if self._loading or self._going or self._evict_idle(None) or self._over < self.patience:
                continue
            self._over = 0.0
            self._shrink(used, now - self._over_since)

    def _shrink(self, used: int, seconds: float) -> None:
        """All are busy, and hold more than the budget."""
        now = time.monotonic()
        pool, worker, kept = self._most_kept(now)
        action = "none"
        if worker is not None and pool is not None and kept >= used - self.budget:
            pool.supervisor.replacer.start(worker, "fleet_budget")
            if pool.supervisor.replacing:
                action = "replaced"
                self._replaced += 1
                pause = self._replace_from.get(pool, (0.0, _REPLACE_AGAIN))[1]
                self._replace_from[pool] = (now + pause, min(_LONGEST, 2 * pause))
        elif len([pool for pool in self._pools.values() if pool.workers]) > 1:
            pool = self._evict_busy(None)
            action = "unloaded" if pool is not None else "none"
        name = pool.name if pool is not None else max(self._pools.values(), key=self._used_by).name
        _log.warning(
            "fleet: busy runners have held %s of %s for %.3g s; %s: %s",
            format_size(used), format_size(self.budget), seconds, name, _DONE[action],
            extra={"event": "runner.fleet_over_budget"},
        )  # fmt: skip
        if events.sinks:
            events.emit(FleetOverBudget(name, self.budget, used, seconds, action))

    def _most_kept(self, now: float) -> tuple[Pool | None, Worker | None, float]:
        """The worker that keeps the most between its steps beyond what it was loaded with, of those that can be
        replaced now, and how many bytes.
        """
        found: tuple[Pool | None, Worker | None, float] = (None, None, 0.0)
        for pool in self._pools.values():
            if pool.supervisor.state != "ready" or not pool.settled or now < self._replace_from.get(pool, (now, 0))[0]:
                continue
            for worker in pool.workers:
                kept = worker.memory.trend.level() - worker.baseline
                if kept > found[2]:
                    found = (pool, worker, kept)
        return found


def _pool(name: str, runner: Runner, budget: int) -> Pool:
    if not isinstance(runner, Runner):
        msg = f"runners[{name!r}] is not a runner but {type(runner).__name__}"
        raise TypeError(msg)
    pool = runner._supervisor.pool  # noqa: SLF001 - the fleet is of the runners' house
    if runner.state != "new" or pool.room is not None:
        where = "in a fleet" if pool.room is not None else runner.state
        msg = f"runners[{name!r}] is {where} already; give the fleet runners of its own, not started"
        raise ValueError(msg)
    if not pool.expected:
        msg = f"runners[{name!r}] needs memory=...: until it has been loaded once, nothing else tells its size"
        raise ValueError(msg)
    if not pool.supervisor.dispatcher.limit:
        msg = f"runners[{name!r}] has queue=0, which does not go with a fleet: a request waits there for the load"
        raise ValueError(msg)
    need = pool.size.floor * pool.expected
    if need > budget:
        msg = f"runners[{name!r}] can never be loaded: it needs {format_size(need)} of {format_size(budget)}"
        raise ValueError(msg)
    return pool


__all__ = ["Fleet", "FleetStats"]
