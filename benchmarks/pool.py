"""Small calls through a pool of two workers, beside ProcessPoolExecutor and loky.

    make bench BENCH=benchmarks/pool.py

32 callers, 200 bytes there and back, supervision on, and once more behind a breaker, admission and a timeout. All take
turns in one run; what is held to is the median of the ratios of the turns.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import loky
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the workers import `pool:echo` from here

from guardrails import admit, breaker, guard, timeout
from runners import FunctionRunner

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CALLERS = 32
CALLS = 8_000
TURNS = 7
WORKERS = 2
TEXT = "x" * 200


def echo(text: str) -> str:
    """What all sides do."""
    return text


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def calls_per_second(call: Callable[[str], Awaitable[str]], calls: int) -> float:
    async def caller() -> None:
        for _ in range(calls // CALLERS):
            await call(TEXT)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return calls / (time.perf_counter() - began)


def test_small_calls_through_a_pool_of_two(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    runner = FunctionRunner("pool:echo", workers=WORKERS)
    guarded = guard(breaker(), admit(concurrency=1000), timeout(30))(runner)
    rates: dict[str, list[float]] = {}
    loop.run_until_complete(runner.start())
    executors = {"ProcessPoolExecutor": ProcessPoolExecutor(WORKERS), "loky": loky.ProcessPoolExecutor(WORKERS)}
    sides: dict[str, tuple[Callable[[str], Awaitable[str]], int]] = {
        "runner": (runner, CALLS),
        "runner behind guards": (guarded, CALLS),
    }
    for name, executor in executors.items():
        sides[name] = (lambda text, executor=executor: loop.run_in_executor(executor, echo, text), CALLS // 8)  # type: ignore[misc]

    def turn() -> None:
        for name, (call, calls) in sides.items():
            rates.setdefault(name, []).append(loop.run_until_complete(calls_per_second(call, calls)))

    try:
        benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
    finally:
        loop.run_until_complete(runner.close())
        for executor in executors.values():
            executor.shutdown(wait=True)
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    print()
    for name, rate in medians.items():
        print(f"{name:<24}{rate:>10,.0f} calls/s")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["runner"], rates["loky"], strict=True))
    benchmark.extra_info.update(medians, ratio_to_loky=ratio)
    assert medians["runner"] > 40_000
    assert medians["runner"] > 4 * max(medians["ProcessPoolExecutor"], medians["loky"])
