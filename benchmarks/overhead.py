"""What guards cost when nothing goes wrong, beside other packages, and what an open circuit costs.

    make bench BENCH=benchmarks/overhead.py

Every figure is nanoseconds over the same work unguarded. All candidates of a table take turns, some thousand calls
each, in one run; what is printed is the median of the turns and the least of them, and what is held to are ratios of
medians. The absolute goals belong to a quiet machine of 2026: here they are printed, with the speed of the machine
beside them, and not held to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from guardrails import admit, breaker, guard, limiter, retry, timeout

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TURNS = 31
CALLS = 2000
ITEMS = 2000

#: A turn of one candidate: nanoseconds a call (or an item).
Turn = Callable[[], float]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    logging.disable(logging.CRITICAL)  # some peers log each refusal
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
    logging.disable(logging.NOTSET)


# Ours


def layers() -> list[Any]:
    return [
        retry(attempts=3),
        breaker(),
        limiter(requests=peers.PLENTY, per=1),
        admit(concurrency=1000),
        timeout(30),
    ]


# How a turn goes


def async_turn(loop: asyncio.AbstractEventLoop, call: peers.AsyncWork, calls: int = CALLS) -> Turn:
    async def many() -> float:
        began = time.perf_counter_ns()
        for _ in range(calls):
            await call(1)
        return (time.perf_counter_ns() - began) / calls

    return lambda: loop.run_until_complete(many())


def refused_turn(loop: asyncio.AbstractEventLoop, call: peers.AsyncWork) -> Turn:
    async def many() -> float:
        began = time.perf_counter_ns()
        for _ in range(CALLS // 4):
            with contextlib.suppress(Exception):  # each package has an error of its own for it
                await call(1)
        return (time.perf_counter_ns() - began) / (CALLS // 4)

    return lambda: loop.run_until_complete(many())


def sync_turn(call: peers.SyncWork) -> Turn:
    def many() -> float:
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            call(1)
        return (time.perf_counter_ns() - began) / CALLS

    return many


def stream_turn(loop: asyncio.AbstractEventLoop, stream: Callable[[int], AsyncIterator[int]]) -> Turn:
    async def one() -> float:
        began = time.perf_counter_ns()
        async for _ in stream(ITEMS):
            pass
        return (time.perf_counter_ns() - began) / ITEMS

    return lambda: loop.run_until_complete(one())


class Figures:
    """The turns of one table, by candidate, and what they cost over the bare work."""

    def __init__(self, bare: str, turns: Mapping[str, list[float]]) -> None:
        self.bare = bare
        self.turns = turns
        # Turn by turn: a machine that is slow for a while is so for both.
        self.over = {
            name: statistics.median(one - base for one, base in zip(taken, turns[bare], strict=True))
            for name, taken in turns.items()
        }

    def show(self, title: str) -> None:
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for column in ("median ns over bare", "least"):
            table.add_column(column, justify="right")
        least = min(self.turns[self.bare])
        for name in sorted(self.over, key=lambda name: self.over[name]):
            if name != self.bare:
                table.add_row(name, f"{self.over[name]:,.0f}", f"{min(self.turns[name]) - least:,.0f}")
        console = Console(width=100)
        console.print()
        console.print(table)
        console.print(f"bare: {statistics.median(self.turns[self.bare]):.0f} ns")


def measure(benchmark: BenchmarkFixture, title: str, candidates: Mapping[str, Turn]) -> Figures:
    """Let all candidates take turns, the first of which is the bare work. `benchmark` times a turn of all."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in candidates.values():
        turn()  # warm

    def round_of_turns() -> None:
        for name, turn in candidates.items():
            taken[name].append(turn())

    benchmark.pedantic(round_of_turns, rounds=TURNS, iterations=1)  # type: ignore[no-untyped-call]
    figures = Figures(next(iter(candidates)), taken)
    figures.show(title)
    benchmark.extra_info.update({f"{name} (ns over bare)": round(over, 1) for name, over in figures.over.items()})
    return figures


