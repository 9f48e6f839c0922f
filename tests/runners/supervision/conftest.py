"""Real workers: every test starts its own, and none may be left when it ends."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from guardrails.core import events
from runners.runner import Runner
from tests import support

IMPORTABLE = Path(__file__).parent / "importable"


@pytest.fixture
def anyio_backend() -> object:
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the functions that workers run is on the path, and no `-W error` of this process reaches them."""
    monkeypatch.syspath_prepend(str(IMPORTABLE))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    return IMPORTABLE


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    sinks = events.sinks
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert events.sinks == sinks, "a subscription was not ended"
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for child in left:
        os.kill(child.pid, signal.SIGKILL)
    assert not left, "a worker, or its zombie, was left behind"


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait for a condition, for so long at most: ``await until(lambda: mark.exists())``."""
    return support.until


@pytest.fixture
def limit() -> Callable[..., None]:
    """Change limits that the public face does not show: ``limit(runner, cancel_grace=0.2)``."""

    def change(runner: Runner, **changes: object) -> None:
        runner._supervisor.limits = dataclasses.replace(runner._supervisor.limits, **changes)

    return change


@pytest.fixture
def alive() -> Callable[[int], bool]:
    def check(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return check
