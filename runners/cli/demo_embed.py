"""The demo's first act: a real model that leaks and is killed, 32 callers that do not notice.

First every text is embedded through `breaker` and `admit` by a runner whose worker leaks on purpose past its soft
budget and is killed with SIGKILL. Then every vector is compared with that of a plain onnxruntime session in this
process, which has run the same text alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardrails import admit, breaker, guard
from guardrails.core.sizes import format_size
from runners.cli.models import MiniLM, ModelsMissing, find_minilm
from runners.cli.plot import plot
from runners.cli.progress import Progress
from runners.spec import Faults

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runners.embedding import EmbeddingRunner
    from runners.supervision.stats import RunnerStats

BUDGET = "400MiB"
_BUDGET_BYTES = 400 * 1024 * 1024
#: What the worker leaks over the whole demo, spread over its requests: past the budget several times. Not more with
#: each than lets a new worker load before the leaking one reaches its hard budget.
_LEAK = 1000 * 1024 * 1024
_MAX_LEAK = 3 * 1024 * 1024 // 2
_COSINE = 0.9999
_SAMPLE_EVERY = 0.1
_LONG = 1000

_CORPUS = (
    "agua casa sol rain river market garden engine letter window mountain violin harbour winter copper lantern forest "
    "signal theory measure pressure budget worker queue memory request answer model vector token circuit breaker limit"
)
_WORDS = _CORPUS.split()


@dataclass
class _Act:
    """What happened."""

    vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    kills: int = 0
    first: float = 0.0
    seconds: float = 0.0
    stats: RunnerStats | None = None


def play(*, texts: int, callers: int, kills: int) -> int:
    """Play the act; 0 if nothing was lost and every vector is right."""
    began = time.perf_counter()
    try:
        models = find_minilm()
    except ModelsMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    corpus = make_texts(texts)
    act = asyncio.run(_embed(models, corpus, callers, kills))
    worst = _compare(models, corpus, act)
    print("\n".join(_report(act, texts, worst, began)))
    return 0 if _passed(act, texts, worst, kills) else 1


def make_texts(count: int, seed: int = 7) -> list[str]:
    """Texts of 4 to 40 words, the same every time."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(_WORDS, k=chance.randint(4, 40))) for _ in range(count)]


# The embedding