def test_one_guard_around_an_async_call(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    ours = {
        "guardrails breaker": breaker()(peers.work),
        "guardrails retry": retry(attempts=3)(peers.work),
        "guardrails limiter": limiter(requests=peers.PLENTY, per=1)(peers.work),
        "guardrails admit": admit(concurrency=1000)(peers.work),
        "guardrails timeout": timeout(30)(peers.work),
    }
    breakers = {f"breaker: {name}": call for name, call in peers.breakers().items()}
    everybody: dict[str, Any] = {"bare": peers.work, **ours, **breakers, **peers.others()}
    figures = measure(benchmark, "one guard, async", {name: async_turn(loop, call) for name, call in everybody.items()})
    for kind, word in (("breaker", "breaker"), ("limiter", "limiter"), ("admit", "bulkhead"), ("timeout", "timeout")):
        fastest = min(over for name, over in figures.over.items() if name.startswith(f"{word}:"))
        assert figures.over[f"guardrails {kind}"] < fastest, f"some other {word} is faster"
    assert figures.over["guardrails retry"] < min(
        over for name, over in figures.over.items() if name.startswith("retry:")
    )


def test_five_guards_around_an_async_call(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    everybody: dict[str, Any] = {"bare": peers.work, "guardrails": guard(*layers())(peers.work), **peers.fives()}
    figures = measure(
        benchmark, "five guards, async", {name: async_turn(loop, call) for name, call in everybody.items()}
    )
    ours = figures.over["guardrails"]
    ratios = {name: over / ours for name, over in figures.over.items() if name not in {"bare", "guardrails"}}
    print("times as much as guardrails:", ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items()))
    assert ratios["nopanic compose"] >= 5
    assert ratios["by hand"] >= 20


def test_five_guards_around_a_stream(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    everybody: dict[str, Any] = {
        "bare": peers.stream_work,
        "guardrails": guard(*layers())(peers.stream_work),
        "guardrails, first=5 and idle=10 too": guard(*layers()[:-1], timeout(30, first=5, idle=10))(peers.stream_work),
        "guardrails without timeout": guard(*layers()[:-1])(peers.stream_work),
        **peers.streams(),
    }
    turns = {name: stream_turn(loop, call) for name, call in everybody.items()}
    figures = measure(benchmark, "five guards, an item of a stream", turns)
    assert figures.over["guardrails"] < figures.over["nopanic compose"]


def test_guards_around_a_sync_call(benchmark: BenchmarkFixture) -> None:
    everybody: dict[str, Any] = {
        "bare": peers.sync_work,
        "guardrails breaker": breaker()(peers.sync_work),
        "guardrails four": guard(*layers()[:-1])(peers.sync_work),
        **{f"breaker: {name}": call for name, call in peers.sync_breakers().items()},
        **{f"four: {name}": call for name, call in peers.sync_fours().items()},
    }
    figures = measure(benchmark, "sync", {name: sync_turn(call) for name, call in everybody.items()})
    assert figures.over["guardrails breaker"] < min(
        over for name, over in figures.over.items() if name.startswith("breaker:")
    )
    assert figures.over["four: nopanic compose"] >= 5 * figures.over["guardrails four"]


def test_an_open_circuit_refuses(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    everybody = {
        "guardrails breaker": breaker(fail_max=3, reset_timeout=600)(peers.down),
        "guardrails five": guard(retry(attempts=3), breaker(fail_max=3, reset_timeout=600), *layers()[2:])(peers.down),
        **peers.open_breakers(),
    }
    for call in everybody.values():
        refused_turn(loop, call)()  # opens it

    async def raises(_: int) -> int:
        raise peers.Down

    figures = measure(
        benchmark,
        "an open circuit refuses: over a bare call that raises",
        {name: refused_turn(loop, call) for name, call in ({"bare": raises} | everybody).items()},
    )
    assert figures.over["guardrails breaker"] < 3000
