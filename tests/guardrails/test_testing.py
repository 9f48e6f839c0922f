from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import threading

import anyio
import pytest

from guardrails import breaker
from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK
from guardrails.core.events import Event, emit
from guardrails.testing import FakeClock, capture_events


def test_the_clock_stands_still_until_it_is_moved():
    clock = FakeClock(5)
    assert (clock.now(), clock.now()) == (5, 5)
    clock.advance(2.5)
    assert clock.now() == 7.5


@pytest.mark.anyio
async def test_sleepers_wake_in_the_order_of_their_time(clock, idle):
    woken = []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock.now()))

    async with anyio.create_task_group() as tasks:
        for seconds in (3, 1, 2):
            tasks.start_soon(sleeper, seconds)
        await idle()
        for _ in range(3):
            clock.advance(1)
            await idle()
    assert woken == [(1, 1001), (2, 1002), (3, 1003)]


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_is_over_at_once(clock, seconds):
    await clock.sleep(seconds)
    with clock.scope(seconds) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_a_scope_that_was_left_is_not_touched(clock):
    with clock.scope(5) as scope:
        pass
    clock.advance(10)
    await anyio.lowlevel.checkpoint()
    assert not scope.cancelled_caught


@pytest.mark.anyio
async def test_a_sleeper_can_be_cancelled(clock, idle):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.sleep, 5)
        await idle()
        tasks.cancel_scope.cancel()
    clock.advance(5)


def test_a_thread_waits_until_the_clock_passes(clock):
    event, done = threading.Event(), threading.Event()

    def wait():
        clock.wait_thread(event, 5)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not clock._threads:
        thread.join(0.001)
    clock.advance(4)
    assert not event.is_set()
    clock.advance(1)
    assert done.wait(10)
    thread.join()


def test_a_thread_is_woken_before_the_clock_passes(clock):
    event = threading.Event()
    event.set()
    assert clock.wait_thread(event, 5)
    assert clock.wait_thread(event, None)


@pytest.mark.anyio
async def test_the_system_clock_does_the_same():
    before = SYSTEM_CLOCK.now()
    await SYSTEM_CLOCK.sleep(0.01)
    assert SYSTEM_CLOCK.now() - before >= 0.009  # an event loop may wake a sleeper within its clock's resolution
    with SYSTEM_CLOCK.scope(0.001) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert SYSTEM_CLOCK.wait_thread(threading.Event(), 0.001) is False
    event = threading.Event()
    event.set()
    assert SYSTEM_CLOCK.wait_thread(event, None) is True
    assert SYSTEM_CLOCK.wait_thread(event, float("inf")) is True


def test_captured_events_end_with_the_block():
    with capture_events() as outer, capture_events() as inner:
        breaker(name="b")(lambda: 7)()
    emit(Event("unheard"))
    assert outer == inner
    assert [type(event).__name__ for event in outer] == ["CallStarted", "CallAdmitted", "CallSettled", "CallFinished"]
    assert events.sinks == ()


def test_captured_events_end_with_an_exception_too():
    with pytest.raises(ZeroDivisionError), capture_events():
        raise ZeroDivisionError
    assert events.sinks == ()


# It jumps


@pytest.mark.anyio
async def test_a_jumping_clock_jumps_over_what_everybody_waits_for():
    clock = FakeClock(autojump=True)
    woken = []

    async def sleeper(seconds):
        for _ in range(2):
            await clock.sleep(seconds)
            woken.append((seconds, clock.now()))

    async with anyio.create_task_group() as tasks:
        for seconds in (30, 10, 25):
            tasks.start_soon(sleeper, seconds)
    assert woken == [(10, 1010), (10, 1020), (25, 1025), (30, 1030), (25, 1050), (30, 1060)]
    assert sorted(clock.waits) == [10, 10, 25, 25, 30, 30]
    assert clock.due is None
    assert repr(clock) == "<fake clock at 1060, jumping>"


