"""A block settles what it entered, whatever task, thread or context leaves it, and in any order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from guardrails import guard, timeout
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Numbered(Layer, Gate):
    """Hands out numbers; remembers which came back, in order, and with what outcome."""

    name = "numbered"

    def __init__(self):
        self.issued = 0
        self.settled = []

    def describe(self):
        return self.name

    def try_enter(self, call):
        self.issued += 1
        return self.issued

    def settle(self, ticket, outcome):
        assert ticket not in [number for number, _ in self.settled]
        self.settled.append((ticket, outcome.kind))

    @property
    def order(self):
        return [number for number, _ in self.settled]

    @property
    def open(self):
        return self.issued - len(self.settled)


@pytest.fixture
def gate():
    gate = Numbered()
    yield gate
    assert gate.open == 0
    assert len(gate.pipeline.blocks) == 0


def in_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


# In other threads, tasks and contexts


def test_the_two_ends_of_a_generator_in_two_threads(gate):
    @contextlib.contextmanager
    def dependency():
        with gate:
            yield

    first, second = dependency(), dependency()
    in_thread(first.__enter__)
    in_thread(second.__enter__)
    in_thread(functools.partial(first.__exit__, None, None, None))
    assert gate.order == [1]
    in_thread(functools.partial(second.__exit__, None, None, None))


async def test_sync_dependencies_in_worker_threads_as_frameworks_run_them(gate):
    @contextlib.contextmanager
    def dependency():
        with gate, contextlib.ExitStack() as stack:
            stack.enter_context(gate)
            yield

    async def request():
        context = dependency()
        await anyio.to_thread.run_sync(context.__enter__)
        await anyio.sleep(0)
        await anyio.to_thread.run_sync(context.__exit__, None, None, None)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(request)
    assert gate.issued == 40


async def test_the_steps_of_an_async_generator_in_tasks_of_their_own(gate):
    async def fixture() -> AsyncIterator[None]:
        async with gate:
            yield

    async def step(source):
        async for _ in source:
            break

    one, two = fixture(), fixture()
    for source in (one, two):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step, source)
    assert gate.open == 2
    for source in (one, two):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.aclose)
    assert gate.settled == [(1, "ignored"), (2, "ignored")]


def test_entered_and_left_in_two_contexts(gate):
    def block():
        with gate:
            yield

    source = block()
    contextvars.copy_context().run(next, source)
    with pytest.raises(StopIteration):
        contextvars.copy_context().run(next, source)
    assert gate.settled == [(1, "success")]


# Generators


def test_generators_that_are_left_in_another_order(gate):
    def block():
        with gate:
            yield

    sources = [block() for _ in range(4)]
    for source in sources:
        next(source)
    for number in (1, 3, 0, 2):
        sources[number].close()
    assert gate.order == [2, 4, 1, 3]


async def test_two_async_generators_of_one_task_keep_their_own_tickets(gate):
    async def block():
        async with gate:
            yield

    one, two = block(), block()
    await anext(one)
    await anext(two)
    await one.aclose()
    assert gate.order == [1]
    await two.aclose()


def test_a_generator_that_is_dropped_inside_a_block_of_the_same_guard(gate):
    def block():
        with gate:
            yield

    source = block()
    next(source)
    with gate:
        del source
        assert gate.settled == [(1, "ignored")]
    assert gate.settled == [(1, "ignored"), (2, "success")]


@on_asyncio
async def test_an_async_generator_that_is_dropped_after_its_task_ended(gate, anyio_backend):
    async def block():
        async with gate:
            yield

    source = block()
    await asyncio.create_task(anext(source))
    del source
    for _ in range(20):  # the loop closes it in a task of its own
        await asyncio.sleep(0)
    assert gate.settled == [(1, "ignored")]


def test_dropped_generators_leave_nothing_in_the_context(gate):
    def block():
        with gate:
            yield

    before = dict(contextvars.copy_context())
    sources = [block() for _ in range(2000)]
    for source in sources:
        next(source)
    sources.clear()
    del source
    assert gate.open == 0
    assert dict(contextvars.copy_context()) == before
    assert len(gate.pipeline.blocks) == 0


def test_a_generator_in_a_reference_cycle_is_settled_when_it_is_collected(gate):
    def block(holder):
        with gate:
            yield holder

    holder = []
    source = block(holder)
    holder.append(source)
    next(source)
    del source, holder
    gc.collect()
    assert gate.settled == [(1, "ignored")]


# Nested, recursive, concurrent


async def test_nested_and_recursive_blocks(gate):
    async def recurse(depth):
        async with gate:
            with gate:
                if depth:
                    await recurse(depth - 1)

    await recurse(20)
    assert gate.order == list(range(42, 0, -1))


async def test_concurrent_tasks_each_leave_their_own(gate):
    async def work(turns):
        async with gate:
            mine = gate.issued
            for _ in range(turns):
                await anyio.sleep(0)
        return mine

    left = []

    async def one(turns):
        mine = await work(turns)
        left.append(mine)
        assert mine in gate.order

    async with anyio.create_task_group() as tasks:
        for turns in (5, 1, 3, 0, 2):
            tasks.start_soon(one, turns)
    assert gate.order == left


def test_threads_that_use_one_guard_at_once(gate):
    def work():
        for _ in range(300):
            with gate, gate:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    gate.try_enter = lambda call: object()  # numbers would need a lock
    gate.settle = lambda ticket, outcome: None
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Exit stacks


def test_exit_stacks_that_are_closed_in_another_order(gate):
    one, two, three = contextlib.ExitStack(), contextlib.ExitStack(), contextlib.ExitStack()
    for stack in (one, two, one, three):
        stack.enter_context(gate)
    one.close()
    assert gate.order == [3, 1]
    in_thread(two.close)
    assert gate.order == [3, 1, 2]
    three.close()


def test_an_exit_stack_that_hands_on_what_it_holds(gate):
    with contextlib.ExitStack() as stack:
        stack.enter_context(gate)
        other = stack.pop_all()
    with contextlib.ExitStack() as last:
        last.enter_context(gate)
        other.close()
        assert gate.order == [1]


async def test_async_exit_stacks_of_one_task(gate):
    one, two = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
    await one.enter_async_context(gate)
    await two.enter_async_context(gate)
    two.enter_context(gate)
    await one.aclose()
    assert gate.order == [1]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(two.aclose)
    assert gate.order == [1, 3, 2]


async def test_an_error_passes_through_an_exit_stack(gate):
    with pytest.raises(ValueError, match="down"):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(gate)
            raise ValueError("down")
    assert gate.settled == [(1, "failure")]


def test_a_context_manager_in_a_stack_is_its_own_place(gate):
    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with gate:
            yield

    one, two = contextlib.ExitStack(), contextlib.ExitStack()
    one.enter_context(block())
    two.enter_context(gate)
    one.close()
    assert gate.order == [1]
    two.close()


# Two ends in two functions


class Client:
    """Hands its ends on, as many clients do."""

    def __init__(self, gate):
        self.gate = gate

    async def __aenter__(self):
        await self.gate.__aenter__()

    async def __aexit__(self, *error):
        await self.gate.__aexit__(*error)


class BlockClient:
    def __init__(self, gate):
        self.block = gate.block()

    def __enter__(self):
        self.block.__enter__()

    def __exit__(self, *error):
        self.block.__exit__(*error)


async def test_ends_in_two_functions_are_told_apart_by_task(gate):
    async def work(turns):
        async with Client(gate):
            mine = gate.issued
            for _ in range(turns):
                await anyio.sleep(0)
        assert gate.order[-1] == mine

    async with anyio.create_task_group() as tasks:
        for turns in (5, 1, 3, 0, 2):
            tasks.start_soon(work, turns)


def test_ends_in_two_threads_and_two_functions_are_settled_by_age(gate):
    in_thread(gate.__enter__)
    in_thread(gate.__enter__)
    gate.__exit__(None, None, None)
    assert gate.order == [1]
    gate.__exit__(None, None, None)


def test_a_block_object_is_settled_by_itself(gate):
    one, two = BlockClient(gate), BlockClient(gate)
    one.__enter__()
    two.__enter__()
    with gate:
        one.__exit__(None, None, None)
    assert gate.order == [1, 3]
    in_thread(functools.partial(two.__exit__, None, None, None))
    one.__enter__()  # it can be used again
    one.__exit__(None, None, None)
    assert gate.order == [1, 3, 2, 4]


async def test_an_async_block_object(gate):
    async with gate.block() as entered:
        assert entered is None
    with pytest.raises(ValueError, match="down"):
        async with guard(gate).block():
            raise ValueError("down")
    assert [kind for _, kind in gate.settled] == ["success", "failure"]


def test_a_block_object_is_one_block(gate):
    block = gate.block()
    with block:
        with pytest.raises(RuntimeError, match=r"guard\(numbered\): this block is open; make one for each use"):
            block.__enter__()
    with pytest.raises(RuntimeError, match="this block is not open"):
        block.__exit__(None, None, None)


def test_what_was_not_entered_is_not_left(gate):
    with pytest.raises(RuntimeError, match=r"guard\(numbered\): a block is left that was not entered"):
        gate.__exit__(None, None, None)


def test_an_open_block_keeps_no_variables_alive(gate):
    class Thing:
        pass

    def enter():
        thing = Thing()
        gate.__enter__()
        return weakref.ref(thing)

    found = enter()
    gc.collect()
    assert found() is None
    gate.__exit__(None, None, None)


# The task that a timeout interrupts


@on_asyncio
async def test_a_timeout_cuts_off_its_own_block(anyio_backend):
    limit = timeout(0.05)
    long = timeout(30)

    async def block(layer):
        async with layer:
            yield

    short, other = block(guard(limit, long)), block(guard(limit, long))
    await anext(other)
    await other.aclose()
    await anext(short)
    with contextlib.suppress(asyncio.CancelledError):  # the reader's task is the one that entered
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task.cancelling() == 1
    await short.aclose()
    assert task.cancelling() == 0


@on_asyncio
async def test_a_cancellation_in_the_task_that_leaves_a_block_stays_one(anyio_backend):
    entered, hang = asyncio.Event(), asyncio.Event()

    async def block():
        async with timeout(0.02):
            yield
            await hang.wait()

    source = block()

    async def enter():
        await anext(source)
        entered.set()
        await asyncio.sleep(30)

    async def leave():
        await anext(source)

    first = asyncio.create_task(enter())
    await entered.wait()
    second = asyncio.create_task(leave())
    with contextlib.suppress(asyncio.CancelledError):
        await first
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_a_cancelled_entry_leaves_nothing(gate):
    class Full(Numbered):
        def try_enter(self, call):
            return None

        async def enter(self, call):
            await anyio.sleep_forever()

    pipeline = guard(gate, Full())
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.__aenter__)
            tasks.start_soon(pipeline.block().__aenter__)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert len(pipeline.blocks) == 0
    assert [kind for _, kind in gate.settled] == ["ignored", "ignored"]
