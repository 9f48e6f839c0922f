"""Cgroups of our own making: where they may be made, and what is written there."""

from __future__ import annotations

import os
import sys

import pytest

from guardrails.memory.cgroup import MemoryGroup, delegated_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")


@pytest.fixture
def tree(tmp_path):
    """A v2 tree under a folder: `tree(member, {group: what it hands on})` makes it, and says where groups may be."""

    def make(member, groups, marked=()):
        proc, root = tmp_path / "proc", tmp_path / "cg"
        proc.mkdir()
        (proc / "cgroup").write_text(f"4:memory:/elsewhere\n0::{member}\n")
        (proc / "mountinfo").write_text(f"30 24 0:26 / {root} rw shared:4 - cgroup2 cgroup2 rw\n")
        for group, controllers in groups.items():
            folder = root / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.subtree_control").write_text(controllers)
        found = delegated_group(proc, lambda path: str(path.relative_to(root)) in marked)
        return None if found is None else str(found.relative_to(root))

    return make


def test_the_root_of_a_machine_hands_memory_on(tree):
    assert tree("/", {"": "cpu memory pids"}) == "."


def test_a_group_that_hands_nothing_on_is_no_place(tree):
    assert tree("/", {"": "cpu pids"}) is None
    # Written to, a file of the kernel's would say "memory" afterwards; this one does not, as one that refuses.


def test_the_group_above_is_taken_when_it_was_delegated(tree):
    groups = {"app.service": "memory pids", "app.service/main": ""}
    assert tree("/app.service/main", groups, marked=("app.service",)) == "app.service"


def test_the_group_above_is_not_taken_without_the_mark_even_by_root(tree):
    assert tree("/system.slice/app.service", {"system.slice": "memory", "system.slice/app.service": ""}) is None


def test_a_delegated_group_further_up_is_not_taken(tree):
    groups = {"user": "memory", "user/app.slice": "memory", "user/app.slice/run.scope": ""}
    assert tree("/user/app.slice/run.scope", groups, marked=("user",)) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_group_that_cannot_be_written_is_no_place(tree, tmp_path):
    (tmp_path / "cg").mkdir()
    (tmp_path / "cg").chmod(0o555)
    assert tree("/", {"": "memory"}) is None


def test_without_v2_there_is_no_place(tmp_path):
    assert delegated_group(tmp_path) is None
    (tmp_path / "cgroup").write_text("4:memory:/app\n")
    (tmp_path / "mountinfo").write_text("30 24 0:26 / /cg rw shared:4 - cgroup cgroup rw,memory\n")
    assert delegated_group(tmp_path) is None


def test_what_is_written(tmp_path):
    group = MemoryGroup.create(tmp_path, "one")
    with pytest.raises(FileNotFoundError):
        group.add(1)  # no file is made where the kernel has none
    for name in ("cgroup.procs", "memory.max", "memory.oom.group"):
        (group.path / name).touch()
    group.add(4711)
    group.set_limit(1 << 30)
    written = {file.name: file.read_text() for file in group.path.iterdir()}
    assert written == {"cgroup.procs": "4711", "memory.max": str(1 << 30), "memory.oom.group": "1"}
    assert group.oom_kills() == 0
    (group.path / "memory.events").write_text("oom 1\noom_kill 3\n")
    assert group.oom_kills() == 3
    with pytest.raises(FileExistsError):
        MemoryGroup.create(tmp_path, "one")


def test_an_empty_group_is_removed_and_a_used_one_stays(tmp_path):
    assert MemoryGroup.create(tmp_path, "one").remove()
    group = MemoryGroup.create(tmp_path, "two")
    (group.path / "cgroup.procs").touch()
    assert not group.remove()
    assert group.path.exists()


def test_this_machine_either_lets_groups_be_made_or_says_that_it_does_not():
    parent = delegated_group()
    if parent is None:
        return
    group = MemoryGroup.create(parent, f"guardrails-test-{os.getpid()}")
    try:
        group.set_limit(64 << 20)
        assert int((group.path / "memory.max").read_text()) == 64 << 20
    finally:
        assert group.remove()
