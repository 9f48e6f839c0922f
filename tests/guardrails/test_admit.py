from __future__ import annotations

import contextlib
import threading

import anyio
import pytest

from guardrails import admit
from guardrails.core.guard import Call
from guardrails.core.outcome import SUCCESS
from guardrails.errors import MemoryRefused, QueueFull, WaitTimeout
from guardrails.memory.reading import Scope
from guardrails.memory.watermarks import Watermarks
from tests.guardrails.heard import decisions

CALL = Call((), {})
MIB = 1024**2


@pytest.fixture
def gate(memory, clock):
    """Two at once, three may wait for ten seconds."""
    return admit(name="gate", concurrency=2, queue=3, max_wait=10, sampler=memory, clock=clock)


def at_zero(gate):
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)
    return True


# Permits


def test_it_lets_in_as_many_as_it_may(gate):
    tickets = [gate.try_enter(CALL), gate.try_enter(CALL)]
    assert None not in tickets
    assert gate.try_enter(CALL) is None
    assert gate.in_flight == 2
    gate.settle(tickets[0], SUCCESS)
    assert gate.try_enter(CALL) is not None


@pytest.mark.anyio
async def test_a_waiting_call_is_let_in_when_another_ends(gate, idle):
    release, done = anyio.Event(), []

    @gate
    async def work(name):
        done.append(name)
        await release.wait()

    async with anyio.create_task_group() as tasks:
        for name in range(5):
            tasks.start_soon(work, name)
            await idle()
        assert (done, gate.in_flight, gate.waiting) == ([0, 1], 2, 3)
        release.set()
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_full_queue_refuses_at_once(gate, idle):
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(gate(anyio.sleep_forever))
        await idle()
        with pytest.raises(QueueFull, match="gate: 3 calls wait already") as caught:
            await gate(anyio.sleep_forever)()
        assert (caught.value.guard, caught.value.reason, caught.value.retry_after) == ("gate", "queue_full", None)
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_with_a_queue_of_0_nobody_waits(memory):
    gate = admit(concurrency=1, queue=0, sampler=memory)
    async with gate:
        with pytest.raises(QueueFull, match="0 calls wait already"):
            await gate(anyio.sleep_forever)()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_call_waits_no_longer_than_max_wait(gate, clock, idle):
    outcomes = []

    async def late():
        with pytest.raises(WaitTimeout, match="gate: no room within 10 s"):
            await gate(anyio.sleep_forever)()
        outcomes.append(clock.now())

    async with gate, gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            await idle()
            clock.advance(9.5)
            await idle()
            assert (outcomes, gate.waiting) == ([], 1)
            clock.advance(0.5)
        assert len(outcomes) == 1
        assert (gate.in_flight, gate.waiting) == (2, 0)
    assert at_zero(gate)


@pytest.mark.anyio
async def test_events_tell_how_long_a_call_waited(gate, clock, idle):
    async def leave(release):
        async with gate, gate:
            await release.wait()

    release = anyio.Event()
    with decisions() as seen:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave, release)
            await idle()
            tasks.start_soon(gate(anyio.lowlevel.checkpoint))
            await idle()
            clock.advance(4)
            release.set()
    assert [event.waited for event in seen if hasattr(event, "waited")] == [0.0, 0.0, 4.0]


# Memory


def test_a_call_reserves_its_memory_until_it_ends(memory):
    gate = admit(memory="300MiB", sampler=memory)
    ticket = gate.try_enter(CALL)
    assert gate.reserved == 300 * MIB
    gate.settle(ticket, SUCCESS)
    assert at_zero(gate)


def test_measured_reserved_and_cost_together_stay_below_the_high_mark(memory):
    memory.use(40, 100)
    gate = admit(memory=15, sampler=memory)
    tickets = [gate.try_enter(CALL) for _ in range(3)]
    assert tickets[:2] == [15, 15]
    assert tickets[2] == 15  # 40 + 45 = 85: at the mark, not above it
    assert gate.try_enter(CALL) is None
    memory.use(39, 100)
    assert gate.try_enter(CALL) is None
    gate.settle(15, SUCCESS)
    assert gate.try_enter(CALL) == 15


def test_every_scope_must_have_room(memory):
    gate = admit(memory=20, sampler=memory)
    memory.read([Scope("host", 0, 1000), Scope("/a", 0, 100), Scope("/a/b", 70, 100)])
    assert gate.try_enter(CALL) is None
    memory.read([Scope("host", 0, 1000), Scope("/a", 0, 100), Scope("/a/b", 60, 100)])
    assert gate.try_enter(CALL) == 20


