"""Timeouts of single calls."""

from __future__ import annotations

import asyncio
import inspect
import math
from contextlib import aclosing

import numpy as np
import pytest

from guardrails import breaker, deadline_in, guard, retry, timeout
from guardrails.errors import TimedOut
from runners import FunctionRunner
from runners.errors import InvalidInput, InvalidType, RequestTimeout, RunnerClosed, StreamMismatch

pytestmark = pytest.mark.anyio


async def test_a_call_has_its_own_timeout_and_the_runner_keeps_its():
    async with FunctionRunner("asyncio:sleep", timeout=30) as sleep:
        brief = sleep.with_timeout(0.05)
        with pytest.raises(RequestTimeout):
            await brief(60)
        assert await sleep(0, 1) == 1
        assert await sleep.with_timeout(20)(0, 2) == 2
        assert (sleep.timeout, brief.timeout) == (30, 0.05)


async def test_a_longer_one_than_the_runner_s():
    async with FunctionRunner("asyncio:sleep", timeout=0.05) as sleep:
        for seconds in (20, None, math.inf, np.float32(20)):
            assert await sleep.with_timeout(seconds)(0.2, "done") == "done"


async def test_all_keywords_are_the_function_s():
    async with FunctionRunner("calls:describe") as describe:
        assert await describe(1, self=5) == [1, [], "w", {"self": 5}]
        answer = await describe.with_timeout(20)(1, 2, word="a", timeout=3, seconds=4, self=5, args=6)
    assert answer == [1, [2], "a", {"timeout": 3, "seconds": 4, "self": 5, "args": 6}]


async def test_a_stream_has_it_too(until):
    async with FunctionRunner("streams:count", timeout=30) as count:
        assert [item async for item in count.with_timeout(20).stream(3)] == [0, 1, 2]
        with pytest.raises(StreamMismatch):
            await count.with_timeout(20)(3)
        with pytest.raises(RequestTimeout):  # for all of it, also while its reader is slow
            async with aclosing(count.with_timeout(0.05).stream(10**9)) as items:
                async for _ in items:
                    pass
        async with aclosing(count.with_timeout(20).stream(10**6)) as items:
            async for _ in items:
                break
        await until(lambda: count.stats().workers[0].in_flight == 0)


async def test_it_works_under_guards():
    async with FunctionRunner("asyncio:sleep") as sleep:
        circuit = breaker(fail_max=1)
        brief = circuit(sleep.with_timeout(0.05))
        assert inspect.iscoroutinefunction(brief)
        with pytest.raises(RequestTimeout):
            await brief(60)
        assert circuit.state == "open"
        with pytest.raises(TimedOut):
            await timeout(0.05)(sleep.with_timeout(20))(60)
        assert await guard(retry(attempts=2), timeout(20))(sleep.with_timeout(20))(0, 1) == 1
    async with FunctionRunner("streams:count") as count:
        stream = timeout(20)(count.with_timeout(20).stream)
        assert [item async for item in stream(3)] == [0, 1, 2]


async def test_a_nearer_deadline_counts():
    async with FunctionRunner("asyncio:sleep") as sleep:
        with deadline_in(0.05), pytest.raises(RequestTimeout):
            await sleep.with_timeout(20)(60)
        with deadline_in(20), pytest.raises(RequestTimeout):
            await sleep.with_timeout(0.05)(60)


async def test_a_caller_that_leaves_withdraws_its_request():
    async with FunctionRunner("asyncio:sleep") as sleep:
        task = asyncio.create_task(sleep.with_timeout(20)(60))
        while not sleep.stats().workers[0].in_flight:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await sleep.with_timeout(20)(0, 1) == 1


async def test_it_belongs_to_its_runner():
    runner = FunctionRunner("calls:echo", name="echoes")
    brief = runner.with_timeout(2)
    assert repr(brief) == "<TimedFunction 'echoes' within 2 s>"
    with pytest.raises(RunnerClosed, match="not started"):
        await brief(1)
    async with runner:
        assert await brief(1) == 1
    with pytest.raises(RunnerClosed):
        await brief(1)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, -math.inf])
async def test_seconds_are_above_0(seconds):
    with pytest.raises(ValueError, match=r"seconds must be a number of seconds above 0, not .*; None is no limit"):
        FunctionRunner("calls:echo").with_timeout(seconds)


@pytest.mark.parametrize("seconds", ["2", True, [2]])
async def test_seconds_are_a_number(seconds):
    with pytest.raises(TypeError, match="seconds must be a number, not"):
        FunctionRunner("calls:echo").with_timeout(seconds)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (math.nan, InvalidInput, "timeout must be a number of seconds, not nan"),
        ("2", InvalidType, "timeout must be a number, not '2'"),
        (True, InvalidType, "timeout must be a number, not True"),
        (10**400, InvalidInput, "timeout must be a number that a float can hold"),
    ],
    ids=["nan", "text", "bool", "huge"],
)
async def test_a_timeout_that_is_none_fails_that_call_alone(minilm, value, error, words):
    from runners import EmbeddingRunner

    model, tokenizer = minilm
    async with EmbeddingRunner(model, tokenizer=tokenizer, threads=1) as embedder:
        with pytest.raises(error, match=words):
            await embedder.embed(["hola"], timeout=value)
        assert (await embedder.embed(["hola"], timeout=math.inf)).shape == (1, 384)
        with pytest.raises(RequestTimeout):  # computed from a deadline that has passed
            await embedder.embed(["hola"], timeout=-1)