async def _embed(models: MiniLM, corpus: list[str], callers: int, kills: int) -> _Act:
    from runners.embedding import EmbeddingRunner

    act = _Act()
    progress = Progress("loading all-MiniLM-L6-v2 in a worker", total=len(corpus))
    runner = EmbeddingRunner(
        models.model,
        tokenizer=models.tokenizer,
        name="minilm",
        memory=BUDGET,
        faults=Faults(leak=min(_MAX_LEAK, _LEAK // len(corpus))),
    )
    pipeline = guard(
        breaker(name="minilm", failure_rate=0.5, min_calls=20, open_for=1),
        admit(name="minilm", concurrency=callers, memory="2MiB", queue=callers),
    )
    async with runner:
        embed = pipeline(runner.embed)
        began = time.perf_counter()
        todo = iter(range(len(corpus)))

        async def caller() -> None:
            for number in todo:
                asked = time.perf_counter()
                try:
                    vectors = await embed([corpus[number]])
                except Exception as error:  # every kind of loss is counted, and shown
                    act.errors.append(f"{type(error).__name__}: {error}")
                    continue
                act.first = act.first or time.perf_counter() - began
                act.latencies.append(time.perf_counter() - asked)
                act.answers.append(number)
                act.vectors[number] = vectors[0]

        helpers = [
            asyncio.create_task(_watch(runner, act, progress, began)),
            asyncio.create_task(_kill(runner, act, len(corpus), kills, began)),
        ]
        await asyncio.gather(*(caller() for _ in range(callers)))
        act.seconds = time.perf_counter() - began
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        act.stats = runner.stats()
    progress.done(f"{len(act.answers):,} of {len(corpus):,} answered in {act.seconds:.1f} s")
    return act


async def _watch(runner: EmbeddingRunner, act: _Act, progress: Progress, began: float) -> None:
    """Sample the worker's memory, mark its changes, and keep the progress line going."""
    known: set[int] = set()
    while True:
        stats = runner.stats()
        now = time.perf_counter() - began
        serving = [worker for worker in stats.workers if worker.state == "ready"]
        fresh = {worker.pid for worker in serving} - known
        if fresh and known and act.kills == sum(mark == "K" for _, mark in act.marks):
            act.marks.append((now, "R"))
        known |= fresh
        private = sum(worker.private for worker in stats.workers)
        act.memory.append((now, private / 1024**2))
        worker = (
            f"worker {serving[0].pid}: {format_size(serving[0].private)} of {BUDGET}"
            if serving
            else "worker restarting"
        )
        restarts = sum(stats.restarts.values())
        progress.show(len(act.answers), f"{worker}, restarts {restarts}, lost {len(act.errors)}")
        await asyncio.sleep(_SAMPLE_EVERY)


async def _kill(runner: EmbeddingRunner, act: _Act, total: int, kills: int, began: float) -> None:
    """Kill the worker, with requests in flight, at even distances through the run."""
    for number in range(1, kills + 1):
        while True:
            await asyncio.sleep(0.02)
            busy = [worker for worker in runner.stats().workers if worker.state == "ready" and worker.in_flight]
            if busy and len(act.answers) >= total * number / (kills + 1):
                break
        os.kill(busy[0].pid, signal.SIGKILL)
        act.kills += 1
        act.marks.append((time.perf_counter() - began, "K"))


# The comparison


def _compare(models: MiniLM, corpus: list[str], act: _Act) -> float:
    """The worst cosine between a runner's vector and a plain run of the same text; 0.0 if a vector is missing."""
    from runners.cli.reference import PlainEmbedder

    progress = Progress("comparing with onnxruntime in this process", total=len(corpus))
    plain = PlainEmbedder(models)
    worst = 1.0
    for number, text in enumerate(corpus):
        vector = act.vectors.get(number)
        worst = min(worst, 0.0 if vector is None else float(vector @ plain.embed(text)))
        progress.show(number + 1, f"worst cosine so far {worst:.6f}")
    progress.done(f"{len(corpus):,} vectors compared, worst cosine {worst:.6f}")
    return worst


# The end


def _passed(act: _Act, total: int, worst: float, kills: int) -> bool:
    assert act.stats is not None  # noqa: S101 - the embedding sets it
    once = len(act.answers) == total == len(set(act.answers))
    # A short demo leaks too little to reach the budget between two kills.
    replaced = act.stats.restarts.get("soft_budget", 0) > 0 or total < _LONG
    return once and not act.errors and worst >= _COSINE and act.kills == kills and replaced


def _report(act: _Act, total: int, worst: float, began: float) -> list[str]:
    assert act.stats is not None  # noqa: S101 - the embedding sets it
    ordered = sorted(act.latencies) or [0.0]
    restarts = ", ".join(f"{count} x {reason}" for reason, count in sorted(act.stats.restarts.items())) or "none"
    twice = len(act.answers) - len(set(act.answers))
    rows = [
        ("requests", f"{total:,}"),
        ("answered", f"{len(act.answers):,}"),
        ("lost", f"{total - len(set(act.answers)):,}"),
        ("answered twice", f"{twice:,}"),
        ("worker ended", restarts),
        ("redelivered", f"{act.stats.redelivered:,}"),
        ("latency p50 / p99", f"{_at(ordered, 0.5) * 1e3:,.0f} / {_at(ordered, 0.99) * 1e3:,.0f} ms"),
        ("texts per second", f"{len(act.answers) / act.seconds:,.0f}"),
        ("worst cosine", f"{worst:.6f}"),
        ("whole act", f"{time.perf_counter() - began:.0f} s"),
    ]
    lines = ["", *(f"  {name:<20}{value}" for name, value in rows), ""]
    lines.append("  worker memory (private MiB; K killed, R replaced)")
    lines += plot(act.memory, lines=((_BUDGET_BYTES / 1024**2, "budget"),), marks=act.marks)
    lines += ["", *(f"  error: {error}" for error in act.errors[:3])]
    return lines


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
