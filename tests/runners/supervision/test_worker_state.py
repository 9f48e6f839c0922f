"""What a worker has before its first call, and what crosses with a call beside its arguments."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider

from runners import FunctionRunner
from runners.errors import FunctionNotFound, StartFailed, UnsendableValue

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("initializer", ["prepare", "prepare_async"])
async def test_an_initializer_runs_once_and_a_class_is_made_once(initializer):
    async with FunctionRunner("stateful:Counter", initializer=f"stateful:{initializer}") as count:
        assert await count(1) == ["prepared", 1]
        assert await count(2) == ["prepared", 1, 2]


async def test_an_initializer_that_fails_is_why_the_worker_cannot_start():
    with pytest.raises(StartFailed, match="stateful:refuse raised SystemExit: not today"):
        await FunctionRunner("stateful:Counter", initializer="stateful:refuse").start()
    with pytest.raises(FunctionNotFound, match="initializer='stateful' is not of the form"):
        FunctionRunner("stateful:Counter", initializer="stateful")


async def test_a_class_without_a_call_is_made_for_each_call():
    async with FunctionRunner("builtins:int") as integer:
        assert await integer("5") == 5


async def test_the_flags_of_a_worker_are_not_seen_by_what_it_runs():
    async with FunctionRunner("stateful:arguments") as arguments:
        assert len(await arguments()) == 1


@pytest.mark.parametrize("function", ["span", "span_async"])
async def test_the_callers_span_is_the_parent_of_those_in_the_worker(function):
    tracer = TracerProvider().get_tracer("test")
    async with FunctionRunner(f"stateful:{function}") as span:
        with tracer.start_as_current_span("call") as current:
            assert await span() == format(current.get_span_context().trace_id, "032x")
        assert await span() == "0" * 32


async def test_an_extension_crosses_or_is_refused():
    async with FunctionRunner("msgspec.msgpack:Ext") as extension:
        assert (await extension(42, b"own")).data == b"own"
        with pytest.raises(UnsendableValue, match="what the function returned cannot be read"):
            await extension(1, b"a code that arrays have")
