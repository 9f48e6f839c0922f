"""Several runners under one budget: loaded when asked, the idle one used longest ago unloaded, nothing lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from guardrails.core.errors import MemoryRefused, Rejected
from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import FleetFull, FunctionNotFound, RequestTimeout, RunnerClosed
from runners.fleet import Fleet
from runners.supervision.events import FleetOverBudget, RunnerUnloaded, WorkerReady

pytestmark = pytest.mark.anyio

MIB = 1 << 20
#: A worker with nothing but Python in it holds 8 to 16 MiB of its own.
MEMORY = "40MiB"


def act(name, **keywords):
    return FunctionRunner("calls:act", name=name, memory=MEMORY, memory_hard="1GiB", **keywords)


def fleet_of(*names, budget="45MiB", workers=1, **keywords):
    """With room for one that was never loaded; one that was needs less."""
    return Fleet(
        budget=budget, runners={name: act(name, idempotent=True, workers=workers) for name in names}, **keywords
    )


async def baseline():
    async with FunctionRunner("calls:act") as one:
        return one.stats().workers[0].baseline


def room_for(count, size):
    """A budget for so many workers of that size, and not for one more."""
    return int(size * (count + 0.5))


async def loaded_once(fleet):
    """From now on the sizes are known."""
    for name in fleet:
        await fleet[name]("echo", 1)


class Peak:
    """The most that the workers of a fleet held, in its accounts."""

    def __init__(self, fleet):
        self.most = self.processes = 0
        self._task = asyncio.create_task(self._look(fleet))

    async def _look(self, fleet):
        while True:
            held = [max(w.private, w.baseline) for name in fleet for w in fleet[name].stats().workers]
            self.most, self.processes = max(self.most, sum(held)), max(self.processes, len(held))
            await asyncio.sleep(0.005)

    def stop(self):
        self._task.cancel()
        return self.most


async def test_loaded_when_asked_and_all_of_them_when_they_fit():
    with capture_events() as seen:
        async with fleet_of("a", "b", budget="500MiB") as fleet:
            assert fleet.stats().loaded == ()
            assert fleet["a"].state == "idle"
            assert await asyncio.gather(fleet["a"]("echo", 1), fleet["b"]("echo", 2)) == [1, 2]
            stats = fleet.stats()
            assert (set(stats.loaded), stats.evictions, stats.refused) == ({"a", "b"}, 0, 0)
            assert 0 < stats.used < stats.budget == 500 * MIB
            assert "Fleet of 2" in repr(fleet)
    assert sum(isinstance(event, WorkerReady) for event in seen) == 2
    assert [fleet[name].state for name in fleet] == ["stopped", "stopped"]


async def test_the_idle_one_that_was_used_longest_ago_goes():
    size = await baseline()
    with capture_events() as seen:
        async with fleet_of("a", "b", "c", budget=max(room_for(2, size), 41 * MIB)) as fleet:
            fleet.budget = 200 * MIB
            await loaded_once(fleet)
            assert len(fleet.stats().loaded) == 3
            assert fleet["c"]._supervisor.pool.unload("idle")
            fleet.budget = room_for(2, size)
            await fleet["a"]("echo", 1)  # so b is the one that was used longest ago
            await fleet["c"]("echo", 1)
            assert fleet.stats().loaded == ("a", "c")
            await fleet["b"]("echo", 1)
            assert fleet.stats().loaded == ("c", "b")
            assert fleet.stats().evictions == 2
    evicted = [event.source for event in seen if isinstance(event, RunnerUnloaded) and event.reason == "evicted"]
    assert evicted == ["b", "a"]


async def test_a_busy_one_is_waited_for(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with fleet_of("a", "b", patience=60) as fleet:
        await loaded_once(fleet)
        fleet.budget = room_for(1, fleet["b"].stats().workers[0].baseline)
        holding = asyncio.create_task(fleet["a"]("hold", str(mark), str(go)))
        await until(mark.exists)
        waiting = asyncio.create_task(fleet["b"]("echo", 2))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert (fleet["a"].state, fleet["b"].state) == ("ready", "starting")
        go.touch()
        await holding
        assert await waiting == 2
        assert fleet.stats().loaded == ("b",)


async def test_when_nothing_can_go_the_request_is_refused_in_time(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with fleet_of("a", "b", patience=60, max_wait=0.3) as fleet:
        holding = asyncio.create_task(fleet["a"]("hold", str(mark), str(go)))
        await until(mark.exists)
        began = time.monotonic()
        errors = await asyncio.gather(*(fleet["b"]("echo", n) for n in range(3)), return_exceptions=True)
        assert 0.25 < time.monotonic() - began < 1
        assert len({id(error) for error in errors}) == 3
        assert all(isinstance(error, FleetFull) for error in errors)
        assert isinstance(errors[0], MemoryRefused)
        assert isinstance(errors[0], Rejected)
        assert (errors[0].guard, errors[0].reason) == ("b", "fleet_full")
        assert errors[0].retry_after >= 1
        assert "no room in the fleet's 45 MiB within 0.3 s beside 'a'" in str(errors[0])
        assert (fleet["b"].state, fleet.stats().refused) == ("idle", 1)
        go.touch()
        await holding
        assert await fleet["b"]("echo", 4) == 4  # it is asked anew, not barred


async def test_the_requests_own_time_counts_while_it_waits_and_nobody_waits_for_those_who_left(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    a, b, c = act("a"), act("b", timeout=0.3), act("c")
    async with Fleet(budget="45MiB", runners={"a": a, "b": b, "c": c}, patience=60) as fleet:
        holding = asyncio.create_task(a("hold", str(mark), str(go)))
        await until(mark.exists)
        with pytest.raises(RequestTimeout):
            await b("echo", 1)
        await until(lambda: b.state == "idle")
        leaving = asyncio.create_task(c("echo", 1))
        await until(lambda: c.state == "starting")
        leaving.cancel()
        await until(lambda: c.state == "idle")
        assert fleet.stats().refused == 0
        go.touch()
        await holding


async def test_steady_work_for_one_does_not_keep_out_another_for_ever():
    async with fleet_of("a", "b", patience=0.2) as fleet:
        answers, going = [], True

        async def steady():
            while going:
                answers.append(await fleet["a"]("nap", 0.01))

        callers = [asyncio.create_task(steady()) for _ in range(4)]
        while not answers:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            assert await fleet["b"]("echo", 2) == 2
        going = False
        await asyncio.gather(*callers)
        for name in fleet:
            stats = fleet[name].stats()
            assert (stats.submitted, stats.failed, stats.redelivered) == (stats.answered, 0, 0)
        assert fleet["a"].stats().answered == len(answers)


@pytest.mark.parametrize("closing", [False, True])
async def test_a_worker_that_dies_while_it_is_drained_for_another_loses_nothing(tmp_path, until, closing):
    mark, go = tmp_path / "mark", tmp_path / "go"
    fleet = await fleet_of("a", "b", patience=0).start()
    holding = asyncio.create_task(fleet["a"]("hold", str(mark), str(go)))
    await until(mark.exists)
    old = fleet["a"].stats().workers[0].pid
    waiting = asyncio.create_task(fleet["b"]("echo", 2))
    await until(lambda: fleet["a"].state == "idle")
    if closing:
        ending = asyncio.create_task(fleet.close())
        await until(lambda: fleet["a"].state == "draining")
    os.kill(old, signal.SIGKILL)
    go.touch()
    assert await waiting == 2
    assert await holding != old
    await (ending if closing else fleet.close())
    assert fleet["a"].stats().redelivered == 1


async def test_two_that_load_at_once_do_not_wait_for_each_other_for_ever():
    async with fleet_of("a", "b", "c", max_wait=30) as fleet:
        async with asyncio.timeout(20):
            for _ in range(2):
                assert await asyncio.gather(*(fleet[name]("echo", name) for name in fleet)) == ["a", "b", "c"]
        assert len(fleet.stats().loaded) >= 1


async def test_a_load_that_fails_or_is_cancelled_gives_its_turn_back(tmp_path, until):
    mark = tmp_path / "mark"
    runners = {
        "broken": FunctionRunner("breaks_on_import:echo", memory=MEMORY),
        "slow": FunctionRunner("slow_to_import:echo", memory=MEMORY, grace=0, environment={"MARK": str(mark)}),
        "good": act("good"),
    }
    async with Fleet(budget="45MiB", runners=runners) as fleet:
        with pytest.raises(FunctionNotFound):
            await fleet["broken"](1)
        assert (fleet.used(), fleet.stats().loaded) == (0, ())
        slow = asyncio.create_task(fleet["slow"](1))
        await until(mark.exists)
        good = asyncio.create_task(fleet["good"]("echo", 1))
        assert fleet.used() >= 40 * MIB
        await fleet["slow"].close()
        with pytest.raises(RunnerClosed):
            await slow
        assert await good == 1


async def test_a_crash_is_repaired_within_the_budget(until):
    async with fleet_of("a", "b", budget="100MiB") as fleet:
        await loaded_once(fleet)
        old = fleet["a"].stats().workers[0].pid
        os.kill(old, signal.SIGKILL)
        await until(lambda: any(w.pid != old and w.state == "ready" for w in fleet["a"].stats().workers))
        assert await fleet["a"]("echo", 1) == 1


async def test_what_has_grown_over_the_budget_pushes_out_what_is_idle(until):
    async with fleet_of("a", "b", budget="70MiB") as fleet:
        await loaded_once(fleet)
        await fleet["a"]("leak", 10 * MIB)
        assert set(fleet.stats().loaded) == {"a", "b"} or fleet.stats().evictions
        fleet.budget = fleet.used() - MIB
        await until(lambda: fleet["b"].state == "idle")
        assert fleet["a"].state == "ready"


class Steady:
    """Keeps the runners of a fleet busy, and counts the answers of each."""

    def __init__(self, fleet):
        self.fleet, self.calls, self.answered, self._ended = fleet, {}, dict.fromkeys(fleet, 0), False
        self._callers = [asyncio.create_task(self._call(name)) for name in fleet for _ in range(2)]

    async def _call(self, name):
        while not self._ended:
            await self.fleet[name](*self.calls.get(name, ("leak", 0, 0.02)))
            self.answered[name] += 1

    async def end(self):
        self._ended = True
        await asyncio.gather(*self._callers)
        for name in self.fleet:
            stats = self.fleet[name].stats()
            assert (stats.failed, stats.expired, stats.cancelled) == (0, 0, 0)
            assert stats.answered == stats.submitted


def growing(*names, **keywords):
    """Runners that may hold much, with room for all until a test sets the budget."""
    runners = {n: FunctionRunner("memory_calls:act", name=n, memory="400MiB", memory_hard="1GiB") for n in names}
    return Fleet(budget="900MiB", runners=runners, **keywords)


def over_budget(seen):
    return [(event.source, event.action) for event in seen if isinstance(event, FleetOverBudget)]


async def test_a_leak_while_all_are_busy_is_replaced_within_the_budget(until, caplog):
    with capture_events() as seen:
        async with growing("a", "b", patience=0.3) as fleet:
            steady = Steady(fleet)
            await until(lambda: all(steady.answered.values()))
            fleet.budget = fleet.used() + 40 * MIB
            before = {name: fleet[name].stats().workers[0].pid for name in fleet}
            for _ in range(10):
                await fleet["a"]("leak", 8 * MIB, 0.0)
            await until(lambda: fleet.stats().over_for > 0)
            await until(lambda: fleet.used() <= fleet.budget and fleet["a"].stats().restarts)
            await until(lambda: fleet.stats().over_for == 0)
            await steady.end()
            stats = fleet.stats()
            assert (stats.replaced, stats.evictions) == (1, 0)
            assert fleet["a"].stats().restarts == {"fleet_budget": 1}
            assert fleet["a"].stats().workers[0].pid != before["a"]
            assert fleet["b"].stats().workers[0].pid == before["b"]
    assert over_budget(seen) == [("a", "replaced")]
    assert "its worker that kept the most is replaced" in caplog.text


async def test_busy_runners_whose_calls_do_not_fit_together_take_turns(until, caplog):
    with capture_events() as seen:
        async with growing("a", "b", patience=0.4) as fleet:
            steady = Steady(fleet)
            await until(lambda: all(steady.answered.values()))
            fleet.budget = fleet.used() + 110 * MIB  # room for the calls of one of them
            large = ("climb_and_free", 80 * MIB, 0.3, 0, 80 * MIB)
            steady.calls = {"a": large, "b": large}
            await until(lambda: any(action == "unloaded" for _, action in over_budget(seen)), seconds=40)
            at, over, looks = dict(steady.answered), 0, 0
            end = time.monotonic() + 6
            while time.monotonic() < end:
                looks, over = looks + 1, over + (fleet.used() > fleet.budget)
                await asyncio.sleep(0.02)
            assert over < looks / 3  # before, it was all of the time
            await until(lambda: all(steady.answered[name] > at[name] for name in fleet), seconds=40)
            steady.calls = {}
            await steady.end()
            assert fleet.stats().evictions >= 2
    assert ("a", "unloaded") in over_budget(seen) or ("b", "unloaded") in over_budget(seen)
    assert "what waits for it waits for room" in caplog.text


async def test_one_runner_alone_over_the_budget_is_replaced_once_and_reported(until):
    with capture_events() as seen:
        async with growing("a", patience=0.2) as fleet:
            steady = Steady(fleet)
            steady.calls = {"a": ("climb_and_free", 80 * MIB, 0.3, 0, 80 * MIB)}
            await until(lambda: steady.answered["a"])
            fleet.budget = fleet.used() + 20 * MIB
            fleet.budget = min(fleet.budget, 60 * MIB)
            await until(lambda: over_budget(seen)[-2:] == [("a", "none")] * 2)
            await steady.end()
            assert fleet.stats().replaced <= 1
            await until(lambda: fleet["a"].stats().restarts.get("fleet_budget", 0) == fleet.stats().replaced)


async def test_one_more_worker_takes_only_what_is_free(until):
    from runners.supervision.autoscale import Autoscale

    size = Autoscale(1, 2, queue_delay=0.02, up_after=0.05)
    async with fleet_of("a", budget="60MiB", workers=size) as fleet:
        await fleet["a"]("echo", 1)
        fleet.budget = int(fleet.used() * 1.5)
        pool = fleet["a"]._supervisor.pool
        assert pool.room.free() < pool.expected
        await asyncio.gather(*(fleet["a"]("nap", 0.02) for _ in range(16)))
        assert len(fleet["a"].stats().workers) == 1
        fleet.budget *= 3
        going = asyncio.gather(*(fleet["a"]("nap", 0.05) for _ in range(30)))
        await until(lambda: len(fleet["a"].stats().workers) == 2)
        await going


async def test_under_pressure_nothing_is_lost_and_the_budget_holds():
    size = await baseline()
    async with fleet_of("a", "b", "c", budget="41MiB", patience=0.1) as fleet:
        await loaded_once(fleet)
        fleet.budget = room_for(2, size)
        peak, answers = Peak(fleet), []

        async def caller(seed):
            rng = random.Random(seed)
            for _ in range(25):
                name = rng.choice("aabbbc")
                answers.append((await fleet[name]("echo", name), name))
                await asyncio.sleep(rng.choice((0, 0, 0.01, 0.05)))

        async with asyncio.timeout(40):
            await asyncio.gather(*(caller(seed) for seed in range(6)))
        most = peak.stop()
        assert len(answers) == 150
        assert all(answer == name for answer, name in answers)
        for name in fleet:
            stats = fleet[name].stats()
            assert (stats.submitted, stats.failed, stats.expired) == (stats.answered, 0, 0)
        assert most <= fleet.budget + size * 1.2
        assert 2 <= peak.processes <= 3
        assert fleet.stats().evictions > 0


async def test_closing_with_loads_waiting_answers_what_was_accepted():
    fleet = await fleet_of("a", "b", "c").start()
    calls = [asyncio.create_task(fleet[name]("echo", name)) for name in fleet]
    await asyncio.sleep(0)
    await fleet.close()
    assert await asyncio.gather(*calls) == ["a", "b", "c"]
    assert fleet.used() == 0


async def test_a_block_that_failed_does_not_wait():
    with pytest.raises(KeyError):
        async with fleet_of("a", "b") as fleet:
            call = asyncio.create_task(fleet["a"]("nap", 9))
            await asyncio.sleep(0)
            raise KeyError
    with pytest.raises(RunnerClosed):
        await call
    with pytest.raises(RunnerClosed, match="a fleet starts once"):
        await fleet.start()


async def test_the_names():
    fleet = fleet_of("a", "b")
    assert (list(fleet), len(fleet), "a" in fleet, "x" in fleet) == (["a", "b"], 2, True, False)
    with pytest.raises(KeyError, match="the fleet has no runner 'x'; it has 'a', 'b'"):
        fleet["x"]
    assert fleet.stats().loaded == ()


async def test_wrong_arguments_are_named():
    good = act("good")
    cases = [
        ({"budget": "many", "runners": {"a": good}}, ValueError, "budget='many' is not a size"),
        ({"budget": "1GiB", "runners": {}}, ValueError, "runners takes at least one runner"),
        ({"budget": "1GiB", "runners": {"a": len}}, TypeError, r"runners\['a'\] is not a runner but builtin"),
        ({"budget": "1GiB", "runners": {"a": good}, "max_wait": -1}, ValueError, "max_wait takes a number of seconds"),
        ({"budget": "1GiB", "runners": {"a": FunctionRunner("calls:act")}}, ValueError, "needs memory="),
        (
            {"budget": "1GiB", "runners": {"a": FunctionRunner("calls:act", memory="40MiB", queue=0)}},
            ValueError,
            r"runners\['a'\] has queue=0, which does not go with a fleet",
        ),
        ({"budget": "30MiB", "runners": {"a": good}}, ValueError, "can never be loaded: it needs 40 MiB of 30 MiB"),
        ({"budget": "1GiB", "runners": {"a": good, "b": good}}, ValueError, "the same runner under two names"),
    ]
    for keywords, error, words in cases:
        with pytest.raises(error, match=words):
            Fleet(**keywords)
    assert Fleet(budget="1GiB", runners={"a": good})["a"] is good
    with pytest.raises(ValueError, match=r"runners\['a'\] is in a fleet already"):
        Fleet(budget="1GiB", runners={"a": good})
    async with act("running") as running:
        with pytest.raises(ValueError, match="is ready already; give the fleet runners of its own"):
            Fleet(budget="1GiB", runners={"a": running})
