"""The rows of the chaos table. Each is given the options and yields what it measured."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos.crowd import CALLERS, Ask, Crowd
from benchmarks.chaos.frames import fuzz, fuzz_workers
from benchmarks.chaos.sides import SIDES, TRIGGER
from guardrails.core.events import Event, subscribe
from guardrails.core.sizes import parse_size
from guardrails.memory.reading import private_bytes
from runners import FunctionRunner
from runners.errors import PoisonedRequest, RunnerUnavailable
from runners.spec import Faults
from runners.supervision.events import WorkerExited, WorkerReady, WorkerReplaced
from runners.supervision.restart import RestartPolicy

MIB = 2**20
#: From so many seconds on a row is held to all that it promises, such as so many calls.
_WHOLE = 60
_CALLS = 5_000
_LEAVERS = 1000
#: Workers that a request which jumps may end: the first one may have been filled by others, two it has to itself.
_JUMPS = 3


@dataclass(frozen=True)
class Options:
    """`seconds` of a row that has no end of its own, and the `seed` of everything drawn by chance."""

    seconds: float
    seed: int


@dataclass(frozen=True)
class Result:
    """One line of the table: what was measured, whether all that happened is right, and whether it was quick enough.

    A test on a machine that does something else meanwhile looks at `correct` alone.
    """

    engine: str
    measured: str
    correct: bool
    quick: bool = True

    @property
    def good(self) -> bool:
        """Whether it is all that the row promises."""
        return self.correct and self.quick


Row = Callable[[Options], AsyncIterator[Result]]


@contextlib.asynccontextmanager
async def events_of(*kinds: type[Event]) -> AsyncIterator[list[Any]]:
    """The events of these types, with the time at which each came."""
    seen: list[Any] = []
    end = subscribe(lambda event: seen.append((time.perf_counter(), event)) if isinstance(event, kinds) else None)
    try:
        yield seen
    finally:
        end()


async def until(condition: Callable[[], object], seconds: float = 30) -> float:
    """Seconds until it held. TimeoutError if it never did."""
    began = time.perf_counter()
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing to wait for but what the runner shows of itself
            await asyncio.sleep(0.002)
    return time.perf_counter() - began


@contextlib.contextmanager
def passing(limit: int, loads: list[Any]) -> Iterator[dict[int, float]]:
    """When each worker's memory was first seen above `limit`, by its id: looked at from a thread, every 2 ms. The
    workers are those of the events `loads`.
    """
    seen: dict[int, float] = {}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.002):
            for _, event in tuple(loads):
                with contextlib.suppress(OSError):
                    resident, shared = map(int, Path(f"/proc/{event.pid}/statm").read_text().split()[1:3])
                    if (resident - shared) * os.sysconf("SC_PAGESIZE") > limit:
                        seen.setdefault(event.pid, time.perf_counter())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


async def kill(options: Options) -> AsyncIterator[Result]:
    """SIGKILL of a worker every 2 s."""
    for side in SIDES:
        chance = random.Random(options.seed)
        runner = side.runner(workers=2)
        async with events_of(WorkerReady) as loads, runner:
            ask = side.ask(runner, chance)
            calm = options.seconds / 6
            async with Crowd(ask) as before:
                await asyncio.sleep(calm)
            kills = 0
            async with events_of(WorkerExited) as ends, Crowd(ask) as crowd:
                end = time.perf_counter() + options.seconds
                while time.perf_counter() < end:
                    await asyncio.sleep(2)
                    pids = [worker.pid for worker in runner.stats().workers if worker.state == "ready"]
                    if pids:
                        os.kill(chance.choice(pids), signal.SIGKILL)
                        kills += 1
                await until(lambda: len(ends) >= kills)  # noqa: B023 - awaited here
            load = max(event.seconds for _, event in loads)
        allowed = 3 * before.p99() + load
        yield Result(
            side.name,
            f"{crowd.asked:,} calls, {kills} kills: {crowd.lost} lost, {crowd.twice} twice; "
            f"p99 {crowd.p99() * 1e3:.0f} ms, allowed {allowed * 1e3:.0f} "
            f"(calm {before.p99() * 1e3:.0f}, load {load * 1e3:.0f})",
            crowd.lost == crowd.twice == 0 and len(ends) == kills > 0,
            crowd.p99() <= allowed and (options.seconds < _WHOLE or crowd.asked >= _CALLS),
        )


async def leak(options: Options) -> AsyncIterator[Result]:
    """A leak of 20 MB a request against the soft budget, until 20 replacements."""
    wanted = 20 if options.seconds >= _WHOLE else 4
    for side in SIDES:
        runner = side.runner(workers=2, faults=Faults(leak=20_000_000), **side.budgets)
        hard = parse_size(side.budgets["memory_hard"], "memory_hard")
        ask = side.ask(runner, random.Random(options.seed))
        largest = 0

        async def rarely(number: int, ask: Ask = ask, runner: Any = runner) -> float:
            nonlocal largest
            began = time.perf_counter()
            await ask(number)
            taken = time.perf_counter() - began
            largest = max(largest, *(worker.private for worker in runner.stats().workers), 0)
            await asyncio.sleep(0.5)
            return taken

        async with runner, events_of(WorkerReplaced) as replaced:
            async with Crowd(rarely, callers=4) as crowd:
                await until(lambda: len(replaced) >= wanted, 600)
            killed = runner.stats().restarts.get("hard_budget", 0)
        moments = [when for when, _ in replaced]
        during = sorted(taken for when, taken in crowd.taken if any(abs(when - moment) < 1 for moment in moments))
        steady = sorted(taken for when, taken in crowd.taken if all(abs(when - moment) >= 1 for moment in moments))
        ratio = during[int(len(during) * 0.99)] / steady[int(len(steady) * 0.99)] if during and steady else float("nan")
        yield Result(
            side.name,
            f"{len(replaced)} replacements, {crowd.asked:,} calls: {crowd.lost} lost, {crowd.twice} twice; p99 during "
            f"them {ratio:.2f} x steady; largest {largest / MIB:.0f} MiB of {hard / MIB:.0f}, {killed} killed",
            crowd.lost == crowd.twice == 0 and largest <= hard,
            not ratio > 2,
        )


async def jump(options: Options) -> AsyncIterator[Result]:
    """A jump of 1 GB in one call against the hard budget."""
    for side in SIDES:
        faults = Faults(trigger=TRIGGER, effect="jump")
        runner = side.runner(workers=2, faults=faults, **side.budgets)
        crowd = Crowd(side.ask(runner, random.Random(options.seed)))
        async with events_of(WorkerReady) as loads, runner, events_of(WorkerExited) as ends, crowd:
            await asyncio.sleep(0.5)
            poisoned = False
            with passing(parse_size(side.budgets["memory_hard"], "memory_hard"), loads) as passed:
                try:
                    await side.trigger(runner)
                except PoisonedRequest:
                    poisoned = True
            ended = [(event.pid, when) for when, event in ends if event.reason in ("hard_budget", "oom_kill")]
            await asyncio.sleep(0.5)
        slowest = max((when - passed.get(pid, when) for pid, when in ended), default=float("nan"))
        yield Result(
            side.name,
            f"killed at most {slowest * 1e3:.0f} ms after passing it, "
            f"culprit {'quarantined' if poisoned else 'NOT quarantined'} after {len(ended)}; "
            f"of {crowd.asked:,} others {crowd.lost} lost",
            poisoned and len(ended) <= _JUMPS and crowd.lost == crowd.twice == 0,
            slowest < 0.25,
        )


async def hang(options: Options) -> AsyncIterator[Result]:
    """SIGSTOP, a native call that never returns, a deadlock: against a heartbeat of 1 s."""
    for side in SIDES:
        for fault in ("stop", "hang", "deadlock"):
            faults = None if fault == "stop" else Faults(trigger=TRIGGER, effect=fault)
            runner = side.runner(workers=2, heartbeat=1, faults=faults)
            crowd = Crowd(side.ask(runner, random.Random(options.seed)))
            async with runner, events_of(WorkerExited) as ends, crowd:
                await asyncio.sleep(0.5)
                began = time.perf_counter()
                if fault == "stop":
                    os.kill(runner.stats().workers[0].pid, signal.SIGSTOP)
                    culprit = None
                else:
                    culprit = asyncio.create_task(side.trigger(runner))
                await until(ends.__len__)
                noticed = ends[0][0] - began
                if culprit is not None:
                    await asyncio.wait((culprit,))
            yield Result(
                side.name, f"{fault}: replaced after {noticed:.2f} s; of {crowd.asked:,} others {crowd.lost} lost",
                crowd.lost == crowd.twice == 0, noticed < 2.5,
            )  # fmt: skip


async def crash_loop(options: Options) -> AsyncIterator[Result]:  # noqa: ARG001
    """A function that cannot be loaded any more: failed, refused fast, healed when it is put right."""
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "sometimes.py"
        module.write_text("import os\ndef pid():\n    return os.getpid()\n")
        sys.path.insert(0, folder)
        policy = RestartPolicy(intensity=3, period=60, backoff=0.01, probe_interval=0.5)
        runner = FunctionRunner("sometimes:pid", restart=policy, environment={"PYTHONDONTWRITEBYTECODE": "1"})
        try:
            async with runner:
                pid = await runner()
                module.write_text("raise SystemExit(3)\n")
                os.kill(pid, signal.SIGKILL)
                failed = await until(lambda: runner.state == "failed")
                refusals = []
                retry_after = None
                for _ in range(200):
                    began = time.perf_counter()
                    try:
                        await runner()
                    except RunnerUnavailable as refusal:
                        retry_after = refusal.retry_after
                    refusals.append(time.perf_counter() - began)
                module.write_text("import os\ndef pid():\n    return os.getpid()\n")
                healed = await until(lambda: runner.state == "ready")
                works = await runner() != pid
        finally:
            sys.path.remove(folder)
    slowest = max(refusals)
    yield Result(
        "function",
        f"failed after {failed:.2f} s; 200 refused in at most {slowest * 1e3:.2f} ms, retry_after {retry_after:.2f} s; "
        f"healed by itself {healed:.2f} s after the fix",
        works and retry_after is not None,
        slowest < 0.001,
    )


_PARENT = """
import asyncio, sys
from runners import FunctionRunner
async def main():
    async with FunctionRunner("benchmarks.chaos.work:hang", workers=3) as runner:
        print(*(worker.pid for worker in runner.stats().workers), flush=True)
        await asyncio.gather(*(runner(n) for n in range(2)))
