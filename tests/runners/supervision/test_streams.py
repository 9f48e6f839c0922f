"""Streamed answers: all items in order, a bounded number of them on the way, and an end whatever happens."""

from __future__ import annotations

import asyncio
import gc
import os
import signal

import psutil
import pytest

from guardrails import breaker, deadline_in, guard, timeout
from guardrails.errors import Rejected
from runners import FunctionRunner
from runners.errors import (
    InvalidInput,
    PoisonedRequest,
    RemoteError,
    RequestTimeout,
    RunnerClosed,
    RunnerCrashed,
    StreamMismatch,
    UnsendableValue,
)
from runners.protocol.values import pack, unpack
from runners.spec import Faults
from runners.supervision.scaling import _longest_wait

pytestmark = pytest.mark.anyio
both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)


def only(runner):
    (worker,) = runner._supervisor.workers
    return worker


def free(runner):
    return not any(worker.in_flight for worker in runner._supervisor.workers)


async def read(stream):
    return [item async for item in stream]


def raw(runner, *args):
    """A stream that is submitted at once, though nobody has asked for an item."""
    return runner._ask_stream(*pack((args, {})), window=runner.window, timeout=None, redeliver=runner.idempotent)


# All of it, in order


@both_loops
@pytest.mark.parametrize("function", ["count", "count_async"])
async def test_ten_thousand_items_and_a_reader_that_is_slow_at_times(function):
    async with FunctionRunner(f"streams:{function}", window=7) as runner:
        got = []
        async for item in runner.stream(10_000):
            got.append(item)
            if item % 500 == 0:
                await asyncio.sleep(0.002)
            (request,) = only(runner).in_flight.values() or [None]
            assert request is None or len(request.buffer) <= 7
        assert got == list(range(10_000))
        stats = runner.stats()
        assert (stats.submitted, stats.answered, stats.failed, stats.cancelled) == (1, 1, 0, 0)
        assert free(runner)


async def test_what_else_is_a_generator_function_and_what_else_items_hold():
    async with FunctionRunner("streams:countdown", window=1) as runner:
        assert await read(runner.stream(n=3)) == [3, 2, 1]
        assert await read(runner.stream(0)) == []
    async with FunctionRunner("streams:arrays") as runner:
        got = await read(runner.stream(40))
        assert [array.sum() for array in got] == [1000 * n for n in range(40)]


async def test_many_streams_of_many_workers():
    async with FunctionRunner("streams:count", workers=2, window=3) as runner:
        got = await asyncio.gather(*(read(runner.stream(n)) for n in range(60)))
        assert got == [list(range(n)) for n in range(60)]


# Bounded


async def test_a_reader_that_stops_reading_costs_a_window_and_stops_nobody_else(tmp_path, until):
    made = tmp_path / "made"
    async with FunctionRunner("streams:made", window=10) as runner:
        stream = runner.stream(str(made), 10**9)
        assert [await anext(stream) for _ in range(23)] == list(range(23))
        (request,) = only(runner).in_flight.values()
        await until(lambda: request.paused)
        assert len(request.buffer) == request.allowed - 23 <= 10
        assert await read(runner.stream(os.devnull, 500)) == list(range(500))
        assert len(made.read_text().split()) == request.allowed  # it was not advanced meanwhile
        await until(lambda: only(runner).busy_for() == 0.0)  # nor does it stand in the socket's way
        assert await anext(stream) == 23
        await stream.aclose()


async def test_large_items_that_nobody_reads_do_not_grow_this_process(until):
    async with FunctionRunner("streams:count", window=8) as runner:
        before = psutil.Process().memory_info().rss
        streams = [runner.stream(10_000, 100_000) for _ in range(8)]
        for stream in streams:
            await anext(stream)
        requests = list(only(runner).in_flight.values())
        await until(lambda: all(request.paused for request in requests))
        assert psutil.Process().memory_info().rss - before < 30e6  # 8 x 8 x 100 kB, and what reading needs
        for stream in streams:
            await stream.aclose()


async def test_a_worker_whose_streams_wait_for_their_readers_is_not_stuck(limit):
    async with FunctionRunner("streams:count", window=2, heartbeat=0.2) as runner:
        limit(runner, cancel_grace=0.2)
        stream = runner.stream(10)
        await anext(stream)
        await asyncio.sleep(0.6)
        assert await read(stream) == list(range(1, 10))
        assert runner.stats().restarts == {}


