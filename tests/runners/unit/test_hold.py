"""The kernel's hold on a worker, where cgroups can be made and where not. The file system here is a folder."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from guardrails.memory.cgroup import MemoryGroup
from runners.supervision.memory import Hold, sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")

MIB = 1 << 20
FILES = ("cgroup.procs", "memory.max", "memory.oom.group", "memory.events")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder in which a new group has the kernel's files at once, as in a cgroup file system."""

    def create(cls, parent, name):
        (parent / name).mkdir()
        for file in FILES:
            (parent / name / file).touch()
        return cls(parent / name)

    def remove(self):
        if (self.path / "cgroup.procs").exists() and "busy" in self.path.name:
            return False
        for file in FILES:
            (self.path / file).unlink(missing_ok=True)
        self.path.rmdir()
        return True

    monkeypatch.setattr(MemoryGroup, "create", classmethod(create))
    monkeypatch.setattr(MemoryGroup, "remove", remove)
    return tmp_path


def test_a_worker_is_held_by_a_group_of_its_own(groups):
    hold = Hold(lambda: groups)
    assert hold.take(os.getpid(), 500 * MIB)
    (group,) = groups.iterdir()
    assert (group / "cgroup.procs").read_text() == str(os.getpid())
    assert (group / "memory.max").read_text() == "", "loading may take more than the work"
    assert hold.kind == "watchdog"
    hold.arm(os.getpid())
    assert hold.kind == "cgroup"
    assert (group / "memory.oom.group").read_text() == "1"
    limit = int((group / "memory.max").read_text())
    assert 500 * MIB < limit < 800 * MIB, "the budget, and what is mapped"
    assert not hold.fired()
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n")
    assert hold.fired()
    hold.release()
    assert list(groups.iterdir()) == []
    assert not hold.fired()
    hold.release()


def test_without_a_budget_there_is_nothing_to_hold(groups):
    hold = Hold(lambda: groups)
    assert not hold.take(os.getpid(), None)
    hold.arm(os.getpid())
    assert hold.kind is None
    assert list(groups.iterdir()) == []


def test_without_a_group_the_watchdog_holds_it():
    hold = Hold(lambda: None)
    assert not hold.take(os.getpid(), MIB)
    hold.arm(os.getpid())
    assert (hold.kind, hold.fired()) == ("watchdog", False)
    hold.release()


@pytest.mark.parametrize("missing", ["folder", "cgroup.procs", "memory.max"])
def test_where_the_kernel_refuses_the_watchdog_holds_it_and_nothing_is_left(groups, monkeypatch, caplog, missing):
    create = MemoryGroup.create

    def refuse(parent, name):
        if missing == "folder":
            raise PermissionError(parent / name)
        group = create(parent, name)
        (group.path / missing).unlink()
        return group

    monkeypatch.setattr(MemoryGroup, "create", refuse)
    hold = Hold(lambda: groups)
    with caplog.at_level(logging.DEBUG, "runners"):
        hold.take(os.getpid(), MIB)
        hold.arm(os.getpid())
    assert hold.kind == "watchdog"
    assert "the watchdog holds its hard budget" in caplog.text
    assert list(groups.iterdir()) == []


def test_groups_of_processes_that_are_gone_are_removed_and_no_others(groups):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"guarded-runner-{gone.pid}-1", f"guarded-runner-{os.getppid()}-1", "guarded-runner-x", "other"]
    for name in names:
        MemoryGroup.create(groups, name)
    sweep(groups)
    assert sorted(path.name for path in groups.iterdir()) == sorted(names[1:])
