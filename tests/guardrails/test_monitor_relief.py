"""What is done when this process is found to grow, where it was asked for."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import textwrap

import pytest

from guardrails.memory.growth import AllocationTrace, GrowingLine
from guardrails.memory.monitor.relief import EVERY, TRACE_FOR, Relief

MIB = 1 << 20
LINE = GrowingLine("myapp/cache.py:42", 3 * MIB, 7)


class Trace:
    """A trace that finds one line."""

    def __init__(self, *, taken=False, broken=False):
        self.did, self._taken, self._broken = [], taken, broken

    def start(self):
        self.did.append("start")
        if self._taken:
            raise RuntimeError("a trace runs already")

    def compare(self):
        self.did.append("compare")
        if self._broken:
            raise MemoryError
        return (LINE,)

    def stop(self):
        self.did.append("stop")


def relief(trace=None, freed=5 * MIB, **wanted):
    options = {"trace": trace is not None, "trim": False, **wanted}
    return Relief(**options, make_trace=lambda: trace, give_back=lambda: freed)


def test_nothing_is_done_unless_it_was_asked_for():
    one = Relief(trace=False, trim=False, make_trace=None, give_back=None)
    assert [one.look(second, growing=True) for second in (0.0, 1.0, 1e4)] == [None] * 3
    assert not one.trimmed()


def test_nothing_is_done_while_nothing_grows():
    trace = Trace()
    one = relief(trace, trim=True)
    assert one.look(0.0, growing=False) is None
    assert (trace.did, one.trimmed()) == ([], False)


def test_lines_are_told_once_after_two_minutes():
    trace = Trace()
    one = relief(trace)
    told = {second: found for second in range(300) if (found := one.look(second, growing=True)) is not None}
    assert told == {int(TRACE_FOR): "Held more than before: myapp/cache.py:42 (+3 MiB in 7 blocks)."}
    assert trace.did == ["start", "compare", "stop"]
    assert one.lines == (LINE,)


def test_a_trace_goes_on_when_the_alarm_is_over_meanwhile():
    one = relief(Trace())
    one.look(0.0, growing=True)
    assert one.look(TRACE_FOR, growing=False) is not None


def test_at_most_once_an_hour():
    trace = Trace()
    one = relief(trace, trim=True)
    trimmed = 0
    for second in range(0, 2 * int(EVERY), 10):
        one.look(second, growing=True)
        trimmed += one.trimmed()
    assert trimmed == trace.did.count("start") == 2


def test_where_pages_cannot_be_given_back_nothing_is_said(caplog):
    one = relief(freed=None, trim=True)
    with caplog.at_level(logging.INFO):
        one.look(0.0, growing=True)
    assert not one.trimmed()
    assert caplog.records == []


def test_what_was_given_back_is_logged_and_told_by_the_next_sample(caplog):
    one = relief(trim=True)
    with caplog.at_level(logging.INFO):
        one.look(0.0, growing=True)
    assert [one.trimmed(), one.trimmed()] == [True, False]
    assert "5 MiB of free memory" in caplog.text


def test_a_trace_of_the_applications_own_is_left_alone():
    trace = Trace(taken=True)
    one = relief(trace)
    one.look(0.0, growing=True)
    assert one.look(1e3, growing=True) is None
    assert trace.did == ["start"]


def test_a_comparison_that_fails_ends_the_trace():
    trace = Trace(broken=True)
    one = relief(trace)
    one.look(0.0, growing=True)
    with pytest.raises(MemoryError):
        one.look(TRACE_FOR, growing=True)
    assert trace.did == ["start", "compare", "stop"]
    assert one.look(TRACE_FOR + 1, growing=True) is None


def test_its_end_ends_a_trace():
    trace = Trace()
    one = relief(trace)
    one.end()
    one.look(0.0, growing=True)
    one.end()
    one.end()
    assert trace.did == ["start", "stop"]


def test_a_real_trace_finds_a_real_line():
    one = Relief(trace=True, trim=True, make_trace=lambda: AllocationTrace(least="1MiB"))
    one.look(0.0, growing=True)
    kept = [bytes(1024) for _ in range(4096)]
    told = one.look(TRACE_FOR, growing=True)
    assert "guardrails/test_monitor_relief.py:" in told
    assert one.lines[0].grown >= 4 * MIB
    assert len(kept) == 4096
    gc.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_that_grows_is_found_with_its_line():
    code = """
    import logging, sys, time
    from guardrails.memory import MemoryMonitor
    from guardrails.memory.signals import AlertRaised

    class FastClock:
        def now(self):
            return time.monotonic() * 200
        def wait_thread(self, event, seconds):
            return event.wait(seconds / 200)

    told = []
    monitor = MemoryMonitor(interval=4.0, trace=True, trim=True, clock=FastClock(), log_every=None, calls=False,
                            on_alert=lambda event: told.append(event) if isinstance(event, AlertRaised) else None)
    kept, end = [], time.monotonic() + 40
    with monitor:
        while not monitor.growing_lines and time.monotonic() < end:
            kept.append(bytes(100_000))  # here
            time.sleep(0.004)
    mine = [event for event in told if event.source == "self" and event.alert == "memory_growth"]
    assert [event.message.split()[0] for event in mine][:2] == ["grows", "Held"], told
    assert monitor.growing_lines[0].place.startswith("<string>:"), monitor.growing_lines
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
