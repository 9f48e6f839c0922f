"""What workers are given of the machine, and what a runner says when the machine has nothing more to give."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from runners import EmbeddingRunner, FunctionRunner
from runners.spec import Resources

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

ROOT = str(Path(__file__).resolve().parents[3])
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared out")
SCORE = int(Path("/proc/self/oom_score_adj").read_text()) if sys.platform == "linux" else 0


# What is asked for


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"threads": 0}, "threads takes a whole number of at least 1, not 0"),
        ({"threads": True}, "threads takes a whole number"),
        ({"nice": -1}, "nice takes a whole number from 0 to 19, not -1"),
        ({"nice": 20}, "nice takes"),
        ({"open_files": 3}, "open_files takes a whole number of at least 16, not 3"),
        ({"oom_score_adj": 1001}, "oom_score_adj takes a whole number from 0 to 1000, not 1001"),
        ({"oom_score_adj": 0.5}, "oom_score_adj takes"),
        ({"cpus": "all"}, r"cpus takes 'shared' or the numbers of cores, as in \(0, 1\), not 'all'"),
        ({"cpus": ()}, "cpus takes"),
        ({"cpus": (0, -1)}, "cpus takes"),
        ({"cpus": 3}, "cpus takes"),
    ],
)
async def test_wrong_values_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        Resources(**wrong)


async def test_they_cross_to_the_worker_as_they_are():
    asked = Resources(cpus={3, 1}, nice=2, threads=4, open_files=100, oom_score_adj=7)
    assert asked.cpus == (1, 3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=Resources) == asked


@pytest.mark.parametrize(
    ("asked", "workers", "engine", "threads"),
    [(None, 1, None, None), (None, 2, None, 4), (None, 3, None, 2), (None, 16, None, 1), (3, 2, None, 3), (3, 2, 5, 5)],
)
async def test_threads_are_shared_out_unless_they_are_said(asked, workers, engine, threads):
    assert Resources(threads=asked).shared_by(workers, threads=engine, cores=8).threads == threads


# What is given


async def test_the_defaults(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with FunctionRunner("machine:given") as given:
        machine = await given()
    assert machine["cpus"] == (CORES or None)
    assert (machine["nice"], machine["threads"], machine["arenas"]) == (os.nice(0), None, "2")
    assert machine["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if sys.platform == "linux":
        assert machine["oom_score"] == min(1000, SCORE + 500)  # the kernel ends a worker, not this process


async def test_all_of_it_is_there_before_the_function_is_imported(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    wanted = Resources(cpus=CORES[-1:] or None, nice=3, open_files=200, oom_score_adj=100, threads=2)
    async with FunctionRunner("machine:given", resources=wanted) as given:
        machine = await given()
    assert machine["cpus"] == (CORES[-1:] or None)
    assert machine["nice"] == os.nice(0) + 3
    assert machine["open_files"] == 200
    assert machine["threads"] == "2"
    assert machine["mkl_threads"] == "7"  # what somebody has set stays
    if sys.platform == "linux":
        assert machine["oom_score"] == min(1000, SCORE + 100)


@linux
async def test_what_the_system_refuses_is_named_once_and_the_worker_works(caplog, until):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Resources(cpus={1000}, open_files=hard + 1 if hard != resource.RLIM_INFINITY else 1 << 62)
    with caplog.at_level("WARNING", "runners.worker.given"):
        async with FunctionRunner("machine:given", resources=wanted) as given:
            machine = await given()
            await until(lambda: caplog.text)
    assert machine["cpus"] == CORES
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("resources left as they are: cpus (")
    if hard != resource.RLIM_INFINITY:
        assert machine["open_files"] == hard
        assert f"open_files ({hard + 1} is above the hard limit; it is {hard} now)" in line


@linux
@two_cores
async def test_workers_that_share_the_cores_have_one_each_also_after_a_crash(until):
    wanted = Resources(cpus="shared", threads=1)

    async def cores(runner) -> list[int]:
        return sorted(core for worker in runner.stats().workers for core in os.sched_getaffinity(worker.pid))

    async with FunctionRunner("machine:given", workers=len(CORES), resources=wanted) as given:
        assert await cores(given) == CORES
        for _ in range(2):
            old = given.stats().workers[0].pid
            os.kill(old, signal.SIGKILL)
            await until(
                lambda old=old: (
                    len({worker.pid for worker in given.stats().workers if worker.state == "ready"} - {old})
                    == len(CORES)
                )
            )
            assert await cores(given) == CORES
    async with FunctionRunner("machine:given", workers=2, resources=wanted) as given:  # all were given back
        assert await cores(given) == CORES[:2]


@linux
@two_cores
async def test_a_worker_that_takes_all_cores_anyway_is_not_pinned():
    async with FunctionRunner("machine:given", resources=Resources(cpus="shared")) as given:
        assert (await given())["cpus"] == CORES


async def test_a_pool_of_several_does_not_ask_for_more_threads_than_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with FunctionRunner("machine:given", workers=2) as given:
        assert int((await given())["threads"]) == max(1, (len(CORES) or os.cpu_count()) // 2)


async def test_the_engine_takes_its_share_too(minilm):
    model, tokenizer = minilm
    runner = EmbeddingRunner(model, tokenizer=tokenizer, resources=Resources(threads=1))
    async with runner:
        assert runner._supervisor.workers[0].info["threads"] == 1
    assert EmbeddingRunner(model, tokenizer=tokenizer, threads=3)._spec.resources.threads == 3


# Nothing left to give

_SCRIPT = """
import asyncio, errno, os, resource, sys, threading
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner
from runners.errors import StartFailed, SystemLimitReached
from runners.supervision.restart import RestartPolicy
import psutil, guardrails.memory.reading, runners.supervision.status, runners.protocol.values, runners.worker
{body}
"""


def script(importable: Path, body: str) -> str:
    """Run it in a process of its own, whose limits it may spoil; what it prints."""
    program = _SCRIPT.format(root=ROOT, importable=str(importable), body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    assert "bug in supervision" not in done.stderr
    return done.stdout


_NO_DESCRIPTORS = """
def fill(leave):
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    for _ in range(leave):
        os.close(held.pop())
    return held

