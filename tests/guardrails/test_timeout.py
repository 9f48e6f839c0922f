from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from guardrails import admit, breaker, guard, timeout
from guardrails.core.timers import BUCKET, wheel_of
from guardrails.errors import TimedOut
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio

FOREVER = 30  # longer than any test may take


on_asyncio = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)


async def hang():
    await anyio.sleep(FOREVER)


# On a fake clock


async def test_a_call_that_takes_too_long_is_cut_off(clock, idle):
    errors = []

    async def call():
        with pytest.raises(TimedOut, match="slow: no answer within 5 s") as caught:
            await timeout(5, name="slow", clock=clock)(anyio.sleep_forever)()
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(4.5)
        await idle()
        assert errors == []
        clock.advance(0.5)
    assert isinstance(errors[0], TimeoutError)
    assert (errors[0].guard, errors[0].limit, errors[0].seconds) == ("slow", "total", 5)


async def test_a_call_that_is_quick_is_left_alone(clock, idle):
    @timeout(5, clock=clock)
    async def quick():
        await anyio.lowlevel.checkpoint()
        return 7

    assert await quick() == 7
    clock.advance(100)  # the limit of a call that is over cuts off nobody
    await idle()


async def test_an_error_of_the_call_stays_itself(clock):
    error = ValueError("down")

    async def fail():
        await anyio.lowlevel.checkpoint()
        raise error

    for limit in (timeout(5, clock=clock), timeout(5)):
        with pytest.raises(ValueError, match="down") as caught:
            await limit(fail)()
        assert caught.value is error


async def test_a_timeout_is_a_failure_outside_and_inside(clock, idle):
    outside, inside = breaker(fail_max=1, clock=clock), breaker(fail_max=1, clock=clock)
    attempt = guard(outside, timeout(5, clock=clock))
    deadline = guard(timeout(5, clock=clock), inside)

    async def call(pipeline):
        with pytest.raises(TimedOut):
            await pipeline(anyio.sleep_forever)()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, attempt)
        tasks.start_soon(call, deadline)
        await idle()
        clock.advance(5)
    assert (outside.state, inside.state) == ("open", "open")


async def test_a_deadline_ends_the_wait_for_a_permit(memory, clock, idle):
    gate, circuit = admit(concurrency=1, sampler=memory, clock=clock), breaker(fail_max=1, clock=clock)

    async def call():
        with pytest.raises(TimedOut):
            await guard(timeout(5, clock=clock), circuit, gate)(anyio.sleep_forever)()

    async with gate, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        assert gate.waiting == 1
        clock.advance(5)
    assert (gate.in_flight, gate.waiting, circuit.state) == (0, 0, "closed")


async def test_a_timeout_while_waiting_for_a_permit_is_nobodys_failure_in_any_order(memory, clock, idle):
    gate, circuit = admit(concurrency=1, sampler=memory, clock=clock), breaker(fail_max=1, clock=clock)
    pipeline = guard(circuit, timeout(5, clock=clock), gate, check_order=False)

    async def call():
        with pytest.raises(TimedOut):
            await pipeline(anyio.sleep_forever)()

    async def block():
        with pytest.raises(TimedOut):
            async with pipeline:
                raise AssertionError("the body ran")

    async with gate, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        tasks.start_soon(block)
        await idle()
        clock.advance(5)
    assert circuit.state == "closed"


async def test_only_the_timeout_that_cut_the_call_off_tells_of_it(clock, idle):
    async def call():
        with pytest.raises(TimedOut):
            await guard(timeout(30, clock=clock), timeout(5, clock=clock))(anyio.sleep_forever)()

    with decisions() as seen:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await idle()
            clock.advance(5)
    assert [(event.source, event.limit, event.seconds) for event in seen] == [("timeout", "total", 5)]


@pytest.mark.parametrize(("inner", "outer", "name"), [(3, 5, "inner"), (5, 3, "outer"), (5, 5, "outer")])
async def test_the_nearer_of_two_nested_limits_wins(clock, idle, inner, outer, name):
    work = timeout(outer, name="outer", clock=clock)(timeout(inner, name="inner", clock=clock)(anyio.sleep_forever))
    seen = []

    async def call():
        with pytest.raises(TimedOut) as caught:
            await work()
        seen.append(caught.value.guard)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(10 if inner == outer else 3)
    assert seen == [name]


# On the real clock


async def test_the_real_clock_fires_never_early_and_a_bucket_late():
    started = time.monotonic()
    with pytest.raises(TimedOut):
        await timeout(0.03)(hang)()
    taken = time.monotonic() - started
    assert taken >= 0.03
    assert taken < 0.03 + BUCKET + 1  # a second for a machine that is busy with something else


