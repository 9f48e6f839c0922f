"""No request waits behind a busy worker while another one is idle, and none is run twice for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from runners import FunctionRunner
from runners.errors import InvalidOption

pytestmark = pytest.mark.anyio


async def seconds(*calls):
    began = time.monotonic()
    await asyncio.gather(*calls)
    return time.monotonic() - began


@pytest.fixture
def marks(tmp_path):
    """How often each call ran."""
    path = tmp_path / "marks"

    def count():
        return Counter(path.read_text().split()) if path.exists() else Counter()

    count.path = str(path)
    return count


async def short_calls(runner, *args):
    """Until the runner knows that they are short, and gives some ahead."""
    for _ in range(200):
        await runner(*args)


async def test_calls_do_not_wait_behind_a_long_one(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", workers=2) as act:
        long = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        pids = {await act("nap", 0.01) for _ in range(6)}
        pids |= set(await asyncio.gather(*(act("nap", 0.01) for _ in range(6))))
        assert not long.done()
        go.touch()
        assert {await long}.isdisjoint(pids)


@pytest.mark.parametrize("how", ["sleeps", "holds the interpreter"])
async def test_what_was_given_ahead_of_a_long_call_is_taken_back(how, tmp_path, until, marks):
    """Also where nothing in the busy worker can answer."""
    long = tmp_path / "long"
    async with FunctionRunner("calls:act", workers=2) as act:
        await short_calls(act, "echo")
        workers = act._supervisor.workers
        if how == "sleeps":
            busy = asyncio.create_task(act("hold", str(long), str(tmp_path / "go")))
        else:
            busy = asyncio.create_task(act("native_nap", str(long), 20.0))
        # In the same turn, so that some are given to the worker that is about to be busy.
        calls = [asyncio.create_task(act("mark", marks.path, n)) for n in range(30)]
        await until(lambda: all(call.done() for call in calls), seconds=8)
        assert not busy.done()
        pids = {call.result() for call in calls}
        assert pids <= {worker.pid for worker in workers}
        assert marks() == Counter({str(n): 1 for n in range(30)})
        if how == "sleeps":
            (tmp_path / "go").touch()
            await busy
        else:
            busy.cancel()


async def test_a_worker_that_is_started_later_gets_what_waits(until):
    async with FunctionRunner("calls:act", workers=(1, 2)) as act:
        first = asyncio.create_task(act("nap", 30))
        calls = [asyncio.create_task(act("nap", 0.01)) for _ in range(6)]
        await until(lambda: all(call.done() for call in calls))
        assert not first.done()
        first.cancel()


async def test_recalls_race_with_beginnings_and_each_call_runs_once(marks):
    """Calls around the length at which they are taken back."""
    async with FunctionRunner("calls:act", workers=2) as act:
        await short_calls(act, "echo")

        async def caller(number):
            for turn in range(40):
                if (number + turn) % 10 == 0:
                    await act("nap", 0.012)
                await act("mark", marks.path, f"{number}.{turn}")

        await asyncio.gather(*(caller(number) for number in range(20)))
        assert marks() == Counter({f"{number}.{turn}": 1 for number in range(20) for turn in range(40)})
        stats = act.stats()
        assert (stats.failed, stats.queued, stats.redelivered) == (0, 0, 0)


@pytest.mark.parametrize("function", ["first_held", "first_held_async"])
async def test_a_stream_does_not_wait_behind_another_while_a_worker_is_idle(function, tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner(f"streams:{function}", workers=2) as runner:
        streams = [runner.stream(str(mark), str(go), 3)]
        held = [asyncio.create_task(anext(streams[0]))]
        await until(mark.exists)
        # Both workers have one then, and others are given to the first one too.
        streams.append(runner.stream(str(tmp_path / "other"), str(tmp_path), 1000))
        await anext(streams[1])
        for _ in range(3):
            quick = [runner.stream(str(tmp_path / "quick"), str(tmp_path), 3) for _ in range(4)]
            for stream in quick:
                assert len([item async for item in stream]) == 4
        assert not held[0].done()
        go.touch()
        await held[0]
        for stream in streams:
            await stream.aclose()


# Concurrency


async def test_async_calls_run_together(tmp_path, until):
    """Each waits for all the others."""
    async with FunctionRunner("meeting:meet") as meet:
        assert sorted(await asyncio.gather(*(meet(8) for _ in range(8)))) == list(range(1, 9))


async def test_concurrency_bounds_them():
    async with FunctionRunner("meeting:together", concurrency=3) as together:
        assert max(await asyncio.gather(*(together() for _ in range(12)))) == 3
    async with FunctionRunner("meeting:together", concurrency=1) as together:
        assert max(await asyncio.gather(*(together() for _ in range(3)))) == 1


async def test_one_of_them_is_cancelled_and_its_place_is_free(tmp_path, until):
    left = tmp_path / "left"
    async with FunctionRunner("meeting:linger", concurrency=2) as linger:
        staying = asyncio.create_task(linger(str(left), "stays", str(tmp_path / "go")))
        leaving = asyncio.create_task(linger(str(left), "leaves", str(tmp_path / "never")))
        await until(lambda: left.exists() and len(left.read_text().split()) == 2)
        leaving.cancel()
        await until(lambda: "leaves-cancelled" in left.read_text())
        (tmp_path / "go").touch()
        assert await linger(str(left), "third", str(tmp_path / "go")) == "third"
        assert await staying == "stays"
        assert linger.stats().restarts == {}


async def test_async_generators_run_together():
    async with FunctionRunner("meeting:meet_in_streams") as runner:

        async def read():
            return [item async for item in runner.stream(5)]

        assert sorted(await asyncio.gather(*(read() for _ in range(5)))) == [[n] for n in range(1, 6)]


async def test_a_task_that_a_function_left_running_goes_on_between_calls(until):
    async with FunctionRunner("meeting:leave_a_task") as leave:
        await leave("start")
        await asyncio.sleep(0.1)
        assert await leave("look") > 3


async def test_what_a_task_that_a_function_started_raises_ends_no_worker(caplog, until):
    async with FunctionRunner("meeting:exits_in_a_task") as exits:
        (worker,) = exits.stats().workers
        assert await exits() == worker.pid
        await until(lambda: "an exception in a task that meeting:exits_in_a_task started" in caplog.text)
        assert await exits() == worker.pid


async def test_concurrency_is_for_functions_that_can_have_it():
    with pytest.raises(InvalidOption, match="concurrency=4: 'calls:echo' is a plain function"):
        await FunctionRunner("calls:echo", concurrency=4).start()
    for wrong in (0, -1, 1.5, True, "4"):
        with pytest.raises(ValueError, match="concurrency"):
            FunctionRunner("calls:echo", concurrency=wrong)
