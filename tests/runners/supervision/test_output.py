"""What workers print is logged, bounded, and never mistaken for a message."""

from __future__ import annotations

import logging

import pytest

from runners import FunctionRunner

pytestmark = pytest.mark.anyio


def lines(caplog, level=logging.INFO):
    return [r.getMessage() for r in caplog.records if r.name == "runners.worker.act" and r.levelno == level]


async def test_printed_lines_are_logged_when_they_are_printed(caplog, until):
    caplog.set_level(logging.INFO, "runners.worker")
    async with FunctionRunner("calls:act") as act:
        assert await act("say", "olé") == "olé"
        await until(lambda: "olé" in lines(caplog))
        assert act.stats().workers[0].answered == 1


async def test_raw_bytes_do_not_corrupt_a_frame(caplog, until):
    caplog.set_level(logging.INFO, "runners.worker")
    async with FunctionRunner("calls:act") as act:
        assert await act("speak", b"\xff\xfe\x00raw\n", b"\x00" * 100, b"\nend\n") == 3
        assert await act("echo", 5) == 5
        await until(lambda: "end" in lines(caplog))
        assert lines(caplog)[0] == "��\x00raw"


async def test_a_line_without_end_is_cut_into_pieces(caplog, until):
    caplog.set_level(logging.INFO, "runners.worker")
    async with FunctionRunner("calls:act") as act:
        assert await act("speak_long", 1 << 20) == 1 << 20
        assert await act("speak", b"\nend\n") == 1
        await until(lambda: "end" in lines(caplog))
        assert sum(len(line) for line in lines(caplog)) == (1 << 20) + len("end")
        assert max(len(line) for line in lines(caplog)) <= 4096


async def test_a_long_line_is_not_cut_off():
    from runners.supervision.process import _Lines

    got: list[str] = []

    class Log:
        def log_line(self, level: int, line: str) -> None:
            got.append(line)

    reader = _Lines(Log(), logging.INFO)
    reader.data_received(b"z" * 10_000 + b"\nend\n")
    assert [len(line) for line in got] == [4096, 4096, 1808, 3]


async def test_a_worker_that_closes_its_output_works_on():
    async with FunctionRunner("calls:act") as act:
        assert await act("close_output") is True
        for number in range(3):
            assert await act("echo", number) == number
        assert act.stats().restarts == {}
