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
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from guardrails.core.errors import MemoryRefused
from guardrails.core.sizes import format_size, parse_size
from runners.errors import FleetFull, RunnerClosed
from runners.runner import Runner
from runners.supervision.pool import Pool
from runners.supervision.tasks import keep

R = TypeVar("R", bound=Runner)

_log = logging.getLogger("runners")

#: Seconds between two looks: for room while somebody waits for it, and at what is loaded while nobody does.
_LOOK = 0.02
_IDLE_LOOK = 0.2


@dataclass(frozen=True, slots=True)
class FleetStats:
    """A snapshot of a fleet. Sizes are private bytes.

    Attributes:
        budget: what all may hold together.
        used: what they hold, or are about to.
        loaded: the names of those that have workers, used longest ago first.
        evictions: runners that were unloaded for another one.
        refused: times that a load found no room in time.
    """

    budget: int
    used: int
    loaded: tuple[str, ...]
    evictions: int
    refused: int


class Fleet(Mapping[str, R]):
    """Runners under one budget. Each is loaded when it is first asked, and unloaded when another needs its place.

    Args:
        budget: private bytes that all of them may hold together, as a size (``"4GiB"``).
        runners: the runners by name, not started yet. Each needs `memory`, which counts until it has been loaded once.
        max_wait: seconds that a load may wait for room and for its turn; then what waits for it is refused.
        patience: seconds after which a load that waits may have a runner drained that is not idle, so that steady work
            for one cannot keep out another for ever.

    Raises:
        TypeError, ValueError: an argument is not what it should be, a runner is started already or in another fleet,
            has no `memory`, or can never fit; the message names it.
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
        self._evictions = 0
        self._refused = 0

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
        total = 0
        for pool in self._pools.values():
            held = sum(max(worker.private, worker.baseline) for worker in pool.workers)
            held += len(pool.coming) * pool.expected
            if self._granted is not None and self._granted[0] is pool:
                held = max(held, self._granted[1])
            total += held
        return total

    def free(self) -> int:
        """Bytes of the budget that are left for more workers of a loaded runner; none while another waits for room."""
        return 0 if self._loading else max(0, self.budget - self.used())

    def stats(self) -> FleetStats:
        """A snapshot."""
        loaded = sorted((name for name, pool in self._pools.items() if pool.workers or pool.coming), key=self._used_at)
        return FleetStats(self.budget, self.used(), tuple(loaded), self._evictions, self._refused)

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
            need = workers * pool.expected
            if need > self.budget:
                detail = (
                    f"loaded it holds {format_size(need)}, more than the fleet's budget of {format_size(self.budget)}"
                )
                raise MemoryRefused(pool.name, reason="memory_too_large", detail=detail)
            if self.used() + need <= self.budget:
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
                return True
        return False

    def _evict_busy(self, pool: Pool) -> None:
        for other in self._others(pool):
            if other.unload("evicted", busy=True):
                self._evictions += 1
                return

    async def _keep(self) -> None:
        """Unload what is idle when those that are loaded have outgrown the budget."""
        while True:
            await asyncio.sleep(_IDLE_LOOK)
            if not self._loading and not self._going and self.used() > self.budget:
                self._evict_idle(None)


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
    need = pool.size.floor * pool.expected
    if need > budget:
        msg = f"runners[{name!r}] can never be loaded: it needs {format_size(need)} of {format_size(budget)}"
        raise ValueError(msg)
    return pool


__all__ = ["Fleet", "FleetStats"]
