from __future__ import annotations

import asyncio
import contextvars
import threading

import anyio
import pytest

from guardrails import timeout
from guardrails.core.deadline import current, deadline_in, innermost, remaining, wait_limit
from guardrails.errors import TimedOut


def test_outside_there_is_no_deadline():
    assert remaining() is None
    assert wait_limit(30) == 30


def test_a_block_knows_what_is_left(clock):
    with deadline_in(5, clock=clock):
        assert remaining() == 5
        clock.advance(3)
        assert remaining() == 2
        clock.advance(3)
        assert remaining() == 0
    assert remaining() is None


@pytest.mark.parametrize(("outer", "inner", "left"), [(5, 10, 5), (10, 5, 5), (5, 5, 5)])
def test_the_nearer_of_two_counts(clock, outer, inner, left):
    with deadline_in(outer, clock=clock):
        with deadline_in(inner, clock=clock):
            assert remaining() == left
        assert remaining() == outer


def test_the_real_clock():
    with deadline_in(50):
        assert 40 < remaining() <= 50
        assert 40 < wait_limit(100) <= 50
        assert wait_limit(1) == 1


@pytest.mark.anyio
async def test_tasks_and_threads_inherit_it_and_lose_it_with_the_block(clock, idle):
    seen, leave = [], anyio.Event()

    async def child():
        seen.append(remaining())
        await leave.wait()
        seen.append(remaining())

    async with anyio.create_task_group() as tasks:
        with deadline_in(5, clock=clock):
            tasks.start_soon(child)
            assert await anyio.to_thread.run_sync(remaining) == 5
            await idle()
        leave.set()
    assert seen == [5, None]


def test_a_block_of_its_own_for_each_use(clock):
    block = deadline_in(5, clock=clock)
    with block:
        with pytest.raises(RuntimeError, match="open already"):
            block.__enter__()
    with block:
        assert remaining() == 5
    assert remaining() is None


def test_a_block_left_in_another_context_ends_all_the_same(clock):
    def generator():
        with deadline_in(5, clock=clock):
            yield remaining()

    items = generator()
    import contextvars

    assert contextvars.copy_context().run(next, items) == 5
    items.close()
    assert remaining() is None


def test_leaving_a_block_that_was_not_entered_does_nothing():
    deadline_in(5).__exit__(None, None, None)
    assert remaining() is None


@pytest.mark.parametrize(
    ("seconds", "error"),
    [("5", TypeError), (True, TypeError), (None, TypeError), (-1, ValueError), (float("inf"), ValueError)],
)
def test_misuse_names_the_argument(seconds, error):
    with pytest.raises(error, match="seconds"):
        deadline_in(seconds)


# Set by a timeout


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False])
async def test_a_timeout_tells_what_is_left(clock, real):
    limit = timeout(50) if real else timeout(50, clock=clock)

    @limit
    async def work():
        await anyio.lowlevel.checkpoint()
        return remaining(), wait_limit(1000)

    for _ in range(3):
        left, wait = await work()
        assert 40 < left <= 50
        assert wait == 1000  # it cuts its waiters off itself
        assert remaining() is None


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False])
async def test_timeouts_nest(clock, real):
    options = {} if real else {"clock": clock}

    @timeout(500, **options)
    async def inner():
        return remaining()

    @timeout(5, **options)
    async def nearest():
        return remaining()

    @timeout(50, **options)
    async def outer():
        before = remaining()
        results = [await inner(), remaining(), await nearest(), remaining()]
        return before, *results

    before, nested, after, near, last = await outer()
    assert 40 < last <= after <= nested <= before <= 50
    assert 0 < near <= 5
    assert remaining() is None


