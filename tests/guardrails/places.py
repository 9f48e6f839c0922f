"""Callers that come, wait, hold a place, fail and leave: what must be true of every gate with a queue."""

from __future__ import annotations

import asyncio
import itertools

from guardrails.core.errors import Rejected
from guardrails.core.guard import Call
from guardrails.core.outcome import SUCCESS
from tests.guardrails.interleave import World

LONG = 1e6


def places(build, *, callers=5, max_wait=LONG, fits=None, fifo=True):
    """Callers that come, wait, hold a place, fail and leave.

    `build(clock, rng, max_wait)` gives a gate and how many may be in; `fits(gate, number)`, whether a caller would fit.
    """

    async def scenario(world: World):
        gate, size = build(world.clock, world.rng, max_wait)
        arrivals = itertools.count()
        queue, entered, running, refused = set(), [], set(), set()

        async def caller(delay, hold):
            await world.clock.sleep(delay)
            number = next(arrivals)
            queue.add(number)
            try:
                async with Place(gate, number):
                    queue.discard(number)
                    entered.append(number)
                    running.add(number)
                    try:
                        assert len(running) <= size
                        await world.clock.sleep(hold)
                        await asyncio.sleep(0)
                    finally:
                        running.discard(number)
            except Rejected:
                assert max_wait < LONG or world.loop.early
                refused.add(number)
            finally:
                queue.discard(number)

        def check():
            assert gate.waiting == len(queue)
            assert gate.in_flight == len(running)
            if queue:
                head = min(queue)
                assert not fifo or max(entered, default=-1) < head, "overtaken"
                assert not (fits(gate, head) if fits else gate.in_flight < size), "room, and somebody waits"

        world.when_idle(check)
        for _ in range(callers):
            world.spawn(caller(world.rng.choice((0, 0, 1, 2)), world.rng.choice((0, 1, 1, 3))))
        await world.join()
        assert not running
        assert (gate.in_flight, gate.waiting) == (0, 0)

    return scenario


class Place:
    """One call, by the contract. Its argument is its number."""

    def __init__(self, gate, number):
        self.gate = gate
        self.call = Call((number,), {})
        self.ticket = None

    async def __aenter__(self):
        self.ticket = self.gate.try_enter(self.call)
        if self.ticket is None:
            self.ticket = await self.gate.enter(self.call)
        return self.ticket

    async def __aexit__(self, *_):
        self.gate.settle(self.ticket, SUCCESS)
