"""Which cells are alive, and in what order: against a cache that is kept cell by cell."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.worker.engines.llama.cells import Cells, Run

SIZE, SEQUENCES = 1 << 20, 5


class Plain:
    """Every cell with its owners and its position, as a library would have them that never frees one."""

    def __init__(self):
        self.cells = []  # (owners, position)

    def of(self, seq):
        return [position for owners, position in self.cells if seq in owners]

    def placed(self, seq, count, dead=0):
        start = len(self.of(seq))
        self.cells += [({seq}, start + n) for n in range(count)] + [(set(), 0)] * dead

    def copied(self, source, seq, length):
        for owners, position in self.cells:
            if source in owners and position < length:
                owners.add(seq)

    def truncated(self, seq, length):
        for owners, position in self.cells:
            if position >= length:
                owners.discard(seq)

    @property
    def used(self):
        return sum(bool(owners) for owners, _ in self.cells)

    def written_anew(self, runs):
        """What it would look like, if each run is what it claims to be."""
        anew = []
        for run in runs:
            alive = [cell for cell in self.cells if cell[0] == set(run.owners) and run.start <= cell[1] < run.end]
            assert [position for _, position in alive] == list(range(run.start, run.end))
            anew += [(set(owners), position) for owners, position in alive]
        self.cells = anew


sequence = st.integers(0, SEQUENCES - 1)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("placed"), sequence, st.integers(1, 9), st.integers(0, 3)),
        st.tuples(st.just("copied"), sequence, sequence, st.integers(0, 20)),
        st.tuples(st.just("truncated"), sequence, st.integers(0, 20)),
        st.tuples(st.just("compact")),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(operations)
def test_as_if_kept_cell_by_cell(steps):
    cells, plain = Cells(SIZE), Plain()
    for name, *arguments in steps:
        if name == "placed":
            seq, count, dead = arguments
            cells.placed(seq, count, dead=dead)
            plain.placed(seq, count, dead)
        elif name == "copied":
            source, seq, length = arguments
            if seq != source and not cells.length(seq):
                cells.copied(source, seq, length)
                plain.copied(source, seq, length)
        elif name == "truncated":
            cells.truncated(*arguments)
            plain.truncated(*arguments)
        else:
            plain.written_anew(cells.runs())
            cells.compacted()
        assert (cells.head, cells.used) == (len(plain.cells), plain.used)
        for seq in range(SEQUENCES):
            assert plain.of(seq) == list(range(cells.length(seq)))  # in order, whatever has happened
    before = plain.used
    plain.written_anew(cells.runs())
    assert plain.used == before  # nobody is left behind


def test_what_is_shared_is_one_run_before_what_is_not():
    cells = Cells(100)
    cells.placed(0, 10)
    cells.copied(0, 1, 6)
    cells.placed(1, 3)
    cells.placed(0, 1)
    assert cells.runs() == [Run((0, 1), 0, 6), Run((0,), 6, 11), Run((1,), 6, 9)]
    cells.truncated(1, 0)
    assert cells.runs() == [Run((0,), 0, 11)]
    assert (cells.head, cells.used) == (14, 11)


@pytest.mark.parametrize(
    ("alive", "dead", "worth"), [(0, 256, False), (0, 257, True), (300, 356, False), (300, 357, True)]
)
def test_a_compaction_is_worth_its_cost_from_so_much_waste_on(alive, dead, worth):
    cells = Cells(4096)
    if alive:
        cells.placed(0, alive)
    cells.placed(1, dead)
    cells.truncated(1, 0)
    assert cells.wasteful(2) is worth


@pytest.mark.parametrize(
    ("alive", "dead", "worth"), [(255, 1, True), (255, 0, False), (256, 9, False), (9, 246, False)]
)
def test_a_lone_token_is_worth_one_where_the_library_would_halve_its_work(alive, dead, worth):
    cells = Cells(4096)
    cells.placed(0, alive, dead=dead)
    assert (cells.wasteful(1), cells.wasteful(2)) == (worth, False)


@pytest.mark.parametrize(("alive", "dead", "untidy"), [(100, 25, False), (100, 26, True), (0, 1, True), (0, 0, False)])
def test_while_there_is_nothing_to_do_less_is_worth_it(alive, dead, untidy):
    cells = Cells(4096)
    cells.placed(0, alive, dead=dead)
    assert cells.untidy is untidy


def test_what_fits():
    cells = Cells(10)
    cells.placed(0, 8)
    cells.truncated(0, 1)
    assert (cells.fits(2), cells.fits(3)) == (True, False)
    cells.compacted()
    assert (cells.fits(9), cells.fits(10)) == (True, False)