@pytest.mark.anyio
async def test_it_does_not_jump_while_somebody_can_go_on():
    clock = FakeClock(autojump=True)
    times = []

    async def busy():
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        times.append(clock.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        await clock.sleep(5)
        times.append(clock.now())
    assert times == [1000, 1005]


@pytest.mark.anyio
async def test_it_does_not_jump_to_scopes_that_were_left():
    clock = FakeClock(autojump=True)
    with clock.scope(5):
        pass
    unused = clock.scope(6)
    with clock.scope(50) as scope:
        await clock.sleep(10)
        assert clock.now() == 1010
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert unused.cancel_called
    assert clock.now() == 1050


@pytest.mark.anyio
async def test_it_serves_one_loop_after_the_other_and_an_error_stays_itself():
    clock = FakeClock(autojump=True)
    await clock.sleep(1)
    with pytest.raises(ZeroDivisionError):
        with clock.scope(10):
            await clock.sleep(2)
            raise ZeroDivisionError
    for _ in range(20):
        await anyio.lowlevel.checkpoint()  # it has stopped looking
    await clock.sleep(3)
    assert clock.now() == 1006


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_loop_that_ended_while_it_looked_is_forgotten(library):
    clock = FakeClock(autojump=True)

    async def leave():
        with clock.scope(100):
            await anyio.lowlevel.checkpoint()

    async def sleep():
        await clock.sleep(5)

    for _ in range(2):
        anyio.run(leave, backend=library)
        anyio.run(sleep, backend=library)
    assert clock.now() == 1010


@pytest.mark.anyio
async def test_who_looks_after_a_loop_goes_when_the_clock_is_used_on_another(idle):
    clock = FakeClock(autojump=True)
    with clock.scope(5) as scope:
        clock._watched = object()  # as the other loop does
        await idle()
        assert clock.now() == 1000
    assert not scope.cancel_called


@pytest.mark.anyio
@pytest.mark.many
async def test_many_tasks_jump_quickly():
    clock = FakeClock(autojump=True)
    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(clock.sleep, 1 + number % 20)
    assert clock.now() == 1020


@pytest.mark.anyio
async def test_a_scope_is_a_cancel_scope():
    clock = FakeClock()
    with clock.scope(5) as scope:
        assert (scope.cancel_called, scope.shield) == (False, False)
        scope.shield = True
        assert scope.shield
        assert scope.deadline == float("inf")
        scope.deadline = anyio.current_time() + 1000
        assert scope.deadline < float("inf")
        scope.cancel(reason="enough")
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_left_scopes_are_thrown_away():
    clock = FakeClock()
    with clock.scope(500):
        for _ in range(1000):
            with clock.scope(100):
                pass
        assert len(clock._scopes) < 200
        assert clock.due == 1500


def test_jump_goes_to_the_next_that_ends():
    clock = FakeClock()
    assert not clock.jump()

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.sleep, 7)
            await anyio.wait_all_tasks_blocked()
            assert clock.due == 1007
            assert clock.jump()
        assert clock.now() == 1007

    anyio.run(main, backend="trio")
    assert repr(clock) == "<fake clock at 1007>"


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_clock_never_goes_back(seconds):
    with pytest.raises(ValueError, match="never goes back"):
        FakeClock().advance(seconds)


def test_a_thread_that_waits_alone_moves_the_clock_at_once():
    clock = FakeClock(autojump=True)
    event = threading.Event()
    assert not clock.wait_thread(event, 60)
    assert clock.now() == 1060
    assert event.is_set()
    assert clock.waits == [60]
    assert not clock.wait_thread(threading.Event(), 0)


def test_threads_move_the_clock_one_after_the_other():
    clock = FakeClock(autojump=True)
    both = threading.Barrier(2)
    woken = []

    def wait(seconds):
        both.wait()
        clock.wait_thread(threading.Event(), seconds)
        woken.append((seconds, clock.now()))

    threads = [threading.Thread(target=wait, args=(seconds,)) for seconds in (20, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now() in {1020, 1030}  # 1030: one began to wait when the other had waited already
    assert sorted(seconds for seconds, _ in woken) == [10, 20]


def test_threads_wait_for_the_test_to_move_the_clock():
    clock = FakeClock()
    woken = []

    def wait(seconds):
        woken.append((seconds, clock.wait_thread(threading.Event(), seconds), clock.now()))

    threads = [threading.Thread(target=wait, args=(seconds,)) for seconds in (20, 10)]
    for thread in threads:
        thread.start()
    while len(clock._threads) < 2:
        threads[0].join(0.001)
    clock.advance(10)
    threads[1].join()
    clock.advance(10)
    threads[0].join()
    assert woken == [(10, False, 1010), (20, False, 1020)]


@pytest.mark.anyio
async def test_a_thread_leaves_an_earlier_scope_to_its_loop():
    clock = FakeClock(autojump=True)
    thread = threading.Thread(target=clock.wait_thread, args=(threading.Event(), 9))
    with clock.scope(5):
        thread.start()
        thread.join(0.02)  # the loop stands still meanwhile
        assert clock.now() == 1000
    thread.join()
    assert clock.now() == 1009


@pytest.mark.anyio
async def test_tasks_and_threads_share_the_time():
    clock = FakeClock(autojump=True)
    ends = {}

    async def task():
        await clock.sleep(5)
        ends["task"] = clock.now()

    def thread():
        clock.wait_thread(threading.Event(), 9)
        ends["thread"] = clock.now()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
        tasks.start_soon(anyio.to_thread.run_sync, thread)
    assert ends["task"] == 1005
    assert ends["thread"] in {1009, 1014}  # it began to wait at 1000, or at 1005


# The fixtures


pytest_plugins = ["pytester"]


@pytest.fixture
def plugin():
    """What makes pytest know the fixtures: nothing where the package was installed with its entry point."""
    known = any(
        point.value == "guardrails.pytest_plugin" for point in importlib.metadata.entry_points(group="pytest11")
    )
    return [] if known else ["-p", "guardrails.pytest_plugin"]


def test_the_fixtures_of_the_plugin(pytester, plugin):
    pytester.makepyfile("""
        from guardrails import breaker
        from guardrails.core import events

        def test_clock(fake_clock):
            fake_clock.advance(5)
            assert fake_clock.now() == 1005

        def test_events(guard_events):
            breaker(name="b")(lambda: 7)()
            assert [event.source for event in guard_events] == ["b", "b", "b", "b"]

        def test_nothing_else():
            assert events.sinks == ()
    """)
    pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_the_plugin_loads_nothing_that_no_test_asks_for():
    code = "import sys, guardrails.pytest_plugin; print(*sorted(n for n in sys.modules if n.startswith('guardrails.')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["guardrails._collision", "guardrails._lazy", "guardrails.pytest_plugin"]
