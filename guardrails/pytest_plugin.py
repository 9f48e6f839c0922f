"""Fixtures for pytest: `fake_clock` and `guard_events`. A test that names neither is not touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # every run of pytest imports this module
    from guardrails.core.events import Event
    from guardrails.testing import FakeClock


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until the test moves it by `advance`. Pass it as ``clock=`` to guards."""
    from guardrails.testing import FakeClock  # noqa: PLC0415

    return FakeClock()


@pytest.fixture
def guard_events() -> Iterator[list[Event]]:
    """The events of all guards and runners from here to the end of the test."""
    from guardrails.testing import capture_events  # noqa: PLC0415

    with capture_events() as seen:
        yield seen
