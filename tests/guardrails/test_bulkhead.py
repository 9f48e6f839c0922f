from __future__ import annotations

import contextlib
import threading

import anyio
import pytest

from guardrails.core.deadline import deadline_in
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.core.pipeline import guard
from guardrails.errors import QueueFull, Rejected, TimedOut, WaitTimeout
from guardrails.gates.bulkhead import Aimd, Gradient, bulkhead
from guardrails.gates.timeout import timeout
from tests.guardrails.heard import decisions

CALL = Call((), {})


def at_zero(gate):
    assert (gate.in_flight, gate.waiting) == (0, 0)
    return True


def test_it_lets_in_as_many_as_it_may():
    gate = bulkhead(2)
    tickets = [gate.try_enter(CALL), gate.try_enter(CALL)]
    assert None not in tickets
    assert gate.try_enter(CALL) is None
    assert gate.in_flight == 2
    for ticket in tickets:
        gate.settle(ticket, IGNORED)
    assert at_zero(gate)


@pytest.mark.anyio
async def test_it_never_lets_in_more_and_loses_none(idle):
    gate, running, most = bulkhead(3, queue=100), [0], [0]

    @gate
    async def work():
        running[0] += 1
        most[0] = max(most[0], running[0])
        await anyio.lowlevel.checkpoint()
        running[0] -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(work)
    assert most[0] == 3
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_sync_function_and_a_block_wait_too(idle):
    gate, seen = bulkhead(1), []

    @gate
    def work():
        seen.append("ran")

    async with anyio.create_task_group() as tasks:
        async with gate:
            tasks.start_soon(anyio.to_thread.run_sync, work)
            while not gate.waiting:
                await anyio.sleep(0.001)
            with pytest.raises(QueueFull, match="a sync call on the event loop's thread must not wait"):
                work()
            assert seen == []
    assert seen == ["ran"]
    assert at_zero(gate)


# Who is next


class Line:
    """Calls that hold the only permit one after the other; `served` says in which order they got it."""

    def __init__(self, idle, clock, **options):
        self.idle, self.clock, self.served, self.turn = idle, clock, [], anyio.Semaphore(0)
        self.gate = bulkhead(1, queue=100, max_wait=10_000, clock=clock, **options)

        @self.gate
        async def work(who, priority=0):
            self.served.append(who)
            await self.turn.acquire()

        self.work = work

    async def join(self, tasks, *who):
        tasks.start_soon(self.work, *who)
        await self.idle()

    async def serve(self, count):
        for _ in range(count):
            self.turn.release()
            await self.idle()


@pytest.mark.anyio
async def test_without_more_it_is_arrival_order(idle, clock):
    line = Line(idle, clock)
    async with anyio.create_task_group() as tasks:
        for who in "abcde":
            await line.join(tasks, who)
        await line.serve(5)
    assert line.served == list("abcde")


@pytest.mark.anyio
async def test_a_lower_priority_number_is_let_in_first_and_age_makes_up_for_it(idle, clock):
    line = Line(idle, clock, priority=lambda who, priority=0: priority, aging=10)
    async with anyio.create_task_group() as tasks:
        await line.join(tasks, "holder")
        await line.join(tasks, "low", 2)
        await line.join(tasks, "middle", 1)
        await line.join(tasks, "high", 0)
        await line.serve(1)
        clock.advance(21)
        await line.join(tasks, "late", 0)  # two steps better than "low", which has waited for two steps and more
        await line.serve(4)
    assert line.served == ["holder", "high", "middle", "low", "late"]
    assert at_zero(line.gate)


@pytest.mark.anyio
async def test_keys_are_let_in_in_turn(idle, clock):
    line = Line(idle, clock, key=lambda who: who[0])
    async with anyio.create_task_group() as tasks:
        await line.join(tasks, "x")
        for who in ("a0", "a1", "a2", "b0", "c0", "b1"):
            await line.join(tasks, who)
        await line.serve(7)
    assert line.served == ["x", "a0", "b0", "c0", "a1", "b1", "a2"]