def test_the_cost_may_depend_on_the_arguments(memory):
    gate = admit(memory=lambda text, *, factor=1: len(text) * factor, sampler=memory)
    seen = []
    work = gate(lambda text, *, factor=1: seen.append(gate.reserved))
    work("four")
    work("four", factor=3)
    work("")
    assert seen == [4, 12, 0]
    assert gate(lambda text: gate.reserved)("x" * 7) == 7
    assert at_zero(gate)


@pytest.mark.parametrize(("cost", "reserved"), [("2KiB", 2048), (1.5, 1), (0, 0), (0.0, 0)])
def test_a_cost_function_may_return_any_size(memory, cost, reserved):
    gate = admit(memory=lambda: cost, sampler=memory)
    assert gate(lambda: gate.reserved)() == reserved


@pytest.mark.parametrize(
    ("cost", "error"), [(None, TypeError), (-1, ValueError), ("much", ValueError), (1 / 2, ValueError)]
)
def test_a_cost_that_is_no_size_is_refused_and_named(memory, cost, error):
    gate = admit(memory=lambda: cost, sampler=memory)
    with pytest.raises(error, match=r"^admit: memory\(\.\.\.\)"):
        gate(lambda: 7)()
    assert at_zero(gate)


def test_a_call_that_can_never_fit_is_refused_at_once(memory):
    memory.use(0, 100 * MIB)
    gate = admit(name="gate", memory="90MiB", sampler=memory)
    with pytest.raises(
        MemoryRefused, match="gate: the call needs 90 MiB, and even alone it may have 85 MiB at most"
    ) as caught:
        gate.try_enter(CALL)
    assert (caught.value.reason, caught.value.retry_after) == ("memory_too_large", None)
    assert at_zero(gate)


def test_above_the_high_mark_calls_wait_and_run_again_below_the_low_one(memory):
    gate = admit(memory=1, sampler=memory)
    for used, level, admitted in (
        (84, "normal", True),
        (85, "high", False),
        (81, "high", False),
        (80, "high", False),
        (79, "normal", True),
    ):
        memory.use(used, 100)
        ticket = gate.try_enter(CALL)
        assert (gate.level, ticket is not None) == (level, admitted)
        if ticket is not None:
            gate.settle(ticket, SUCCESS)


def test_above_the_critical_mark_calls_are_refused(memory):
    gate = admit(name="gate", memory=1, sampler=memory)
    memory.use(95, 100)
    with pytest.raises(MemoryRefused, match="gate: memory is critical") as caught:
        gate.try_enter(CALL)
    assert caught.value.reason == "memory_critical"
    assert caught.value.retry_after > 0


def test_pressure_holds_calls_without_a_cost_too(memory):
    gate = admit(concurrency=5, sampler=memory)
    memory.use(90, 100)
    assert gate.try_enter(CALL) is None
    memory.use(96, 100)
    with pytest.raises(MemoryRefused):
        gate.try_enter(CALL)


@pytest.mark.anyio
async def test_a_reading_with_room_lets_the_waiting_in(memory, idle):
    gate = admit(memory=10, sampler=memory, watermarks=Watermarks(0.5, 0.6, 0.9))
    memory.use(70, 100)
    done = []

    @gate
    async def work(name):
        done.append(name)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for name in range(4):
            tasks.start_soon(work, name)
            await idle()
        assert (done, gate.waiting) == ([], 4)
        memory.wanted = False
        memory.use(40, 100)
        await idle()
        assert (sorted(done), gate.waiting, memory.wanted) == ([0, 1], 2, True)  # trio wakes a batch in any order
        memory.use(0, 100)
        await idle()
        assert (sorted(done), gate.waiting, gate.reserved) == ([0, 1, 2, 3], 0, 40)
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_reading_on_another_thread_wakes_the_waiting(memory, idle):
    gate = admit(memory=10, sampler=memory)
    memory.use(90, 100)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate(anyio.lowlevel.checkpoint))
        await idle()
        assert gate.waiting == 1
        await anyio.to_thread.run_sync(memory.use, 0, 100)
    assert at_zero(gate)


def test_each_call_asks_for_a_fresh_reading(memory):
    gate = admit(memory=1, sampler=memory)
    memory.wanted = False
    gate.try_enter(CALL)
    assert memory.wanted


