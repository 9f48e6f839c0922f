from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from guardrails.memory import reading
from guardrails.memory.cgroup import Cgroup
from guardrails.memory.reading import (
    Scope,
    headroom,
    machine_scopes,
    mapped_bytes,
    private_and_proportional,
    private_bytes,
    private_estimate,
    resident_bytes,
    scope_reader,
    tree_private,
)

MIB = 1024**2
SLACK = 3 * MIB  # the interpreter's own doings, and the kernel's loose counters

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("read", [private_bytes, private_estimate, resident_bytes, tree_private])
def test_memory_that_is_written_is_counted_and_comes_down_again(read):
    before = read()
    block = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, 32 * MIB, mmap.PAGESIZE):
        block[page] = 1
    held = read()
    block.close()
    after = read()
    assert abs(held - before - 32 * MIB) < SLACK
    assert abs(after - before) < SLACK


@linux
@pytest.mark.parametrize("read", [private_bytes, private_estimate])
def test_mapped_files_are_not_private(read, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\0" * (32 * MIB))
    before, resident = read(), resident_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        assert sum(weights[page] for page in range(0, 32 * MIB, mmap.PAGESIZE)) == 0
        assert read() - before < SLACK
        assert resident_bytes() - resident > 20 * MIB


@linux
def test_the_proportional_share_counts_mapped_files_and_the_private_part_does_not(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\0" * (32 * MIB))
    (private, pss), mapped = private_and_proportional(), mapped_bytes()
    assert abs(private - private_bytes()) < SLACK
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        assert sum(weights[page] for page in range(0, 32 * MIB, mmap.PAGESIZE)) == 0
        held, share = private_and_proportional()
        assert held - private < SLACK
        assert share - pss > 20 * MIB
        assert mapped_bytes() - mapped > 20 * MIB


def test_another_process_can_be_read_and_counts_in_the_tree():
    alone = tree_private()
    script = "block = bytearray(b'x' * (24 << 20)); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline().strip() == b"ready"
        for read in (private_bytes, private_estimate, resident_bytes):
            assert read(child.pid) > 24 * MIB
        assert tree_private() - alone > 24 * MIB
        child.communicate(b"\n")
    assert tree_private() - alone < SLACK


@pytest.mark.parametrize("read", [private_bytes, private_estimate, resident_bytes])
def test_no_such_process_is_a_lookup_error(read):
    with pytest.raises(ProcessLookupError):
        read(2**22 + 1)  # above the kernel's largest number


@linux
def test_a_zombie_holds_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        os.sched_yield()
    try:
        assert private_estimate(child.pid) == 0
        assert tree_private() > 0
        with contextlib.suppress(ProcessLookupError):  # some kernels say that it is gone
            assert private_bytes(child.pid) == 0
    finally:
        child.wait()


def test_the_host_is_the_first_scope():
    host = machine_scopes()[0]
    total = psutil.virtual_memory().total
    assert (host.name, host.limit) == ("host", total)
    assert 0 < host.used < total


def test_only_groups_with_a_limit_are_scopes(monkeypatch, tmp_path):
    def group(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / f"memory.{file}").write_text(text)
        return Cgroup(folder, 2)

    groups = (
        group("a", current="10", max="100"),
        group("b", current="20", max="max"),
        group("c", current="30", max="90", high="60"),
    )
    monkeypatch.setattr(reading, "own_cgroups", lambda: groups)
    assert machine_scopes()[1:] == (Scope(str(tmp_path / "a"), 10, 100), Scope(str(tmp_path / "c"), 30, 60))
    assert headroom() == 30


@pytest.mark.parametrize(
    ("scopes", "expected"), [([(50, 100)], 50), ([(50, 100), (90, 95)], 5), ([(120, 100), (1, 10)], 0)]
)
def test_headroom_is_the_smallest_and_never_negative(monkeypatch, scopes, expected):
    monkeypatch.setattr(reading, "machine_scopes", lambda: tuple(Scope("s", *scope) for scope in scopes))
    assert headroom() == expected


def test_a_limit_on_the_processes_is_one_more_scope():
    assert [scope.name for scope in scope_reader(None)()] == [scope.name for scope in machine_scopes()]
    scope = scope_reader(7 * MIB)()[-1]
    assert (scope.name, scope.limit) == ("processes", 7 * MIB)
    assert abs(scope.used - tree_private()) < SLACK


def test_a_share_of_nothing_is_infinite():
    assert Scope("s", 50, 100).share == 0.5
    assert Scope("s", 0, 0).share == float("inf")


@linux
def test_no_file_is_left_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        machine_scopes()
        private_bytes()
        private_estimate()
        resident_bytes()
        tree_private()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Kernels that do not show everything: a folder with the files of one process, as /proc has them

ROLLUP = """00400000-7ffc rollup
Rss:                9000 kB
Pss:                7000 kB
Anonymous:          5000 kB
Swap:                300 kB
SwapPss:             200 kB
"""
SMAPS = """00400000-00401000 r-xp
Pss:                3000 kB
Anonymous:          1000 kB
Swap:                100 kB
SwapPss:             100 kB
00601000-00602000 rw-p
Pss:                4000 kB
Anonymous:          4000 kB
Swap:                200 kB
SwapPss:             100 kB
"""
STATUS = "Name:\tpython\nRssAnon:\t    5100 kB\nRssFile:\t    3000 kB\nRssShmem:\t     900 kB\nVmSwap:\t     300 kB\n"
OLD_STATUS = "Name:\tpython\nVmRSS:\t    9000 kB\nVmSwap:\t     300 kB\n"
PAGE = os.sysconf("SC_PAGE_SIZE")
STATM = f"9999 {9000 * 1024 // PAGE} {3900 * 1024 // PAGE} 1 0 1 0"


@pytest.fixture
def proc(tmp_path):
    """Makes the folder of process 7 with these files, `status` and `statm`; gives the root."""

    def make(*, status=STATUS, statm=STATM, **files):
        folder = tmp_path / "7"
        folder.mkdir()
        for name, text in {"status": status, "statm": statm, **files}.items():
            if text is not None:
                (folder / name).write_text(text)
        return str(tmp_path)

    return make


@linux
def test_without_a_rollup_the_maps_are_added_up(proc):
    root = proc(smaps=SMAPS)
    assert private_and_proportional(7, proc=root) == (5300 * 1024, 7200 * 1024)
    assert private_bytes(7, proc=root) == 5300 * 1024


@linux
def test_the_rollup_is_taken_where_there_is_one(proc):
    assert private_and_proportional(7, proc=proc(smaps_rollup=ROLLUP, smaps="")) == (5300 * 1024, 7200 * 1024)


@linux
@pytest.mark.parametrize("smaps", [None, "Size: 4 kB\n"])
def test_without_maps_too_it_is_the_counters(proc, smaps):
    assert private_and_proportional(7, proc=proc(smaps=smaps)) == (5400 * 1024, None)


@linux
def test_a_kernel_that_does_not_split_the_resident_size(proc):
    root = proc(status=OLD_STATUS)
    assert private_and_proportional(7, proc=root) == (5400 * 1024, None)
    assert private_estimate(7, proc=root) == 5400 * 1024
    assert mapped_bytes(7, proc=root) == 3900 * 1024


@linux
def test_a_process_without_any_status_is_not_a_dead_one(proc):
    root = proc(status=None)
    assert private_bytes(7, proc=root) == 5100 * 1024
    (Path(root) / "7" / "statm").unlink()
    with pytest.raises(FileNotFoundError):
        private_bytes(7, proc=root)
    with pytest.raises(ProcessLookupError):
        private_bytes(8, proc=root)


@linux
def test_a_file_that_may_not_be_read_is_passed_over(proc, monkeypatch):
    def refuse(path, *args, **kwargs):
        if "smaps" in path:
            raise PermissionError(path)
        return open(path, *args, **kwargs)  # noqa: PTH123 - as it is called

    monkeypatch.setattr(reading, "open", refuse, raising=False)
    assert private_and_proportional(7, proc=proc(smaps_rollup=ROLLUP, smaps=SMAPS)) == (5400 * 1024, None)