asyncio.run(main())
"""


async def orphans(options: Options) -> AsyncIterator[Result]:  # noqa: ARG001
    """kill -9 of the parent, and of the parent's group, with workers that hang in native code."""
    for what in ("parent", "group"):
        parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220
        assert parent.stdout is not None
        line = await asyncio.to_thread(parent.stdout.readline)
        pids = [int(pid) for pid in line.split()]
        (os.killpg if what == "group" else os.kill)(parent.pid, signal.SIGKILL)
        await asyncio.to_thread(parent.wait)
        parent.stdout.close()
        try:
            gone = await until(partial(_all_gone, pids))
            measured = f"kill -9 of the {what}: {len(pids)} workers gone after {gone * 1e3:.0f} ms"
        except TimeoutError:
            gone, measured = math.inf, f"kill -9 of the {what}: workers left after 30 s"
        yield Result("function", measured, gone < math.inf and len(pids) == 3, gone < 2)


def _all_gone(pids: list[int]) -> bool:
    return not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def leavers(options: Options) -> AsyncIterator[Result]:
    """1,000 callers cancelled at random moments."""
    chance = random.Random(options.seed)
    left: dict[int, float] = {}
    async with FunctionRunner("benchmarks.chaos.work:nap", timeout=None) as runner:
        balanced, measured = await _leave(runner, [partial(runner, n) for n in range(_LEAVERS)], chance, left)
        # Both sides of the boundary have one clock. A call may begin as long as the cancellation is under way.
        late = [number for number, when in await runner(-1) if when > left.get(number, float("inf")) + 0.05]
    yield Result(
        "function", f"{measured}; {len(late)} begun more than 50 ms after their caller left", balanced, not late
    )
    side = SIDES[1]
    runner = side.runner()
    async with runner:
        ask = side.ask(runner, chance)
        balanced, measured = await _leave(runner, [partial(ask, n) for n in range(_LEAVERS)], chance, {})
    yield Result(side.name, measured, balanced)


