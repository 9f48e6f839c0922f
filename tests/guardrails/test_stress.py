"""Calls that are cancelled at any moment, on every kind of loop and in threads: nothing may be lost, nothing kept."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from functools import partial

import anyio
import pytest
import trio

from guardrails import admit, breaker, guard, timeout
from guardrails.errors import CircuitOpen, Rejected, TimedOut

CALLS = 10_000
AT_ONCE = 100


def at_zero(gate, circuit):
    assert (gate.in_flight, gate.reserved, gate.waiting, circuit.probes_in_flight) == (0, 0, 0, 0)
    return True


@pytest.mark.anyio
@pytest.mark.many
async def test_ten_thousand_calls_with_random_cancellation(memory, clock):
    chance = random.Random(20_240_607)
    circuit = breaker(
        failure_rate=0.5, min_calls=10, window=20, open_for=0.1, success_threshold=3, probe_lease=5, clock=clock
    )
    gate = admit(concurrency=12, memory=lambda cost, *_: cost, queue=80, max_wait=3, sampler=memory, clock=clock)
    memory.use(0, 1000)
    pipeline = guard(circuit, gate)
    seen = dict.fromkeys(("ran", "refused", "failed", "cancelled", "half-open"), 0)

    async def body(cost, steps, fails):
        seen["half-open"] += circuit.state == "half-open"
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        if fails:
            raise ValueError

    @pipeline
    async def call(cost, steps, fails):
        await body(cost, steps, fails)

    @pipeline
    async def stream(cost, steps, fails):
        yield 1
        await body(cost, steps, fails)
        yield 2

    async def read(cost, steps, fails):
        async with contextlib.aclosing(stream(cost, steps, fails)) as items:
            async for _ in items:
                await anyio.lowlevel.checkpoint()

    async def one(number, scopes):
        # Some bad minutes and some good ones, so that the circuit opens and closes again and again.
        fails = chance.random() < (0.9 if number // 200 % 4 == 0 else 0.02)
        arguments = chance.randrange(1, 200), chance.randrange(4), fails
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            try:
                await (call if number % 2 else read)(*arguments)
                seen["ran"] += 1
            except Rejected:
                seen["refused"] += 1
            except ValueError:
                seen["failed"] += 1
        seen["cancelled"] += scope.cancelled_caught

    for start in range(0, CALLS, AT_ONCE):
        scopes = []
        async with anyio.create_task_group() as tasks:
            for number in range(start, start + AT_ONCE):
                tasks.start_soon(one, number, scopes)
            while tasks_left(gate, scopes):
                await anyio.lowlevel.checkpoint()
                for scope in chance.sample(scopes, min(3, len(scopes))):
                    scope.cancel()
                clock.advance(chance.random() / 10)
                memory.use(chance.choice((0,) * 7 + (100, 870, 960)), 1000)
            memory.use(0, 1000)
        clock.advance(0.5)
        assert at_zero(gate, circuit)
    assert sum(seen[word] for word in ("ran", "refused", "failed", "cancelled")) == CALLS
    assert all(count > 20 for count in seen.values()), seen


def tasks_left(gate, scopes):
    return len(scopes) < AT_ONCE or gate.in_flight or gate.waiting


# A cancellation at every step of a call


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["closed", "half-open"])
@pytest.mark.many
async def test_a_cancellation_at_every_step_leaves_the_books_balanced(memory, state):
    for cancel_at in range(40):
        circuit = breaker(fail_max=1, open_for=1e-9)
        gate = admit(concurrency=1, memory="1MiB", sampler=memory)
        if state == "half-open":
            with pytest.raises(ZeroDivisionError):
                circuit(lambda: 1 / 0)()
        pipeline = guard(timeout(30), circuit, gate, timeout(20))
        ran = []

        @pipeline
        async def work(ran=ran):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            ran.append(True)

        async def victim(scope, work=work):
            with scope, contextlib.suppress(CircuitOpen):
                await work()

        async def holder(release, gate=gate):
            async with gate:
                await release.wait()

        release, scope = anyio.Event(), anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder, release)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(victim, scope)
            tasks.start_soon(victim, anyio.CancelScope())
            for step in range(40):
                if step == cancel_at:
                    scope.cancel()
                if step == 5:
                    release.set()
                await anyio.lowlevel.checkpoint()
        assert at_zero(gate, circuit)
        if state == "closed":
            assert ran in ([True], [True, True])


@pytest.mark.parametrize("cancel_at", range(8))
def test_a_task_cancelled_natively_at_every_step_leaves_the_books_balanced(memory, cancel_at):
    async def main():
        circuit, gate = breaker(), admit(concurrency=1, memory="1MiB", sampler=memory)
        work = guard(timeout(30), circuit, gate, timeout(20))(steps)
        async with gate:
            tasks = [asyncio.ensure_future(work()) for _ in range(2)]
            for _ in range(cancel_at):
                await asyncio.sleep(0)
            if cancel_at < 4:
                tasks[0].cancel()
        for _ in range(cancel_at - 3):
            await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == 7
        assert at_zero(gate, circuit)

    async def steps():
        for _ in range(10):
            await asyncio.sleep(0)
        return 7

    asyncio.run(main())


def test_a_coroutine_closed_at_every_step_leaves_the_books_balanced():
    class Step:
        def __await__(self):
            yield

    gate = admit(concurrency=1, sampler=NoMemory())
    circuit = breaker()

    @guard(circuit, gate)
    async def work():
        for _ in range(5):
            await Step()

    for closed_at in range(1, 6):
        coroutine = work()
        for _ in range(closed_at):
            coroutine.send(None)
        assert gate.in_flight == 1
        coroutine.close()
        assert at_zero(gate, circuit)


class NoMemory:
    wanted = False
    scopes = ()

    def watch(self, watcher):
        watcher.on_reading(())


# Threads and tasks at one gate


@pytest.mark.anyio
@pytest.mark.many
async def test_threads_and_tasks_share_a_gate_and_no_wake_up_is_lost(memory):
    gate = admit(concurrency=2, memory="1MiB", queue=10_000, sampler=memory)
    lock, running, most, done = threading.Lock(), [0], [0], [0]

    def enter():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])

    def leave():
        with lock:
            running[0] -= 1
            done[0] += 1

    @gate
    def sync_work():
        enter()
        leave()

    @gate
    async def async_work():
        enter()
        await anyio.lowlevel.checkpoint()
        leave()

    def thread():
        for _ in range(100):
            sync_work()

    async def task():
        for _ in range(25):
            await async_work()

    limiter = anyio.CapacityLimiter(8)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(partial(anyio.to_thread.run_sync, thread, limiter=limiter))
            for _ in range(32):
                tasks.start_soon(task)
    assert done[0] == 8 * 100 + 32 * 25
    assert most[0] == 2
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)


def test_loops_of_two_kinds_in_two_threads_share_a_gate(memory):
    gate = admit(concurrency=1, queue=1000, sampler=memory)
    done = []

    @gate
    async def work(kind):
        await anyio.lowlevel.checkpoint()
        done.append(kind)

    async def many(kind):
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(work, kind)

    threads = [
        threading.Thread(target=asyncio.run, args=(many("asyncio"),)),
        threading.Thread(target=trio.run, args=(many, "trio")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a wake-up was lost"
    assert (done.count("asyncio"), done.count("trio")) == (100, 100)
    assert (gate.in_flight, gate.waiting) == (0, 0)


@pytest.mark.anyio
async def test_waiting_threads_time_out_and_are_granted_without_a_loss(memory):
    # A wait as short as a call: grants and ends of waits cross each other between threads.
    gate = admit(concurrency=1, memory="1MiB", max_wait=0.0005, queue=100, sampler=memory)
    outcomes = {"ran": 0, "refused": 0}
    lock = threading.Lock()

    def thread():
        for _ in range(100):
            try:
                with gate:
                    word = "ran"
            except Rejected:
                word = "refused"
            with lock:
                outcomes[word] += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(anyio.to_thread.run_sync, thread)
    assert sum(outcomes.values()) == 600
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)


@pytest.mark.anyio
@pytest.mark.many
async def test_timeouts_and_cancellations_race_without_a_loss(memory):
    chance = random.Random(7)
    circuit, gate = breaker(fail_max=10**6), admit(concurrency=5, queue=500, sampler=memory)
    work = guard(timeout(0.5), circuit, gate, timeout(0.01))(anyio.sleep)
    seen = {"ran": 0, "timed out": 0, "cancelled": 0}

    async def one(seconds, cancel_after):
        with anyio.move_on_after(cancel_after) as scope:
            try:
                await work(seconds)
                seen["ran"] += 1
            except TimedOut:
                seen["timed out"] += 1
        seen["cancelled"] += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(one, chance.choice((0, 0, 0.005, 1)), chance.choice((0.001, 0.01, 0.05, 30, 30)))
    assert sum(seen.values()) == 300
    assert all(seen.values()), seen
    assert at_zero(gate, circuit)