async def test_a_worker_that_does_not_notice_that_its_last_reader_left_is_stuck(limit, until):
    async with FunctionRunner("streams:count", window=2) as runner:
        limit(runner, cancel_grace=0.2)
        stream, pid = runner.stream(10), only(runner).pid
        await anext(stream)
        (request,) = only(runner).in_flight.values()
        await until(lambda: request.paused)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.4)
        assert runner.stats().restarts == {}
        await stream.aclose()
        await until(lambda: runner.stats().restarts == {"stuck_not_responding": 1})


async def test_a_worker_that_sends_more_than_it_may_breaks_the_protocol():
    async with FunctionRunner("streams:cheat", window=2) as runner:
        with pytest.raises(RunnerCrashed, match=r"ended by the runner \(protocol\)"):
            await read(runner.stream())
        assert runner.stats().restarts == {"protocol": 1}


async def test_a_paused_stream_is_no_reason_for_another_worker(until):
    async with FunctionRunner("streams:count", window=1) as runner:
        with raw(runner, 10):
            (request,) = only(runner).in_flight.values()
            await until(lambda: request.paused)
            await until(lambda: only(runner).busy_for() == 0.0)
            assert _longest_wait(runner._supervisor.pool, request.accepted + 60) == 0


async def test_guards_work_on_streams(tmp_path):
    watched = breaker(fail_max=1)
    async with FunctionRunner("streams:raises_async") as runner:
        guarded = guard(watched, timeout(20))(runner.stream)
        with pytest.raises(RemoteError):
            await read(guarded(2))
        with pytest.raises(Rejected):
            await read(guarded(2))
        assert runner.stats().submitted == 1


async def test_a_stream_that_ends_while_its_reader_takes_nothing_is_answered(until):
    async with FunctionRunner("streams:gives_up") as runner:
        stream = runner.stream(1000)
        assert await anext(stream) == 0
        await until(lambda: runner.stats().workers[0].in_flight == 0, seconds=5)
        await stream.aclose()


# Leaving


async def leave_by_break(runner, *args):
    async for _ in runner.stream(*args):
        break


async def leave_by_close(runner, *args):
    stream = runner.stream(*args)
    await anext(stream)
    await stream.aclose()


