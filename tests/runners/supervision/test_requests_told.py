"""Each request of a caller is told once when it is over, however it ends; and how a runner does, once a second."""

from __future__ import annotations

import asyncio
import gc
import os
import signal

import pytest

from guardrails import timeout
from guardrails.errors import QueueFull, TimedOut
from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import RemoteError, RequestTimeout, RunnerClosed, RunnerCrashed, UnsendableValue
from runners.events import RequestFinished, RunnerSampled
from runners.protocol.values import pack
from runners.supervision import report, watch

pytestmark = pytest.mark.anyio


def requests():
    return capture_events(RequestFinished)


def told(seen):
    """The one event in `seen`: what it was, its outcome and error."""
    (event,) = seen
    assert event.source == "act"
    assert event.model == "calls:act"
    assert 0 <= event.queued <= event.seconds < 30
    assert (event.input_tokens, event.output_tokens) == (None, None)
    assert event.first is None or 0 <= event.first <= event.seconds
    return event.operation, event.outcome, event.error


def killed(runner):
    os.kill(runner.stats().workers[0].pid, signal.SIGKILL)


# Calls


async def test_an_answer():
    async with FunctionRunner("calls:act") as act:
        with requests() as seen:
            assert await act("echo", 7) == 7
        assert await act("echo", 7) == 7
    assert told(seen) == ("call", "answered", None)
    assert seen[0].queued < seen[0].seconds


async def test_an_error():
    calls = [
        (("fail", "KeyError"), RemoteError),
        (("fail", "Own"), RemoteError),
        (("unsendable",), UnsendableValue),
        (("kill", "SIGKILL"), RunnerCrashed),
    ]
    async with FunctionRunner("calls:act") as act:
        for call, error in calls:
            with requests() as seen, pytest.raises(error) as caught:
                await act(*call)
            assert told(seen) == ("call", "failed", type(caught.value).__name__)


