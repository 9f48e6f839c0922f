"""What the memory monitor costs: CPU of its thread, its history, the loop's delay, guarded calls, large processes.

    python -m benchmarks.monitor [--seconds 120] [--large 2GiB]
    make bench BENCH=benchmarks/monitor.py      # one look alone

CPU is the thread's own clock, so what else the machine does is not counted. Each row runs a monitor as it is by default
(a look a second), for so many seconds. The loop's delay is how late a sleep of a millisecond wakes, with the monitor
and without it, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guardrails import admit, breaker, guard, timeout
from guardrails.core.sizes import format_size, parse_size
from guardrails.memory import MemoryMonitor
from guardrails.memory.monitor.reader import system_reader
from runners import FunctionRunner

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CHILDREN = (1, 4, 16)
TURNS = 4
CALLS = 20_000


@contextmanager
def children(count: int, size: int = 0) -> Iterator[list[int]]:
    code = f"import sys; kept = bytearray(b'x') * {size}; print('up', flush=True); sys.stdin.read()"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for child in started:
            assert child.stdout is not None
            child.stdout.readline()
        yield [child.pid for child in started]
    finally:
        for child in started:
            child.communicate()


def cpu_of(monitor: MemoryMonitor) -> float:
    """CPU seconds that the monitor's thread has used so far."""
    assert monitor._run is not None
    ident = monitor._run.thread.ident
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def cost(monitor: MemoryMonitor, seconds: float) -> tuple[float, float]:
    """The share of one core that it takes: in the first five seconds, and from then on."""
    with monitor:
        time.sleep(5)
        first = cpu_of(monitor)
        began = time.monotonic()
        time.sleep(seconds)
        used = cpu_of(monitor) - first
        return first / 5, used / (time.monotonic() - began)


def row(name: str, monitor: MemoryMonitor, seconds: float) -> None:
    first, later = cost(monitor, seconds)
    watched = len(monitor.sample().processes)
    print(
        f"{name:<34}{watched:>4} processes  {later:>8.3%} of a core  (first 5 s {first:.3%})"
        f"  history {format_size(monitor.history_bytes):>9} of {len(monitor.names)} names"
    )


async def runners_row(seconds: float) -> None:
    async with (
        FunctionRunner("math:sqrt", name="a", workers=2, memory="256MiB") as first,
        FunctionRunner("math:sqrt", name="b", workers=2, memory="256MiB") as second,
    ):

        async def work() -> None:
            while True:
                _ = await asyncio.gather(*(each(number) for each in (first, second) for number in range(20)))
                await asyncio.sleep(0.1)

        working = asyncio.create_task(work())
        await asyncio.to_thread(row, "2 runners of 2 workers, 400 calls/s", MemoryMonitor(), seconds)
        working.cancel()


async def delays(seconds: float) -> list[float]:
    late, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - began - 0.001)
    return late


def loop_delay(seconds: float) -> None:
    """How late an event loop is, with a monitor in its process and without."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(TURNS):
        found["without"] += asyncio.run(delays(seconds / TURNS))
        with MemoryMonitor():
            found["with"] += asyncio.run(delays(seconds / TURNS))
    for name, late in found.items():
        late.sort()
        shares = "  ".join(f"p{share:g} {late[int(len(late) * share / 100)] * 1e3:.3f} ms" for share in (50, 99, 99.9))
        print(f"loop {name:<8} the monitor: {shares}  worst {late[-1] * 1e3:.2f} ms  of {len(late)} wakes")


def longest_look(seconds: float) -> None:
    """How long one look takes: what it can hold the interpreter for at most, which it does not do in one piece."""
    monitor, looks = MemoryMonitor(), []
    look = monitor._look

    def timed() -> None:
        began = time.thread_time()
        look()
        looks.append(time.thread_time() - began)

    monitor._look = timed  # type: ignore[method-assign]
    with monitor:
        time.sleep(seconds)
    looks.sort()
    median, longest = statistics.median(looks) * 1e3, looks[-1] * 1e3
    print(f"one look: median {median:.2f} ms, longest {longest:.2f} ms of CPU, of {len(looks)}")


def calls(monitor: MemoryMonitor | None) -> float:
    """Microseconds of a guarded call."""

    @guard(breaker(), admit(concurrency=100), timeout(30))
    async def call() -> None:
        pass

    async def many() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            await call()
        return (time.perf_counter() - began) / CALLS * 1e6

    if monitor is None:
        return asyncio.run(many())
    with monitor:
        return asyncio.run(many())


def call_cost() -> None:
    turns = [(calls(None), calls(MemoryMonitor(calls=False)), calls(MemoryMonitor())) for _ in range(7)]
    without, deaf, hearing = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"a call through three guards: {without:.2f} us, {deaf:.2f} us with calls=False, {hearing:.2f} us by default")


def large(size: int) -> None:
    """What the two readings of a large process cost."""
    reader = system_reader()
    with children(1, size) as (pid,):
        for name, read, times in (("cheap", reader.quick, 200), ("exact", reader.exact, 10)):
            spent = []
            for _ in range(times):
                began = time.thread_time()
                read(pid)
                spent.append(time.thread_time() - began)
            print(f"{name} reading of a process of {format_size(size)}: {statistics.median(spent) * 1e3:.3f} ms of CPU")
        row(f"1 child of {format_size(size)}", MemoryMonitor(), 60)


def test_a_look_takes_less_than_a_fifth_of_a_percent_of_its_second(benchmark: BenchmarkFixture) -> None:
    monitor = MemoryMonitor(log_every=None)
    with children(4):
        benchmark.pedantic(monitor._look, rounds=200, iterations=1, warmup_rounds=10)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    assert benchmark.stats.stats.median < 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each row")
    parser.add_argument("--large", default="2GiB", help="size of the large process")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    for count in CHILDREN:
        with children(count):
            row(f"{count} children", MemoryMonitor(), options.seconds)
    asyncio.run(runners_row(options.seconds))
    longest_look(min(30.0, options.seconds))
    loop_delay(options.seconds)
    call_cost()
    large(parse_size(options.large, "--large"))


if __name__ == "__main__":
    main()
