"""What grows, line by line, and what the allocator gives back."""

from __future__ import annotations

import sys
import threading
import tracemalloc

import pytest

from guardrails.memory import growth
from guardrails.memory.growth import AllocationTrace, GrowingLine, describe_lines, trim, trim_now

KIB = 1 << 10


def keep(count, size):
    return [bytes(bytearray(size)) for _ in range(count)]


def test_the_line_that_keeps_most_comes_first_and_what_was_freed_does_not_come():
    with AllocationTrace() as trace:
        kept = keep(300, 4 * KIB)
        other = [bytearray(2 * KIB) for _ in range(200)]
        freed = [bytearray(8 * KIB) for _ in range(500)]
        del freed
        first, second = trace.compare()[:2]
    assert first.place.startswith("tests/guardrails/test_leak_growth.py:")
    assert 300 * 4 * KIB <= first.grown < 330 * 4 * KIB
    assert 300 <= first.blocks < 310
    assert first.grown > second.grown >= len(other) * 2 * KIB
    assert first.place != second.place
    assert len(kept) == 300


def test_the_lines_are_bounded_and_small_growth_is_left_out():
    with AllocationTrace(lines=1, least="1KiB") as trace:
        kept = keep(10, 4 * KIB), [bytearray(4 * KIB) for _ in range(10)]
        assert len(trace.compare()) == 1
    with AllocationTrace(least="1MiB") as trace:
        kept = keep(10, 4 * KIB)
        assert trace.compare() == ()
    assert kept


def test_tracing_ends_with_the_trace():
    before = tracemalloc.is_tracing()
    trace = AllocationTrace()
    trace.start()
    assert (trace.running, tracemalloc.is_tracing()) == (True, True)
    trace.stop()
    trace.stop()
    assert (trace.running, tracemalloc.is_tracing()) == (False, before)
    with pytest.raises(RuntimeError, match="start it first"):
        trace.compare()


def test_tracing_that_somebody_else_began_goes_on():
    tracemalloc.start(3)
    try:
        held = keep(100, 4 * KIB)
        with AllocationTrace() as trace:
            assert trace.compare() == ()
            more = keep(100, 4 * KIB)
            (line,) = trace.compare()
        assert line.grown == pytest.approx(400 * KIB, rel=0.1)
        assert tracemalloc.is_tracing()
        assert tracemalloc.get_traceback_limit() == 3
        assert len(held) == len(more)
    finally:
        tracemalloc.stop()


def test_there_is_one_trace_at_a_time():
    with AllocationTrace(), pytest.raises(RuntimeError, match="runs already"):
        AllocationTrace().start()
    with AllocationTrace():
        pass


def test_a_trace_that_costs_too_much_ends_itself():
    with AllocationTrace(overhead="64KiB") as trace:
        kept = keep(5000, 16)
        assert trace.compare() == ()
        assert not trace.running
        assert not tracemalloc.is_tracing()
    assert len(kept) == 5000


def test_tracing_that_was_stopped_by_somebody_else_is_over():
    with AllocationTrace() as trace:
        tracemalloc.stop()
        assert trace.compare() == ()
        assert not trace.running


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lines": 0}, ValueError, "lines takes a whole number of 1 to 100, not 0"),
        ({"lines": 101}, ValueError, "lines"),
        ({"lines": True}, TypeError, "lines takes a whole number, not bool"),
        ({"least": "much"}, ValueError, "least"),
        ({"overhead": None}, TypeError, "overhead"),
    ],
)
def test_misuse_names_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        AllocationTrace(**arguments)


def test_lines_are_described_in_a_sentence():
    line = GrowingLine("myapp/cache.py:42", 3 << 20, 12)
    assert describe_lines((line,)) == "Held more than before: myapp/cache.py:42 (+3 MiB in 12 blocks)."
    assert "No line of Python" in describe_lines(())


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux" or growth._malloc_trim() is None, reason="a C library without malloc_trim")
async def test_trim_gives_free_pages_back_and_runs_in_another_thread(monkeypatch):
    threads = []
    real = growth._malloc_trim()
    monkeypatch.setattr(growth, "_malloc_trim", lambda: lambda pad: (threads.append(threading.get_ident()), real(pad)))
    # Blocks of some kilobytes come from the C library's heap; those that stay keep it from shrinking by itself.
    blocks = [bytearray(3000) for _ in range(20_000)]
    kept = blocks[::100]
    del blocks
    given_back = await trim()
    assert given_back > 20 << 20
    assert threads != [threading.get_ident()]
    assert len(kept) == 200


@pytest.mark.anyio
async def test_where_there_is_no_trim_there_is_none(monkeypatch):
    monkeypatch.setattr(growth, "_malloc_trim", lambda: None)
    assert await trim() is None
    assert trim_now() is None
