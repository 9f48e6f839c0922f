"""Defects that other libraries of this kind have, each reproduced on theirs: none of them may be in ours."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace

import anyio
import pytest

from guardrails import admit, breaker, guard
from guardrails.errors import CircuitOpen, QueueFull

pytestmark = pytest.mark.anyio


async def fail():
    raise ValueError("down")


async def trip(circuit):
    with pytest.raises(ValueError, match="down"):
        await circuit(fail)()
    assert circuit.state == "open"


async def test_a_decorated_async_function_trips(clock):  # pybreaker
    circuit = breaker(fail_max=3, clock=clock)
    for _ in range(3):
        with pytest.raises(ValueError, match="down"):
            await circuit(fail)()
    with pytest.raises(CircuitOpen):
        await circuit(fail)()


def test_the_lock_is_not_held_across_a_call(clock):  # pybreaker
    circuit = breaker(clock=clock)
    together = threading.Barrier(4)

    @circuit
    def work():
        together.wait(10)  # broken after ten seconds if the calls run one after another

    errors = []

    def call():
        try:
            work()
        except threading.BrokenBarrierError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


async def test_cancellations_do_not_count(clock, idle):  # pybreaker, purgatory
    circuit, seen = breaker(fail_max=3, clock=clock), []

    @circuit
    async def hang():
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            seen.append(exc)
            raise

    async def call():
        try:
            await hang()
        except BaseException as exc:
            seen.append(exc)
            raise

    for _ in range(6):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await idle()
            tasks.cancel_scope.cancel()
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)
    assert len(seen) == 12
    assert all(isinstance(exc, anyio.get_cancelled_exc_class()) for exc in seen)
    assert all(inside is outside for inside, outside in zip(seen[::2], seen[1::2], strict=True))


@pytest.mark.parametrize("probes", [1, 5])
async def test_half_open_admits_exactly_its_probes_of_100_callers(clock, idle, probes):  # all of them
    circuit = breaker(fail_max=1, open_for=10, success_threshold=probes, probe_lease=30, clock=clock)
    await trip(circuit)
    clock.advance(10)
    running, refused, release = [], [], anyio.Event()

    @circuit
    async def probe():
        running.append(True)
        await release.wait()

    async def call():
        try:
            await probe()
        except CircuitOpen as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(call)
        await idle()
        assert (len(running), len(refused), circuit.probes_in_flight) == (probes, 100 - probes, probes)
        assert {(error.reason, error.retry_after) for error in refused} == {("half_open", 30)}
        release.set()
    assert (circuit.state, circuit.probes_in_flight) == ("closed", 0)


async def test_a_hung_probe_gives_its_place_back_after_its_lease(clock, idle):  # nopanic
    circuit = breaker(fail_max=1, open_for=10, probe_lease=30, clock=clock)
    await trip(circuit)
    clock.advance(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(circuit(anyio.sleep_forever))
        await idle()
        for waited, remaining in ((0, 30), (12, 18), (17, 1)):
            clock.advance(waited)
            with pytest.raises(CircuitOpen) as caught:
                await circuit(fail)()
            assert caught.value.retry_after == remaining
        clock.advance(caught.value.retry_after)
        await circuit(anyio.lowlevel.checkpoint)()
        assert circuit.state == "closed"
        tasks.cancel_scope.cancel()
    assert (circuit.state, circuit.probes_in_flight) == ("closed", 0)


@pytest.mark.parametrize("ending", ["success", "failure"])
async def test_a_stale_probe_of_an_earlier_half_open_changes_nothing(clock, idle, ending):  # nopanic
    circuit = breaker(fail_max=1, open_for=10, success_threshold=2, probe_lease=5, clock=clock)
    await trip(circuit)
    clock.advance(10)
    release = anyio.Event()

    @circuit
    async def stale():
        await release.wait()
        if ending == "failure":
            raise ValueError("late")

    async def call():
        with contextlib.suppress(ValueError):
            await stale()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(5)
        await trip_again(circuit)
        clock.advance(10)
        tasks.start_soon(circuit(anyio.sleep_forever))
        await idle()
        assert (circuit.state, circuit.probes_in_flight) == ("half-open", 1)
        release.set()
        await idle()
        assert (circuit.state, circuit.probes_in_flight, circuit._probe_successes) == ("half-open", 1, 0)
        tasks.cancel_scope.cancel()


async def trip_again(circuit):
    with pytest.raises(ValueError, match="down"):
        await circuit(fail)()
    assert circuit.state == "open"


async def test_a_cancelled_waiter_loses_no_permit(memory, idle):  # hyx
    gate = admit(concurrency=1, sampler=memory)
    async with anyio.create_task_group() as tasks:
        async with gate:
            for _ in range(5):
                tasks.start_soon(gate(anyio.sleep_forever))
            await idle()
            assert gate.waiting == 5
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await idle()
            assert (gate.waiting, gate.in_flight) == (0, 1)
    async with gate:
        assert gate.in_flight == 1
    assert gate.in_flight == 0


async def test_a_heavy_waiter_is_not_starved_by_light_ones(memory, idle):  # aiolimiter
    gate = admit(memory=lambda cost: cost, queue=1000, sampler=memory)
    memory.use(0, 100)
    order, turn = [], anyio.Semaphore(0)

    @gate
    async def work(cost):
        order.append(cost)
        await turn.acquire()

    async with anyio.create_task_group() as tasks:
        for cost in [10] * 8 + [80] + [10] * 50:
            tasks.start_soon(work, cost)
            await anyio.lowlevel.checkpoint()
            await idle()
        assert order == [10] * 8
        for _ in range(8):
            assert 80 not in order
            turn.release()
            await idle()
        assert order == [10] * 8 + [80]
        for _ in range(51):
            turn.release()
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)


async def test_async_generators_are_guarded(clock):  # pyresilience
    circuit = breaker(fail_max=1, clock=clock)

    @circuit
    async def stream():
        yield 1
        raise ValueError("down")

    with pytest.raises(ValueError, match="down"):
        _ = [item async for item in stream()]
    with pytest.raises(CircuitOpen):
        _ = [item async for item in stream()]


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_returned_error_is_seen_by_the_breaker(clock, status):  # pyresilience
    circuit = breaker(fail_max=3, clock=clock)

    @circuit
    async def ask():
        return SimpleNamespace(status_code=status, headers={})

    for _ in range(3):
        assert (await ask()).status_code == status
    with pytest.raises(CircuitOpen):
        await ask()


async def test_a_refusal_further_in_is_not_a_failure_of_the_dependency(memory, clock):
    circuit, gate = breaker(fail_max=1, clock=clock), admit(concurrency=1, queue=0, sampler=memory)
    async with gate:
        for _ in range(5):
            with pytest.raises(QueueFull):
                await guard(circuit, gate)(fail)()
    assert circuit.state == "closed"


async def test_a_refusal_in_a_task_group_is_not_a_failure_either(memory, clock):
    circuit, gate = breaker(fail_max=1, clock=clock), admit(concurrency=1, queue=0, sampler=memory)

    @circuit
    async def both():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate(anyio.lowlevel.checkpoint))

    async with gate:
        with pytest.raises(ExceptionGroup) as caught:
            await both()
    assert caught.group_contains(QueueFull)
    assert circuit.state == "closed"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_deciding_never_blocks_the_loop(memory):  # aioresilience
    gate = guard(breaker(), admit(memory="1MiB", sampler=memory))
    work = gate(asyncio.sleep)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(1000):
        await work(0)
    assert loop.time() - started < 5  # 5 ms a call: a hundred times what it takes, a twentieth of what the peer takes
