from __future__ import annotations

import gc
import io
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from guardrails import admit
from guardrails.memory import sampler as module
from guardrails.memory.reading import Scope
from guardrails.memory.sampler import MemorySampler, shared_sampler


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Readings every millisecond, so that no test waits for one."""
    monkeypatch.setattr(module, "BUSY_INTERVAL", 0.001)
    monkeypatch.setattr(module, "IDLE_INTERVAL", 0.001)


@pytest.fixture
def log(monkeypatch):
    """What is logged, as text: pytest's own record keeps an error's frames, and these the watchers that must go."""
    text, logger = io.StringIO(), logging.Logger("apart")  # noqa: LOG001 - one that pytest does not know
    logger.addHandler(logging.StreamHandler(text))
    monkeypatch.setattr(module, "_log", logger)
    return text


class Watcher:
    def __init__(self):
        self.seen = []
        self.news = threading.Event()

    def on_reading(self, scopes):
        self.seen.append(scopes)
        if len(self.seen) > 3:
            self.news.set()


def ended(sampler):
    """The sampler's thread ends by itself when nobody watches any more."""
    gc.collect()
    thread = sampler._thread
    if thread is not None:
        thread.join(10)
    return sampler._thread is None


def counting():
    numbers = iter(range(10**9))
    return MemorySampler(lambda: (Scope("s", next(numbers), 10**9),))


def test_a_watcher_gets_the_last_reading_at_once_and_every_further_one():
    sampler, watcher = counting(), Watcher()
    assert sampler._thread is None
    sampler.watch(watcher)
    assert watcher.seen[0] == (Scope("s", 0, 10**9),)
    assert watcher.news.wait(10)
    assert [scopes[0].used for scopes in watcher.seen[:4]] == [0, 1, 2, 3]
    del watcher
    assert ended(sampler)


def test_one_thread_serves_all_and_ends_with_the_last():
    before = threading.active_count()
    sampler = counting()
    watchers = [Watcher() for _ in range(5)]
    for watcher in watchers:
        sampler.watch(watcher)
    assert threading.active_count() == before + 1
    assert all(watcher.news.wait(10) for watcher in watchers)
    last = watchers.pop()
    del watchers, watcher
    gc.collect()
    last.news.clear()
    assert last.news.wait(10)
    del last
    assert ended(sampler)
    again = Watcher()
    sampler.watch(again)
    assert again.news.wait(10)
    del again
    assert ended(sampler)


def test_wanted_is_taken_back_at_each_reading():
    sampler, watcher = counting(), Watcher()
    sampler.wanted = True
    sampler.watch(watcher)
    assert watcher.news.wait(10)
    assert sampler.wanted is False
    del watcher
    assert ended(sampler)


def test_a_reading_that_fails_is_logged_and_tried_again(log):
    readings = iter(["first", "broken", "second"])

    def read():
        reading = next(readings, "last")
        if reading == "broken":
            raise OSError("no /proc")
        return reading

    sampler, watcher = MemorySampler(read), Watcher()
    sampler.watch(watcher)
    assert watcher.news.wait(10)
    assert watcher.seen[:4] == ["first", "second", "last", "last"]
    assert "reading memory failed; trying again" in log.getvalue()
    assert "no /proc" in log.getvalue()
    del watcher
    assert ended(sampler)


def test_a_watcher_that_fails_does_not_starve_the_others(log):
    class Broken(Watcher):
        def on_reading(self, scopes):
            super().on_reading(scopes)
            if len(self.seen) == 2:
                raise ValueError("watcher is broken")

    sampler = counting()
    watchers = [Broken(), Watcher(), Broken(), Watcher()]
    for watcher in watchers:
        sampler.watch(watcher)
    assert all(watcher.news.wait(10) for watcher in watchers)
    assert log.getvalue().count("ValueError: watcher is broken") == 2
    del watchers, watcher
    assert ended(sampler)


def test_a_guard_that_is_dropped_takes_its_sampler_with_it():
    gate = admit(limit="1TiB")
    sampler = weakref.ref(gate._sampler)
    thread = gate._sampler._thread
    assert gate._scopes[-1].name == "processes"
    del gate
    gc.collect()
    thread.join(10)
    gc.collect()
    assert sampler() is None


def test_guards_without_a_limit_share_one_sampler():
    first, second = admit(concurrency=1), admit(memory="1MiB")
    assert first._sampler is second._sampler is shared_sampler()
    del first, second
    assert ended(shared_sampler())


def test_threads_that_ask_first_at_once_get_the_same_sampler(monkeypatch):
    monkeypatch.setattr(module, "_shared", None)
    start, found = threading.Barrier(4), []

    def ask():
        start.wait()
        found.append(shared_sampler())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_samples_when_a_guard_there_is_used_and_not_before():
    script = """
        import os, signal, threading, warnings
        from guardrails import admit
        from guardrails.errors import MemoryRefused
        from guardrails.memory import sampler as module
        from guardrails.memory.sampler import MemorySampler
        from guardrails.memory.reading import Scope

        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tried here
        module.BUSY_INTERVAL = module.IDLE_INTERVAL = 0.001
        used = 99
        sampler = MemorySampler(lambda: (Scope("s", used, 100),))
        gate = admit(memory=1, sampler=sampler)
        assert gate.level == "critical"
        never = MemorySampler(lambda: ())  # one that was not started in the parent is not started in the child

        def hold():  # its lock, as the sampler's own thread may at the moment of the fork
            with sampler._lock:
                held.set()
                release.wait()

        held, release = threading.Event(), threading.Event()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # it must not outlive a failure
            used = 10
            alone = threading.active_count() == 1
            while gate.level != "normal":
                try:
                    gate(lambda: 42)()
                except MemoryRefused:
                    pass
            both = [thread.name for thread in threading.enumerate()].count("guardrails-memory") == 1
            os._exit(7 if alone and both and gate(lambda: 42)() == 42 and never._thread is None else 1)
        release.set()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert gate.level == "critical"
        assert sampler._thread.is_alive()
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_thread_that_could_not_be_started_is_tried_again_with_the_next_watcher(monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    sampler, first, second = counting(), Watcher(), Watcher()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError):
            sampler.watch(first)
    sampler.watch(second)
    assert second.news.wait(10)
    del first, second
    assert ended(sampler)
