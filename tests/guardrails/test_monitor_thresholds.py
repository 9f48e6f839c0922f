"""When memory is high: marks, hysteresis, minimum times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.monitor.sample import ProcessSample, Sample
from guardrails.memory.monitor.signs.high import HighMemory, memory_high
from guardrails.memory.monitor.thresholds import LevelWatch, Marks
from guardrails.memory.reading import Scope

MIB = 1 << 20
MARKS = Marks(warning=0.8, critical=0.9, slack=0.05, seconds=10)


def levels(shares, marks=MARKS, step=1.0):
    watch = LevelWatch(marks)
    return [watch.update(number * step, share) for number, share in enumerate(shares)]


def test_it_takes_its_time_up_and_down():
    seen = levels([0.5] * 5 + [0.85] * 15 + [0.5] * 15)
    assert seen == ["normal"] * 15 + ["warning"] * 15 + ["normal"] * 5


def test_a_peak_is_not_high():
    assert set(levels([0.5, 0.99, 0.5, 0.99, 0.99, 0.5] * 10)) == {"normal"}


def test_what_trembles_at_the_mark_stays():
    seen = levels([0.85] * 12 + [0.79, 0.81] * 30)
    assert seen[10:] == ["warning"] * 62


def test_below_the_slack_it_ends_and_not_before():
    assert levels([0.85] * 11 + [0.76] * 60)[-1] == "warning"
    assert levels([0.85] * 11 + [0.74] * 11)[-1] == "normal"


def test_what_is_critical_is_not_waited_for_as_long():
    assert levels([0.5, 0.95, 0.95, 0.95, 0.95])[-2:] == ["critical", "critical"]
    assert levels([0.5, 0.95, 0.95])[-1] == "normal"


def test_from_critical_it_falls_to_warning_first():
    seen = levels([0.95] * 20 + [0.82] * 20)
    assert seen[:3] == ["normal", "normal", "critical"]
    assert seen[-1] == "warning"


@given(st.lists(st.floats(0, 1.5), min_size=1, max_size=80))
def test_a_level_changes_only_after_its_time(shares):
    seen = levels(shares)
    for number, level in enumerate(seen):
        if level == "critical" and (number == 0 or seen[number - 1] != "critical"):
            assert all(share >= 0.9 for share in shares[number - 2 : number + 1])
        if level == "warning" and (number == 0 or seen[number - 1] == "normal"):
            assert all(share >= 0.8 for share in shares[number - 10 : number + 1])
        if level == "normal" and number and seen[number - 1] == "warning":
            assert all(share < 0.75 for share in shares[number - 10 : number + 1])


@given(st.lists(st.floats(0, 1.5), max_size=60))
def test_without_a_time_and_slack_it_follows_the_marks(shares):
    marks = Marks(warning=0.8, critical=0.9, slack=1e-9, seconds=0)
    expected = ["critical" if share >= 0.9 else "warning" if share >= 0.8 else "normal" for share in shares]
    assert [a for a, b in zip(levels(shares, marks), expected, strict=True) if a != b] == []


@pytest.mark.parametrize(
    "wrong", [{"warning": 0.9, "critical": 0.8}, {"critical": 1.1}, {"slack": 0.0}, {"slack": 0.85}, {"warning": 0.0}]
)
def test_marks_that_do_not_rise_are_refused(wrong):
    with pytest.raises(ValueError, match="marks must rise"):
        Marks(**wrong)


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="seconds takes a number of at least 0, not -1"):
        Marks(seconds=-1)


def sample(used, private=0, budget=None):
    worker = ProcessSample("embedder/0", 7, "worker", private, private, None, budget)
    return Sample(0.0, 0.0, (worker,), (Scope("host", used, 1024 * MIB), Scope("/cg/app", 10 * MIB, 100 * MIB)))


def test_each_scope_and_each_budget_has_its_own_level():
    high = HighMemory(Marks(seconds=0))
    assert high.judge(0.0, sample(100 * MIB)) == []
    (host,) = high.judge(1.0, sample(850 * MIB))
    assert (host.alert, host.source, host.severity) == ("memory_high", "host", "warning")
    assert host.message == "850 MiB of 1 GiB used, 83%: above 80%"
    assert host.values == {"used": 850 * MIB, "limit": 1024 * MIB, "share": 0.8301}
    assert "admit" in host.action
    (worker,) = high.judge(2.0, sample(100 * MIB, private=96 * MIB, budget=100 * MIB))
    # It is replaced at its budget, with nothing lost: that is worth knowing, and nothing to be woken for.
    assert (worker.source, worker.severity) == ("embedder/0", "warning")
    assert "replaced" in worker.action


def test_a_scope_that_went_is_forgotten():
    high = HighMemory(Marks(seconds=0))
    high.judge(0.0, sample(0))
    high.judge(1.0, Sample(0.0, 0.0, (), ()))
    assert high._levels == {}


def test_a_limit_of_nothing_is_reached():
    finding = memory_high("/cg", "critical", 5, 0, MARKS)
    assert finding.severity == "critical"
    assert "inf" in finding.message
    assert memory_high("/cg", "normal", 5, 10, MARKS) is None
