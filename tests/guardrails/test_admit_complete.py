"""What `admit` has beyond permits and sizes: learned costs, adaptive limits, shedding, priorities."""

from __future__ import annotations

import gc
import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import admit
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import MemoryRefused, QueueFull
from guardrails.gates.admit import Aimd, Gradient, Learned
from guardrails.memory.reading import Scope
from guardrails.memory.watermarks import Watermarks
from tests.guardrails.heard import decisions

CALL = Call((), {})
MIB = 1024**2
GIB = 1024**3


def at_zero(gate):
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)
    return True


def tree(memory, nbytes, host=0):
    memory.read([Scope("host", host, 10 * GIB), Scope("processes", nbytes, 1 << 60)])


# A cost function is asked once


@pytest.mark.anyio
@pytest.mark.parametrize("wait", [False, True])
async def test_a_cost_function_is_called_once_a_call(memory, idle, wait):
    asked = []
    gate = admit(concurrency=1, memory=lambda *args: asked.append(args) or 5, sampler=memory)

    @gate
    async def work(who):
        assert gate.reserved == 5

    async with anyio.create_task_group() as tasks:
        if wait:
            ticket = gate.try_enter(Call((0,), {}))
            asked.clear()
            tasks.start_soon(work, 1)
            await idle()
            assert gate.waiting == 1
            gate.settle(ticket, SUCCESS)
        else:
            tasks.start_soon(work, 1)
    assert asked == [(1,)]
    assert gate._asked == {}
    assert at_zero(gate)


def test_in_a_thread_too(memory):
    asked = []
    gate = admit(concurrency=1, memory=lambda: asked.append(1) or 5, sampler=memory)
    ticket = gate.try_enter(CALL)
    asked.clear()
    thread = threading.Thread(target=gate(lambda: None))
    thread.start()
    while not gate.waiting:
        thread.join(0.001)
    gate.settle(ticket, SUCCESS)
    thread.join(10)
    assert asked == [1]
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_call_that_entered_by_itself_is_asked_then(memory):
    gate = admit(memory=lambda: 5, sampler=memory)
    assert await gate.enter(CALL) == 5
    gate.settle(5, SUCCESS)
    assert at_zero(gate)


# A fixed cost as permits


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), max_size=4),
    st.integers(1, 400),
    st.integers(0, 50),
)
def test_the_room_for_equal_calls_is_what_fits_says(sizes, cost, most):
    scopes = [Scope("s", used, limit) for used, limit in sizes]
    marks = Watermarks()
    room = marks.room(scopes, cost, most)
    assert 0 <= room <= most
    assert room == 0 or marks.fits(scopes, room * cost)
    assert room == most or not marks.fits(scopes, (room + 1) * cost)


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from(["enter", "enter", "settle", "read"]), st.integers(0, 100)), max_size=60),
)
def test_a_fixed_cost_equals_the_arithmetic(concurrency, cost, steps):
    class Memory:
        wanted = False
        scopes = (Scope("s", 0, 100),)

        def watch(self, watcher):
            watcher.on_reading(self.scopes)

    gate = admit(concurrency=concurrency, memory=cost, sampler=Memory(), watermarks=Watermarks(0.8, 0.85, 1.0))
    used, level, held = 0, "normal", 0
    for action, number in steps:
        if action == "read":
            used = min(number, 99)
            gate.on_reading((Scope("s", used, 100),))
            level = gate.level
        elif action == "settle" and held:
            gate.settle(cost, SUCCESS)
            held -= 1
        elif action == "enter":
            ticket = gate.try_enter(CALL)
            fits = held < concurrency and level == "normal" and used + (held + 1) * cost <= 0.85 * 100
            assert (ticket is not None) == fits
            held += ticket is not None
        assert (gate.in_flight, gate.reserved) == (held, held * cost)


def test_readings_with_no_scope_limit_nothing():
    class Nothing:
        wanted = False

        def watch(self, watcher):
            watcher.on_reading(())

    gate = admit(memory="1GiB", sampler=Nothing())
    tickets = [gate.try_enter(CALL) for _ in range(2000)]
    assert None not in tickets
    assert gate.in_flight == 2000
    for ticket in tickets:
        gate.settle(ticket, SUCCESS)
    assert at_zero(gate)


# Critical memory


@pytest.mark.anyio
async def test_those_who_wait_are_sent_away_when_memory_turns_critical(memory, idle):
    gate, refusals = admit(memory=10, sampler=memory, name="gate"), []
    memory.use(90, 100)

    async def call():
        with pytest.raises(MemoryRefused, match="gate: memory is critical") as caught:
            await gate(anyio.sleep_forever)()
        refusals.append((caught.value.reason, caught.value.retry_after))

    with decisions() as seen:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call)
            await idle()
            assert gate.waiting == 3
            await anyio.to_thread.run_sync(memory.use, 96, 100)
    assert refusals == [("memory_critical", 1.0)] * 3
    assert sum(type(event).__name__ == "CallRejected" for event in seen) == 3
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_waiting_thread_is_sent_away_too(memory):
    gate, refusals = admit(memory=10, sampler=memory), []
    memory.use(90, 100)

    def call():
        try:
            with gate:
                pass
        except MemoryRefused as error:
            refusals.append(error.reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, call)
        while not gate.waiting:
            await anyio.sleep(0.001)
        memory.use(96, 100)
    assert refusals == ["memory_critical"]
    assert at_zero(gate)


