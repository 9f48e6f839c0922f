"""Large arguments and results: the event loop is not held, nothing is copied twice, and a transfer can be cut short."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from guardrails.core.errors import QueueFull
from runners import FunctionRunner
from runners.errors import RequestTimeout, RunnerCrashed, UnsendableValue
from runners.spec import WorkerSpec
from runners.supervision.request import Request
from runners.supervision.waiting import WaitingRequests
from runners.supervision.worker import Worker
from tests.support import until

pytestmark = pytest.mark.anyio
MIB = 1 << 20


def array(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype="u1")


@pytest.fixture
def turns():
    """The CPU seconds of the loop's longest turn, in a list: what other processes do does not count."""
    worst = [0.0]

    async def count():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            worst[0] = max(worst[0], now - last)
            last = now

    def start():
        return asyncio.get_running_loop().create_task(count())

    gc.collect()
    gc.disable()
    yield start, worst
    gc.enable()


AS_SENT = [lambda value: value, lambda value: {"data": [value.tobytes()]}]


@pytest.mark.parametrize("make", AS_SENT, ids=["array", "bytes"])
async def test_the_loop_is_not_held(turns, make):
    start, worst = turns
    async with FunctionRunner("large:echo") as echo:
        await echo(make(array(10)))
        values = [make(array(64 * MIB)) for _ in range(2)]
        counting = start()
        backs = await asyncio.gather(*(echo(value) for value in values))
        counting.cancel()
        assert worst[0] < 0.01
        for value, back in zip(values, backs, strict=True):
            if isinstance(value, dict):
                assert back == value
            else:
                assert np.array_equal(back, value)
                back[0] = 1  # it can be written to


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
async def test_each_way_costs_one_copy():
    size = 64 * MIB
    async with FunctionRunner("large:peak") as peak:
        before, _ = await peak(array(10))
        value = array(size)
        for _ in range(3):
            after, back = await peak(value)
            assert np.array_equal(back, value)
            del back
            await peak(array(10))  # by then the worker has let go of what it sent
        assert after - before < 1.25 * size


async def test_arrays_nested_beside_small_values_and_of_any_layout():
    value = {"a": [array(MIB)[::-1], 1, np.arange(300_000.0).reshape(600, 500).T], "b": b"x" * MIB, "c": np.arange(3)}
    async with FunctionRunner("large:echo") as echo:
        back = await echo(value=value)
        assert np.array_equal(back["a"][0], value["a"][0])
        assert back["a"][1] == 1
        assert np.array_equal(back["a"][2], value["a"][2])
        assert back["b"] == value["b"]
        assert type(back["b"]) is bytes
        assert np.array_equal(back["c"], value["c"])


async def test_a_large_list_crosses_too():
    value = list(range(400_000))
    async with FunctionRunner("large:echo") as echo:
        assert await echo(value) == value


async def test_a_large_call_is_redelivered(tmp_path):
    value = array(8 * MIB)
    async with FunctionRunner("large:die_once", idempotent=True) as die_once:
        back = await die_once(str(tmp_path / "died"), value)
        assert np.array_equal(back, value)
        assert die_once.stats().redelivered == 1


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
async def test_a_call_that_is_left_while_it_is_sent_is_not_made(tmp_path, how):
    """Its array may be changed from then on: no part of it may run."""
    go, ran = tmp_path / "go", tmp_path / "ran"
    value = array(16 * MIB)
    gone = weakref.ref(value)
    async with FunctionRunner("large:act", timeout=10) as act:
        await act("echo", 1)
        paused = asyncio.ensure_future(act("pause", str(go)))
        await until(lambda: act.stats().workers[0].in_flight == 1)
        if how == "timeout":
            act.timeout = 0.2
        call = asyncio.ensure_future(act("note_sum", str(ran), value))
        del value
        await asyncio.sleep(0.05)  # as much as the socket holds is written
        if how == "cancelled":
            call.cancel()
        (ended,) = await asyncio.gather(call, return_exceptions=True)
        act.timeout = 10
        assert isinstance(ended, asyncio.CancelledError if how == "cancelled" else RequestTimeout)
        del ended, call
        await until(lambda: gc.collect() is not None and gone() is None)
        go.touch()
        await paused
        assert await act("echo", 2) == 2
        assert not ran.exists()
        stats = act.stats()
        assert (stats.queued, stats.workers[0].in_flight, stats.restarts) == (0, 0, {})


async def test_memory_comes_back_when_the_worker_dies_in_a_transfer(tmp_path):
    value = array(16 * MIB)
    gone = weakref.ref(value)
    async with FunctionRunner("large:act") as act:
        paused = asyncio.ensure_future(act("pause", str(tmp_path / "go")))
        await until(lambda: act.stats().workers and act.stats().workers[0].in_flight == 1)
        call = asyncio.ensure_future(act("note_sum", str(tmp_path / "ran"), value))
        del value
        await asyncio.sleep(0.05)
        act._supervisor.workers[0].process.kill("test")
        with pytest.raises(RunnerCrashed):
            await paused
        assert await call == 16 * MIB  # it had not begun, so it goes to the next worker
        del call
        await until(lambda: gc.collect() is not None and gone() is None)


async def test_streams_of_large_items():
    async with FunctionRunner("large:blocks", window=2) as blocks:
        items = [item async for item in blocks.stream(3, 2 * MIB)]
    assert items[1::2] == [0, 1, 2]
    assert [(int(item[0]), item.nbytes, item.flags.writeable) for item in items[::2]] == [
        (number, 2 * MIB, True) for number in range(3)
    ]


