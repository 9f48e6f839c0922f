"""The plot of the terminal, line by line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.cli.plot import plot


def test_golden():
    samples = [(0.0, 10.0), (1.0, 20.0), (2.0, 40.0), (3.0, 5.0), (4.0, 20.0)]
    drawn = plot(samples, width=10, height=4, lines=((32.0, "budget"),), marks=((2.4, "K"), (4.0, "R")), unit=" MB")
    assert drawn == GOLDEN


GOLDEN = [
    "    32 MB │╌╌╌╌╌▆▆╌╌╌ budget",
    "          │     ██",
    "          │  ▇▇▇██  ▇",
    "          │▇▇█████▃▃█",
    "          └──────────",
    "                 K  R",
    "           0 s    4 s",
]


def test_one_sample():
    drawn = plot([(0.0, 1.0)], width=4, height=2)
    assert len(drawn) == 5
    assert drawn[1].endswith("│████")


def test_nothing_but_zeros():
    assert all("█" not in line for line in plot([(0.0, 0.0), (9.0, 0.0)], width=5, height=3))


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e6)), min_size=1, max_size=40).map(sorted),
    st.integers(5, 80),
    st.integers(1, 12),
    st.lists(st.tuples(st.floats(0, 2e4), st.just("K")), max_size=3),
)
def test_any_samples_are_drawn_within_the_frame(samples, width, height, marks):
    drawn = plot(samples, width=width, height=height, marks=marks, lines=((500.0, "limit"),))
    assert len(drawn) == height + 3
    assert all(len(line) <= 11 + max(width, width + 8) for line in drawn[height:])
    assert all(len(line.partition("│")[2]) <= width + len(" limit") for line in drawn[:height])
