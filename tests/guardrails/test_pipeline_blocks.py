from __future__ import annotations

import contextlib
import contextvars
import threading

import anyio
import pytest

from guardrails import admit, breaker, guard, timeout
from guardrails.core.guard import Strategy
from guardrails.core.pipeline import Layer
from guardrails.errors import CircuitOpen, QueueFull, TimedOut
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


@pytest.fixture
def gate(memory):
    return admit(concurrency=2, queue=0, sampler=memory, memory="1MiB")


async def test_an_async_block(gate):
    async with gate:
        assert (gate.in_flight, gate.reserved) == (1, 1024**2)
    assert (gate.in_flight, gate.reserved) == (0, 0)


def test_a_sync_block(gate):
    with gate:
        assert gate.in_flight == 1
    assert gate.in_flight == 0


async def test_blocks_of_one_guard_nest_and_a_refused_one_leaves_nothing(gate):
    async with gate:
        with gate:
            assert gate.in_flight == 2
            with pytest.raises(QueueFull):
                async with gate:
                    raise AssertionError("the body of a refused block ran")
            assert gate.in_flight == 2
        assert gate.in_flight == 1
    assert gate.in_flight == 0


@pytest.mark.parametrize("error", [ValueError("down"), KeyboardInterrupt()])
async def test_an_exception_settles_the_block_and_passes(gate, clock, error):
    circuit = breaker(fail_max=1, clock=clock)
    with pytest.raises(type(error)) as caught:
        async with guard(circuit, gate):
            raise error
    assert caught.value is error
    assert gate.in_flight == 0
    assert circuit.state == ("open" if isinstance(error, Exception) else "closed")
    if circuit.state == "open":
        with pytest.raises(CircuitOpen):
            with circuit:
                raise AssertionError("the body of a refused block ran")


async def test_a_block_counts_as_a_success_in_a_breaker(clock):
    circuit = breaker(fail_max=2, clock=clock)
    for error in (True, False, True):
        with contextlib.suppress(ValueError):
            async with circuit:
                if error:
                    raise ValueError
    assert (circuit.state, circuit.fail_counter) == ("closed", 1)


async def test_tasks_share_a_pipeline_and_settle_their_own_blocks(memory, idle):
    gate = admit(concurrency=10, sampler=memory)
    pipeline = guard(breaker(), gate)
    release = anyio.Event()

    async def work():
        async with pipeline:
            await release.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(work)
        await idle()
        assert gate.in_flight == 10
        release.set()
    assert gate.in_flight == 0


async def test_a_task_started_inside_a_block_has_blocks_of_its_own(memory):
    gate = admit(concurrency=10, sampler=memory)

    async def child():
        async with gate:
            assert gate.in_flight == 2

    async with gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        assert gate.in_flight == 1
    assert gate.in_flight == 0


async def test_threads_settle_their_own_blocks(memory):
    gate = admit(concurrency=4, sampler=memory)
    barrier = threading.Barrier(4)

    def work():
        with gate:
            barrier.wait()
            assert gate.in_flight == 4
            barrier.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(anyio.to_thread.run_sync, work)
    assert gate.in_flight == 0


async def test_a_cancelled_block_is_settled(gate):
    circuit = breaker(fail_max=1)
    with anyio.CancelScope() as scope:
        async with guard(circuit, gate):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert (gate.in_flight, circuit.state) == (0, "closed")


async def test_a_block_that_is_cancelled_while_it_waits_leaves_nothing(memory, idle):
    gate = admit(concurrency=1, sampler=memory)
    async with gate:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(gate.__aenter__)
                await idle()
                assert gate.waiting == 1
                scope.cancel()
        assert (gate.in_flight, gate.waiting) == (1, 0)
    assert gate.in_flight == 0


async def test_blocks_work_in_an_exit_stack(gate):
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(gate)
        stack.enter_context(gate)
        assert gate.in_flight == 2
    assert gate.in_flight == 0


async def test_a_timeout_ends_a_block(clock, gate, idle):
    circuit = breaker(fail_max=1, clock=clock)

    async def work():
        with pytest.raises(TimedOut, match="slow: no answer within 5 s"):
            async with guard(circuit, gate, timeout(5, name="slow", clock=clock)):
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await idle()
        clock.advance(5)
    assert (gate.in_flight, circuit.state) == (0, "open")


async def test_a_sync_block_cannot_have_a_timeout(gate):
    with pytest.raises(TypeError, match=r"slow cannot guard a sync block: nothing can interrupt it. Use 'async with'"):
        with guard(gate, timeout(5, name="slow")):
            pass
    assert gate.in_flight == 0


async def test_a_block_cannot_have_a_strategy(gate):
    class Again(Layer, Strategy):
        name = "again"

        def describe(self):
            return "again"

        async def run(self, call, proceed):
            return await proceed()

    with pytest.raises(
        TypeError, match="again cannot guard a block, only a function: a block's code can run only once"
    ):
        async with guard(Again(), gate):
            pass
    assert gate.in_flight == 0


async def test_a_cost_by_arguments_cannot_guard_a_block(memory):
    with pytest.raises(TypeError, match="memory is a function of the call's arguments, and a block has none"):
        async with admit(memory=len, sampler=memory):
            pass


async def test_a_block_is_left_in_another_context(gate):
    context = contextvars.copy_context()
    context.run(gate.__enter__)
    gate.__exit__(None, None, None)
    assert gate.in_flight == 0


async def test_a_block_tells_its_events(gate):
    with decisions() as seen:
        async with gate:
            pass
    assert [type(event).__name__ for event in seen] == ["CallAdmitted", "CallSettled"]
