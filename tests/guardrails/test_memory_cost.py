from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.gates.memory_cost import CostBook, Learned, size_class

MIB = 1024**2


def run(book, growth, group=0, base=1000 * MIB):
    """One call alone, that grows by `growth` bytes and gives them back."""
    book.reading(base)
    account = book.begin(group)
    book.reading(base + growth)
    book.end(account)
    book.reading(base)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (-5, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1000.5, 10)])
def test_size_classes_are_powers_of_two(size, expected):
    assert size_class(size) == expected


def test_the_start_value_counts_until_enough_were_seen():
    book = CostBook(Learned(start="64MiB", enough=5))
    for _ in range(4):
        assert book.cost(0) == 64 * MIB
        run(book, 3 * MIB)
    assert book.cost(0) == 64 * MIB
    run(book, 3 * MIB)
    assert book.cost(0) == 3 * MIB


def test_what_is_more_than_the_start_value_counts_at_once():
    book = CostBook(Learned(start="64MiB", enough=5))
    run(book, 300 * MIB)
    assert book.cost(0) == 300 * MIB


@given(st.lists(st.integers(0, 500), min_size=1, max_size=60), st.floats(0.5, 1))
def test_the_cost_is_the_percentile_of_the_last_calls(growths, percentile):
    book = CostBook(Learned(enough=5, window=20, percentile=percentile, floor="1MiB", ceiling="400MiB"))
    for growth in growths:
        run(book, growth * MIB)
    last = sorted(growths[-20:])
    expected = last[math.ceil(percentile * len(last)) - 1] if len(growths) >= 5 else max(64, *last)
    assert book.cost(0) == max(1, min(400, expected)) * MIB


def test_classes_are_learned_apart():
    book = CostBook(Learned(enough=1))
    run(book, 10 * MIB, group=3)
    run(book, 200 * MIB, group=8)
    assert (book.cost(3), book.cost(8), book.cost(5)) == (10 * MIB, 200 * MIB, 64 * MIB)


def test_growth_is_shared_by_the_calls_in_flight_and_the_peak_counts():
    book = CostBook(Learned(enough=1))
    book.reading(0)
    first, second = book.begin(1), book.begin(2)
    book.reading(100 * MIB)  # 50 each
    book.end(first)
    book.reading(140 * MIB)  # 40 more for the one that is left
    book.reading(20 * MIB)
    book.end(second)
    assert (book.cost(1), book.cost(2)) == (50 * MIB, 90 * MIB)


def test_a_call_that_no_measurement_saw_teaches_nothing():
    book = CostBook(Learned(enough=1))
    book.reading(0)
    book.end(book.begin(0))
    assert book.cost(0) == 64 * MIB


def test_the_first_measurement_tells_no_growth():
    book = CostBook(Learned(enough=1))
    account = book.begin(0)
    book.reading(500 * MIB)
    book.end(account)
    assert book.cost(0) == 64 * MIB


@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "end", "read"]), st.integers(0, 3), st.integers(0, 10_000)), max_size=80
    )
)
def test_the_cost_never_leaves_its_bounds(steps):
    book, running = CostBook(Learned(enough=2, floor="2MiB", start="8MiB", ceiling="32MiB")), []
    for action, group, number in steps:
        if action == "begin":
            running.append(book.begin(group))
        elif action == "end" and running:
            book.end(running.pop(number % len(running)))
        else:
            book.reading(number * MIB)
        assert 2 * MIB <= book.cost(group) <= 32 * MIB
    assert len(book._open) == len(running)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"start": "much"}, ValueError, "start"),
        ({"floor": "128MiB"}, ValueError, "floor <= start"),
        ({"ceiling": "32MiB"}, ValueError, "ceiling"),
        ({"percentile": 0}, ValueError, "percentile"),
        ({"percentile": 1.5}, ValueError, "percentile"),
        ({"enough": 0}, ValueError, "enough"),
        ({"enough": 300}, ValueError, "enough"),
        ({"size": 5}, TypeError, "size"),
    ],
)
def test_misuse_names_the_argument(options, error, named):
    with pytest.raises(error, match=named):
        Learned(**options)