@on_asyncio
async def test_a_finished_call_leaves_no_deadline_behind():
    quick = timeout(FOREVER)(anyio.lowlevel.checkpoint)
    for _ in range(100):
        await quick()
    assert len(wheel_of(asyncio.get_running_loop())) == 0
    assert asyncio.current_task().cancelling() == 0


async def test_a_call_may_swallow_its_cancellation_and_answer_late():
    @timeout(0.01)
    async def stubborn():
        try:
            await anyio.sleep(FOREVER)
        except BaseException:
            return 7

    assert await stubborn() == 7
    await anyio.lowlevel.checkpoint()  # nothing is left pending
    await anyio.sleep(0)


async def test_the_call_can_clean_up():
    cleaned = []

    @timeout(0.01)
    async def work():
        try:
            await anyio.sleep(FOREVER)
        finally:
            cleaned.append(True)

    with pytest.raises(TimedOut):
        await work()
    assert cleaned == [True]


@pytest.mark.many
async def test_many_calls_time_out_together():
    results = []

    async def call():
        try:
            await timeout(0.02)(hang)()
        except TimedOut:
            results.append(True)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(call)
    assert len(results) == 200


async def test_a_task_goes_on_after_a_timeout():
    for _ in range(3):
        with pytest.raises(TimedOut):
            await timeout(0.001)(hang)()
        await anyio.sleep(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)


# Nested, and mixed with other people's


@pytest.mark.parametrize(
    ("inner", "outer", "name"), [(0.01, FOREVER, "inner"), (FOREVER, 0.01, "outer"), (0.01, 0.01, "outer")]
)
async def test_nested_limits_on_the_real_clock(inner, outer, name):
    # Of two limits that end in one moment the outer one speaks, as with asyncio.timeout and trio.fail_after.
    with pytest.raises(TimedOut) as caught:
        await timeout(outer, name="outer")(timeout(inner, name="inner")(hang))()
    assert caught.value.guard == name
    await anyio.sleep(0)


async def test_an_outer_call_may_go_on_after_an_inner_one_timed_out():
    @timeout(FOREVER)
    async def outer():
        with pytest.raises(TimedOut):
            await timeout(0.01)(hang)()
        await anyio.sleep(0)
        return 7

    assert await outer() == 7


async def test_inside_a_scope_of_anyio():
    with anyio.move_on_after(FOREVER) as scope:
        with pytest.raises(TimedOut):
            await timeout(0.01)(hang)()
    assert not scope.cancelled_caught
    with anyio.move_on_after(0.01) as scope:
        await timeout(FOREVER)(hang)()
    assert scope.cancelled_caught


async def test_around_a_scope_of_anyio():
    @timeout(FOREVER)
    async def inner_wins():
        with anyio.move_on_after(0.01) as scope:
            await hang()
        return scope.cancelled_caught

    @timeout(0.01)
    async def outer_wins():
        with anyio.move_on_after(FOREVER):
            await hang()

    assert await inner_wins()
    with pytest.raises(TimedOut):
        await outer_wins()


async def test_inside_a_task_group():
    async with anyio.create_task_group() as tasks:
        with pytest.raises(TimedOut):
            await timeout(0.01)(hang)()
        assert not tasks.cancel_scope.cancel_called


async def test_around_a_task_group():
    ended = []

    async def child():
        try:
            await hang()
        finally:
            ended.append(True)

    @timeout(0.01)
    async def work():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            tasks.start_soon(child)
            await hang()

    with pytest.raises(TimedOut):
        await work()
    assert ended == [True, True]
    await anyio.sleep(0)


async def test_a_task_group_that_waits_for_its_children_only():
    @timeout(0.01)
    async def work():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)

    with pytest.raises(TimedOut):
        await work()


async def test_a_timeout_in_a_child_fails_the_group():
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(timeout(0.01)(hang))
            tasks.start_soon(hang)
    assert caught.group_contains(TimedOut)


async def test_cancelled_from_outside_it_stays_a_cancellation(idle):
    seen = []

    async def call():
        try:
            await timeout(FOREVER)(hang)()
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        tasks.cancel_scope.cancel()
    assert seen == ["cancelled"]


@on_asyncio
async def test_asyncio_timeout_inside():
    @timeout(FOREVER)
    async def inner_wins():
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(FOREVER)
        assert not isinstance(caught.value, TimedOut)
        return 7

    @timeout(0.01)
    async def outer_wins():
        async with asyncio.timeout(FOREVER):
            await asyncio.sleep(FOREVER)

    assert await inner_wins() == 7
    with pytest.raises(TimedOut):
        await outer_wins()
    assert asyncio.current_task().cancelling() == 0


@on_asyncio
async def test_asyncio_timeout_around():
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await timeout(FOREVER)(hang)()
    assert not isinstance(caught.value, TimedOut)
    with pytest.raises(TimedOut):
        async with asyncio.timeout(FOREVER):
            await timeout(0.01)(hang)()
    assert asyncio.current_task().cancelling() == 0


