"""The chaos run, cut short: every row that has no need of a long time. How quick it is, only `make chaos` judges."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.chaos.rows import ROWS, Options

pytestmark = pytest.mark.slow

SHORT = {"kill": 5, "jump": 1, "hang": 1, "crash_loop": 1, "orphans": 1, "leavers": 1, "frames": 1}


@pytest.mark.parametrize("row", SHORT)
def test_a_row_is_good(row: str) -> None:
    async def run() -> None:
        results = [result async for result in ROWS[row](Options(seconds=SHORT[row], seed=7))]
        assert results
        assert [result.measured for result in results if not result.correct] == []

    asyncio.run(run())


def test_rows_are_only_left_out_for_their_length() -> None:
    assert set(ROWS) - set(SHORT) == {"leak", "soak"}
