"""The board: written by one process, read by another, also after the writer is dead."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.protocol.board import Board

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def board():
    made = Board.create()
    yield made
    made.close()


def test_a_new_board_is_empty(board):
    assert board.running() == ()
    assert board.busy_for() == 0.0
    assert board.progress() == 0


def test_begin_and_end(board):
    board.begin([7, 2**63])
    assert board.running() == (7, 2**63)
    assert board.busy_for() >= 0.0
    assert board.progress() == 0
    board.end()
    assert (board.running(), board.busy_for(), board.progress()) == ((), 0.0, 1)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=600))
def test_the_first_488_ids_are_remembered(ids):
    board = Board.create()
    try:
        board.begin(ids)
        assert board.running() == tuple(ids[:488])
        board.begin([])
        assert board.running() == ()
    finally:
        board.close()


def test_many_ids(board):
    board.begin(range(1, 2000))
    assert board.running() == tuple(range(1, 489))


def test_a_writer_that_died_while_writing_leaves_a_readable_board(board):
    board.begin([1, 2, 3])
    struct.pack_into("<Q", board._page, 0, 2**64 - 1)  # no count that a writer writes
    assert len(board.running()) == 488
    struct.pack_into("<Q", board._page, 0, 0)
    assert board.running() == ()


def test_a_clock_that_seems_to_run_backwards(board):
    board.begin([1])
    struct.pack_into("<d", board._page, 8, 1e300)
    assert board.busy_for() == 0.0


def test_across_processes_and_after_the_writers_death(board):
    program = (
        "import os, signal, sys; from runners.protocol.board import Board\n"
        f"board = Board({board.fd}); board.begin([1]); board.end(); board.begin([5, 6])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    writer = subprocess.run(
        [sys.executable, "-c", program], pass_fds=(board.fd,), env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert writer.returncode == -signal.SIGKILL
    assert board.running() == (5, 6)
    assert board.busy_for() > 0.0
    assert board.progress() == 1


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS has no seals")
def test_the_page_cannot_shrink_under_its_reader(board):
    """Else the parent ends by SIGBUS when it looks."""
    board.begin([3])
    program = f"import os; os.ftruncate({board.fd}, 0)"
    writer = subprocess.run([sys.executable, "-c", program], pass_fds=(board.fd,), capture_output=True, check=False)
    assert b"PermissionError" in writer.stderr
    assert board.running() == (3,)


def test_without_seals_what_is_missing_reads_as_zero(monkeypatch):
    monkeypatch.delattr("fcntl.F_ADD_SEALS", raising=False)
    board = Board.create()
    child = Board(os.dup(board.fd))
    try:
        child.begin([4, 5])
        child.end()
        child.begin([6])
        assert (board.running(), board.progress()) == ((6,), 1)
        assert board.busy_for() >= 0.0
        os.ftruncate(board.fd, 0)
        assert (board.running(), board.progress(), board.busy_for()) == ((), 0, 0.0)
    finally:
        child.close()
        board.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS has no seals")
def test_a_system_that_refuses_seals(monkeypatch):
    monkeypatch.setattr("runners.protocol.board.fcntl.fcntl", lambda *_: (_ for _ in ()).throw(OSError(22, "no")))
    board = Board.create()
    try:
        os.ftruncate(board.fd, 8)
        assert board.running() == ()
    finally:
        board.close()
