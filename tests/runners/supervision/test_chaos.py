"""Everything at once: workers are killed, callers leave, deadlines pass. Every request ends exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

import pytest

from runners import FunctionRunner
from runners.errors import RequestTimeout
from runners.supervision.restart import RestartPolicy

pytestmark = pytest.mark.anyio

KILLS = 6


async def test_nothing_is_lost_and_nothing_is_answered_twice(until):
    chance = random.Random(5)
    policy = RestartPolicy(intensity=100, backoff=0.001)
    answers: list[int] = []

    async with FunctionRunner("calls:act", workers=2, idempotent=True, restart=policy) as act:

        async def caller(number: int) -> None:
            assert await act("echo", number) == number
            answers.append(number)

        async def kill() -> None:
            for _ in range(KILLS):
                goal = len(answers) + 100  # a request that was hit runs first, and is answered before the next blow
                await until(lambda goal=goal: len(answers) >= goal)
                victims = [worker.pid for worker in act.stats().workers if worker.state == "ready"]
                if victims:
                    os.kill(chance.choice(victims), signal.SIGKILL)

        killing = asyncio.create_task(kill())
        tasks: list[asyncio.Task[None]] = []
        while not killing.done():
            await asyncio.sleep(0.002)
            if sum(not task.done() for task in tasks[-600:]) > 500:
                continue
            act.timeout = 0.05 if chance.random() < 0.1 else None
            first = len(tasks)
            tasks.extend(asyncio.create_task(caller(first + n)) for n in range(20))
            chance.choice(tasks).cancel()
        await killing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not any(worker.in_flight for worker in act.stats().workers))

        kinds = Counter(type(result) for result in results)
        assert set(kinds) <= {type(None), asyncio.CancelledError, RequestTimeout}
        assert len(answers) == len(set(answers)) == kinds[type(None)]
        stats = act.stats()
        assert stats.submitted == stats.answered + stats.expired + stats.cancelled
        assert (stats.failed, stats.expired, stats.queued) == (0, kinds[RequestTimeout], 0)
        assert stats.restarts["sigkill"] >= KILLS - 1
