"""The guard of a worker, started by a plain program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_PROGRAM = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from runners.worker.guard import guard
{before}
guard("A_MARK")
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session={session})
print(child.pid, flush=True)
{after}
time.sleep(60)
"""


@pytest.fixture
def program():
    started, children = [], []

    def start(*, session=False, before="", after=""):
        text = _PROGRAM.format(root=str(ROOT), session=session, before=before, after=after)
        process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "A_MARK": os.urandom(8).hex()},
        )
        started.append(process)
        children.append(int(process.stdout.readline()))
        return process, children[-1]

    yield start
    for child in children:
        if exists(child):
            os.kill(child, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def exists(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("session", [False, True])
def test_what_was_started_ends_with_a_kill(program, session):
    process, child = program(session=session)
    assert exists(child)
    process.kill()
    assert wait_for(lambda: not exists(child))


def test_code_that_closes_every_descriptor_does_not_set_it_off(program):
    process, child = program(session=True, after="os.closerange(3, 256)")
    assert not wait_for(lambda: not exists(child), seconds=0.5)
    process.kill()
    assert wait_for(lambda: not exists(child))


def test_a_worker_without_a_process_for_its_guard_says_so_and_goes_on(program):
    before = """
def none_left(): raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = none_left"""
    process, child = program(before=before)
    assert exists(child)
    assert "what this worker starts may outlive it" in process.stderr.readline()
