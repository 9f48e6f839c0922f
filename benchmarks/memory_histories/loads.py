"""The loads of this project's benchmarks, bounded and at an ordinary pace, with the memory of all who take part.

Each load runs in real runners for some minutes: still at first, then few callers, many, other sizes, and still again.
Once a second the private memory of the parent and of every worker is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the workers import `work:...` from here

from benchmarks.direct import make_texts
from benchmarks.generate_sides.load import chats
from guardrails.memory.reading import private_bytes
from runners import EmbeddingRunner, FunctionRunner, LlamaRunner
from runners.cli.models import find_minilm, find_smollm2

#: One request; the argument is a number that only grows.
Ask = Callable[[int], Awaitable[object]]
#: Callers, the longest they pause between two requests in seconds, and the share of the load's time.
Phase = tuple[int, float, float]

WORKDAY: Sequence[Phase] = ((0, 1.0, 0.05), (2, 0.5, 0.25), (12, 0.3, 0.3), (0, 1.0, 0.1), (6, 0.1, 0.2), (0, 1.0, 0.1))
EVEN: Sequence[Phase] = ((0, 1.0, 0.03), (2, 0.1, 0.92), (0, 1.0, 0.05))


async def press(ask: Ask, phases: Sequence[Phase], seconds: float) -> None:
    """Callers by `phases`, for `seconds` in all."""
    numbers = itertools.count()
    for callers, pause, share in phases:
        until = time.monotonic() + seconds * share

        async def caller(until: float = until, pause: float = pause) -> None:
            while time.monotonic() < until:
                await ask(next(numbers))
                await asyncio.sleep(random.uniform(0, pause))

        await asyncio.gather(*(caller() for _ in range(callers)))
        await asyncio.sleep(max(0.0, until - time.monotonic()))


class Recorder:
    """Samples of one load: KiB of private memory by name, once a second."""

    def __init__(self, runners: Sequence[Any], name: str) -> None:
        self.sizes: dict[str, list[int]] = {}
        self._runners = runners
        self._name = name

    async def run(self) -> None:
        """Until it is cancelled."""
        for tick in itertools.count(1):
            began = time.monotonic()
            self._sample(f"{self._name} parent", None)
            for runner in self._runners:
                for place, worker in enumerate(w for w in runner.stats().workers if w.state == "ready"):
                    self._sample(f"{self._name} {runner.name}" + (f" {place + 1}" if place else ""), worker.pid)
            del tick
            await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))

    def _sample(self, name: str, pid: int | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.sizes.setdefault(name, []).append(private_bytes(pid) >> 10)


@contextlib.asynccontextmanager
async def _embed() -> AsyncIterator[tuple[list[Any], Ask]]:
    models = find_minilm()
    texts = make_texts(2048)
    async with EmbeddingRunner(models.model, tokenizer=models.tokenizer, memory="1GiB", name="embed") as runner:

        async def ask(number: int) -> object:
            start, count = number * 7 % 2000, random.choice((1, 1, 1, 4, 32))
            return await runner.embed(texts[start : start + count])

        yield [runner], ask


@contextlib.asynccontextmanager
async def _generate() -> AsyncIterator[tuple[list[Any], Ask]]:
    async with LlamaRunner(find_smollm2(), memory="2GiB", slots=8, context=2048, name="llama") as runner:

        async def ask(number: int) -> object:
            return await runner.chat(chats(100 + number % 800, 1)[0], max_tokens=random.choice((8, 24, 64)))

        yield [runner], ask


@contextlib.asynccontextmanager
async def _pool() -> AsyncIterator[tuple[list[Any], Ask]]:
    async with FunctionRunner("work:echo", workers=2, name="echo") as runner:

        async def ask(_: int) -> object:
            return await asyncio.gather(*(runner("x" * 200) for _ in range(20)))

        yield [runner], ask


def _function(name: str, argument: Callable[[int], int], workers: int = 1) -> Callable[[], Any]:
    @contextlib.asynccontextmanager
    async def open_load() -> AsyncIterator[tuple[list[Any], Ask]]:
        async with FunctionRunner(f"work:{name}", workers=workers, name=name) as runner:
            yield [runner], lambda number: runner(argument(number))

    return open_load


#: What is recorded: how to open it, its phases, and its seconds.
LOADS: dict[str, tuple[Callable[[], Any], Sequence[Phase], float]] = {
    "embed": (_embed, WORKDAY, 360),
    "generate": (_generate, WORKDAY, 360),
    "pool": (_pool, WORKDAY, 240),
    "render": (_function("render", lambda _: random.randint(100, 900), workers=2), WORKDAY, 240),
    "parse": (_function("parse", lambda _: random.randint(10, 8000)), WORKDAY, 240),
    "cycles": (_function("cycles", lambda _: random.randint(1, 10)), EVEN, 240),
    "cached": (_function("cached", lambda _: int(random.expovariate(1 / 1200))), EVEN, 300),
    "leaky": (_function("leaky", lambda _: random.randint(1 << 10, 24 << 10)), EVEN, 300),
}


async def record(names: Sequence[str], seconds: float | None) -> dict[str, list[int]]:
    """Record the loads `names` beside each other, in one parent. Sizes in KiB, by name."""
    async with contextlib.AsyncExitStack() as stack:
        recorders: list[Recorder] = []
        presses: list[Awaitable[None]] = []
        for name in names:
            open_load, phases, usual = LOADS[name]
            runners, ask = await stack.enter_async_context(open_load())
            recorders.append(Recorder(runners, name))
            presses.append(press(ask, phases, seconds or usual))
        watching = [asyncio.ensure_future(one.run()) for one in recorders]
        await asyncio.gather(*presses)
        for one in watching:
            one.cancel()
        sizes: dict[str, list[int]] = {}
        for recorder in recorders:
            sizes.update(recorder.sizes)
        return sizes
