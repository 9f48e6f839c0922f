"""The events of runners in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

import runners
import runners.events
from guardrails.telemetry.records import SEVERITIES, describe, is_scalar, most_severe
from runners.events import RequestFinished, RunnerSampled, RunnerStateChanged, WorkerExited
from tests.every_event import STATS, an, every_event

SECRET = "the prompt is: tell me of Peru"


@pytest.mark.parametrize("kind", every_event(runners), ids=lambda kind: kind.__name__)
def test_every_event_is_described(kind):
    said = describe(an(kind))
    assert said.name.startswith("runner.")
    assert SEVERITIES.index(said.severity) <= SEVERITIES.index(most_severe(kind))
    assert said.message
    assert all(is_scalar(value) for value in said.fields.values())


def test_the_public_module_has_them_all():
    assert [kind.__name__ for kind in every_event(runners)] == sorted(runners.events.__all__)
    for name in runners.events.__all__:
        assert getattr(runners.events, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = runners.events.Nothing


def test_a_description_is_loaded_when_it_is_wanted():
    script = """
import sys
from runners.supervision.events import WorkerReady
import runners.runner
assert "runners.telemetry.records" not in sys.modules
from guardrails.telemetry.records import describe
assert describe(WorkerReady("r", 7, 1 << 20, 1.5)).name == "runner.worker_ready"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (RunnerStateChanged("r", "ready", "failed"), "error"),
        (RunnerStateChanged("r", "starting", "ready"), "info"),
        (WorkerExited("r", 7, "sigsegv", "", ""), "error"),
        (WorkerExited("r", 7, "drained", "", ""), "info"),
        (RequestFinished("r", "chat", "m", "failed", "RunnerCrashed", 1.0, 0.1), "debug"),
    ],
)
def test_how_much_it_matters(event, severity):
    assert describe(event).severity == severity


def test_what_a_worker_wrote_is_set_apart():
    said = describe(WorkerExited("r", 7, "oom_kill", "was killed", f"first\n{SECRET}"))
    assert said.attachments == {"detail": "was killed", "stderr": f"first\n{SECRET}"}
    assert SECRET not in str(said) + str(said.fields) + said.hint
    assert "memory=" in said.hint


def test_an_attachment_is_cut_to_its_end():
    said = describe(WorkerExited("r", 7, "exit_1", "", "x" * 100_000 + "the last line"))
    assert said.attachments["stderr"].endswith("xthe last line")
    assert len(said.attachments["stderr"]) == 16_384
    assert "detail" not in said.attachments


def test_a_sample_is_summed_up():
    said = describe(RunnerSampled("r", STATS))
    assert said.fields == {"state": "ready", "workers": 2, "private": 8 << 20, "in_flight": 6, "queued": 2}
