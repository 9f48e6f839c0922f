"""When a runner gets one more worker, and when one less."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runners.supervision.autoscale import (
    Autoscale,
    IdleClock,
    Load,
    Scaler,
    as_autoscale,
    fits,
)

TICK = 0.1
SIZE = Autoscale(1, 4, queue_delay=0.25, up_after=0.5, down_after=3.0, busy=0.6)

sizes = st.builds(
    lambda minimum, more, delay, up, down, busy: Autoscale(minimum, max(1, minimum) + more, delay, up, down, busy),
    st.integers(0, 4), st.integers(0, 4), st.floats(0, 2), st.floats(0, 2), st.floats(0, 5), st.floats(0.05, 0.95),
)  # fmt: skip


class Simulated:
    """A runner with `work` workers' worth of constant load, looked at every tick; a load takes `load` seconds."""

    def __init__(self, size, workers=None, load=0.0):
        self.scaler = Scaler(size)
        self.workers = workers or size.floor
        self.load = load
        self.ready_at = None
        self.now = 0.0
        self.backlog = 0.0  # seconds of one worker's work that wait
        self.steps = []
        self.share = 0.0

    def busy(self, work):
        """1.1 workers' worth of work is one busy worker at nine looks of ten, and two at the tenth."""
        if self.backlog > 1e-9:
            return self.workers
        self.share += work
        seen = min(self.workers, math.floor(self.share + 1e-9))
        self.share -= seen
        return seen

    def tick(self, work):
        self.now += TICK
        if self.ready_at is not None and self.now >= self.ready_at:
            self.workers, self.ready_at = self.workers + 1, None
        todo = work * TICK + self.backlog
        done = min(todo, self.workers * TICK)
        self.backlog = todo - done
        load = Load(
            workers=self.workers,
            busy=self.busy(done / TICK),
            delay=self.backlog / self.workers if self.backlog > 1e-9 else 0.0,
            settled=self.ready_at is None,
        )
        step = self.scaler.decide(self.now, load)
        if step > 0:
            self.ready_at = self.now + self.load
        self.workers += min(step, 0)
        if step:
            self.steps.append((self.now, step))

    def run(self, work, seconds):
        for _ in range(round(seconds / TICK)):
            self.tick(work)
        return self


def decide(scaler, seconds, **load):
    """The steps that constant circumstances bring, from 0 on."""
    return [scaler.decide(tick * TICK, Load(**load)) for tick in range(round(seconds / TICK) + 1)]


# Up


def test_waiting_requests_bring_one_more_after_up_after():
    steps = decide(Scaler(SIZE), 0.6, workers=1, busy=1, delay=0.3)
    assert steps == [0, 0, 0, 0, 0, 1, 0]


def test_a_short_wait_and_an_interrupted_long_one_do_not():
    assert set(decide(Scaler(SIZE), 20, workers=1, busy=1, delay=0.24)) == {0}
    scaler = Scaler(SIZE)
    for tick in range(100):
        assert scaler.decide(tick * TICK, Load(workers=1, busy=1, delay=9.0 if tick % 5 else 0.0)) == 0


def test_an_idle_worker_says_that_one_more_would_not_help():
    assert set(decide(Scaler(SIZE), 2.9, workers=2, busy=1, delay=5.0)) == {0}


def test_never_while_anything_changes_and_both_clocks_begin_anew():
    scaler = Scaler(SIZE)
    assert set(decide(scaler, 20, workers=1, busy=1, delay=5.0, settled=False)) == {0}
    assert [scaler.decide(20 + t, Load(workers=1, busy=1, delay=5.0)) for t in (0.1, 0.5, 0.7)] == [0, 0, 1]
    scaler = Scaler(SIZE)
    for tick in range(200):
        settled = tick % 25 != 0
        assert scaler.decide(tick * TICK, Load(workers=4, busy=0, delay=0.0, settled=settled)) == 0


def test_after_a_hold_it_asks_again():
    scaler = Scaler(SIZE)
    scaler.hold(2.0)
    steps = decide(scaler, 2.5, workers=1, busy=1, delay=1.0)
    assert steps.index(1) == 20


def test_missing_workers_are_for_restarts():
    assert set(decide(Scaler(Autoscale(2, 4, up_after=0)), 2, workers=1, busy=1, delay=9.0)) == {0}


# Down


def test_one_less_after_down_after_and_then_the_next():
    steps = decide(Scaler(SIZE), 3.1, workers=4, busy=0, delay=0.0)
    assert [tick for tick, step in enumerate(steps) if step] == [30]
    assert steps[30] == -1


def test_only_when_a_worker_has_nothing_to_do_just_now():
    scaler = Scaler(SIZE)
    assert set(decide(scaler, 2.9, workers=3, busy=1, delay=0.0)) == {0}
    assert scaler.decide(3.0, Load(workers=3, busy=3, delay=0.0)) == 0
    assert scaler.decide(3.1, Load(workers=3, busy=1, delay=0.0)) == -1


def test_the_work_must_fit_in_one_less_with_room_to_spare():
    # 1.1 workers' worth: 2 x 0.6 = 1.2 is enough for three workers to become two, not for two to become one.
    runner = Simulated(SIZE, workers=4).run(1.1, 60)
    assert runner.workers == 2


