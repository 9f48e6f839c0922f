from bisect import bisect_left
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from runners.worker.engines.batching import Batcher, Text, window

LENGTH = st.integers(1, 128)
OVERHEAD = 10
JOBS = st.lists(st.tuples(st.lists(LENGTH, max_size=20), st.booleans()), max_size=12)


def batcher_of(jobs, budget=512, overhead=OVERHEAD):
    batcher = Batcher(budget=budget, overhead=overhead)
    for job, (lengths, alone) in enumerate(jobs):
        batcher.add(job, lengths, alone=alone)
    return batcher


def all_passes(batcher, share=None):
    passes = []
    while (work := batcher.take(share)) is not None:
        passes.append(work)
    return passes


def cells(texts):
    return len(texts) * max(text.length for text in texts)


def cost(texts, overhead=OVERHEAD):
    return overhead + cells(texts)


@given(JOBS, st.integers(128, 2048), st.integers(0, 200))
def test_every_text_runs_exactly_once_and_no_pass_exceeds_the_budget(jobs, budget, overhead):
    passes = all_passes(batcher_of(jobs, budget, overhead))
    ran = sorted((text.job, text.place, text.length) for work in passes for text in work.texts)
    assert ran == sorted((job, i, n) for job, (lengths, _) in enumerate(jobs) for i, n in enumerate(lengths))
    assert all(cells(work.texts) <= budget for work in passes)


@given(st.lists(LENGTH, min_size=1, max_size=40), st.integers(1, 60))
def test_what_is_longer_than_the_budget_goes_by_itself(lengths, budget):
    for work in all_passes(batcher_of([(lengths, False)], budget)):
        assert len(work.texts) == 1 or cells(work.texts) <= budget


@given(JOBS, st.integers(1, 300))
def test_a_share_bounds_a_pass_like_the_budget(jobs, share):
    for work in all_passes(batcher_of(jobs), share):
        assert len(work.texts) == 1 or cells(work.texts) <= share


@given(JOBS, st.data())
def test_the_first_in_line_is_in_the_next_pass(jobs, data):
    batcher = batcher_of(jobs)
    job = len(jobs)
    while (first := batcher.first()) is not None:
        work = batcher.take()
        assert first in work.texts
        if data.draw(st.booleans()) and job < len(jobs) + 5:
            batcher.add(job, data.draw(st.lists(LENGTH, max_size=5)))
            job += 1


@given(JOBS)
def test_a_job_alone_shares_no_pass(jobs):
    batcher = batcher_of(jobs)
    while True:
        said = batcher.next_is_alone()
        work = batcher.take()
        if work is None:
            break
        assert work.alone == said
        assert work.alone == any(jobs[text.job][1] for text in work.texts)
        if work.alone:
            assert len({text.job for text in work.texts}) == 1


@given(JOBS, st.integers(0, 200))
def test_all_together_never_costs_more_than_one_by_one(jobs, overhead):
    passes = all_passes(batcher_of(jobs, overhead=overhead))
    one_by_one = sum(overhead + n for lengths, _ in jobs for n in lengths)
    assert sum(cost(work.texts, overhead) for work in passes) <= one_by_one


@given(st.lists(LENGTH, min_size=1, max_size=60))
@settings(max_examples=200)
def test_all_together_costs_little_more_than_the_best_cut(lengths):
    lengths.sort()
    best = [0]
    for end in range(1, len(lengths) + 1):
        rows = range(1, end + 1)
        fits = [n for n in rows if n == 1 or n * lengths[end - 1] <= 512]
        best.append(min(best[end - n] + OVERHEAD + n * lengths[end - 1] for n in fits))
    passes = all_passes(batcher_of([(lengths, False)]))
    # Each choice sees its neighbourhood only, and the first in line decides where it begins.
    assert sum(cost(work.texts) for work in passes) <= 1.15 * best[-1]


@given(st.lists(LENGTH, min_size=1, max_size=300), st.data())
def test_a_window_holds_its_text_and_fits(lengths, data):
    texts = sorted((n, i) for i, n in enumerate(lengths))
    first = data.draw(st.integers(0, len(texts) - 1))
    budget = data.draw(st.integers(1, 4096))
    start, end = window(texts, first, budget=budget, overhead=data.draw(st.integers(0, 1000)))
    assert 0 <= start <= first < end <= len(texts)
    assert end - start == 1 or (end - start) * texts[end - 1][0] <= budget


def test_texts_of_many_callers_meet_and_a_long_job_is_cut():
    passes = all_passes(batcher_of([([20] * 30, False), ([20], False), ([19], False), ([20] * 10, False)]))
    assert len(passes) == 2
    assert {text.job for text in passes[0].texts} >= {0, 2}
    assert {text.job for text in passes[1].texts} >= {0, 1, 3}


def test_texts_of_very_different_lengths_do_not_meet():
    passes = all_passes(batcher_of([([5, 120, 6, 118], False)]))
    assert sorted(sorted(text.length for text in work.texts) for work in passes) == [[5, 6], [118, 120]]


def test_a_huge_job_does_not_hold_up_a_small_one():
    batcher = batcher_of([([100] * 1000, False)])
    assert batcher.take() is not None
    batcher.add(1, [10])
    work = [batcher.take(), batcher.take()]
    assert any(text.job == 1 for taken in work for text in taken.texts)


def test_a_stream_of_small_jobs_does_not_starve_a_large_one():
    batcher = batcher_of([([100] * 50, False)])
    for job in range(1, 400):
        batcher.add(job, [10])
        batcher.take()
        if not any(text.job == 0 for text in batcher._shared):
            return
    raise AssertionError("texts of the large job wait for ever")


@given(JOBS, st.data())
def test_dropping_a_job_forgets_exactly_its_texts(jobs, data):
    batcher = batcher_of(jobs)
    batcher.take()
    waiting = {(text.job, text.place) for text in chain(batcher._shared, *batcher._alone.values())}
    assert len(batcher) == len(waiting)
    job = data.draw(st.integers(0, max(0, len(jobs) - 1)))
    assert batcher.drop(job) == sum(owner == job for owner, _ in waiting)
    rest = {(text.job, text.place) for work in all_passes(batcher) for text in work.texts}
    assert rest == {(owner, place) for owner, place in waiting if owner != job}
    assert batcher.tokens == len(batcher) == 0


def test_nothing_waits():
    batcher = Batcher(budget=512, overhead=10)
    assert batcher.take() is None
    assert not batcher.next_is_alone()
    batcher.add(1, [])
    assert batcher.first() is None
    assert batcher.drop(1) == 0


def test_texts_sort_by_length():
    texts = [Text(3, 0, 0, 0), Text(1, 1, 0, 1)]
    assert bisect_left(sorted(texts), texts[0]) == 1
