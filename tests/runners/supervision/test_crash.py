"""Workers that die: who is told, what is run again, and what is not."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from guardrails.core.errors import Rejected
from runners import FunctionRunner
from runners.errors import PoisonedRequest, RunnerCrashed, RunnerUnavailable
from runners.supervision.restart import RestartPolicy

pytestmark = pytest.mark.anyio


def only_pid(runner):
    (worker,) = runner.stats().workers
    return worker.pid


def serves_anew(runner, old):
    return any(worker.pid != old and worker.state == "ready" for worker in runner.stats().workers)


async def test_killed_while_idle(until):
    async with FunctionRunner("calls:act") as act:
        old = only_pid(act)
        os.kill(old, signal.SIGKILL)
        await until(lambda: serves_anew(act, old))
        assert await act("echo", 1) == 1
        assert act.stats().restarts == {"sigkill": 1}
        assert act.stats().redelivered == 0


async def test_a_call_that_may_not_be_run_twice_fails_and_says_how_the_worker_ended(tmp_path, until):
    mark = tmp_path / "mark"
    async with FunctionRunner("calls:act") as act:
        call = asyncio.create_task(act("hold", str(mark), str(tmp_path / "never")))
        await until(mark.exists)
        pid = only_pid(act)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunnerCrashed, match="while it ran this request, which may not be run twice") as caught:
            await call
        assert type(caught.value) is RunnerCrashed
        assert "was killed by SIGKILL" in caught.value.exit
        assert caught.value.stderr == f"last words of {pid}"
        assert mark.read_text() == "x\n"
        assert act.stats().failed == 1


async def test_an_idempotent_call_is_run_again_and_answered_once(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", idempotent=True) as act:
        old = only_pid(act)
        call = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        go.touch()
        os.kill(old, signal.SIGKILL)
        assert await call != old
        stats = act.stats()
        assert mark.read_text() in ("x\nx\n", "x\n")
        assert (stats.submitted, stats.answered, stats.failed) == (1, 1, 0)


async def test_calls_that_had_not_begun_are_run_by_the_next_worker_in_order(tmp_path, until):
    mark, order = tmp_path / "mark", tmp_path / "order"
    async with FunctionRunner("calls:act") as act:
        running = asyncio.create_task(act("hold", str(mark), str(tmp_path / "never")))
        await until(mark.exists)
        waiting = [asyncio.create_task(act("mark", str(order), n)) for n in range(40)]
        await until(lambda: act.stats().queued == 40)
        os.kill(only_pid(act), signal.SIGKILL)
        with pytest.raises(RunnerCrashed):
            await running
        await asyncio.gather(*waiting)
        assert [int(line) for line in order.read_text().split()] == list(range(40))
        assert act.stats().redelivered == 0


async def test_a_call_that_was_made_is_not_made_again_when_the_next_one_kills_the_worker(tmp_path):
    mark = tmp_path / "mark"
    async with FunctionRunner("calls:act") as act:
        first, second = await asyncio.gather(act("mark", str(mark)), act("kill", "SIGKILL"), return_exceptions=True)
        assert isinstance(first, int)
        assert isinstance(second, RunnerCrashed)
        assert mark.read_text() == "x\n"


async def test_a_segfault_leaves_the_python_stack():
    async with FunctionRunner("calls:segfault") as segfault:
        with pytest.raises(RunnerCrashed, match="SIGSEGV; a crash in native code") as caught:
            await segfault()
        assert "Fatal Python error: Segmentation fault" in caught.value.stderr
        assert "in segfault" in caught.value.stderr


async def test_a_worker_that_exits_by_itself(until):
    async with FunctionRunner("calls:leave") as leave:
        with pytest.raises(RunnerCrashed, match="exited with status 7") as caught:
            await leave(7)
        assert caught.value.exit == "exited with status 7"
        await until(lambda: leave.stats().workers)
        assert leave.stats().restarts == {"exit_7": 1}


async def test_a_worker_that_exits_with_status_0_has_crashed_all_the_same():
    async with FunctionRunner("calls:leave", restart=RestartPolicy(backoff=0.01)) as leave:
        for _ in range(2):
            with pytest.raises(RunnerCrashed):
                await leave(0)
        assert leave.stats().restarts == {"exit_0": 2}


async def test_a_worker_that_breaks_the_protocol_is_killed():
    async with FunctionRunner("calls:write_to_socket") as write:
        with pytest.raises(RunnerCrashed, match=r"ended by the runner \(protocol\)"):
            await write()
        assert write.stats().restarts == {"protocol": 1}


async def test_poison_is_refused_and_its_neighbours_are_answered():
    policy = RestartPolicy(intensity=10, backoff=0.01)
    async with FunctionRunner("calls:act", idempotent=True, restart=policy) as act:
        calls = [act("echo", n) if n != 7 else act("kill", "SIGSEGV") for n in range(30)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        poisoned = answers.pop(7)
        assert isinstance(poisoned, PoisonedRequest)
        assert "2 workers died while they ran this request; the last was killed by SIGSEGV" in str(poisoned)
        assert answers == [n for n in range(30) if n != 7]
        stats = act.stats()
        assert (stats.submitted, stats.answered, stats.failed, stats.restarts) == (30, 29, 1, {"sigsegv": 2})


async def test_a_request_whose_workers_are_killed_from_outside_is_no_poison(tmp_path, until):
    policy = RestartPolicy(intensity=10, backoff=0.01)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:hold", idempotent=True, restart=policy) as hold:
        call = asyncio.create_task(hold(str(mark), str(go)))
        for runs in range(1, 5):
            await until(lambda runs=runs: mark.exists() and len(mark.read_text().splitlines()) == runs)
            if runs < 4:
                os.kill(only_pid(hold), signal.SIGKILL)
        go.touch()
        assert await call == only_pid(hold)
        assert hold.stats().restarts == {"sigkill": 3}


async def test_what_a_dead_workers_own_children_hold_does_not_delay_its_end(tmp_path, until, alive):
    left = tmp_path / "left"
    async with FunctionRunner("calls:fork_and_die") as fork:
        began = time.monotonic()
        with pytest.raises(RunnerCrashed):
            await fork(str(left))
        assert time.monotonic() - began < 0.8
        await until(lambda: not alive(int(left.read_text())))


async def test_one_of_two_workers_dies_and_the_other_serves_on(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", workers=2) as act:
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        idle = next(worker.pid for worker in act.stats().workers if not worker.in_flight)
        os.kill(idle, signal.SIGKILL)
        await until(lambda: serves_anew(act, idle) and len(act.stats().workers) == 2)
        go.touch()
        assert await held != idle


# A crash loop


async def test_a_crash_loop_becomes_a_visible_failed_state_and_heals_by_itself(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    policy = RestartPolicy(intensity=2, backoff=0.01, probe_interval=0.5)
    async with FunctionRunner("while_file:pid", environment={"FLAG": str(flag)}, restart=policy) as pid:
        flag.unlink()
        os.kill(only_pid(pid), signal.SIGKILL)
        waiting = asyncio.create_task(pid())
        await until(lambda: pid.state == "failed")
        with pytest.raises(RunnerUnavailable):
            await waiting  # what waited is told at once, too

        began = time.monotonic()
        with pytest.raises(RunnerUnavailable, match="its workers keep failing") as caught:
            await pid()
        assert time.monotonic() - began < 0.02
        assert isinstance(caught.value, Rejected)
        assert (caught.value.guard, caught.value.reason) == ("pid", "failed")
        assert 0 < caught.value.retry_after < 0.5 + 1.0

        flag.touch()
        await until(lambda: pid.state == "ready", seconds=3)
        assert await pid() == only_pid(pid)
        assert pid.stats().restarts["start_failed"] >= 2


async def test_retry_after_is_true(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    policy = RestartPolicy(intensity=1, backoff=0.01, probe_interval=0.6)
    async with FunctionRunner("while_file:pid", environment={"FLAG": str(flag)}, restart=policy) as pid:
        flag.unlink()
        os.kill(only_pid(pid), signal.SIGKILL)
        await until(lambda: pid.state == "failed")
        flag.touch()
        with pytest.raises(RunnerUnavailable) as caught:
            await pid()
        began = time.monotonic()
        await until(lambda: pid.state == "ready", seconds=3)
        # The next attempt is at 0.3 to 0.6 s, a load takes 0.1 to 0.3 s; on a busy machine somewhat longer.
        assert caught.value.retry_after >= 0.3
        assert abs(time.monotonic() - began - caught.value.retry_after) < 0.5


async def test_errors_that_many_callers_get_are_not_one_object(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    policy = RestartPolicy(intensity=1, backoff=0.3, probe_interval=5)
    async with FunctionRunner("while_file:pid", environment={"FLAG": str(flag)}, restart=policy) as pid:
        flag.unlink()
        os.kill(only_pid(pid), signal.SIGKILL)
        await until(lambda: not pid.stats().workers)
        errors = await asyncio.gather(*(pid() for _ in range(10)), return_exceptions=True)
        assert len({id(error) for error in errors}) == 10
        assert all(isinstance(error, RunnerUnavailable) for error in errors)
        assert pid.stats().failed == 10


async def test_the_runner_can_be_closed_while_it_is_failed(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    policy = RestartPolicy(intensity=0, probe_interval=60)
    async with FunctionRunner("while_file:pid", environment={"FLAG": str(flag)}, restart=policy) as pid:
        flag.unlink()
        os.kill(only_pid(pid), signal.SIGKILL)
        await until(lambda: pid.state == "failed")
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert pid.state == "stopped"
