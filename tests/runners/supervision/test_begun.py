"""A call that has begun is never run again without leave, and whatever comes of it is an answer to its caller alone."""

from __future__ import annotations

import pytest

from runners import FunctionRunner
from runners.errors import RemoteError, RunnerCrashed, UnsendableValue

pytestmark = pytest.mark.anyio

RESULTS = [
    "tzinfo",
    "tzinfo out of memory",
    "tzinfo exits",
    "surrogate",
    "large int",
    "circle",
    "nested",
    "too large",
    "object",
]
ERRORS = ["wordless", "exit", "interrupt", "memory", "generator exit", "errno", "recursion"]


@pytest.mark.parametrize("function", ["act", "act_async"])
async def test_a_result_that_cannot_be_packed_is_an_error_of_its_own_call(function, tmp_path):
    async with FunctionRunner(f"odd:{function}") as act:
        (worker,) = act.stats().workers
        for kind in RESULTS:
            mark = tmp_path / kind
            with pytest.raises(UnsendableValue, match="the result"):
                await act("result", str(mark), kind)
            assert mark.read_text() == "x\n"
        assert await act("nap", 0) == worker.pid
        assert act.stats().restarts == {}


@pytest.mark.parametrize("function", ["act", "act_async"])
async def test_whatever_a_call_raises_its_worker_lives(function, tmp_path):
    async with FunctionRunner(f"odd:{function}") as act:
        (worker,) = act.stats().workers
        for kind in ERRORS:
            with pytest.raises(RemoteError):
                await act("raises", str(tmp_path / kind), kind)
            if kind != "recursion":
                assert (tmp_path / kind).read_text() == "x\n"
        assert await act("nap", 0) == worker.pid
        assert act.stats().restarts == {}


@pytest.mark.parametrize("function", ["items", "items_async"])
async def test_an_item_that_cannot_be_packed_ends_its_own_stream(function, tmp_path):
    async with FunctionRunner(f"odd:{function}") as runner:
        (worker,) = runner.stats().workers
        for kind in RESULTS:
            got = []
            with pytest.raises(UnsendableValue, match="an item"):
                async for item in runner.stream("result", str(tmp_path / kind), kind):
                    got.append(item)
            assert got == [1]
        for kind in ERRORS:
            with pytest.raises(RemoteError):
                async for _ in runner.stream("raises", str(tmp_path / kind), kind):
                    pass
        assert [item async for item in runner.stream("nap", 0)] == [1, worker.pid]
        assert runner.stats().restarts == {}


async def test_a_call_has_begun_also_where_the_page_says_that_nothing_runs(tmp_path):
    mark = tmp_path / "mark"
    async with FunctionRunner("odd:act") as act:
        with pytest.raises(RunnerCrashed, match="may not be run twice"):
            await act("clears_the_page_and_dies", str(mark))
        assert mark.read_text() == "x\n"
