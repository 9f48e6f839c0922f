from __future__ import annotations

import pytest

from guardrails.memory.cgroup import Cgroup, own_cgroups

MIB = 1024**2


class Tree:
    """A /proc/self and a cgroup file system under a folder of the test."""

    def __init__(self, root):
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()
        self.write("proc/cgroup", "")
        self.write("proc/mountinfo", "24 1 0:22 / / rw - ext4 /dev/sda1 rw\n")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def member(self, *lines):
        self.write("proc/cgroup", "".join(f"{line}\n" for line in lines))

    def mount(self, kind, root, point, options="rw"):
        with (self.proc / "mountinfo").open("a") as file:
            file.write(f"30 24 0:26 {root} {self.root / point} rw,nosuid shared:4 - {kind} {kind} {options}\n")
        (self.root / point).mkdir(parents=True, exist_ok=True)

    def v2(self, path, current, limit="max", high="max", inactive=0):
        self.write(f"{path}/memory.current", f"{current}\n")
        self.write(f"{path}/memory.max", f"{limit}\n")
        self.write(f"{path}/memory.high", f"{high}\n")
        self.write(f"{path}/memory.stat", f"anon 1\nfile 2\ninactive_anon 3\ninactive_file {inactive}\nactive_file 4\n")

    def v1(self, path, usage, limit=9223372036854771712, inactive=0):
        self.write(f"{path}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{path}/memory.stat", f"inactive_file 99\ntotal_inactive_file {inactive}\n")

    def read(self):
        return [
            (str(group.path.relative_to(self.root)), group.version, group.used(), group.limit())
            for group in own_cgroups(self.proc)
        ]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_v2_counts_every_level_from_the_own_one_to_the_root(tree):
    tree.member("0::/app.slice/app.service")
    tree.mount("cgroup2", "/", "cg")
    tree.write("cg/memory.stat", "inactive_file 7\n")  # the root says nothing else
    tree.v2("cg/app.slice", 500 * MIB, 1000 * MIB, inactive=100 * MIB)
    tree.v2("cg/app.slice/app.service", 300 * MIB, 800 * MIB, high=700 * MIB)
    tree.v2("cg/other.slice", 1, 1)
    assert tree.read() == [
        ("cg/app.slice/app.service", 2, 300 * MIB, 700 * MIB),
        ("cg/app.slice", 2, 400 * MIB, 1000 * MIB),
    ]


def test_v2_without_a_limit(tree):
    tree.member("0::/app")
    tree.mount("cgroup2", "/", "cg")
    tree.v2("cg/app", 5)
    assert tree.read() == [("cg/app", 2, 5, None)]


def test_v2_in_a_container_with_its_own_namespace(tree):
    tree.member("0::/")
    tree.mount("cgroup2", "/", "cg")
    tree.v2("cg", 300 * MIB, 512 * MIB)
    assert tree.read() == [("cg", 2, 300 * MIB, 512 * MIB)]


def test_v1_counts_every_level(tree):
    tree.member("12:cpu,cpuacct:/other", "7:memory:/docker/abc", "1:name=systemd:/x", "0::/x")
    tree.mount("cgroup", "/", "cg/cpu", "rw,cpu,cpuacct")
    tree.mount("cgroup", "/", "cg/memory", "rw,memory")
    tree.v1("cg/memory", 4000 * MIB)
    tree.v1("cg/memory/docker", 900 * MIB)
    tree.v1("cg/memory/docker/abc", 300 * MIB, 512 * MIB, inactive=50 * MIB)
    assert tree.read() == [
        ("cg/memory/docker/abc", 1, 250 * MIB, 512 * MIB),
        ("cg/memory/docker", 1, 900 * MIB, None),
        ("cg/memory", 1, 4000 * MIB, None),
    ]


def test_v1_in_a_container_that_sees_its_own_part_of_the_tree_only(tree):
    # The membership is given from the host's root, the mount begins at the container's own group.
    tree.member("7:memory:/docker/abc")
    tree.mount("cgroup", "/docker/abc", "cg/memory", "rw,memory")
    tree.v1("cg/memory", 300 * MIB, 512 * MIB)
    assert tree.read() == [("cg/memory", 1, 300 * MIB, 512 * MIB)]


def test_v1_in_a_group_below_the_containers(tree):
    tree.member("7:memory:/docker/abc/worker")
    tree.mount("cgroup", "/docker/abc", "cg/memory", "rw,memory")
    tree.v1("cg/memory", 300, 512)
    tree.v1("cg/memory/worker", 100, 256)
    assert tree.read() == [("cg/memory/worker", 1, 100, 256), ("cg/memory", 1, 300, 512)]


def test_a_membership_that_the_mount_does_not_show_counts_at_the_mount(tree):
    tree.member("7:memory:/kubepods/pod1/abc")
    tree.mount("cgroup", "/kubepods/pod2", "cg/memory", "rw,memory")
    tree.v1("cg/memory", 300, 512)
    assert tree.read() == [("cg/memory", 1, 300, 512)]


def test_a_name_that_only_begins_alike_is_another_group(tree):
    tree.member("7:memory:/docker/abcdef")
    tree.mount("cgroup", "/docker/abc", "cg/memory", "rw,memory")
    tree.v1("cg/memory", 300, 512)
    tree.v1("cg/memory/def", 1, 1)
    assert tree.read() == [("cg/memory", 1, 300, 512)]


def test_hybrid_reads_memory_from_v1_and_finds_none_in_v2(tree):
    tree.member("7:memory:/app", "0::/app")
    tree.mount("cgroup", "/", "cg/memory", "rw,memory")
    tree.mount("cgroup2", "/", "cg/unified")
    tree.v1("cg/memory/app", 300, 512)
    (tree.root / "cg/unified/app").mkdir()
    assert tree.read() == [("cg/memory/app", 1, 300, 512)]


def test_without_cgroups_there_are_none(tree, tmp_path):
    assert tree.read() == []
    assert own_cgroups(tmp_path / "nowhere") == ()


def test_a_group_that_goes_away_says_nothing(tree):
    tree.v2("cg/app", 5, 10)
    group = Cgroup(tree.root / "cg/app", 2)
    for name in ("memory.current", "memory.max", "memory.high", "memory.stat"):
        (tree.root / "cg/app" / name).unlink()
    assert (group.used(), group.limit()) == (None, None)


def test_used_is_never_below_zero(tree):
    tree.v2("cg/app", 5, 10, inactive=50)
    assert Cgroup(tree.root / "cg/app", 2).used() == 0


def test_a_path_may_hold_colons_and_brackets(tree):
    tree.member("0::/system.slice/app@a:b.service")
    tree.mount("cgroup2", "/", "cg")
    tree.v2("cg/system.slice/app@a:b.service", 5, 10)
    assert ("cg/system.slice/app@a:b.service", 2, 5, 10) in tree.read()


def test_this_process_can_be_read():
    for group in own_cgroups():
        assert group.used() >= 0
        limit = group.limit()
        assert limit is None or limit > 0
