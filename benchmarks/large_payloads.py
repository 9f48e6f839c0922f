"""Arrays there and back: a runner beside `multiprocessing.shared_memory` with a ProcessPoolExecutor.

    make bench BENCH=benchmarks/large_payloads.py

100 MB in one call, and twelve calls of 40 MB at once, through two workers. Each turn runs both sides, each in a process
of its own, so that their peaks of memory are theirs. Said of each: seconds, the longest that the event loop was held,
and the most memory that the parent and a worker took on top of what they held before. All are medians of the turns.

The shared-memory side does the least that is correct: one copy into shared memory each way, on the loop as everyone
does it, and the result is used where it lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # the workers import `large_payloads:echo` from here

from runners import FunctionRunner

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

MB = 1_000_000
ONE, MANY, CALLS = 100 * MB, 40 * MB, 12
REPEATS = 4
TURNS = 3
WORKERS = 2

Array = np.ndarray[Any, Any]


def echo(array: Array) -> Array:
    """What both sides do."""
    return array


def peak(pid: int) -> int:
    """The most memory that a process has held, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 // MB
    return 0


# The other side


def into(array: Array) -> str:
    """A copy in shared memory; its name."""
    shared = SharedMemory(create=True, size=array.nbytes)
    np.ndarray(array.shape, array.dtype, buffer=shared.buf)[...] = array
    name = shared.name
    shared.close()
    return name


def echo_shared(name: str, shape: tuple[int, ...], dtype: str) -> tuple[str, int]:
    shared = SharedMemory(name)
    result = echo(np.ndarray(shape, dtype, buffer=shared.buf))
    answer = into(result)
    del result
    shared.close()
    return answer, os.getpid()


async def through_shared_memory(executor: ProcessPoolExecutor, pids: set[int], array: Array) -> int:
    name = into(array)
    loop = asyncio.get_running_loop()
    answer, pid = await loop.run_in_executor(executor, echo_shared, name, array.shape, array.dtype.str)
    pids.add(pid)
    sent, came = SharedMemory(name), SharedMemory(answer)
    try:
        assert came.buf is not None
        last = int(came.buf[array.nbytes - 1])
    finally:
        for shared in (sent, came):
            shared.close()
            shared.unlink()
    return last


# Measuring


@contextlib.asynccontextmanager
async def holds() -> AsyncIterator[list[float]]:
    """The longest that the loop was held, in seconds."""
    worst = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst[0] = max(worst[0], now - last - 0.001)
            last = now

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    worst[0] = 0.0
    yield worst
    await asyncio.sleep(0.005)
    ticking.cancel()


async def measure(call: Callable[[Array], Awaitable[int]], pids: Callable[[], set[int]]) -> dict[str, float]:
    one = np.random.default_rng(0).integers(0, 255, ONE, dtype="u1")
    many = [one[start : start + MANY] for start in range(0, CALLS * MB, MB)]
    await asyncio.gather(*(call(one[:1000]) for _ in range(8)))
    before = {pid: peak(pid) for pid in (os.getpid(), *pids())}
    seconds, held = [], []
    for _ in range(REPEATS):
        async with holds() as worst:
            began = time.perf_counter()
            assert await call(one) == one[-1]
            seconds.append(time.perf_counter() - began)
        held.append(worst[0])
    found = {
        "100 MB, ms": 1e3 * statistics.median(seconds),
        "100 MB, loop held, ms": 1e3 * statistics.median(held),
        "100 MB, parent's peak, MB": peak(os.getpid()) - before[os.getpid()],
        "100 MB, worker's peak, MB": max(peak(pid) - at for pid, at in before.items() if pid != os.getpid()),
    }
    async with holds() as worst:
        began = time.perf_counter()
        await asyncio.gather(*(call(array) for array in many))
        found["12 x 40 MB, ms"] = 1e3 * (time.perf_counter() - began)
    found["12 x 40 MB, loop held, ms"] = 1e3 * worst[0]
    found["12 x 40 MB, parent's peak, MB"] = peak(os.getpid()) - before[os.getpid()]
    return found


async def ours() -> dict[str, float]:
    async with FunctionRunner("large_payloads:echo", workers=WORKERS) as runner:

        async def call(array: Array) -> int:
            return int((await runner(array))[-1])

        return await measure(call, lambda: {worker.pid for worker in runner.stats().workers})


async def theirs() -> dict[str, float]:
    into_nothing = SharedMemory(create=True, size=1)  # so that all share one resource tracker
    pids: set[int] = set()
    with ProcessPoolExecutor(WORKERS) as executor:
        found = await measure(lambda array: through_shared_memory(executor, pids, array), lambda: pids)
    into_nothing.close()
    into_nothing.unlink()
    return found


SIDES = {"runner": ours, "shared_memory": theirs}


def run(side: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, side], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_large_arrays_there_and_back(benchmark: BenchmarkFixture) -> None:
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}

    def turn() -> None:
        for side, found in turns.items():
            found.append(run(side))

    benchmark.pedantic(turn, rounds=TURNS, iterations=1)  # type: ignore[no-untyped-call]
    medians = {
        side: {what: statistics.median(each[what] for each in found) for what in found[0]}
        for side, found in turns.items()
    }
    print()
    print(f"{'':<34}" + "".join(f"{side:>16}" for side in medians))
    for what in medians["runner"]:
        print(f"{what:<34}" + "".join(f"{found[what]:>16,.1f}" for found in medians.values()))
    runner, shared = medians["runner"], medians["shared_memory"]
    benchmark.extra_info.update(runner)
    for what in ("100 MB, ms", "12 x 40 MB, ms"):
        assert runner[what] < shared[what]
    assert runner["100 MB, parent's peak, MB"] < 1.25 * ONE / MB
    assert runner["100 MB, worker's peak, MB"] < 1.25 * ONE / MB


if __name__ == "__main__":
    print(json.dumps(asyncio.run(SIDES[sys.argv[1]]())))