@pytest.mark.anyio
async def test_a_block_has_no_arguments_to_rank_it_by(idle, clock):
    gate, order = bulkhead(1, priority=lambda who: who, key=lambda who: who, clock=clock), []

    async def block():
        async with gate:
            order.append("block")

    @gate
    async def work(who):
        order.append(who)

    async with anyio.create_task_group() as tasks:
        async with gate:
            tasks.start_soon(work, 1)
            await idle()
            tasks.start_soon(block)
            await idle()
    assert order == ["block", 1]
    async with anyio.create_task_group() as tasks:
        fixed = bulkhead(1, priority=3)
        async with fixed:
            tasks.start_soon(fixed(anyio.lowlevel.checkpoint))
            await idle()
    assert at_zero(fixed)


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["priority", "key"])
async def test_an_error_of_the_callers_function_leaves_nothing_behind(broken, idle):
    gate = bulkhead(1, **{broken: lambda: 1 / 0})
    work = gate(anyio.lowlevel.checkpoint)
    await work()  # nobody asks while nobody waits
    async with gate:
        with pytest.raises(ZeroDivisionError):
            await work()
    assert at_zero(gate)


# How long


async def pace(gate, clock, tasks, idle, seconds):
    """Have the gate see that a permit comes free every so many seconds. One call runs in the end, and none waits."""
    release = anyio.Semaphore(0)

    @gate
    async def work():
        await release.acquire()

    tasks.start_soon(work)
    await idle()
    for _ in range(6):
        tasks.start_soon(work)
        await idle()
        clock.advance(seconds)
        release.release()
        await idle()
    assert (gate.in_flight, gate.waiting) == (1, 0)
    return release, work


@pytest.mark.anyio
async def test_a_call_that_cannot_make_it_is_refused_at_once(clock, idle):
    gate = bulkhead(1, max_wait=5, clock=clock, name="gate", queue=100)
    async with anyio.create_task_group() as tasks:
        release, work = await pace(gate, clock, tasks, idle, 2)
        for _ in range(2):  # these wait 2 and 4 seconds
            tasks.start_soon(work)
            await idle()
        with pytest.raises(
            QueueFull, match="2 calls are before this one: about 6 s, and it may wait for 5 s"
        ) as caught:
            await work()
        assert caught.value.reason == "wait_too_long"
        assert caught.value.retry_after == 2
        # True: one call later, there is room for it.
        clock.advance(2)
        release.release()
        await idle()
        tasks.start_soon(work)
        await idle()
        assert gate.waiting == 2
        for _ in range(4):
            release.release()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_the_callers_deadline_counts(clock, idle):
    gate = bulkhead(1, max_wait=100, clock=clock, queue=100)
    async with anyio.create_task_group() as tasks:
        _, work = await pace(gate, clock, tasks, idle, 2)
        for _ in range(3):
            tasks.start_soon(work)
            await idle()
        with deadline_in(7, clock=clock), pytest.raises(QueueFull) as caught:
            await work()
        assert (caught.value.reason, caught.value.retry_after) == ("wait_too_long", 2)
        with pytest.raises(QueueFull):
            await timeout(7, clock=clock)(work)()
        with deadline_in(9, clock=clock):
            tasks.start_soon(work)
            await idle()
        assert gate.waiting == 4
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_call_of_high_priority_is_judged_by_its_own_place(clock, idle):
    gate = bulkhead(1, max_wait=5, clock=clock, queue=100, priority=lambda priority=5: priority)
    async with anyio.create_task_group() as tasks:
        release, _ = await pace(gate, clock, tasks, idle, 2)

        @gate
        async def work(priority):
            await release.acquire()

        for _ in range(2):
            tasks.start_soon(work, 1)
            await idle()
        with pytest.raises(QueueFull):
            await work(1)
        tasks.start_soon(work, 0)
        await idle()
        assert gate.waiting == 3
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_the_first_in_the_queue_always_may_wait(clock, idle):
    # Else a gate that has once seen bad times would refuse everybody and never see that they are over.
    gate = bulkhead(1, max_wait=1, clock=clock, queue=100)
    async with anyio.create_task_group() as tasks:
        release, work = await pace(gate, clock, tasks, idle, 0.9)
        gate._rate._mean = 50.0
        tasks.start_soon(work)
        await idle()
        assert gate.waiting == 1
        for _ in range(2):
            release.release()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_full_queue_tells_when_a_place_comes_free(clock, idle):
    gate = bulkhead(1, queue=6, max_wait=1000, clock=clock)
    async with anyio.create_task_group() as tasks:
        _, work = await pace(gate, clock, tasks, idle, 2)
        for _ in range(6):
            tasks.start_soon(work)
            await idle()
        with pytest.raises(QueueFull, match="6 calls wait already") as caught:
            await work()
        assert (caught.value.reason, caught.value.retry_after) == ("queue_full", 2)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_deadline_that_nobody_enforces_ends_the_wait(clock, idle):
    gate, errors = bulkhead(1, clock=clock, name="gate"), []

    async def call():
        with deadline_in(3, clock=clock), pytest.raises(WaitTimeout, match="gate: no room within 3 s") as caught:
            await gate(anyio.sleep_forever)()
        errors.append(caught.value)

    async with gate, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(3)
    assert len(errors) == 1
    assert at_zero(gate)