async def _leave(
    runner: Any, calls: list[Callable[[], Awaitable[Any]]], chance: random.Random, left: dict[int, float]
) -> tuple[bool, str]:
    """Make all calls at once and cancel them at random moments; whether the books balance, and what they say."""

    async def call(number: int) -> None:
        try:
            await calls[number]()
        except asyncio.CancelledError:
            left[number] = time.monotonic()
            raise

    tasks = [asyncio.create_task(call(number)) for number in range(len(calls))]
    for task in chance.sample(tasks, len(tasks)):
        await asyncio.sleep(chance.random() / 500)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: runner.stats().queued == 0 and not any(w.in_flight for w in runner.stats().workers))
    stats = runner.stats()
    answered = sum(not isinstance(result, BaseException) for result in results)
    balanced = stats.submitted == stats.answered + stats.cancelled and stats.failed == 0 and stats.answered >= answered
    return balanced, f"{answered} answered, {stats.cancelled} left; nothing queued, nothing in flight"


async def frames(options: Options) -> AsyncIterator[Result]:
    """100,000 random and mutated frames to either side."""
    before = private_bytes()
    ends, slowest = await asyncio.to_thread(fuzz, 100_000, options.seed)
    grown = (private_bytes() - before) / MIB
    yield Result(
        "codec",
        f"{', '.join(f'{how} {count:,}' for how, count in sorted(ends.items()))}; slowest {slowest * 1e3:.1f} ms, "
        f"grown by {grown:.1f} MiB",
        grown < 8,
        slowest < 0.1,
    )
    workers = await fuzz_workers(40, options.seed)
    measured = ", ".join(f"{how} {count}" for how, count in sorted(workers.items()))
    yield Result("worker", measured, set(workers) <= {"in good order", "ProtocolError"})