async def test_one_that_expires_while_it_runs_and_one_while_it_waits():
    async with FunctionRunner("calls:act", timeout=0.3) as act:
        with requests() as seen:
            held = asyncio.create_task(act("nap", 0.8))
            await asyncio.sleep(0.1)
            results = await asyncio.gather(held, *(act("echo") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RequestTimeout] * 4
    assert [(event.outcome, event.error) for event in seen] == [("expired", "RequestTimeout")] * 4
    assert all(event.seconds >= 0.29 for event in seen)


async def test_one_that_no_worker_ever_had_waited_all_the_time():
    async with FunctionRunner("calls:act", lazy=True, timeout=0.02) as act:
        with requests() as seen, pytest.raises(RequestTimeout):
            await act("echo")
    assert told(seen) == ("call", "expired", "RequestTimeout")
    assert seen[0].queued == seen[0].seconds


async def test_a_caller_that_leaves(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act") as act:
        with requests() as cancelled:
            call = asyncio.create_task(act("hold", str(mark), str(go)))
            await until(mark.exists)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        with requests() as cut_off, pytest.raises(TimedOut):
            await timeout(0.2)(act.__call__)("hold", str(mark), str(go))
        with requests() as closed:
            call = act("hold", str(mark), str(go))
            call.send(None)
            call.close()
        go.touch()
    assert told(cancelled) == told(cut_off) == ("call", "cancelled", "CancelledError")
    assert told(closed) == ("call", "cancelled", "GeneratorExit")


async def test_one_that_is_refused(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    act = FunctionRunner("calls:act", queue=0)
    with requests() as seen, pytest.raises(RunnerClosed):
        await act("echo")
    assert told(seen) == ("call", "failed", "RunnerClosed")
    async with act:
        room = act._supervisor.workers[0].capacity
        held = [asyncio.create_task(act("hold", str(mark), str(go))) for _ in range(room)]
        await until(mark.exists)
        with requests() as seen, pytest.raises(QueueFull):
            await act("echo")
        assert told(seen) == ("call", "failed", "QueueFull")
        assert seen[0].queued == 0
        go.touch()
        await asyncio.gather(*held)


async def test_what_is_wrong_with_the_arguments_is_no_request():
    async with FunctionRunner("calls:act") as act:
        with requests() as seen, pytest.raises(UnsendableValue):
            await act("echo", object())
    assert seen == []


async def test_one_that_waited_for_a_worker_says_how_long(tmp_path):
    async with FunctionRunner("calls:act", lazy=True) as act:
        with requests() as seen:
            await act("echo")
    assert told(seen) == ("call", "answered", None)
    assert 0.01 < seen[0].queued < seen[0].seconds


async def test_one_that_was_run_twice_is_one(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", idempotent=True) as act:
        with requests() as seen:
            call = asyncio.create_task(act("hold", str(mark), str(go)))
            await until(mark.exists)
            killed(act)
            await until(lambda: mark.read_text().count("x") == 2)
            go.touch()
            await call
    assert told(seen) == ("call", "answered", None)
    assert seen[0].queued < 0.5


async def test_many_at_once_are_each_told():
    async with FunctionRunner("calls:act", workers=2) as act:
        with requests() as seen:
            await asyncio.gather(*(act("echo", number) for number in range(300)))
    assert [event.outcome for event in seen] == ["answered"] * 300


async def test_a_call_that_is_sent_in_pieces_is_one():
    async with FunctionRunner("calls:act") as act:
        with requests() as seen:
            bodies = [pack((("echo", 7), {}))] * 40
            assert len(await act._ask(bodies, timeout=None, redeliver=True, operation="embeddings")) == 40
        assert told(seen) == ("embeddings", "answered", None)
        with requests() as seen, pytest.raises(RemoteError):
            bodies = [pack((("fail", "KeyError"), {}))] * 40
            await act._ask(bodies, timeout=None, redeliver=True, operation="embeddings")
        assert told(seen) == ("embeddings", "failed", "RemoteKeyError")


async def test_nothing_is_made_while_nobody_listens(monkeypatch):
    monkeypatch.setattr(report.Report, "__init__", None)
    async with FunctionRunner("calls:act") as act:
        assert await act("echo", 7) == 7
        await act._ask([pack((("echo",), {}))] * 3, timeout=None, redeliver=True)
        with pytest.raises(TypeError), capture_events():
            await act("echo", 7)
    async with FunctionRunner("streams:count") as runner:
        assert [item async for item in runner.stream(3)] == [0, 1, 2]


# Streams


def streamed(seen):
    (event,) = seen
    assert event.operation == "stream"
    return event.outcome, event.error, event.first is not None


async def test_a_stream_to_its_end():
    async with FunctionRunner("streams:count") as runner:
        with requests() as seen:
            assert [item async for item in runner.stream(5)] == [0, 1, 2, 3, 4]
        with requests() as empty:
            assert [item async for item in runner.stream(0)] == []
    assert streamed(seen) == ("answered", None, True)
    assert 0 <= seen[0].queued <= seen[0].first <= seen[0].seconds
    assert streamed(empty) == ("answered", None, False)


async def read_on(stream):
    async for _ in stream:
        await asyncio.sleep(0)


async def test_a_reader_that_leaves():
    async with FunctionRunner("streams:count", window=1) as runner:
        for how in ("close", "drop", "cancel", "raise"):
            with requests() as seen:
                stream = runner.stream(10_000)
                assert await anext(stream) == 0
                if how == "close":
                    await stream.aclose()
                elif how == "cancel":
                    reader = asyncio.create_task(read_on(stream))
                    await asyncio.sleep(0.05)
                    reader.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reader
                    await stream.aclose()
                elif how == "raise":
                    with pytest.raises(ConnectionError):
                        await stream.athrow(ConnectionError())
                del stream
                gc.collect()
                await asyncio.sleep(0.05)
            outcome, error, first = streamed(seen)
            assert (outcome, first) == ("cancelled", True)
            # Cancelled between two items, the loop of the reader ends and the stream is closed.
            errors = {"raise": {"ConnectionError"}, "cancel": {None, "CancelledError"}}
            assert error in errors.get(how, {None})


async def test_a_stream_that_fails_after_some_items():
    async with FunctionRunner("streams:raises") as runner:
        with requests() as seen, pytest.raises(RemoteError):
            async for _ in runner.stream(3):
                pass
    assert streamed(seen) == ("failed", "RemoteValueError", True)


async def test_a_stream_whose_worker_dies():
    async with FunctionRunner("streams:count", window=1) as runner:
        with requests() as seen, pytest.raises(RunnerCrashed):
            async for _ in runner.stream(10_000):
                killed(runner)
    assert streamed(seen) == ("failed", "RunnerCrashed", True)


async def test_a_stream_that_expires():
    async with FunctionRunner("streams:count", window=1, timeout=0.3) as runner:
        with requests() as seen, pytest.raises(RequestTimeout):
            async for _ in runner.stream(10_000):
                await asyncio.sleep(0.02)
    assert streamed(seen) == ("expired", "RequestTimeout", True)


async def test_a_stream_that_is_refused_and_one_that_never_began():
    runner = FunctionRunner("streams:count")
    with requests() as seen:
        runner.stream(3)
        with pytest.raises(RunnerClosed):
            await anext(runner.stream(3))
        gc.collect()
    assert streamed(seen) == ("failed", "RunnerClosed", False)


# How a runner does


async def test_a_runner_is_sampled_while_anybody_listens(monkeypatch, until):
    monkeypatch.setattr(watch, "SAMPLE_EVERY", 0.2)
    async with FunctionRunner("calls:act") as act:
        await asyncio.sleep(0.3)
        asked_at = act._supervisor.asked_at
        with capture_events(RunnerSampled) as seen:
            await act("echo")
            began = asyncio.get_running_loop().time()
            await until(lambda: len(seen) == 4)
            took = asyncio.get_running_loop().time() - began
        assert act._supervisor.asked_at == asked_at, "it made exact readings be taken"
        stats = act.stats()
    assert took > 3 * 0.2 * 0.9
    assert [event.source for event in seen] == ["act"] * 4
    assert seen[-1].stats.answered == stats.answered == 1
    assert seen[-1].stats.workers[0].pid == stats.workers[0].pid
    assert seen[-1].stats.workers[0].private > 1 << 20


async def test_a_sink_that_fails_ends_no_watch(monkeypatch, until, caplog):
    monkeypatch.setattr(watch, "SAMPLE_EVERY", 0.01)
    from guardrails import subscribe

    seen = []

    def sink(event):
        if isinstance(event, RunnerSampled):
            seen.append(event)
            raise ZeroDivisionError

    end = subscribe(sink)
    try:
        async with FunctionRunner("calls:act"):
            await until(lambda: len(seen) >= 3)
    finally:
        end()
    assert "ZeroDivisionError" in caplog.text
