"""Which processes are watched, how often they are read, and what they are called."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.monitor import names
from guardrails.memory.monitor.names import ProcessName, forget_process, name_process, named_processes
from guardrails.memory.monitor.processes import EXACT_EVERY, SEARCH_EVERY, Processes
from guardrails.memory.monitor.reader import ProcReader, PsutilReader, Quick, system_reader
from guardrails.memory.monitor.scopes import FIND_EVERY, Scopes
from guardrails.memory.reading import Scope, machine_scopes

MIB = 1 << 20
OWN = os.getpid()
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Tree:
    """Processes that a test makes up: number, parent, size. It counts what is asked of it, and time passes as it is."""

    def __init__(self, *processes, search=0.0, exact=0.0):
        self.all = {OWN: (1, 50 * MIB)} | {pid: (parent, size) for pid, parent, size in processes}
        self.costs = {"children": search, "exact": exact}
        self.asked = []
        self.cpu = 0.0

    def quick(self, pid):
        if pid not in self.all:
            return None
        parent, size = self.all[pid]
        return Quick(size, size + MIB, parent)

    def exact(self, pid):
        self.asked.append(("exact", pid))
        self.cpu += self.costs["exact"]
        return (self.all[pid][1], self.all[pid][1] + 7) if pid in self.all else None

    def children(self, pid):
        self.asked.append(("children", pid))
        self.cpu += self.costs["children"]
        return [child for child, (parent, _) in self.all.items() if parent == pid]

    def command(self, pid):
        return "python"


def watching(tree, named=None, **options):
    named = {} if named is None else named
    return Processes(reader=tree, names=lambda: dict(named), timer=lambda: tree.cpu, **options)


def seen(processes, now):
    return {each.name: (each.pid, each.role, each.private) for each in processes.look(now)}


def test_this_process_is_first_then_its_descendants_then_theirs():
    tree = Tree((10, OWN, 5), (11, 10, 6), (12, 11, 7), (99, 1, 8))
    assert [each.pid for each in watching(tree).look(0.0)] == [OWN, 10, 11, 12]
    assert seen(watching(tree), 0.0) == {
        "self": (OWN, "self", 50 * MIB),
        "python/0": (10, "child", 5),
        "python/1": (11, "child", 6),
        "python/2": (12, "child", 7),
    }


def test_descendants_are_searched_every_five_seconds():
    tree = Tree()
    processes = watching(tree)
    for tenth in range(100):
        processes.look(tenth / 10)
    assert tree.asked.count(("children", OWN)) == 2
    assert SEARCH_EVERY == 5.0


def test_a_search_that_is_dear_is_made_more_seldom():
    tree = Tree(search=0.01)  # of a tree of one process: 10 ms of CPU
    processes = watching(tree)
    for second in range(101):
        processes.look(float(second))
    assert tree.asked.count(("children", OWN)) == 6  # 10 ms in 20 s are 0.05 %


def test_descendants_may_be_left_out():
    tree = Tree((10, OWN, 5), (11, OWN, 5))
    named = {11: ProcessName("embed/0", "worker")}
    assert set(seen(watching(tree, named, descendants=False), 0.0)) == {"self", "embed/0"}
    assert not any(what == "children" for what, _ in tree.asked)


def test_a_worker_is_there_with_the_next_look_and_goes_when_it_is_forgotten():
    tree, named = Tree(), {}
    processes = watching(tree, named)
    processes.look(0.0)
    tree.all[10] = (OWN, 5)
    named[10] = ProcessName("embed/0", "worker", 100)
    (_, worker) = processes.look(1.0)
    assert (worker.name, worker.role, worker.budget) == ("embed/0", "worker", 100)
    del named[10]
    assert set(seen(processes, 2.0)) == {"self"}
    assert set(seen(processes, 5.0)) == {"self", "python/0"}  # it lives, and nobody knows it any more


def test_a_child_that_is_named_later_takes_its_name():
    tree, named = Tree((10, OWN, 5)), {}
    processes = watching(tree, named)
    assert set(seen(processes, 0.0)) == {"self", "python/0"}
    named[10] = ProcessName("embed/0", "worker")
    assert seen(processes, 1.0)["embed/0"] == (10, "worker", 5)


def test_one_that_has_ended_is_left_out_at_once():
    tree = Tree((10, OWN, 5))
    processes = watching(tree)
    processes.look(0.0)
    del tree.all[10]
    assert set(seen(processes, 1.0)) == {"self"}


def test_a_number_that_another_process_has_by_now_is_not_the_same_process():
    tree = Tree((10, OWN, 5))
    processes = watching(tree)
    processes.look(0.0)
    tree.all[10] = (1, 900 * MIB)
    assert set(seen(processes, 1.0)) == {"self"}


def test_of_too_many_children_the_largest_are_watched():
    tree = Tree(*((10 + number, OWN, number) for number in range(100)))
    processes = watching(tree, most=6)
    assert {pid for pid, _, _ in seen(processes, 0.0).values()} == {OWN, *range(105, 110)}
    tree.all[10] = (OWN, 500)
    assert {pid for pid, _, _ in seen(processes, 5.0).values()} == {OWN, 10, *range(106, 110)}


def test_workers_come_before_other_children():
    tree = Tree(*((10 + number, OWN, number) for number in range(20)))
    named = {10: ProcessName("embed/0", "worker"), 11: ProcessName("embed/1", "worker")}
    processes = watching(tree, named, most=4)
    assert {pid for pid, _, _ in seen(processes, 0.0).values()} == {OWN, 10, 11, 29}
    assert {pid for pid, _, _ in seen(processes, 5.0).values()} == {OWN, 10, 11, 29}


def test_a_tree_without_end_is_not_gone_through_without_end():
    tree = Tree(*((10 + number, OWN if number == 0 else 9 + number, 5) for number in range(3000)))
    watching(tree).look(0.0)
    assert sum(what == "children" for what, _ in tree.asked) <= 1024


def test_names_are_those_that_are_free():
    tree = Tree((10, OWN, 5), (11, OWN, 5), (12, OWN, 5))
    processes = watching(tree)
    processes.look(0.0)
    del tree.all[11]
    processes.look(1.0)
    tree.all[13] = (OWN, 9)
    assert seen(processes, 5.0)["python/1"] == (13, "child", 9)


def test_each_process_is_read_exactly_once_a_minute_and_one_at_a_time():
    tree = Tree((10, OWN, 5), (11, OWN, 5))
    processes = watching(tree)
    for second in range(121):
        before = len(tree.asked)
        processes.look(float(second))
        assert sum(what == "exact" for what, _ in tree.asked[before:]) <= 1
    exact = [pid for what, pid in tree.asked if what == "exact"]
    assert sorted(exact) == sorted([OWN, 10, 11] * 2 + [OWN])
    assert exact[:3] == [OWN, 10, 11]
    assert EXACT_EVERY == 60.0


def test_exact_readings_take_a_bounded_share_of_the_time():
    tree = Tree(exact=0.1)  # a process of tens of gigabytes
    processes = watching(tree)
    for second in range(1001):
        processes.look(float(second))
    assert tree.cpu <= 0.1 * 6  # 0.05 %, and the first one


def test_pss_is_that_of_the_last_exact_reading():
    tree = Tree((10, OWN, 5))
    processes = watching(tree)
    assert [each.pss for each in processes.look(0.0)] == [50 * MIB + 7, None]
    tree.all[OWN] = (1, 60 * MIB)
    assert [each.pss for each in processes.look(1.0)] == [50 * MIB + 7, 12]
    assert [each.pss for each in processes.look(60.0)] == [60 * MIB + 7, 12]


def test_no_exact_reading_when_it_is_not_wanted():
    tree = Tree()
    watching(tree).look(0.0, exact=False)
    assert tree.asked == [("children", OWN)]


def test_where_private_is_not_cheap_rss_stands_in_until_the_exact_reading():
    class Elsewhere(Tree):
        def quick(self, pid):
            found = super().quick(pid)
            return found and found._replace(private=None)

    processes = watching(Elsewhere())
    assert processes.look(0.0, exact=False)[0].private == 51 * MIB
    assert processes.look(1.0)[0].private == 50 * MIB


# Names


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(names, "_names", {})


def test_a_name_gets_the_lowest_free_number(registry):
    assert [name_process(pid, "embed") for pid in (1, 2, 3)] == ["embed/0", "embed/1", "embed/2"]
    forget_process(2)
    assert name_process(4, "embed") == "embed/1"
    assert name_process(5, "llama") == "llama/0"
    assert named_processes()[4] == ProcessName("embed/1", "worker", None)


def test_a_process_that_is_named_again_has_its_last_name(registry):
    name_process(1, "embed", budget=100)
    assert name_process(1, "embed", "child") == "embed/0"
    assert named_processes() == {1: ProcessName("embed/0", "child")}
    forget_process(1)
    forget_process(1)
    assert named_processes() == {}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.sampled_from("ab")), max_size=60))
def test_names_are_unique_and_as_few_as_processes_live(steps):
    before = dict(names._names)
    try:
        names._names.clear()
        for named, pid, name in steps:
            name_process(pid, name) if named else forget_process(pid)
            living = named_processes().values()
            assert len({each.name for each in living}) == len(living)
            assert all(int(each.name.split("/")[1]) < 8 for each in living)
    finally:
        names._names.clear()
        names._names.update(before)


def test_the_registry_is_bounded(registry):
    for pid in range(4200):
        names._names[pid] = ProcessName(f"x/{pid}", "worker")
    name_process(9999, "new")
    assert len(named_processes()) <= 4201
    assert 9999 in named_processes()
    assert len(name_process(1, "x" * 500)) < 90


# The real system


@linux
def test_a_real_child_is_found_named_and_measured():
    code = "import sys; x = bytearray(40 * 2**20); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        processes = Processes()
        found = {each.pid: each for each in processes.look(0.0)}[child.pid]
        assert found.role == "child"
        assert found.name.endswith("/0")
        assert 40 * MIB < found.private < 80 * MIB
        assert found.rss >= found.private
        for second in range(1, 200):  # all that this process has started, one after the other
            pss = {each.pid: each.pss for each in processes.look(100.0 * second)}[child.pid]
            if pss is not None:
                break
        assert 40 * MIB < pss < found.rss + MIB
        child.stdin.close()
        child.wait()
    assert child.pid not in {each.pid for each in processes.look(1e6)}


@linux
def test_a_zombie_holds_nothing_and_is_left_out():
    child = subprocess.Popen([sys.executable, "-c", "print(1)"], stdout=subprocess.PIPE)
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for reader in (ProcReader(), PsutilReader()):
        assert reader.quick(child.pid) is None
    child.stdout.close()
    child.wait()
    assert ProcReader().quick(child.pid) is None
    assert ProcReader().exact(child.pid) is PsutilReader().exact(child.pid) is None
    assert ProcReader().children(child.pid) == PsutilReader().children(child.pid) == []
    assert ProcReader().command(child.pid) == PsutilReader().command(child.pid) == ""


def test_children_of_other_threads_are_children():
    started = []

    def start():
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        up.set()
        done.wait()

    up, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert up.wait(10)
        assert started[0].pid in system_reader().children(OWN)
        assert started[0].pid in PsutilReader().children(OWN)
    finally:
        done.set()
        thread.join()
        started[0].communicate(b"\n")


@linux
def test_both_readers_agree():
    proc, psutil = ProcReader().quick(OWN), PsutilReader().quick(OWN)
    assert psutil.private is None
    assert psutil.parent == proc.parent == os.getppid()
    assert psutil.rss == pytest.approx(proc.rss, rel=0.1)
    assert PsutilReader().exact(OWN)[0] == pytest.approx(proc.private, rel=0.1)
    assert isinstance(system_reader(), ProcReader)


def test_a_status_without_swap_and_a_long_list_of_children(tmp_path):
    folder = tmp_path / "7"
    (folder / "task" / "7").mkdir(parents=True)
    (folder / "status").write_text("Name:\tx y\nPPid:\t3\nVmRSS:\t  200 kB\nRssAnon:\t 120 kB\nThreads:\t1\n")
    (folder / "comm").write_text("x y\n")
    (folder / "task" / "7" / "children").write_text(" ".join(map(str, range(100_000, 104_000))))
    reader = ProcReader(str(tmp_path))
    assert reader.quick(7) == Quick(120 * 1024, 200 * 1024, 3)
    assert len(reader.children(7)) == 4000
    assert reader.command(7) == "x y"


def test_names_are_not_inherited_by_a_fork():
    code = """
    import os
    from guardrails.memory.monitor.names import name_process, named_processes
    name_process(1, "embed")
    if os.fork() == 0:
        os._exit(len(named_processes()) + 7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    assert len(named_processes()) == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)


# Scopes


class Group:
    def __init__(self, limit):
        self.path, self._limit = "/cg", limit

    def limit(self):
        return self._limit


def test_cgroups_are_found_once_a_minute_and_those_without_a_limit_are_not_read():
    found, read = [], []

    def find():
        found.append(1)
        return (Group(None), Group(5))

    def scopes(groups):
        read.append([group.limit() for group in groups])
        return (Scope("host", 1, 2),)

    one = Scopes(find, scopes)
    for second in range(121):
        assert one.look(float(second)) == (Scope("host", 1, 2),)
    assert len(found) == 3
    assert all(limits == [5] for limits in read)
    assert FIND_EVERY == 60.0


def test_the_scopes_of_this_machine():
    assert [scope.name for scope in Scopes().look(0.0)] == [scope.name for scope in machine_scopes()]
