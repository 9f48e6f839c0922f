"""The quick way into a limiter takes no lock: what that rests on, and that it counts right between threads."""

from __future__ import annotations

import ast
import dis
import inspect
import sys
import textwrap
import threading

import pytest

from guardrails.core.guard import UNREAD
from guardrails.core.outcome import SUCCESS
from guardrails.gates.limiter import Limiter, limiter
from guardrails.gates.limiter.exclusive import STEADY, Exclusive


def first_and_last_line():
    """The lines, in the file, of the step that has to be one: from the look at the lock to the last read."""
    lines, start = inspect.getsourcelines(Limiter.try_enter)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    reads = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in {"held", "refunded"}
    ]
    return min(reads) + start - 1, max(reads) + start - 1


def test_nothing_is_called_and_nothing_loops_within_the_step():
    first, last = first_and_last_line()
    within = []
    line = None
    for instruction in dis.get_instructions(Limiter.try_enter):
        if instruction.starts_line is not None:
            line = instruction.positions.lineno
        if line is not None and first <= line <= last:
            within.append(instruction.opname)
    assert len(within) > 30, "the step was not found"
    assert not [name for name in within if "CALL" in name or "BACKWARD" in name or name in {"SEND", "YIELD_VALUE"}]


def test_while_the_lock_is_held_the_quick_way_is_closed(clock):
    gate = limiter(requests=10, per=1, clock=clock)
    with gate.lock:
        assert gate.try_enter(UNREAD) is None
    assert gate.try_enter(UNREAD) is not None


def test_the_lock_is_re_entrant_and_shows_that_it_is_held():
    lock = Exclusive()
    with lock:
        with lock:
            assert lock.held == 2
        assert lock.held == 1
        other = threading.Thread(target=lambda: lock.__enter__() or lock.__exit__())
        other.start()
        assert lock.held == 1
    other.join()
    assert lock.held == 0


@pytest.mark.skipif(not STEADY, reason="there is no quick way where threads run at the same time")
def test_threads_that_take_and_correct_at_once_lose_nothing(clock):
    gate = limiter(requests=40_000, per=1e9, queue=0, clock=clock)
    taken = []
    start = threading.Barrier(4)

    def quick():
        start.wait()
        count = 0
        for _ in range(10_000):
            ticket = gate.try_enter(UNREAD)
            if ticket is None:  # the lock is held just now
                continue
            gate.settle(ticket, SUCCESS)
            count += 1
        taken.append(count)

    def slow():
        start.wait()
        for _ in range(2_000):
            gate.try_acquire(3).correct(2)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for work in (quick, quick, slow, slow)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert gate.available() == {"requests": pytest.approx(40_000 - sum(taken) - 2 * 2_000 * 2)}
