"""Kernels without `smaps_rollup`, and readings that do not come."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from guardrails.memory import reading
from runners import FunctionRunner
from runners.errors import StartFailed
from runners.supervision import worker

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.mark.parametrize("files", [("no_such_rollup", "smaps"), ("no_such_rollup", "no_such_smaps")])
async def test_a_runner_starts_and_holds_its_budget_without(monkeypatch, until, files):
    monkeypatch.setattr(reading, "_EXACT", files)
    async with asyncio.timeout(30), FunctionRunner("memory_calls:leak", memory="90MiB") as leak:
        (old,) = leak.stats().workers
        assert 1 << 20 < old.private < 90 << 20
        assert (old.pss is None) == (files[1] == "no_such_smaps")
        await leak(100 << 20, 0)
        await until(lambda: leak.stats().restarts == {"soft_budget": 1})


async def test_a_missing_file_is_no_dead_process(monkeypatch):
    def gone(pid):
        raise ProcessLookupError(pid)

    monkeypatch.setattr(worker, "private_and_proportional", gone)
    began = time.monotonic()
    async with asyncio.timeout(30):
        with pytest.raises(StartFailed):
            await FunctionRunner("calls:echo", start_timeout=20).start()
    assert time.monotonic() - began < 20


async def test_the_reading_is_under_the_start_timeout_too(monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(worker, "private_and_proportional", lambda _: go.wait(30))
    try:
        async with asyncio.timeout(20):
            with pytest.raises(StartFailed, match=r"not ready within 1 s"):
                await FunctionRunner("calls:echo", start_timeout=1).start()
    finally:
        go.set()
