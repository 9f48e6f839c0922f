"""The embedding runner against onnxruntime called directly, and a function call against ProcessPoolExecutor.

    make bench BENCH=benchmarks/embed.py

Both sides of each comparison take turns in one run, so that a noisy machine is noisy for both; what is reported, and
held to, is the median of the ratios of the turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the worker imports `embed:echo` from here

from benchmarks.direct import DirectEmbedder, make_texts
from guardrails.memory.reading import resident_bytes
from runners import EmbeddingRunner, FunctionRunner
from runners.cli.models import find_minilm

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TURNS = 5
CALLERS = 16


def echo(text: str) -> str:
    """What both sides of the round trip do."""
    return text


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def _embed_all(runner: EmbeddingRunner, texts: list[str], share: int) -> None:
    """`CALLERS` callers embed all texts, each taking `share` texts at a time."""
    todo = iter([texts[start : start + share] for start in range(0, len(texts), share)])

    async def caller() -> None:
        for part in todo:
            await runner.embed(part)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


@pytest.mark.parametrize("share", [1, 32], ids=["one text a call", "32 texts a call"])
def test_embed_at_16_callers(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, share: int) -> None:
    texts = make_texts()
    direct = DirectEmbedder()
    best = direct.find_best(texts)
    models = find_minilm()
    runner = EmbeddingRunner(models.model, tokenizer=models.tokenizer, memory="1GiB")
    loop.run_until_complete(runner.start())
    try:
        loop.run_until_complete(_embed_all(runner, texts, share))  # warm
        times: dict[str, list[float]] = {"runner": [], "direct": []}

        def turn() -> None:
            times["direct"].append(_timed(lambda: direct.embed(texts, best)))
            times["runner"].append(_timed(lambda: loop.run_until_complete(_embed_all(runner, texts, share))))

        benchmark.pedantic(turn, rounds=TURNS, iterations=1)  # type: ignore[no-untyped-call]
        (worker,) = runner.stats().workers
        resident = resident_bytes(worker.pid)
    finally:
        loop.run_until_complete(runner.close())
    alone = json.loads(
        subprocess.run(
            [sys.executable, "-m", "benchmarks.direct", best],
            check=True,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        ).stdout
    )
    ratio = statistics.median(d / r for d, r in zip(times["direct"], times["runner"], strict=True))
    memory = resident / alone["resident"]
    rate = {side: len(texts) / statistics.median(seconds) for side, seconds in times.items()}
    _report(
        benchmark,
        f"{share:>2} text(s) a call, {CALLERS} callers: runner {rate['runner']:.0f} texts/s, onnxruntime ({best}) "
        f"{rate['direct']:.0f} texts/s, ratio {ratio:.3f}; resident {resident / 2**20:.0f} MiB against "
        f"{alone['resident'] / 2**20:.0f} MiB, ratio {memory:.2f}",
        ratio=ratio,
        memory_ratio=memory,
        **{f"{side}_texts_per_second": value for side, value in rate.items()},
    )
    assert ratio >= 0.95
    assert memory <= 1.3


def test_round_trip_of_200_bytes(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    text = "x" * 200
    medians: dict[str, list[float]] = {"runner": [], "pool": []}
    runner = FunctionRunner("embed:echo")
    loop.run_until_complete(runner.start())
    with ProcessPoolExecutor(1) as pool:

        async def median_of(call: Callable[[], Any]) -> float:
            taken = []
            for _ in range(2000):
                began = time.perf_counter()
                await call()
                taken.append(time.perf_counter() - began)
            return statistics.median(taken)

        def turn() -> None:
            medians["pool"].append(loop.run_until_complete(median_of(lambda: loop.run_in_executor(pool, echo, text))))
            medians["runner"].append(loop.run_until_complete(median_of(lambda: runner(text))))

        try:
            benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
        finally:
            loop.run_until_complete(runner.close())
    micro = {side: statistics.median(values[1:]) * 1e6 for side, values in medians.items()}
    ratio = statistics.median(r / p for r, p in zip(medians["runner"][1:], medians["pool"][1:], strict=True))
    _report(
        benchmark,
        f"200-byte call: runner {micro['runner']:.0f} us, "
        f"ProcessPoolExecutor {micro['pool']:.0f} us, ratio {ratio:.2f}",
        ratio=ratio,
        runner_us=micro["runner"],
        pool_us=micro["pool"],
    )
    assert ratio <= 0.5
    assert micro["runner"] < 125


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _report(benchmark: BenchmarkFixture, line: str, **figures: float) -> None:
    benchmark.extra_info.update(figures)
    print(f"\n{line}")