def test_more_than_the_maximum_go_one_by_one():
    assert Scaler(SIZE).decide(0.0, Load(workers=6, busy=6, delay=9.0)) == -1


def test_a_step_down_that_proved_wrong_is_made_later_the_next_time():
    scaler, now, waits = Scaler(SIZE), 0.0, []
    for _ in range(7):
        began = now
        while scaler.decide(now, Load(workers=2, busy=0, delay=0.0)) != -1:
            now += TICK
        waits.append(now - began)
        while scaler.decide(now, Load(workers=1, busy=1, delay=1.0)) != 1:
            now += TICK
    assert waits == pytest.approx([3, 6, 12, 24, 48, 48, 48], abs=0.3)


# Whatever happens


@given(
    sizes,
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 9), st.floats(0, 5), st.booleans()), max_size=200),
)
def test_the_bounds_always_hold(size, looks):
    scaler, workers, now = Scaler(size), size.floor, 0.0
    for passed, busy, delay, settled in looks:
        now += passed
        step = scaler.decide(now, Load(workers=workers, busy=min(busy, workers), delay=delay, settled=settled))
        assert step in (-1, 0, 1)
        assert settled or step == 0
        workers += step
        assert size.floor <= workers <= size.maximum


@example(
    size=Autoscale(minimum=0, maximum=4, queue_delay=0.0, up_after=0.0, down_after=0.0),
    work=2.0,
    more=0,
    load_seconds=1.0,
)
@given(sizes, st.floats(0, 6), st.integers(0, 8), st.floats(0, 2))
def test_constant_load_settles_without_flapping(size, work, more, load_seconds):
    workers = min(size.maximum, size.floor + more)
    runner = Simulated(size, workers=workers, load=load_seconds).run(work, 20 + 6 * (size.down_after + TICK))
    # A backlog that grew while workers were loading may take one more than the load itself does. Nothing else is taken
    # back, and what was taken back is not added again.
    assert [step for _, step in runner.steps] == sorted((step for _, step in runner.steps), reverse=True)
    assert all(step < 0 for _, step in runner.steps) or sum(step < 0 for _, step in runner.steps) <= 1
    assert size.floor <= runner.workers <= size.maximum


@given(sizes.filter(lambda size: size.scales), st.floats(0.5, 2))
def test_overload_reaches_the_maximum_in_bounded_time(size, load_seconds):
    runner = Simulated(size, load=load_seconds)
    per_step = size.up_after + load_seconds + 3 * TICK
    # At twice the most that it can do, the wait passes any threshold in that time.
    runner.run(2 * size.maximum, size.queue_delay + (size.maximum - size.floor) * per_step + 2 * TICK)
    assert runner.workers == size.maximum


@given(sizes.filter(lambda size: size.scales))
def test_without_work_the_floor_is_reached_in_bounded_time(size):
    runner = Simulated(size, workers=size.maximum)
    runner.run(0, (size.maximum - size.floor) * (size.down_after + 3 * TICK) + TICK)
    assert runner.workers == size.floor


# What the keyword means


def test_what_workers_means():
    assert as_autoscale(3) == Autoscale(3, 3)
    assert not as_autoscale(3).scales
    assert as_autoscale((0, 2)) == Autoscale(0, 2)
    assert (as_autoscale((0, 2)).floor, as_autoscale((0, 1)).scales) == (1, False)
    assert as_autoscale(SIZE) is SIZE


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (0, "workers takes a whole number of at least 1, not 0"),
        (True, "workers takes a whole number of at least 1, not True"),
        ("2", "workers takes a whole number of at least 1, not '2'"),
        ((1, 2, 3), r"workers takes a number, or \(minimum, maximum\), not \(1, 2, 3\)"),
        ((-1, 2), "workers: the minimum is a whole number of at least 0, not -1"),
        ((1, 2.5), "workers: the maximum is a whole number of at least 0, not 2.5"),
        ((3, 2), "workers: the maximum, 2, must be at least 1 and not below the minimum, 3"),
        ((0, 0), "workers: the maximum, 0, must be at least 1"),
    ],
)
def test_wrong_numbers_of_workers(workers, words):
    with pytest.raises(ValueError, match=words):
        as_autoscale(workers)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("queue_delay", -1), ("up_after", math.nan), ("down_after", math.inf), ("busy", 0), ("busy", 1)],
)
def test_wrong_settings_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} takes a"):
        Autoscale(1, 2, **{argument: value})


# The age of what waits, and of quiet


def test_quiet_for_long():
    clock = IdleClock(1.0)
    assert not clock.expired(0.0, newest=5, quiet=True)
    assert not clock.expired(0.9, newest=5, quiet=True)
    assert clock.expired(1.0, newest=5, quiet=True)
    assert not clock.expired(1.1, newest=6, quiet=True)  # one came and went between two looks
    assert not clock.expired(1.9, newest=6, quiet=False)
    assert not clock.expired(2.8, newest=6, quiet=True)
    assert clock.expired(2.9, newest=6, quiet=True)
    never = IdleClock(None)
    assert not any(never.expired(float(now), newest=0, quiet=True) for now in range(100))


@pytest.mark.parametrize(
    ("expected", "free", "answer"), [(100, 120, True), (100, 119, False), (100, 100, False), (0, 0, True)]
)
def test_a_worker_fits_with_a_fifth_to_spare(expected, free, answer):
    assert fits(expected, free) is answer