def settle() -> None:
    """Give back what is free: what is left is held. What glibc keeps of a peak would hide a leak, or look like one."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


async def soak(options: Options) -> AsyncIterator[Result]:
    """Everything at once for a long time: the parent's memory stays flat. Only with --seconds 600 or more."""
    chance = random.Random(options.seed)
    side = SIDES[0]
    runner = side.runner(workers=2)
    samples: list[tuple[float, int]] = []
    async with runner:
        async with Crowd(side.ask(runner, chance), books=False) as crowd:
            began = time.perf_counter()
            while (now := time.perf_counter() - began) < options.seconds:
                await asyncio.sleep(min(5, options.seconds / 60))
                settle()
                samples.append((now, private_bytes()))
                if chance.random() < 0.2:
                    os.kill(chance.choice(runner.stats().workers).pid, signal.SIGKILL)
        errors = sum(crowd.errors.values())
    half = samples[len(samples) // 4 :]  # the first quarter warms up
    times, sizes = [when for when, _ in half], [size / MIB for _, size in half]
    mean = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((when - mean[0]) ** 2 for when in times) or 1.0
    slope = sum((when - mean[0]) * (size - mean[1]) for when, size in zip(times, sizes, strict=True)) / spread
    residual = sum((size - mean[1] - slope * (when - mean[0])) ** 2 for when, size in zip(times, sizes, strict=True))
    error = (residual / max(1, len(half) - 2) / spread) ** 0.5
    yield Result(
        "function",
        f"{crowd.asked:,} calls in {options.seconds:.0f} s, {errors} errors; parent {mean[1]:.1f} MiB, slope "
        f"{slope * 3600:.2f} +- {2 * error * 3600:.2f} MiB an hour",
        errors == 0 and abs(slope) <= max(2 * error, 1 / 3600),
    )


ROWS: dict[str, Row] = {
    "kill": kill,
    "leak": leak,
    "jump": jump,
    "hang": hang,
    "crash_loop": crash_loop,
    "orphans": orphans,
    "leavers": leavers,
    "frames": frames,
    "soak": soak,
}

__all__ = ["CALLERS", "ROWS", "Options", "Result"]