@on_asyncio
async def test_asyncio_task_groups_inside():
    @timeout(0.01)
    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(FOREVER))

    with pytest.raises(TimedOut):
        await work()
    assert asyncio.current_task().cancelling() == 0


def expire_now(loop):
    """End every limit of the loop at once, as the wheel does when the time has come."""
    buckets = wheel_of(loop)._buckets
    for slot in list(buckets):
        for deadline in buckets.pop(slot).entries:
            deadline.expire()


async def spin():
    # Suspended, but waiting for nothing: a cancellation is kept for the task's next step, and a second one replaces it.
    while True:
        await asyncio.sleep(0)


@on_asyncio
@pytest.mark.parametrize("work", [hang, spin])
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
async def test_cancelled_and_timed_out_in_one_moment_the_cancellation_wins(order, work):
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(timeout(FOREVER)(work)())
    await asyncio.sleep(0)
    if order == "ours first":
        expire_now(loop)
        task.cancel("theirs")
    else:
        task.cancel("theirs")
        expire_now(loop)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1
    assert len(wheel_of(loop)) == 0


@on_asyncio
@pytest.mark.parametrize("work", [hang, spin])
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
async def test_a_scope_and_a_limit_in_one_moment_leave_nothing_pending(order, work):
    loop, outcomes = asyncio.get_running_loop(), []

    async def call(scope):
        try:
            with scope:
                await timeout(FOREVER)(work)()
        except TimedOut:
            outcomes.append("timed out")
        else:
            outcomes.append("scope")
        await asyncio.sleep(0)
        outcomes.append(asyncio.current_task().cancelling())

    scope = anyio.CancelScope()
    task = asyncio.ensure_future(call(scope))
    await asyncio.sleep(0)
    if order == "ours first":
        expire_now(loop)
        scope.cancel()
    else:
        scope.cancel()
        expire_now(loop)
    await task
    assert outcomes == ["timed out" if order == "ours first" else "scope", 0]
    assert len(wheel_of(loop)) == 0


@on_asyncio
async def test_a_limit_that_made_way_for_a_cancellation_still_counts():
    # The cancellation is swallowed, and the call goes on: its time is over all the same.
    loop = asyncio.get_running_loop()

    @timeout(FOREVER)
    async def work():
        try:
            await spin()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        await asyncio.sleep(FOREVER)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel("theirs")
    expire_now(loop)
    with pytest.raises(TimedOut):
        await task


@on_asyncio
async def test_the_answer_that_comes_with_the_deadline_is_lost_cleanly(idle):
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    @timeout(FOREVER)
    async def work():
        return await answer

    task = asyncio.ensure_future(work())
    await idle()
    answer.set_result(7)
    expire_now(loop)
    with pytest.raises(TimedOut):
        await task
    assert task.cancelling() == 0


# Misuse


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, ValueError, "at least one of total, first and idle"),
        ((0,), {}, ValueError, "total takes a number of seconds above 0, not 0"),
        ((-1,), {}, ValueError, "total"),
        ((float("nan"),), {}, ValueError, "total"),
        ((float("inf"),), {}, ValueError, "total"),
        (("30",), {}, TypeError, "total takes a number of seconds, not str"),
        ((True,), {}, TypeError, "total"),
        ((5,), {"first": 0}, ValueError, "first"),
        ((5,), {"idle": "1"}, TypeError, "idle"),
        ((hang,), {}, TypeError, r"total takes a number of seconds, not function; write @timeout\(30\)"),
    ],
)
def test_misuse_names_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        timeout(*arguments, **options)


def test_it_describes_itself():
    assert repr(timeout(30, first=5, idle=0.5, name="chat")) == "<timeout 'chat': total 30 s, first 5 s, idle 0.5 s>"


@pytest.mark.anyio
async def test_first_and_idle_alone_do_not_limit_a_plain_call():
    @timeout(first=0.001, idle=0.001)
    async def work():
        await anyio.sleep(0.01)
        return 7

    assert await work() == 7


def test_outside_a_loop_there_is_no_task():
    from guardrails.core.tasks import _current_task

    assert _current_task(None) is None


@on_asyncio
async def test_the_task_of_a_loop():
    from guardrails.core.tasks import _current_task, task_of

    loop = asyncio.get_running_loop()
    assert task_of(loop) is _current_task(loop) is asyncio.current_task()


@on_asyncio
@pytest.mark.many
async def test_buckets_that_are_left_empty_are_dropped():
    limits = [timeout(FOREVER + number) for number in range(3)]
    wheel = wheel_of(asyncio.get_running_loop())
    for _ in range(200):
        for limit in limits:
            await limit(anyio.lowlevel.checkpoint)()
        await asyncio.sleep(0.001)
    assert len(wheel) == 0
    assert len(wheel._buckets) <= len(limits)  # the one at hand of each