@pytest.mark.anyio
async def test_one_that_is_cancelled_as_it_is_sent_away_leaves_nothing(memory, idle):
    gate, scope = admit(memory=10, sampler=memory), anyio.CancelScope()
    memory.use(90, 100)

    async def call():
        with scope:
            await gate(anyio.sleep_forever)()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        scope.cancel()
        memory.use(96, 100)
    assert scope.cancelled_caught
    assert at_zero(gate)


def test_what_runs_when_memory_turns_critical_goes_on(memory):
    gate = admit(concurrency=3, memory=10, sampler=memory)
    memory.use(0, 100)
    tickets = [gate.try_enter(CALL) for _ in range(3)]
    memory.use(96, 100)
    assert gate.in_flight == 3
    memory.use(0, 100)
    assert gate.try_enter(CALL) is None
    gate.settle(tickets.pop(), SUCCESS)
    tickets.append(gate.try_enter(CALL))
    assert None not in tickets
    for ticket in tickets:
        gate.settle(ticket, SUCCESS)
    assert at_zero(gate)


# Learned


def test_a_learned_cost(memory):
    gate = admit(memory="learned", sampler=memory)
    tree(memory, 100 * MIB)
    for grown in (110, 300):
        ticket = gate.try_enter(CALL)
        assert gate.reserved == 64 * MIB
        tree(memory, grown * MIB)
        gate.settle(ticket, SUCCESS)
        tree(memory, 100 * MIB)
    ticket = gate.try_enter(CALL)
    assert gate.reserved == 200 * MIB  # more than the start value: it counts at once
    gate.settle(ticket, SUCCESS)
    assert at_zero(gate)


def test_a_learned_cost_by_size(memory):
    gate = admit(memory=Learned(size=len, enough=1, start="10MiB"), sampler=memory, name="gate")
    tree(memory, 0)
    seen = []

    @gate
    def work(text):
        seen.append(gate.reserved)
        tree(memory, len(text) * MIB)
        tree(memory, 0)

    for text in ("x" * 4, "x" * 100, "x" * 5, "x" * 70):
        work(text)
    assert seen == [10 * MIB, 10 * MIB, 4 * MIB, 100 * MIB]
    with gate:  # a block has no arguments: the smallest class
        assert gate.reserved == 10 * MIB
    assert gate.describe() == "admit 'gate': memory as learned, 640 may wait for 30 s"
    assert at_zero(gate)


def test_a_learned_cost_has_the_tree_measured():
    gate = admit(memory="learned")
    assert gate._scopes[-1].name == "processes"
    assert gate._scopes[-1].used > 0
    assert gate.level == "normal"
    thread = gate._sampler._thread
    del gate
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_call_that_ends_teaches_even_if_it_failed(memory):
    gate = admit(memory=Learned(enough=1, start="10MiB"), sampler=memory)
    tree(memory, 0)
    ticket = gate.try_enter(CALL)
    tree(memory, 20 * MIB)
    gate.settle(ticket, Outcome("failure", ValueError()))
    assert gate._cost_of(CALL) == 20 * MIB


# Adaptive


def test_an_adaptive_limit_and_memory_together(memory, clock):
    gate = admit(concurrency=Aimd(initial=4, backoff=0.5), memory=10, sampler=memory, clock=clock)
    memory.use(0, 100)
    assert gate.limit == 4
    tickets = [gate.try_enter(CALL) for _ in range(4)]
    assert gate.try_enter(CALL) is None
    clock.advance(1)
    gate.settle(tickets.pop(), Outcome("throttled"))
    assert gate.limit == 2
    for ticket in tickets:
        gate.settle(ticket, IGNORED)
    memory.use(70, 100)  # room for one
    assert gate.limit == 2
    ticket = gate.try_enter(CALL)
    assert gate.try_enter(CALL) is None
    gate.settle(ticket, SUCCESS)
    memory.use(0, 100)
    assert None not in [gate.try_enter(CALL), gate.try_enter(CALL)]
    assert gate.try_enter(CALL) is None


def test_it_describes_an_adaptive_limit(memory):
    gate = admit(concurrency=Gradient(maximum=50), sampler=memory)
    assert gate.describe() == "admit 'admit': 1 to 50 at once by Gradient, 500 may wait for 30 s"
    assert admit(memory=5, sampler=memory).limit is None
    assert admit(concurrency=5, sampler=memory).limit == 5


# The queue