def open_now(pages):
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            what = os.readlink(f"/proc/self/fd/{{fd}}")
        except FileNotFoundError:
            continue
        if pages == ("runners-board" in what):
            found.append(what.partition(":")[0])
    return sorted(found)

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kinds = set()
    async with FunctionRunner("calls:echo") as echo:
        await echo(0)
    for leave in range(13):
        before = open_now({pages})
        held = fill(leave)
        try:
            async with FunctionRunner("calls:echo") as echo:
                pass
        except StartFailed as error:
            kinds.add(type(error).__name__)
            last = error
        else:
            kinds.add("started")
        finally:
            for fd in held:
                os.close(fd)
        assert open_now({pages}) == before, leave
        assert not psutil.Process().children()
    async with FunctionRunner("calls:echo") as echo:
        assert await echo(leave) == leave
    print(*sorted(kinds))
    print(last)

{run}
"""


@linux
@pytest.mark.parametrize("run", ["asyncio.run(main())", "import uvloop; uvloop.run(main())"])
def test_no_descriptors_left(importable, run):
    if "uvloop" in run:
        pytest.importorskip("uvloop")
    kinds, message = script(importable, _NO_DESCRIPTORS.format(run=run, pages=False)).splitlines()
    assert kinds == "SystemLimitReached started"
    assert "no file descriptor is left in this process; raise its limit (ulimit -n), or close some" in message


@linux
def test_no_descriptors_left_and_no_page_kept(importable):
    script(importable, _NO_DESCRIPTORS.format(run="asyncio.run(main())", pages=True))


_CRASH_WITHOUT_DESCRIPTORS = """
async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    policy = RestartPolicy(intensity=3, backoff=0.02, probe_interval=0.2)
    async with FunctionRunner("calls:act", restart=policy, idempotent=True) as act:
        await act("echo", 1)
        old = act.stats().workers[0].pid
        held = []
        os.kill(old, 9)
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        while act.state != "failed":
            try:  # what the old worker had open is free now
                held.append(os.dup(0))
            except OSError:
                await asyncio.sleep(0.005)
        for fd in held:
            os.close(fd)
        while act.state != "ready":
            await asyncio.sleep(0.01)
        print(await act("echo", 2), act.stats().restarts["start_failed"] >= 1)

asyncio.run(asyncio.wait_for(main(), 15))
"""


@linux
def test_a_crash_while_no_descriptor_is_left_heals_when_some_are_free(importable):
    assert script(importable, _CRASH_WITHOUT_DESCRIPTORS) == "2 True\n"


_NO_PROCESSES = """
async def main():
    async with FunctionRunner("calls:echo") as echo:  # what is loaded and started once
        assert await echo(1) == 1
    if os.getuid() == 0:
        os.setresuid(54321, 54321, 0)  # root has no limit; a number that nobody else runs under
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    try:
        await FunctionRunner("calls:echo").start()
    except SystemLimitReached as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    if os.getresuid()[2] == 0:
        os.setresuid(0, 0, 0)
    async with FunctionRunner("calls:echo") as echo:
        print(await echo(2))

asyncio.run(main())
"""


@linux
def test_no_processes_left(importable):
    message, answer = script(importable, _NO_PROCESSES).splitlines()
    assert "no process is left for this user or container; raise the limit (ulimit -u, pids.max)" in message
    assert answer == "2"


_NO_ROOM = """
async def main():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        await FunctionRunner("calls:echo").start()
    except SystemLimitReached as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    async with FunctionRunner("calls:echo") as echo:
        print(await echo(2))

asyncio.run(main())
"""


@linux
def test_no_room_for_the_shared_page(importable):
    message, answer = script(importable, _NO_ROOM).splitlines()
    assert "the limit on the size of files (ulimit -f) leaves no room for the worker's shared page" in message
    assert answer == "2"
