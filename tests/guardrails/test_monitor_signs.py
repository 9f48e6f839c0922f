"""The signs that want a person: each a pure decider, with its name, its numbers and its action."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.leak import Verdict, verdict
from guardrails.memory.monitor.sample import ProcessSample, Sample
from guardrails.memory.monitor.signs.crash import Crashes, cause_of_exit, memory_crash
from guardrails.memory.monitor.signs.exhaustion import exhausted, exhausted_type
from guardrails.memory.monitor.signs.growth import Growth, memory_growth
from guardrails.memory.monitor.signs.slow import slow_at_low_load
from guardrails.memory.monitor.signs.timeouts import ai_timeouts
from guardrails.memory.monitor.signs.traffic import SLICE, SLICES, Load, Traffic, quantile
from guardrails.memory.reading import Scope

MIB = 1 << 20


def load(calls=100, timeouts=0, rate=1.0, mean=0.1, p95=0.2, peak=None):
    return Load(calls, timeouts, rate, rate if peak is None else peak, mean, p95)


# Traffic


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_a_percentile_is_within_a_step_of_the_true_one(seconds, share):
    traffic = Traffic()
    for each in seconds:
        traffic.ended(0.0, each)
    durations = traffic._slices[0].durations
    true = sorted(seconds)[max(0, math.ceil(share * len(seconds) - 1e-9) - 1)]
    assert 2 ** (-1 / 4) <= quantile(durations, share) / true <= 2 ** (1 / 4)


def test_what_is_recent_is_five_minutes_and_then_it_is_usual():
    traffic = Traffic()
    for second in range(300):
        traffic.ended(second, 1.0)
    assert traffic.recent(300).calls == 300 - SLICE  # the slice that is ten slices old has left
    assert traffic.recent(299).rate == pytest.approx(1.0, rel=0.01)
    assert traffic.usual().calls == SLICE
    assert traffic.usual().rate == traffic.busiest == 1.0
    assert traffic.recent(10_000).calls == 0
    assert traffic.usual().calls == pytest.approx(300, rel=0.06)  # each slice fades what was before by a hundredth


def test_what_is_usual_fades_and_is_bounded():
    traffic = Traffic()
    for second in range(0, 6 * 3600, 3):
        traffic.ended(second, 0.05 if second < 3 * 3600 else 2.0)
    assert traffic.usual().calls < 10 / 0.01 + 1
    assert traffic.usual().mean == pytest.approx(2.0, rel=0.1)
    assert len(traffic._slices) <= SLICES
    assert len(traffic._usual) <= 2


def test_what_was_called_slow_does_not_become_usual():
    traffic = Traffic()
    for second in range(3600):
        traffic.ended(second, 0.05)
    usual = traffic.usual()
    traffic.looks_slow(3600, True)
    assert not traffic.slow
    traffic.looks_slow(3660, True)
    assert traffic.slow
    for second in range(3600, 7200):
        traffic.ended(second, 5.0)
    assert traffic.usual().p95 == usual.p95


@given(st.floats(0, 1e9))
def test_any_duration_can_be_counted(seconds):
    traffic = Traffic()
    traffic.ended(0.0, seconds)
    assert traffic.recent(1.0).calls == 1


# ai_timeouts


def test_a_fifth_of_the_calls_is_a_warning_and_half_is_critical():
    assert ai_timeouts("chat", load(100, 19)) is None
    found = ai_timeouts("chat", load(100, 20))
    assert (found.alert, found.source, found.severity) == ("ai_timeouts", "chat", "warning")
    assert found.message == "20% of 100 calls within 5 min ran out of time"
    assert found.values == {"share": 0.2, "calls": 100, "timeouts": 20}
    assert "breaker" in found.action
    assert ai_timeouts("chat", load(100, 50)).severity == "critical"


def test_few_calls_are_chance():
    assert ai_timeouts("chat", load(9, 9)) is None
    assert ai_timeouts("chat", load(10, 2)) is None
    assert ai_timeouts("chat", load(10, 3)) is not None


def test_an_alarm_of_timeouts_ends_at_half():
    assert ai_timeouts("chat", load(100, 10), active=True) is not None
    assert ai_timeouts("chat", load(100, 9), active=True) is None


def test_retries_may_time_out_more_often_than_there_are_calls():
    assert ai_timeouts("chat", load(20, 60)).values["share"] == 1.0


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 100))
def test_more_timeouts_are_never_less_of_a_sign(calls, timeouts, more):
    rank = {None: 0, "warning": 1, "critical": 2}
    severities = [
        rank[found.severity if (found := ai_timeouts("x", load(calls, each))) else None]
        for each in (timeouts, timeouts + more)
    ]
    assert severities == sorted(severities)


# slow_at_low_load


def test_three_times_the_usual_with_few_users_is_slow():
    found = slow_at_low_load("chat", load(p95=0.61), load(p95=0.2))
    assert (found.alert, found.severity) == ("slow_at_low_load", "warning")
    assert found.message == "95 % of the answers take up to 0.61 s, 3.0 times the usual 0.2 s, at 1 calls a second"
    assert "not the number of users" in found.action
    assert slow_at_low_load("chat", load(p95=0.59), load(p95=0.2)) is None


def test_under_load_slow_is_no_sign():
    usual = load(rate=10.0, mean=1.0, p95=2.0)
    assert slow_at_low_load("chat", load(rate=10.0, p95=9.0), usual) is None
    assert slow_at_low_load("chat", load(rate=2.6, p95=9.0), usual) is None
    assert slow_at_low_load("chat", load(rate=2.5, p95=9.0), usual) is not None
    assert slow_at_low_load("chat", load(rate=2.0, peak=10.0, p95=9.0), usual) is None  # a rush, within five minutes


def test_that_slow_answers_pile_up_is_not_load():
    # One call a second that took 0.1 s takes 20 s: twenty at once, and still one user.
    assert slow_at_low_load("chat", load(rate=1.0, mean=20.0, p95=25.0), load(rate=1.0)) is not None


def test_slowness_of_milliseconds_is_none():
    assert slow_at_low_load("cache", load(p95=0.04), load(p95=0.001)) is None


def test_slowness_needs_something_to_compare_with():
    assert slow_at_low_load("chat", load(calls=9, p95=9.0), load()) is None
    assert slow_at_low_load("chat", load(p95=9.0), load(calls=49)) is None
    assert slow_at_low_load("chat", load(p95=9.0), load(p95=0.0)) is None


def test_an_alarm_of_slowness_ends_at_two_thirds():
    assert slow_at_low_load("chat", load(p95=0.45), load(p95=0.2), active=True) is not None
    assert slow_at_low_load("chat", load(p95=0.39), load(p95=0.2), active=True) is None


# memory_crash


MESSAGES = {
    "v8": [
        "FATAL ERROR: Ineffective mark-compacts near heap limit Allocation failed - JavaScript heap out of memory",
        "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
    ],
    "python": [
        "MemoryError",
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 3.20 GiB for an array with shape (65536, 6553)",
    ],
    "kernel": [
        "Out of memory: Killed process 4711 (python) total-vm:8388608kB, anon-rss:4194304kB",
        "Memory cgroup out of memory: Killed process 4711 (python)",
        "python invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0",
        "container embedder: OOMKilled, exit code 137",
    ],
    "cuda": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 512.00 MiB: cudaMalloc failed: out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    ],
    "llama.cpp": [
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 17179869184",
        "ggml_gallocr_reserve_n: failed to allocate CPU buffer of size 1073741824",
        "llama_kv_cache_init: failed to allocate buffer for kv cache",
        "llama_model_load: error loading model: unable to allocate CPU buffer",
    ],
    "onnxruntime": [
        "BFCArena::AllocateRawInternal(size_t) Available memory of 1024 is smaller than requested bytes of 4096",
        "Non-zero status code: Failed to allocate memory for requested buffer of size 3221225472",
    ],
    "c++": ["terminate called after throwing an instance of 'std::bad_alloc'"],
    "system": ["OSError: [Errno 12] Cannot allocate memory", "java.lang.OutOfMemoryError: Java heap space"],
}
HARMLESS = [
    "Memory usage: 81%",
    "the memory error budget is fine",
    "failed to allocate a port",
    "allocated 3 GiB",
    "room for improvement",
    "CUDA initialised",
    "a session ran out of time",
    "oom_score_adj set to 500",
]


@pytest.mark.parametrize(("who", "text"), [(who, text) for who, texts in MESSAGES.items() for text in texts])
def test_who_says_that_memory_ran_out(who, text):
    assert exhausted(text) == who
    assert exhausted(f"2026-01-01 12:00:00 ERROR [worker] {text}\nand more") == who
    assert exhausted("." * 100_000 + text) == who  # at the end of a long text
    assert exhausted(text + "." * 100_000) == who


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_sounds_like_it(text):
    assert exhausted(text) is None


def test_types_of_exceptions_that_say_it():
    class OutOfMemoryError(RuntimeError):
        pass

    class ArrayMemoryError(MemoryError):
        pass

    assert exhausted_type(MemoryError) == exhausted_type(ArrayMemoryError) == "python"
    assert exhausted_type(OutOfMemoryError) == "cuda"
    assert exhausted_type(ValueError) is None
    assert exhausted_type(None) is None


def test_ends_of_workers():
    assert cause_of_exit("hard_budget", "") == "hard_budget"
    assert cause_of_exit("oom_kill", "") == "oom_kill"
    assert cause_of_exit("sigabrt", "terminate called after throwing an instance of 'std::bad_alloc'\n") == "c++"
    assert cause_of_exit("exit_1", "Traceback\nMemoryError") == "python"
    assert cause_of_exit("sigkill", "") is None
    assert cause_of_exit("sigsegv", "Segmentation fault") is None
    assert cause_of_exit("drained", "once upon a time: MemoryError") is None


def test_a_crash_that_was_caught_is_a_warning_and_one_that_was_not_is_critical():
    assert memory_crash("embed", Counter()) is None
    found = memory_crash("embed", Counter(hard_budget=1))
    assert (found.alert, found.severity) == ("memory_crash", "warning")
    assert found.message == "memory ran out once within 10 min (hard_budget 1)"
    assert found.values == {"crashes": 1, "cause": "hard_budget"}
    assert memory_crash("embed", Counter(hard_budget=3)).severity == "critical"
    killed = memory_crash("embed", Counter(hard_budget=2, oom_kill=1))
    assert (killed.severity, killed.values["cause"]) == ("critical", "oom_kill")
    assert "cgroup" in killed.action
    assert "max-old-space-size" in memory_crash("logs", Counter(v8=1)).action
    assert "memory=" in memory_crash("logs", Counter({"c++": 1})).action


def test_crashes_are_news_for_ten_minutes_and_bounded():
    crashes = Crashes()
    for second in range(1000):
        crashes.add(second, "python")
    assert crashes.recent(1000).total() == 64
    assert crashes.recent(1540).total() == 59
    assert crashes.recent(1600).total() == 0


# memory_growth


def grown(slope=1 * MIB / 60, level=300 * MIB):
    return Verdict(
        leaking=True,
        shape="growth",
        slope=slope,
        slope_low=0.8 * slope,
        slope_high=1.25 * slope,
        p=0.0001,
        level=level,
        seconds=1500.0,
    )


def test_growth_says_how_fast_and_when_the_budget_is_reached():
    found = memory_growth("embed/0", grown(), role="worker", held=300 * MIB, limit=342 * MIB)
    assert (found.alert, found.severity) == ("memory_growth", "warning")
    assert found.message == (
        "grows by 1 MiB/min (819 KiB/min to 1.25 MiB/min); "
        "holds 300 MiB and reaches 342 MiB in 42 min (34 min to 52 min)"
    )
    assert found.values["reached_in"] == pytest.approx(2520, abs=1)
    assert found.values["limit"] == 342 * MIB
    assert "memory=" in found.action


def test_the_time_that_is_left_is_from_what_it_holds_now_and_not_from_the_verdict():
    found = memory_growth("self", grown(level=200 * MIB), held=330 * MIB, limit=342 * MIB)
    assert found.values["reached_in"] == pytest.approx(720, abs=1)


def test_growth_that_is_nearly_there_is_critical():
    assert memory_growth("self", grown(), held=300 * MIB, limit=314 * MIB).severity == "critical"
    assert memory_growth("self", grown(), held=300 * MIB, limit=320 * MIB).severity == "warning"
    assert memory_growth("self", grown(), held=300 * MIB).severity == "warning"


def test_no_verdict_is_no_growth():
    assert memory_growth("self", None) is None
    assert memory_growth("self", verdict([(second, 100.0 * MIB) for second in range(100)])) is None


class Told:
    """A watch that alarms when it is told to."""

    def __init__(self, budget):
        self.budget = budget
        self.alarm = None
        self.sizes = []

    def add(self, seconds, size):
        self.sizes.append(size)
        return False


def sample(*processes, used=0, limit=1000 * MIB):
    return Sample(0.0, 0.0, processes, (Scope("host", used, limit),))


def process(name, pid, private, role="worker", budget=None):
    return ProcessSample(name, pid, role, private, private, None, budget)


def test_each_process_and_their_sum_is_watched():
    growth = Growth(Told)
    assert growth.judge(0.0, sample(process("self", 1, 10 * MIB, "self"), process("w/0", 2, 20 * MIB))) == []
    assert {key: watch.sizes for key, watch in growth._watches.items()} == {
        ("self", 1): [10 * MIB],
        ("w/0", 2): [20 * MIB],
        ("total", 0): [30 * MIB],
    }


def test_in_the_sum_a_process_with_a_budget_counts_for_it():
    growth = Growth(Told)
    for private in (20, 30, 40):
        growth.judge(
            0.0, sample(process("self", 1, 10 * MIB, "self"), process("w/0", 2, private * MIB, budget=50 * MIB))
        )
    assert growth._watches["total", 0].sizes == [60 * MIB] * 3
    assert growth._watches["w/0", 2].sizes == [20 * MIB, 30 * MIB, 40 * MIB]


def test_a_worker_that_comes_in_place_of_another_is_another():
    growth = Growth(Told)
    growth.judge(0.0, sample(process("w/0", 2, 20 * MIB)))
    growth.judge(1.0, sample(process("w/0", 3, 5 * MIB)))
    assert growth._watches["w/0", 3].sizes == [5 * MIB]
    assert ("w/0", 2) not in growth._watches


def test_the_sum_is_told_only_where_no_process_grows_by_itself():
    growth = Growth(Told)
    look = sample(process("self", 1, 10 * MIB, "self"), process("w/0", 2, 20 * MIB))
    growth.judge(0.0, look)
    growth._watches["total", 0].alarm = grown()
    assert growth.judge(1.0, look) == []  # it is often the first to see what one process does
    assert growth.judge(300.0, look) == []
    (found,) = growth.judge(301.0, look)
    assert found.source == "total"
    assert "more and more processes" in found.action
    growth._watches["w/0", 2].alarm = grown()
    assert [found.source for found in growth.judge(302.0, look)] == ["w/0"]
    growth._watches["total", 0].alarm = growth._watches["w/0", 2].alarm = None
    assert growth.judge(303.0, look) == []
    growth._watches["total", 0].alarm = grown()
    assert growth.judge(304.0, look) == []


def test_what_a_process_can_reach_is_its_budget_or_what_the_machine_has_left():
    growth = Growth(Told)
    look = sample(process("self", 1, 300 * MIB, "self"), process("w/0", 2, 300 * MIB, budget=512 * MIB), used=700 * MIB)
    growth.judge(0.0, look)
    for watch in growth._watches.values():
        watch.alarm = grown()
    assert growth._watches["w/0", 2].budget == 512 * MIB
    limits = {found.source: found.values["limit"] for found in growth.judge(1.0, look)}
    assert limits == {"self": 600 * MIB, "w/0": 512 * MIB}


def test_a_real_watch_alarms_on_growth_and_not_on_a_level():
    growth, found = Growth(), []
    for second in range(0, 3600, 5):
        look = sample(process("self", 1, 200 * MIB + second * MIB // 20, "self"), process("w/0", 2, 500 * MIB))
        found = growth.judge(second, look)
        if found:
            break
    assert [each.source for each in found] == ["self"]
    assert found[0].values["slope"] == pytest.approx(MIB / 20, rel=0.1)