async def leave_by_cancellation(runner, *args):
    task = asyncio.create_task(read(runner.stream(*args)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_error(runner, *args):
    with pytest.raises(ZeroDivisionError):
        async for item in runner.stream(*args):
            item / 0


async def leave_late(runner, *args):
    with pytest.raises(RequestTimeout), deadline_in(0.05):
        await read(runner.stream(*args))


@both_loops
@pytest.mark.parametrize("function", ["made", "made_async"])
async def test_leaving_ends_the_generator_and_frees_its_place(function, tmp_path, until):
    ways = [leave_by_break, leave_by_close, leave_by_cancellation, leave_by_error, leave_late]
    async with FunctionRunner(f"streams:{function}", window=3) as runner:
        for way in ways:
            made = tmp_path / way.__name__
            await way(runner, str(made), 10**9)
            await until(lambda made=made: made.exists() and made.read_text().endswith("end\n"))
            await until(lambda: free(runner))
        assert runner.stats().restarts == {}
        assert only(runner).in_flight == {}


async def test_a_stream_that_is_forgotten_unread_is_ended_by_the_garbage_collector(tmp_path, until):
    made = tmp_path / "made"
    async with FunctionRunner("streams:made", window=3) as runner:
        holder = [runner.stream(str(made), 10**9)]
        await anext(holder[0])
        holder.append(holder)
        del holder
        gc.collect()
        await until(lambda: made.read_text().endswith("end\n"))
        await until(lambda: free(runner))
        assert runner.stats().cancelled == 1


async def test_the_place_is_free_for_the_next_one_at_once():
    async with FunctionRunner("streams:count", window=1) as runner:
        for _ in range(100):  # more than the worker has places
            async for _ in runner.stream(10**9):
                break
        assert await read(runner.stream(3)) == [0, 1, 2]


async def test_a_stream_that_had_not_begun_is_dropped(tmp_path, until):
    made, go = tmp_path / "made", tmp_path / "go"
    async with FunctionRunner("streams:first_held") as runner:
        held = asyncio.create_task(read(runner.stream(str(made), str(go), 3)))
        await until(made.exists)
        second = asyncio.create_task(read(runner.stream(str(made), str(go), 3)))
        await until(lambda: len(only(runner).in_flight) == 2)
        second.cancel()
        await asyncio.wait([second])
        go.touch()
        assert len(await held) == 4
        await until(lambda: free(runner))
        assert made.read_text() == "begun\n"


async def test_a_generator_that_hangs_when_it_is_closed_is_killed(tmp_path, limit, until):
    async with FunctionRunner("streams:stubborn") as runner:
        limit(runner, cancel_grace=0.2)
        await leave_by_break(runner, str(tmp_path / "mark"))
        await until(lambda: runner.stats().restarts == {"stuck_abandoned": 1})


async def test_a_generator_that_will_not_end_is_let_go_with_a_word(caplog, until):
    async with FunctionRunner("streams:loud", window=1) as runner:
        await leave_by_break(runner)
        await until(lambda: free(runner))
        await until(lambda: "generator ignored GeneratorExit" in caplog.text)
        assert runner.stats().restarts == {}


async def test_the_time_limit_is_for_all_of_it(tmp_path, until):
    async with FunctionRunner("streams:made", timeout=0.3, window=2) as runner:
        made, got = tmp_path / "made", []
        with pytest.raises(RequestTimeout):
            async for item in runner.stream(str(made), 10**9):
                got.append(item)
                await asyncio.sleep(0.002)
        assert got == list(range(len(got)))
        assert got
        await until(lambda: made.read_text().endswith("end\n"))
        await until(lambda: free(runner))
        assert runner.stats().expired == 1


# Errors


@pytest.mark.parametrize(("function", "kind"), [("raises", ValueError), ("raises_async", RemoteError)])
async def test_an_exception_comes_after_the_items_before_it(function, kind):
    async with FunctionRunner(f"streams:{function}", window=3) as runner:
        got = []
        with pytest.raises(RemoteError, match="after the items") as caught:
            async for item in runner.stream(20):
                got.append(item)
        assert got == list(range(20))
        assert isinstance(caught.value, kind)
        assert f"in {function}" in caught.value.traceback
        assert "generators.py" not in caught.value.traceback
        with pytest.raises(TypeError, match="positional argument"):
            await read(runner.stream())
        assert runner.stats().restarts == {}
        assert free(runner)


async def test_an_item_that_is_not_data():
    async with FunctionRunner("streams:not_data") as runner:
        stream = runner.stream()
        assert await anext(stream) == 1
        with pytest.raises(UnsendableValue, match="an item of streams:not_data cannot be sent back"):
            await anext(stream)
        with pytest.raises(UnsendableValue, match="an argument cannot be sent"):
            await read(runner.stream(object()))


@pytest.mark.parametrize("lazy", [False, True])
async def test_the_wrong_way_of_calling_says_the_right_one(lazy):
    async with FunctionRunner("streams:count", lazy=lazy) as runner:
        for _ in range(2):
            with pytest.raises(StreamMismatch, match="'streams:count' is a generator function: read it with") as caught:
                await runner(3)
            assert isinstance(caught.value, TypeError)
            assert ".stream(" in str(caught.value)
        assert await read(runner.stream(3)) == [0, 1, 2]
    async with FunctionRunner("calls:echo", lazy=lazy) as runner:
        for _ in range(2):
            with pytest.raises(StreamMismatch, match="'calls:echo' is no generator function: call it with"):
                await read(runner.stream(3))
        assert await runner(3) == 3


async def test_misuse():
    with pytest.raises(ValueError, match="window takes a whole number from 1 to 65536, not 0"):
        FunctionRunner("streams:count", window=0)
    with pytest.raises(ValueError, match="not 65537"):
        FunctionRunner("streams:count", window=65_537)
    with pytest.raises(RunnerClosed):
        await read(FunctionRunner("streams:count").stream(3))
    async with FunctionRunner("streams:count") as runner:
        stream = runner._ask_stream(b"\x01", b"", window=1, timeout=None, redeliver=True)
        with stream, pytest.raises(InvalidInput, match="the arguments cannot be read"):
            await anext(stream)
        with stream, pytest.raises(StopAsyncIteration):
            await anext(raw(runner, 0))


# Deaths


async def test_killed_before_the_first_item_was_taken_it_is_run_again(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("streams:first_held", idempotent=True) as runner:
        old = only(runner).pid
        reading = asyncio.create_task(read(runner.stream(str(mark), str(go), 50)))
        await until(mark.exists)
        os.kill(old, signal.SIGKILL)
        go.touch()
        pid, *rest = await reading
        assert pid != old
        assert rest == list(range(50))
        assert (runner.stats().redelivered, runner.stats().answered) == (1, 1)


@both_loops
async def test_items_that_came_and_were_not_taken_do_not_count(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    go.touch()
    async with FunctionRunner("streams:pids", idempotent=True, window=5) as runner:
        old = only(runner)
        with raw(runner, str(mark), str(go), 50) as stream:
            (request,) = old.in_flight.values()
            await until(lambda: len(request.buffer) == 5)
            os.kill(old.pid, signal.SIGKILL)
            await until(lambda: runner.stats().redelivered)
            pid, *rest = [unpack(*item) async for item in stream]
            assert stream.answer is not None
        assert pid == only(runner).pid != old.pid
        assert rest == list(range(50))
        assert mark.read_text() == "begun\nbegun\n"


@both_loops
async def test_after_the_first_item_it_is_over(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    go.touch()
    async with FunctionRunner("streams:pids", idempotent=True, window=5) as runner:
        stream = runner.stream(str(mark), str(go), 50)
        pid = await anext(stream)
        (request,) = only(runner).in_flight.values()
        await until(lambda: request.paused)
        os.kill(pid, signal.SIGKILL)
        await until(request.future.done)
        got = []
        with pytest.raises(RunnerCrashed, match="after 1 items of this stream had been delivered") as caught:
            async for item in stream:
                got.append(item)
        assert got == list(range(4))  # those that were on the way
        assert caught.value.partial is None
        assert mark.read_text() == "begun\n"
        assert (runner.stats().failed, runner.stats().redelivered) == (1, 0)


async def test_what_may_not_be_run_twice_and_has_begun_fails(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("streams:pids", window=1) as runner:
        with raw(runner, str(mark), str(go), 50) as paused:
            (request,) = only(runner).in_flight.values()
            await until(lambda: request.paused)
            await until(lambda: only(runner).busy_for() == 0.0)  # nothing runs: it has begun all the same
            os.kill(only(runner).pid, signal.SIGKILL)
            await until(request.future.done)
            assert isinstance(unpack(*await anext(paused)), int)
            with pytest.raises(RunnerCrashed, match="may not be run twice"):
                await anext(paused)
    async with FunctionRunner("streams:first_held") as runner:
        reading = asyncio.create_task(read(runner.stream(str(tmp_path / "other"), str(go), 50)))
        waiting = asyncio.create_task(read(runner.stream(str(tmp_path / "third"), os.devnull, 2)))
        await until((tmp_path / "other").exists)
        await until(lambda: len(only(runner).in_flight) == 2)
        os.kill(only(runner).pid, signal.SIGKILL)
        with pytest.raises(RunnerCrashed, match="may not be run twice"):
            await reading
        assert len(await waiting) == 3  # it had not begun


async def test_a_crash_of_its_own_is_a_strike(tmp_path):
    async with FunctionRunner("streams:crash_at", idempotent=True) as runner:
        assert await read(runner.stream(str(tmp_path / "mark"), 0)) == list(range(10))
        assert runner.stats().restarts == {"sigabrt": 1}
    async with FunctionRunner("streams:made", idempotent=True, faults=Faults(trigger="boom", effect="crash")) as runner:
        with pytest.raises(PoisonedRequest, match="SIGSEGV"):
            await read(runner.stream("boom", 3))
        assert await read(runner.stream(os.devnull, 3)) == [0, 1, 2]


# Replacement and the end


@both_loops
async def test_a_replaced_worker_finishes_its_streams(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    go.touch()
    async with FunctionRunner("streams:pids", window=2) as runner:
        old = only(runner)
        stream = runner.stream(str(mark), str(go), 200)
        assert await anext(stream) == old.pid
        recycling = asyncio.create_task(runner.recycle())
        await until(lambda: old.state == "draining")
        assert await anext(runner.stream(str(mark), str(go), 1)) != old.pid
        assert await read(stream) == list(range(200))
        await recycling
        assert runner.stats().restarts == {"recycle": 1}


async def test_leaving_lets_a_draining_worker_go(tmp_path, until):
    async with FunctionRunner("streams:made", window=2) as runner:
        made, old = tmp_path / "made", only(runner)
        stream = runner.stream(str(made), 10**9)
        await anext(stream)
        recycling = asyncio.create_task(runner.recycle())
        await until(lambda: old.state == "draining")
        await stream.aclose()
        await recycling
        assert made.read_text().endswith("end\n")


async def test_close_waits_for_streams_and_not_for_ever():
    runner = FunctionRunner("streams:count", window=2, grace=5)
    await runner.start()
    stream = runner.stream(100)
    await anext(stream)
    closing = asyncio.create_task(runner.close())
    assert await read(stream) == list(range(1, 100))
    await closing
    runner = FunctionRunner("streams:count", window=2, grace=0.1)
    await runner.start()
    stream = runner.stream(100)
    await anext(stream)
    await runner.close()
    got = []
    with pytest.raises(RunnerClosed, match="was closed before this request was answered"):
        async for item in stream:
            got.append(item)
    assert len(got) <= 2


async def test_a_stream_that_was_closed_has_no_more_items():
    async with FunctionRunner("streams:count", window=1) as runner:
        stream = raw(runner, 10)
        assert unpack(*await anext(stream)) == 0
        stream.close()
        stream.close()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert runner.stats().cancelled == 1