@pytest.mark.anyio
async def test_one_that_a_timeout_enforces_ends_as_its_error():
    gate = bulkhead(1)
    async with gate:
        with pytest.raises(TimedOut):
            await guard(timeout(0.01), gate)(anyio.sleep_forever)()
    assert at_zero(gate)


def test_a_thread_keeps_its_deadline_itself(clock):
    gate, errors = bulkhead(1, clock=clock), []

    def late():
        try:
            with deadline_in(3, clock=clock), gate:
                pass
        except WaitTimeout as error:
            errors.append(error)

    with gate:
        thread = threading.Thread(target=late)
        thread.start()
        while not clock._threads:
            thread.join(0.001)
        clock.advance(3)
        thread.join(10)
    assert len(errors) == 1
    assert at_zero(gate)


# Cancelled at every step


@pytest.mark.anyio
async def test_a_cancellation_at_every_step_keeps_the_permits_balanced():
    for cancel_at in range(20):
        gate = bulkhead(1, key=lambda who: who, priority=lambda who: who % 2)
        ran = []

        @gate
        async def work(who, ran=ran):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            ran.append(who)

        async def victim(scope, who, work=work):
            with scope:
                await work(who)

        scopes = [anyio.CancelScope() for _ in range(4)]
        async with anyio.create_task_group() as tasks:
            for who, scope in enumerate(scopes):
                tasks.start_soon(victim, scope, who)
            for step in range(20):
                if step == cancel_at:
                    scopes[cancel_at % 4].cancel()
                await anyio.lowlevel.checkpoint()
        assert set(range(4)) - set(ran) <= {cancel_at % 4}
        assert at_zero(gate)


@pytest.mark.anyio
@pytest.mark.many
async def test_threads_and_tasks_share_it_and_no_wake_up_is_lost():
    gate = bulkhead(2, queue=10_000)
    lock, running, most, done = threading.Lock(), [0], [0], [0]

    def step(change):
        with lock:
            running[0] += change
            most[0] = max(most[0], running[0])
            done[0] += change > 0

    @gate
    def sync_work():
        step(1)
        step(-1)

    @gate
    async def async_work():
        step(1)
        await anyio.lowlevel.checkpoint()
        step(-1)

    def thread():
        for _ in range(200):
            sync_work()

    async def task():
        for _ in range(25):
            await async_work()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(anyio.to_thread.run_sync, thread)
            for _ in range(32):
                tasks.start_soon(task)
    assert done[0] == 6 * 200 + 32 * 25
    assert most[0] == 2
    assert at_zero(gate)


# Adaptive


def test_an_adaptive_limit_shrinks_on_drops_and_grows_when_it_is_used(clock):
    gate = bulkhead(Aimd(initial=10, minimum=5, maximum=20), clock=clock)
    throttled = Outcome("throttled")
    assert gate.limit == 10

    def round_of(outcome, count):
        tickets = [gate.try_enter(CALL) for _ in range(count)]
        assert None not in tickets
        clock.advance(1)
        for ticket in tickets:
            gate.settle(ticket, outcome)

    round_of(throttled, 10)
    assert gate.limit == 9  # once for all that ran together
    held = [gate.try_enter(CALL) for _ in range(9)]
    assert gate.try_enter(CALL) is None
    for ticket in held:
        gate.settle(ticket, IGNORED)
    round_of(SUCCESS, 3)
    assert gate.limit == 9  # it was not being used
    held = [gate.try_enter(CALL) for _ in range(9)]
    for _ in range(40):  # now it is
        gate.settle(held.pop(), SUCCESS)
        while (ticket := gate.try_enter(CALL)) is not None:
            held.append(ticket)
    assert gate.limit > 10
    for ticket in held:
        gate.settle(ticket, IGNORED)
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_limit_that_grows_lets_the_waiting_in(clock, idle):
    gate = bulkhead(Aimd(initial=1, maximum=3), clock=clock)
    release, running = anyio.Semaphore(0), [0]

    @gate
    async def work():
        running[0] += 1
        await release.acquire()
        running[0] -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(work)
        await idle()
        assert (running[0], gate.waiting) == (1, 4)
        release.release()
        await idle()
        assert (gate.limit, running[0], gate.waiting) == (2, 2, 2)
        for _ in range(4):
            release.release()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_limit_that_shrinks_is_paid_back_by_those_who_leave(clock, idle):
    gate = bulkhead(Aimd(initial=4, backoff=0.5), clock=clock)
    tickets = [gate.try_enter(CALL) for _ in range(4)]
    clock.advance(1)
    gate.settle(tickets.pop(), Outcome("failure", TimeoutError()))
    assert (gate.limit, gate.in_flight) == (2, 3)
    assert gate.try_enter(CALL) is None
    gate.settle(tickets.pop(), IGNORED)
    assert gate.try_enter(CALL) is None
    gate.settle(tickets.pop(), IGNORED)
    assert gate.try_enter(CALL) is not None


