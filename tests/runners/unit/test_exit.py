"""How a worker ended: the words, and whether it was the kernel, out of memory."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.exit import Exit
from runners.supervision.oom import OomWatch, oom_kills

PID = 7


@pytest.mark.parametrize(
    ("end", "label", "words"),
    [
        (Exit(-9, None, "", oom=True), "oom_kill", "was killed by the kernel because memory ran out (SIGKILL)"),
        (Exit(-9, None, "", oom=False), "sigkill", "was killed by SIGKILL; by another program"),
        (Exit(-9, None, ""), "sigkill", "was killed by SIGKILL; by the kernel if memory ran out, or by another"),
        (Exit(-9, "hard_budget", "", oom=False), "hard_budget", "was ended by the runner (hard_budget)"),
        (Exit(-11, None, ""), "sigsegv", "was killed by SIGSEGV; a crash in native code"),
        (Exit(3, None, ""), "exit_3", "exited with status 3"),
    ],
)
def test_the_words(end, label, words):
    assert end.label == label
    assert end.describe().startswith(words)


@given(st.integers(-64, 255), st.none() | st.just("stopped"), st.none() | st.booleans())
def test_from_outside_only_where_it_is_known(code, reason, oom):
    end = Exit(code, reason, "", oom)
    assert end.from_outside == (code == -9 and reason is None and oom is False)
    assert not (end.from_outside and end.label == "oom_kill")
    assert end.label
    assert end.describe()


class FakeSystem:
    """A `/proc` with one process, and a tree of cgroups."""

    def __init__(self, folder: Path, *, version: int, inside: str = "box/worker") -> None:
        self.proc, self.mount, self.version = folder / "proc", folder / "cgroup", version
        self.file = {1: "memory.oom_control", 2: "memory.events"}[version]
        (self.proc / str(PID)).mkdir(parents=True)
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
        (self.proc / str(PID) / "mountinfo").write_text(f"30 24 0:26 / {self.mount} rw shared:4 - {kind}\n")
        self.move(inside)
        self.write_vmstat(0)

    def move(self, inside: str) -> None:
        line = f"0::/{inside}\n" if self.version == 2 else f"4:memory:/{inside}\n"
        (self.proc / str(PID) / "cgroup").write_text(line)
        group = self.mount / inside
        while True:
            group.mkdir(parents=True, exist_ok=True)
            (group / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")).write_text("4096\n")
            if not (group / self.file).exists():
                self.write(group, 0)
            if group == self.mount:
                return
            group = group.parent

    def write(self, group: Path, kills: int) -> None:
        before = "oom_kill_disable 0\nunder_oom 0\n" if self.version == 1 else "low 0\nhigh 3\nmax 9\noom 4\n"
        (group / self.file).write_text(f"{before}oom_kill {kills}\n")

    def kills(self, inside: str, count: int) -> None:
        """The kernel killed `count` processes there so far; v2 counts them in every group above, too."""
        group = self.mount / inside
        self.write(group, count)
        while self.version == 2 and group != self.mount:
            group = group.parent
            self.write(group, count)
        self.write_vmstat(count)

    def write_vmstat(self, kills: int) -> None:
        (self.proc / "vmstat").write_text(f"pgfault 12\noom_kill {kills}\nswap_ra 0\n")

    def watch(self, explained: Counter[Path] | None = None) -> OomWatch:
        return OomWatch(PID, Counter() if explained is None else explained, proc=self.proc)


@pytest.fixture(params=[1, 2])
def system(request, tmp_path):
    return FakeSystem(tmp_path, version=request.param)


def test_a_count_that_rose_is_an_oom_kill_and_one_that_did_not_is_somebody_else(system):
    system.kills("box/worker", 3)  # of earlier days
    assert system.watch().killed() is False
    watch = system.watch()
    system.kills("box/worker", 4)
    assert watch.killed() is True


def test_one_oom_kill_explains_one_death(system):
    explained: Counter[Path] = Counter()
    first, second, third = (system.watch(explained) for _ in range(3))
    system.kills("box/worker", 2)
    assert [first.killed(), second.killed(), third.killed()] == [True, True, False]
    assert system.watch(explained).killed() is False  # one that was started after both
    late = system.watch(explained)
    system.kills("box/worker", 3)
    assert late.killed() is True


def test_another_cgroup_s_oom_kill_is_not_the_worker_s(system):
    watch = system.watch()
    system.move("other")
    system.kills("other", 5)
    assert watch.killed() is False


def test_an_oom_kill_of_long_ago_explains_nothing(system):
    watch = system.watch()
    system.kills("box/worker", 1)
    watch.look()
    assert watch.killed() is True  # it may have been this one: the news of a death comes after the count
    watch = system.watch()
    system.kills("box/worker", 2)
    watch.look()
    watch.look()
    assert watch.killed() is False


def test_a_worker_that_was_moved_is_counted_where_it_is(system):
    watch = system.watch()
    system.move("box/worker/own")
    watch.look_afresh()
    system.kills("box/worker/own", 1)
    assert watch.killed() is True


def test_when_the_worker_s_cgroup_is_gone_the_next_wider_one_decides(system):
    watch = system.watch()
    system.kills("box/worker", 1)
    (system.mount / "box/worker" / system.file).unlink()
    assert watch.killed() is True  # v1 counts in the innermost only; the machine's count is left


def test_without_cgroups_the_machine_s_count_decides(tmp_path):
    system = FakeSystem(tmp_path, version=2)
    (system.proc / str(PID) / "mountinfo").write_text("")
    watch = system.watch()
    system.write_vmstat(1)
    assert watch.killed() is True


def test_where_nothing_is_counted_nothing_is_known(tmp_path):
    assert OomWatch(PID, Counter(), proc=tmp_path).killed() is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_this_system_s_own_files_are_read():
    assert oom_kills(Path("/proc/vmstat")) is not None
    assert oom_kills(Path("/proc/self/status")) is None
    assert oom_kills(Path("/nonexistent")) is None
