"""As a service manager and a web server see it: signals to all processes, handlers of others, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from guardrails import breaker
from guardrails.errors import Rejected
from runners import FunctionRunner
from runners.errors import RunnerClosed
from runners.signals import drain_on_signals
from tests.support import ROOT

pytestmark = pytest.mark.anyio

# Installs and puts back handlers as uvicorn's `Server.capture_signals` does; the lifespan is a task of its own.
_SERVER = """
import asyncio, contextlib, signal, sys
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner
from runners.signals import drain_on_signals

class Server:
    def __init__(self):
        self.should_exit, self.captured = False, []

    @contextlib.contextmanager
    def capture_signals(self):
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {{number: signal.signal(number, self.handle_exit) for number in signals}}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for number in reversed(self.captured):
            signal.raise_signal(number)

    def handle_exit(self, number, frame):
        self.captured.append(number)
        self.should_exit = True

    async def serve(self):
        with self.capture_signals():
            started, stop = asyncio.Event(), asyncio.Event()
            lifespan = asyncio.create_task(self.lifespan(started, stop))
            await started.wait()
            request = asyncio.create_task(self.act("hold", {mark!r}, {go!r}))
            print(*(worker.pid for worker in self.act.stats().workers), flush=True)
            while not self.should_exit:
                await asyncio.sleep(0.01)
            print("no more connections", flush=True)
            print("answer", await request, flush=True)
            await asyncio.sleep({after})  # connections that have nothing to do with the runner
            print("cancelled" if lifespan.done() else "open", flush=True)
            stop.set()
            await lifespan
            print("lifespan ended", flush=True)

    async def lifespan(self, started, stop):
        async with FunctionRunner("calls:act") as self.act, drain_on_signals(self.act, grace={grace}):
            started.set()
            await stop.wait()

asyncio.run(Server().serve())
"""
_EXITING = """
import asyncio, signal, sys
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner
from runners.signals import drain_on_signals

async def main():
    async with FunctionRunner("calls:act") as act, drain_on_signals(act):
        call = asyncio.create_task(act("hold", {mark!r}, {go!r}))
        call.add_done_callback(lambda _: print("answer", flush=True))
        print(act.stats().workers[0].pid, flush=True)
        await asyncio.sleep(60)
    print("not reached", flush=True)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
asyncio.run(main())
"""


@pytest.fixture
def program(importable, tmp_path):
    started = []

    def start(text, **values):
        mark, go = tmp_path / "mark", tmp_path / "go"
        text = text.format(root=str(ROOT), importable=str(importable), mark=str(mark), go=str(go), **values)
        process = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert workers, process.stderr.read()
        return process, workers, mark, go

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_around_the_lifespan_gets_its_signal_and_ends_it(program, until, alive, number):
    process, workers, mark, go = program(_SERVER, after=1.0, grace=20)
    await until(mark.exists)
    process.send_signal(number)
    assert await asyncio.to_thread(process.stdout.readline) == "no more connections\n"
    go.touch()
    output, errors = process.communicate(timeout=20)
    # The server's own connections are longer than the drain, and have their lifespan until they end.
    assert output.splitlines() == [f"answer {workers[0]}", "open", "lifespan ended"], errors
    assert process.returncode in (-number, 130 if number is signal.SIGINT else -number)
    assert not any(map(alive, workers))


async def test_a_server_that_does_not_end_the_lifespan_within_the_grace_has_it_ended(program, until):
    process, _, mark, go = program(_SERVER, after=1.5, grace=0.5)
    await until(mark.exists)
    go.touch()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert output.splitlines()[-2:] == ["cancelled", "lifespan ended"]


async def test_an_earlier_handler_that_exits_does_so_after_the_drain(program, until, alive):
    process, workers, mark, go = program(_EXITING)
    await until(mark.exists)
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    assert process.poll() is None
    go.touch()
    output, errors = process.communicate(timeout=20)
    assert output == "answer\n", errors
    assert process.returncode == 5
    assert not any(map(alive, workers))


async def test_an_earlier_handler_is_called_for_each_signal(until):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        async with FunctionRunner("calls:echo") as echo, drain_on_signals(echo, grace=0.3):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] * 2


# Signals to all processes of the service


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_every_process_ends_no_worker(program, until, number):
    process, workers, mark, go = program(_SERVER, after=0, grace=20)
    await until(mark.exists)
    for pid in (*workers, process.pid):  # systemd's KillMode=control-group
        os.kill(pid, number)
    assert await asyncio.to_thread(process.stdout.readline) == "no more connections\n"
    go.touch()
    output, errors = process.communicate(timeout=20)
    assert output.splitlines()[0] == f"answer {workers[0]}", errors
    assert "signal" not in errors.lower()


async def test_a_worker_that_is_just_starting_takes_no_notice_either(until):
    async with asyncio.timeout(60):
        for _ in range(5):
            runner = FunctionRunner("calls:echo")
            starting = asyncio.create_task(runner.start())
            await until(lambda runner=runner: any(each.pid for each in runner._supervisor.pool.coming))
            (coming,) = runner._supervisor.pool.coming
            os.kill(coming.pid, signal.SIGTERM)
            os.kill(coming.pid, signal.SIGINT)
            await starting
            assert runner.stats().workers[0].pid == coming.pid
            await runner.close()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_a_worker_serves_on(name):
    async with FunctionRunner("starts:act") as act:
        (pid,) = (worker.pid for worker in act.stats().workers)
        assert await act("send_oneself", name) == await act("send_oneself", name) == pid


@pytest.mark.parametrize("how", ["program", "fork"])
async def test_what_a_worker_starts_can_be_terminated(how):
    async with FunctionRunner("starts:act") as act:
        assert await act("terminated", how) == -signal.SIGTERM


# Refusals


async def test_a_breaker_stays_closed_while_the_runner_drains_and_after(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    guarded = breaker(fail_max=2)
    act = await FunctionRunner("calls:act").start()
    call = guarded(act.__call__)
    held = asyncio.create_task(call("hold", str(mark), str(go)))
    await until(mark.exists)
    closing = asyncio.create_task(act.close())
    await until(lambda: act.state == "draining")
    for _ in range(5):
        with pytest.raises(RunnerClosed) as caught:
            await call("echo", 1)
    assert isinstance(caught.value, Rejected)
    assert (caught.value.guard, caught.value.reason, caught.value.retry_after) == ("act", "draining", None)
    go.touch()
    await held
    await closing
    for _ in range(5):
        with pytest.raises(RunnerClosed) as caught:
            await call("echo", 1)
    assert caught.value.reason == "closed"
    assert guarded.state == "closed"


async def test_a_runner_that_was_not_started_is_told_apart():
    with pytest.raises(RunnerClosed, match="not started") as caught:
        await FunctionRunner("calls:echo")(1)
    assert caught.value.reason == "not_started"