@pytest.mark.anyio
async def test_priorities_and_keys(memory, clock, idle):
    gate = admit(
        concurrency=1,
        memory=lambda *_: 1,
        priority=lambda who, priority: priority,
        key=lambda who, _: who[0],
        sampler=memory,
        clock=clock,
    )
    order, turn = [], anyio.Semaphore(0)

    @gate
    async def work(who, priority):
        order.append(who)
        await turn.acquire()

    async with anyio.create_task_group() as tasks:
        for who, priority in (("x", 0), ("a0", 1), ("a1", 1), ("b0", 1), ("c0", 0)):
            tasks.start_soon(work, who, priority)
            await idle()
        for _ in range(5):
            turn.release()
            await idle()
    assert order == ["x", "c0", "a0", "b0", "a1"]
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_heavy_head_is_waited_for(memory, clock, idle):
    gate = admit(memory=lambda cost: cost, sampler=memory, clock=clock)
    memory.use(0, 100)
    order = []

    @gate
    async def work(cost):
        order.append(cost)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for cost in (60, 50, 1):
            tasks.start_soon(work, cost)
            await idle()
        assert (order, gate.waiting) == ([60], 2)
        tasks.cancel_scope.cancel()
    assert at_zero(gate)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"priority": None}, TypeError, "priority"),
        ({"aging": -1}, ValueError, "aging"),
        ({"key": 5}, TypeError, "key"),
        ({"concurrency": "many"}, ValueError, "concurrency"),
    ],
)
def test_misuse_names_the_argument(memory, options, error, named):
    with pytest.raises(error, match=named):
        admit(sampler=memory, **options)


def test_a_full_queue_is_a_rejection(memory):
    gate = admit(concurrency=1, queue=0, sampler=memory)
    with gate, pytest.raises(QueueFull), gate:
        pass
    assert at_zero(gate)


@pytest.mark.anyio
@pytest.mark.parametrize("wait", [False, True])
async def test_the_size_of_a_call_is_asked_once(memory, idle, wait):
    asked = []
    learned = Learned(size=lambda text: asked.append(text) or len(text))
    gate = admit(concurrency=1, memory=learned, sampler=memory)
    tree(memory, 0)

    @gate
    async def work(text):
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        ticket = gate.try_enter(Call(("holder",), {})) if wait else None
        asked.clear()
        tasks.start_soon(work, "text")
        if wait:
            await idle()
            assert gate.waiting == 1
            gate.settle(ticket, SUCCESS)
    assert asked == ["text"]
    assert at_zero(gate)


def test_a_size_that_cannot_be_told_leaves_nothing_behind(memory):
    gate = admit(memory=Learned(size=lambda: 1 / 0), sampler=memory)
    with pytest.raises(ZeroDivisionError):
        gate(lambda: 7)()
    assert at_zero(gate)


def test_which_gates_look_at_the_arguments(memory):
    def reads(**options):
        return admit(sampler=memory, **options).reads_call

    assert [reads(), reads(memory=5), reads(memory="learned"), reads(concurrency=Aimd(), priority=3)] == [False] * 4
    assert reads(memory=len)
    assert reads(memory=Learned(size=len))
    assert reads(key=len)
    assert reads(priority=len)


@given(st.integers(0, 2**62), st.integers(1, 2**62), st.integers(1, 2**40))
def test_the_room_is_exact_for_numbers_that_floats_cannot_hold(used, limit, cost):
    marks, scopes = Watermarks(), [Scope("s", used, limit)]
    room = marks.room(scopes, cost, 1 << 62)
    assert room == 0 or marks.fits(scopes, room * cost)
    assert not marks.fits(scopes, (room + 1) * cost)


def test_another_thread_may_take_the_last_permit_under_our_hands(memory):
    gate = admit(concurrency=1, sampler=memory)

    class Stolen(list):
        def pop(self):
            raise IndexError

    gate._free = Stolen([0])
    gate._books.free.clear()
    gate._books.spare = 0
    assert gate.try_enter(CALL) is None


def test_an_interrupted_thread_leaves_the_queue(memory, clock):
    gate = admit(concurrency=1, sampler=memory, clock=clock)

    def interrupt(event, seconds):
        raise KeyboardInterrupt

    clock.wait_thread = interrupt
    with gate, pytest.raises(KeyboardInterrupt), gate:
        pass
    assert at_zero(gate)


def test_one_that_was_granted_gives_its_permit_back(memory, clock):
    gate = admit(concurrency=1, sampler=memory, clock=clock)
    ticket = gate.try_enter(CALL)

    def interrupt(event, seconds):
        gate.settle(ticket, SUCCESS)  # another thread's, in the same moment
        assert gate.in_flight == 1
        raise KeyboardInterrupt

    clock.wait_thread = interrupt
    with pytest.raises(KeyboardInterrupt), gate:
        pass
    assert at_zero(gate)


@pytest.mark.anyio
async def test_a_permit_that_came_back_since_the_first_look_is_taken(memory):
    gate = admit(concurrency=1, memory=lambda: 5, sampler=memory)
    ticket = gate.try_enter(CALL)
    assert gate.try_enter(CALL) is None
    gate.settle(ticket, SUCCESS)
    assert await gate.enter(CALL) == 5
    gate.settle(5, SUCCESS)
    thread_ticket = await anyio.to_thread.run_sync(gate.enter_blocking, CALL)
    gate.settle(thread_ticket, SUCCESS)
    assert at_zero(gate)
