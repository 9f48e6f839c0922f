"""Async tests run on asyncio, uvloop and trio; no test may leave a listener or a sampler thread behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio
import hypothesis  # noqa: F401 - loaded before the heap is frozen: it looks for referrers of what it is given
import pytest

from guardrails.core import events
from guardrails.memory.reading import Scope
from guardrails.memory.sampler import Watcher
from guardrails.testing import FakeClock

GIB = 1024**3


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        # Debugging, which development mode brings, keeps a stack for each callback: a third of a test's time. Once is
        # enough.
        pytest.param(("asyncio", {"use_uvloop": True, "debug": False}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """The three loops. A test that is marked `many` makes so many callbacks that it goes without debugging."""
    name, options = request.param
    if name == "asyncio" and request.node.get_closest_marker("many") is not None:
        options = {**options, "debug": False}
    return name, options


class FakeMemory:
    """A sampler whose readings a test sets by hand. One scope, of which `used` bytes are taken."""

    def __init__(self) -> None:
        self.wanted = False
        self.scopes: tuple[Scope, ...] = (Scope("host", 0, 10 * GIB),)
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)
        watcher.on_reading(self.scopes)

    def read(self, scopes: Sequence[Scope]) -> None:
        self.scopes = tuple(scopes)
        for watcher in self._watchers:
            watcher.on_reading(self.scopes)

    def use(self, used: int, limit: int = 10 * GIB) -> None:
        self.read([Scope("host", used, limit)])


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def idle() -> Callable[[], Awaitable[None]]:
    """`await idle()`: every other task has run until it waits for something."""

    async def wait() -> None:
        for _ in range(
            10
        ):  # on asyncio, anyio looks ten times a second only: mostly this is enough, and it need not look twice
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()

    return wait


def _samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "guardrails-memory"]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before, sinks = len(_samplers()), events.sinks
    yield
    assert events.sinks == sinks, "a subscription was not ended"
    assert len(_samplers()) <= before, "a memory sampler's thread still runs"