@pytest.mark.anyio
@pytest.mark.parametrize("leaves", ["cancelled", "late"])
async def test_who_stands_behind_a_head_that_leaves_is_let_in(memory, clock, idle, leaves):
    # 60 of 85 are taken by a call that hangs. The head wants 50, the next only 10: it fits as soon as the head goes.
    gate = admit(memory=lambda cost: cost, max_wait=10, sampler=memory, clock=clock)
    memory.use(0, 100)
    done, scope = [], anyio.CancelScope()

    @gate
    async def hang(cost):
        await anyio.sleep_forever()

    @gate
    async def light(cost):
        done.append(cost)

    async def head():
        with scope, contextlib.suppress(WaitTimeout):
            await hang(50)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hang, 60)
        await idle()
        tasks.start_soon(head)
        await idle()
        clock.advance(5)
        tasks.start_soon(light, 10)
        await idle()
        assert (gate.waiting, done) == (2, [])
        if leaves == "cancelled":
            scope.cancel()
        else:
            clock.advance(5)
        await idle()
        assert (gate.waiting, done) == (0, [10])
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


# Sync code


def test_a_sync_function_waits_in_its_thread(memory):
    gate = admit(concurrency=1, sampler=memory)
    inside, release = threading.Event(), threading.Event()

    @gate
    def hold():
        inside.set()
        assert release.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert at_zero(gate)


def test_a_thread_waits_no_longer_than_max_wait(gate, clock):
    errors = []

    def late():
        try:
            gate(lambda: 7)()
        except WaitTimeout as error:
            errors.append(error)

    with gate, gate:
        thread = threading.Thread(target=late)
        thread.start()
        while not clock._threads:
            thread.join(0.001)
        clock.advance(10)
        thread.join(10)
    assert len(errors) == 1
    assert at_zero(gate)


def test_a_thread_may_wait_for_ever(memory):
    gate = admit(concurrency=1, max_wait=float("inf"), sampler=memory)
    done = []
    with gate:
        thread = threading.Thread(target=gate(lambda: done.append(7)))
        thread.start()
        while not gate.waiting:
            thread.join(0.001)
    thread.join(10)
    assert done == [7]


@pytest.mark.anyio
async def test_a_sync_call_that_would_wait_on_the_loops_thread_is_refused(gate):
    work = gate(lambda: 7)
    assert work() == 7
    async with gate, gate:
        with pytest.raises(QueueFull, match="a sync call on the event loop's thread must not wait") as caught:
            work()
        assert caught.value.reason == "would_block"
        with pytest.raises(QueueFull):
            with gate:
                raise AssertionError("the body of a refused block ran")
    assert at_zero(gate)


# Misuse


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"concurrency": 1.5}, ValueError, "concurrency"),
        ({"concurrency": True}, ValueError, "concurrency"),
        ({"queue": -1}, ValueError, "queue"),
        ({"max_wait": 0}, ValueError, "max_wait"),
        ({"max_wait": float("nan")}, ValueError, "max_wait"),
        ({"max_wait": "30"}, TypeError, "max_wait"),
        ({"max_wait": None}, TypeError, "max_wait"),
        ({"memory": "much"}, ValueError, "memory"),
        ({"memory": 0}, ValueError, "memory"),
        ({"memory": [1]}, TypeError, "memory"),
        ({"limit": "much", "sampler": None}, ValueError, "limit"),
    ],
)
def test_misuse_names_the_argument(memory, options, error, named):
    with pytest.raises(error, match=named):
        admit(**{"sampler": memory, **options})


def test_it_takes_no_positional_argument_but_a_function():
    with pytest.raises(TypeError, match="keywords only"):
        admit(5)


def test_the_defaults(memory):
    assert admit(sampler=memory).describe() == "admit 'admit': 64 at once, 640 may wait for 30 s"
    assert admit(memory="1GiB", sampler=memory).describe() == "admit 'admit': 1 GiB each, 640 may wait for 30 s"
    assert admit(concurrency=500, sampler=memory).describe() == "admit 'admit': 500 at once, 1000 may wait for 30 s"
    assert (
        admit(memory=len, sampler=memory).describe() == "admit 'admit': memory by its arguments, 640 may wait for 30 s"
    )
    assert repr(admit(sampler=memory)) == "<admit 'admit' 0 in flight, 0 waiting, memory normal>"
