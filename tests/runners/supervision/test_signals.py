"""Signals drain runners, then the program ends: real programs, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runners import Fleet, FunctionRunner
from runners.errors import RunnerClosed
from runners.signals import drain_on_signals

pytestmark = pytest.mark.anyio
ROOT = str(Path(__file__).resolve().parents[3])

_PROGRAM = """
import asyncio, logging, os, signal, sys, tempfile
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner
from runners.signals import drain_on_signals
logging.basicConfig(level=logging.INFO, format="%(message)s")

async def call(act, *args):
    try:
        print("answer", await act(*args), flush=True)
    except Exception as error:
        print("error", type(error).__name__, flush=True)

async def main():
    try:
        async with FunctionRunner("calls:act", workers=2, publish_status=True) as act:
            async with drain_on_signals(act, grace={grace}) as stopping:
                calls = [asyncio.create_task(call(act, "hold", {mark!r} + str(n), {go!r})) for n in range(2)]
                calls += [asyncio.create_task(call(act, "echo", n)) for n in range(40)]
                print(*(worker.pid for worker in act.stats().workers), flush=True)
                {block}
            print("after", stopping.signal.name, act.state, flush=True)
    finally:
        print("handlers", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, os.listdir({status!r}), flush=True)

{run}
"""
LOOPS = ["asyncio.run(main())", "import uvloop; uvloop.run(main())"]
ANSWERED = {f"answer {n}" for n in range(40)}


class Program:
    """A program with a runner of two workers, both busy until `go` is there, and 40 requests behind them."""

    def __init__(self, folder: Path, importable: Path, *, block: str, grace: float | None, run: str) -> None:
        self.mark, self.go, status = folder / "mark", folder / "go", folder / "status"
        text = _PROGRAM.format(
            root=ROOT,
            importable=str(importable),
            block=block,
            grace=grace,
            run=run,
            mark=str(self.mark),
            go=str(self.go),
            status=str(status),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RUNNERS_STATUS": str(status), "TMPDIR": str(folder)},
        )
        assert self.process.stdout is not None
        self.workers = [int(pid) for pid in self.process.stdout.readline().split()]
        self.status = status

    async def busy(self, until) -> None:
        await until(lambda: all(Path(f"{self.mark}{n}").exists() for n in range(2)))
        await until(lambda: list(self.status.glob("[0-9]*.json")))

    async def says(self, word: str) -> None:
        """Wait until it has logged this."""
        assert self.process.stderr is not None
        while word not in (line := await asyncio.to_thread(self.process.stderr.readline)):
            assert line, f"{word!r} was not said"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> list[str]:
        output, errors = self.process.communicate(timeout=10)
        assert "Traceback" not in errors, errors
        return output.splitlines()


@pytest.fixture
def program(tmp_path, importable):
    started: list[Program] = []

    def start(*, block: str = "await asyncio.sleep(60)", grace: float | None = 20, run: str = LOOPS[0]) -> Program:
        if "uvloop" in run:
            pytest.importorskip("uvloop")
        started.append(Program(tmp_path, importable, block=block, grace=grace, run=run))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_was_accepted_is_answered_then_the_program_ends(program, until, alive, tmp_path, number, run):
    one = program(run=run)
    await one.busy(until)
    one.send(number)
    await one.says("draining")
    one.go.touch()
    lines = one.end()
    assert ANSWERED | {f"answer {pid}" for pid in one.workers} == {line for line in lines if "answer" in line}
    assert lines[-2:] == [f"after {number.name} stopped", "handlers True []"]
    assert one.process.returncode == 0
    assert not any(map(alive, one.workers))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "mark0", "mark1", "status"]


async def test_new_requests_are_refused_while_draining(program, until):
    block = """await stopping.wait()
                await call(act, "echo", 99)
                await asyncio.gather(*calls)"""
    one = program(block=block)
    await one.busy(until)
    one.send(signal.SIGTERM)
    await one.says("draining")
    one.go.touch()
    lines = one.end()
    assert "error RunnerClosed" in lines
    assert set(lines) >= ANSWERED


async def test_the_grace_is_an_end_too(program, until, alive):
    one = program(grace=0.2)
    await one.busy(until)
    one.send(signal.SIGTERM)
    lines = one.end()
    assert lines.count("error RunnerClosed") == 42 - sum(line.startswith("answer") for line in lines)
    assert "error RunnerClosed" in lines
    assert lines[-2:] == ["after SIGTERM stopped", "handlers True []"]
    assert not any(map(alive, one.workers))


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_while_draining_stops_now(program, until, alive, first, run):
    one = program(run=run)
    await one.busy(until)
    one.send(first)
    await one.says("draining")
    one.send(signal.SIGTERM)  # said again, it changes nothing
    one.send(signal.SIGINT)
    lines = one.end()  # well within the grace
    assert lines.count("error RunnerClosed") >= 2
    assert lines[-2:] == [f"after {first.name} stopped", "handlers True []"]
    assert not any(map(alive, one.workers))


async def test_a_block_that_ends_by_itself_is_not_cancelled(program, until):
    one = program(block="await stopping.wait(); await asyncio.gather(*calls); print('whole', flush=True)")
    await one.busy(until)
    one.send(signal.SIGTERM)
    await one.says("draining")
    one.go.touch()
    assert one.end()[-3:-1] == ["whole", "after SIGTERM stopped"]


# In this process


async def test_handlers_are_put_back_and_an_error_comes_through():
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        async with drain_on_signals():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (mine, interrupt)
        with pytest.raises(ZeroDivisionError):
            async with drain_on_signals():
                1 / 0  # noqa: B018
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (mine, interrupt)
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_cancellation_of_somebody_else_goes_on():
    task = asyncio.current_task()
    with pytest.raises(asyncio.CancelledError):
        async with FunctionRunner("calls:echo") as echo, drain_on_signals(echo):
            os.kill(os.getpid(), signal.SIGTERM)
            asyncio.get_running_loop().call_later(0.1, task.cancel)  # before the block's own end
            await asyncio.sleep(60)
    assert task.uncancel() == 0
    assert echo.state == "stopped"


async def test_a_signal_leaves_no_cancellation_behind():
    async with FunctionRunner("calls:echo") as echo, drain_on_signals(echo) as stopping:
        assert not stopping.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    assert asyncio.current_task().cancelling() == 0
    assert stopping.is_set()
    with pytest.raises(RunnerClosed):
        await echo(1)


async def test_a_fleet_is_drained_with_all_that_waits(until):
    runners = {name: FunctionRunner("calls:act", name=name, memory="100MiB") for name in "ab"}
    async with (
        Fleet(budget="150MiB", runners=runners) as fleet,
        drain_on_signals(fleet) as stopping,
    ):  # room for one at a time
        calls = [asyncio.create_task(fleet[name]("echo", name)) for name in "ab" * 20]
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
        await until(lambda: fleet["a"].state == "draining")
        with pytest.raises(RunnerClosed):
            await fleet["a"]("echo", "late")
        assert await asyncio.gather(*calls) == list("ab" * 20)


async def test_a_runner_that_was_not_started_is_no_hindrance():
    runner = FunctionRunner("calls:echo")
    async with drain_on_signals(runner):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
    assert runner.state == "stopped"


async def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="drain_on_signals takes runners and fleets, not 3"):
        async with drain_on_signals(3):
            pass
    with pytest.raises(ValueError, match="grace takes a number of seconds of at least 0, not -1"):
        async with drain_on_signals(grace=-1):
            pass


def test_only_in_the_main_thread():
    errors: list[BaseException] = []

    async def use() -> None:
        async with drain_on_signals():
            pass

    def run() -> None:
        try:
            asyncio.run(use())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "only the main thread" in str(errors[0])


async def test_what_waits_for_the_signal_finds_every_runner_refusing():
    async with (
        FunctionRunner("calls:act") as first,
        FunctionRunner("calls:act") as second,
        drain_on_signals(first, second) as stopping,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
        assert stopping.is_set()
        assert stopping.signal is signal.SIGTERM
        for runner in (first, second):
            with pytest.raises(RunnerClosed):
                await runner("echo", 1)
