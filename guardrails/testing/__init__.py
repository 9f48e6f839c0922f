"""What tests of guarded code need: a clock that a test moves, a record of events, and scripted dependencies.

    clock = FakeClock(autojump=True)
    fetch = flaky(TimeoutError(), sleep(2, "ok"), clock=clock)

    with capture_events(RetryScheduled) as retries:
        assert await retry(wait=30, clock=clock)(fetch)() == "ok"      # at once: nobody waits for 32 seconds
    assert len(fetch.calls) == 2

pytest has the fixtures `fake_clock` and `guard_events` (see `guardrails.pytest_plugin`).
"""

from __future__ import annotations

from guardrails.testing.capture import capture_events as capture_events
from guardrails.testing.clock import FakeClock as FakeClock
from guardrails.testing.scripted import Arguments as Arguments
from guardrails.testing.scripted import ScriptEnded as ScriptEnded
from guardrails.testing.scripted import flaky as flaky
from guardrails.testing.scripted import flaky_stream as flaky_stream
from guardrails.testing.scripted import flaky_sync as flaky_sync
from guardrails.testing.scripted import sleep as sleep

__all__ = [
    "Arguments",
    "FakeClock",
    "ScriptEnded",
    "capture_events",
    "flaky",
    "flaky_stream",
    "flaky_sync",
    "sleep",
]