async def test_what_is_too_large_is_refused_before_it_is_copied():
    value = np.broadcast_to(np.uint8(1), (1 << 40,))  # there is no memory for a copy of it
    async with FunctionRunner("large:echo") as echo:
        with pytest.raises(UnsendableValue, match="at most 134,217,728"):
            await echo(value)
        assert await echo(1) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [[10, 0xFFFFFFFD]],  # a slice of no part
        [[1 << 29, 0xFFFFFFFF]],  # a part above the limit
        [[5, 0xFFFFFFFF], [6, 0xFFFFFFFD]],  # more than the part has
        [[0, 0xE0000000]],  # a message that takes parts that are not there
    ],
)
async def test_a_worker_that_sends_impossible_parts_is_ended(headers):
    async with FunctionRunner("large:act") as act:
        with pytest.raises(RunnerCrashed, match="protocol"):
            await act("break_protocol", *headers)
        assert act.stats().restarts == {"protocol": 1}


async def test_a_worker_that_reads_a_long_argument_gets_on():
    """Else it would count as stuck, however fast it reads."""
    worker = Worker(WorkerSpec(name="w", engine="function", options={}), on_answer=print, on_exit=print)
    worker.in_flight[1] = Request(1, b"", b"", deadline=None, redeliver=False, future=None)
    for now in (1.0, 2.0):
        worker.process._outbox.written += 1
        worker.note_progress(now)
        assert worker.last_progress == now
    worker.note_progress(3.0)
    assert worker.last_progress == 2.0


# What waits is bounded by bytes too


async def test_what_waits_is_bounded_by_bytes(tmp_path):
    go = tmp_path / "go"
    async with FunctionRunner("large:act", queue_bytes="4MiB", timeout=20) as act:
        worker = (await act("echo", 1), act._supervisor.workers[0])[1]
        worker.limit = worker.capacity  # none is given ahead, though that call was short
        busy = [asyncio.ensure_future(act("pause", str(go))) for _ in range(worker.capacity)]
        await until(lambda: worker.room == 0)
        waiting = [asyncio.ensure_future(act("echo", array(MIB, seed))) for seed in range(3)]
        await until(lambda: act.stats().queued == 3)
        with pytest.raises(QueueFull, match=r"3 MiB wait already, this one is 2 MiB.*4 MiB.*queue_bytes="):
            await act("echo", array(2 * MIB))
        waiting[1].cancel()  # gives its bytes back
        await until(lambda: act.stats().queued == 2)
        waiting[1] = asyncio.ensure_future(act("echo", array(MIB + MIB // 2, 1)))
        await until(lambda: act.stats().queued == 3)
        go.touch()
        backs = await asyncio.gather(*waiting)
        await asyncio.gather(*busy)
        assert np.array_equal(backs[2], array(MIB, 2))
        assert backs[1].nbytes == MIB + MIB // 2
        assert act._supervisor.dispatcher._queue.size == 0
        # A worker with room takes more than may wait.
        assert (await act("echo", array(8 * MIB))).nbytes == 8 * MIB


@pytest.mark.parametrize("value", ["nonsense", -1, None])
def test_queue_bytes_is_checked(value):
    with pytest.raises((ValueError, TypeError), match="queue_bytes"):
        FunctionRunner("large:echo", queue_bytes=value)


def test_the_queue_counts_whatever_happens_to_it():
    requests = [Request(number, b"b" * number, b"", deadline=None, redeliver=False, future=None) for number in range(9)]
    queue = WaitingRequests()
    queue.append(requests[1])
    queue.append(requests[2])
    queue.extendleft(iter([requests[3], requests[4]]))
    assert (list(queue), queue.size) == ([requests[4], requests[3], requests[1], requests[2]], 10)
    requests[1].body = b""
    queue.remove(requests[1])
    assert queue.popleft() is requests[4]
    assert queue.size == 5
    with pytest.raises(ValueError, match="not in"):
        queue.remove(requests[8])
    assert queue.size == 5


async def several_given(act):
    """Have the runner give its only worker more than one call, as it does while calls are short."""
    await act("echo", 1)
    act._supervisor.workers[0].limit = 16


async def test_small_calls_that_overtake_a_large_one_are_taken_back_without_harm(tmp_path):
    """The one that runs stays, those that have not begun come back, and each runs once."""
    ran, go = tmp_path / "ran", tmp_path / "go"
    async with FunctionRunner("large:act", timeout=10) as act:
        await several_given(act)
        calls = [asyncio.ensure_future(act("note", str(ran), "large", array(16 * MIB)))]
        calls += [asyncio.ensure_future(act("note_and_pause", str(ran), "long", str(go)))]
        calls += [asyncio.ensure_future(act("note", str(ran), f"small {n}")) for n in range(4)]
        await until(ran.exists)
        await asyncio.sleep(0.05)
        go.touch()
        await asyncio.gather(*calls)
        assert sorted(ran.read_text().splitlines()) == ["large", "long", *(f"small {n}" for n in range(4))]


async def test_a_call_that_is_left_while_it_is_sent_leaves_later_ones_alone(tmp_path):
    """Also where calls that have not begun are taken back after it."""
    go = tmp_path / "go"
    async with FunctionRunner("large:act", timeout=10) as act:
        await several_given(act)
        long = asyncio.ensure_future(act("pause", str(go)))
        large = asyncio.ensure_future(act("echo", array(16 * MIB)))
        small = asyncio.ensure_future(act("echo", 1))
        while act.stats().workers[0].in_flight < 3:
            await asyncio.sleep(0)
        large.cancel()
        await asyncio.sleep(0.05)
        go.touch()
        await asyncio.gather(long, small)
        for n in range(20):
            assert await act("echo", n) == n
        assert act.stats().restarts == {}