@pytest.mark.anyio
async def test_a_task_that_outlives_its_call_has_no_deadline(idle):
    seen, leave = [], anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def background():
            await leave.wait()
            seen.append(remaining())
            seen.append(await timeout(50)(inside)())

        async def inside():
            return remaining()

        @timeout(5)
        async def work():
            tasks.start_soon(background)

        @timeout(20)
        async def outer():
            await work()
            await idle()
            leave.set()
            await idle()

        await outer()
    assert 10 < seen[0] <= 20  # of the call around it, which still runs
    assert 10 < seen[1] <= 20


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False])
async def test_ambient_false_tells_nothing(clock, real):
    limit = timeout(50, ambient=False, **({} if real else {"clock": clock}))

    async def work():
        return remaining()

    assert await limit(work)() is None


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False])
async def test_a_stream_has_the_deadline_of_its_next_item_and_its_reader_none(clock, real):
    seen = []

    @timeout(100, first=5, idle=10, **({} if real else {"clock": clock}))
    async def stream():
        for number in range(3):
            seen.append(remaining())
            yield number

    async for _ in stream():
        assert remaining() is None
    assert [round(left) for left in seen] == [5, 10, 10]


@pytest.mark.anyio
async def test_a_timeout_inside_a_deadline_that_nobody_enforces_is_shortened(clock, idle):
    errors = []

    async def call():
        with deadline_in(5, clock=clock), pytest.raises(TimedOut, match="no answer within 5 s") as caught:
            await timeout(30, clock=clock)(anyio.sleep_forever)()
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(5)
    assert [error.limit for error in errors] == ["total"]


@pytest.mark.anyio
async def test_so_is_one_on_the_real_clock():
    with deadline_in(0.01), pytest.raises(TimedOut):
        await timeout(30)(anyio.sleep_forever)()
    assert remaining() is None


@pytest.mark.anyio
async def test_two_streams_that_read_each_other_do_not_go_round_for_ever(clock):
    # Each limit in turn stands inside the other: a chain must not close upon itself.
    limit = timeout(100, idle=10, clock=clock)
    from guardrails.core.guard import Call
    from guardrails.core.outcome import SUCCESS

    first, second = (limit.try_enter(Call((), {}, stream=True)) for _ in range(2))
    limit.arm(first)
    limit.arm(second)
    assert second.parent is first
    limit.disarm(second, None)
    limit.disarm(first, None)
    limit.arm(second)
    second.until = None
    limit.arm(first)
    second.until = clock.now() + 1
    second.parent = first
    token = current.set(second)
    assert innermost(first) is None
    current.reset(token)
    limit.disarm(first, None)
    limit.disarm(second, None)
    limit.settle(first, SUCCESS)


def test_threads_have_deadlines_of_their_own(clock):
    seen = []
    with deadline_in(5, clock=clock):
        thread = threading.Thread(target=lambda: seen.append(remaining()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_loop_with_a_time_of_its_own():
    class Odd(asyncio.SelectorEventLoop):
        def time(self):
            return super().time() * 2

    async def work():
        return remaining()

    with asyncio.Runner(loop_factory=Odd) as runner:
        assert 40 < runner.run(timeout(50)(work)()) <= 50
        with pytest.raises(TimedOut):
            runner.run(_hang())


@timeout(0.01)
async def _hang():
    await asyncio.sleep(30)


# What stays in a context


@pytest.mark.anyio
async def test_between_the_steps_of_a_stream_its_reader_has_no_deadline_and_at_its_end_nothing():
    @timeout(30)
    async def stream():
        for _ in range(2):
            assert 29 < remaining() <= 30
            yield remaining()
            assert 29 < remaining() <= 30

    one, two = stream(), stream()
    before = dict(contextvars.copy_context())
    await anext(one)
    assert remaining() is None
    await anext(two)
    assert remaining() is None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.__anext__)
    await one.aclose()
    await two.aclose()
    assert dict(contextvars.copy_context()) == {**before, current: None}


@pytest.mark.anyio
async def test_a_deadline_inside_a_stream_is_for_its_own_steps_only():
    @timeout(30)
    async def stream():
        async with timeout(5):
            yield
            assert 4 < remaining() <= 5
        assert 29 < remaining() <= 30
        yield

    source = stream()
    await anext(source)
    assert remaining() is None
    await anext(source)
    assert remaining() is None
    await source.aclose()
    assert current.get() is None


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio's scopes have to nest
@pytest.mark.parametrize("order", [1, -1])
async def test_generators_with_a_deadline_leave_nothing_in_their_readers_context(order, anyio_backend):
    limit = timeout(30)

    async def block():
        async with limit:
            yield

    sources = [block() for _ in range(100)]
    for source in sources:
        await anext(source)
    for source in sources[::order]:
        await source.aclose()
    assert current.get() is None
