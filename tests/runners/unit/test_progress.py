"""The progress line, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from runners.cli import progress as module
from runners.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    return clock


def test_in_a_log_a_line_every_five_seconds(monkeypatch, now):
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    line = Progress("embedding", total=1000)
    for _ in range(12):
        now[0] += 1
        line.show(500, "fine")
    line.done("all done")
    assert out.getvalue().splitlines() == [
        "embedding ...",
        "██████████░░░░░░░░░░ 500/1,000  500/s  fine",
        "██████████░░░░░░░░░░ 500/1,000  83/s  fine",
        "██████████░░░░░░░░░░ 500/1,000  45/s  fine",
        "all done",
    ]


def test_on_a_terminal_one_line_that_is_rewritten(monkeypatch, now):
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    line = Progress("embedding", total=4)
    for count in range(5):
        now[0] += 0.06
        line.show(count, "")
    line.done("done")
    written = out.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\r\x1b[2Kdone\n")
    assert written.count("\r") == 1 + 3 + 1