# Its face


def test_it_describes_itself():
    assert bulkhead(10).describe() == "bulkhead 'bulkhead': 10 at once, 100 may wait for 30 s"
    assert repr(bulkhead(10, name="db")) == "<bulkhead 'db' 0 of 10 in flight, 0 waiting>"
    adaptive = bulkhead(Gradient(initial=20, maximum=50), queue=7)
    assert adaptive.describe() == "bulkhead 'bulkhead': 1 to 50 at once by Gradient, 7 may wait for 30 s"
    assert adaptive.limit == 20


@pytest.mark.anyio
async def test_events_tell_who_waited_and_who_was_refused(clock, idle):
    gate = bulkhead(1, queue=1, clock=clock, name="gate")
    with decisions() as seen:
        async with anyio.create_task_group() as tasks:
            async with gate:
                tasks.start_soon(gate(anyio.lowlevel.checkpoint))
                await idle()
                clock.advance(3)
                with contextlib.suppress(QueueFull):
                    await gate(anyio.lowlevel.checkpoint)()
    kinds = [(type(event).__name__, getattr(event, "waited", getattr(event, "reason", None))) for event in seen]
    assert kinds == [
        ("CallAdmitted", 0.0),
        ("CallRejected", "queue_full"),
        ("CallSettled", None),
        ("CallAdmitted", 3.0),
        ("CallSettled", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        ((0,), {}, ValueError, "max_concurrent"),
        ((True,), {}, TypeError, "max_concurrent"),
        ((1.5,), {}, TypeError, "max_concurrent"),
        ((len,), {}, TypeError, r"write @bulkhead\(10\)"),
        ((1,), {"queue": -1}, ValueError, "queue"),
        ((1,), {"queue": 1.5}, ValueError, "queue"),
        ((1,), {"max_wait": 0}, ValueError, "max_wait"),
        ((1,), {"max_wait": "1"}, TypeError, "max_wait"),
        ((1,), {"aging": 0}, ValueError, "aging"),
        ((1,), {"aging": None}, TypeError, "aging"),
        ((1,), {"priority": "high"}, TypeError, "priority"),
        ((1,), {"priority": True}, TypeError, "priority"),
        ((1,), {"key": "user"}, TypeError, "key"),
    ],
)
def test_misuse_names_the_argument(arguments, options, error, named):
    with pytest.raises(error, match=named):
        bulkhead(*arguments, **options)


def test_its_refusals_are_rejections():
    gate = bulkhead(1, queue=0)
    with gate, pytest.raises(Rejected) as caught, gate:
        pass
    assert caught.value.guard == "bulkhead"


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False])
async def test_a_call_that_a_deadline_further_out_cut_off_counts_as_a_drop(clock, idle, real):
    options = {} if real else {"clock": clock}
    gate = bulkhead(Aimd(initial=10, backoff=0.5), **options)

    async def call():
        with pytest.raises(TimedOut):
            await guard(timeout(0.02, **options), gate)(anyio.sleep_forever)()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        if not real:
            await idle()
            clock.advance(0.02)
    assert gate.limit == 5
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate(anyio.sleep_forever))
        await idle()
        tasks.cancel_scope.cancel()
    assert gate.limit == 5  # its caller only went away


def test_which_bulkheads_look_at_the_arguments():
    assert not bulkhead(1, priority=5).reads_call
    assert bulkhead(1, key=len).reads_call
    assert bulkhead(1, priority=len).reads_call
