import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.worker.engines.llama.ledger import Ledger

SEQS = 6
SEQ = st.integers(0, SEQS - 1)
STEP = st.one_of(
    st.tuples(st.just("grow"), SEQ, st.integers(0, 6)),
    st.tuples(st.just("copy"), SEQ, SEQ, st.floats(0, 1)),
    st.tuples(st.just("truncate"), SEQ, st.floats(0, 1)),
    st.tuples(st.just("drop"), SEQ),
)


class Cells:
    """The naive model: for each cell the set of its sequences."""

    def __init__(self):
        self.cells = []  # [position, sequences]

    def of(self, seq):
        return [cell for cell in self.cells if seq in cell[1]]

    def grow(self, seq, count):
        length = len(self.of(seq))
        self.cells += [[length + i, {seq}] for i in range(count)]

    def copy(self, source, dest, length):
        for position, seqs in self.of(source):
            if position < length:
                seqs.add(dest)

    def truncate(self, seq, length):
        for position, seqs in self.of(seq):
            if position >= length:
                seqs.discard(seq)
        before = len(self.cells)
        self.cells = [cell for cell in self.cells if cell[1]]
        return before - len(self.cells)


def run(steps):
    """Yields after each step that can be done."""
    ledger, cells = Ledger(), Cells()
    for name, *args in steps:
        seq, length = args[0], ledger.length(args[0])
        if name == "grow":
            ledger.grow(*args)
            cells.grow(*args)
        elif name == "copy":
            _, dest, part = args
            if ledger.length(dest) or round(part * length) == 0:
                continue
            ledger.copy(seq, dest, round(part * length))
            cells.copy(seq, dest, round(part * length))
        elif seq not in ledger:
            assert ledger.drop(seq) == 0
            continue
        elif name == "truncate":
            kept = round(args[1] * length)
            assert ledger.truncate(seq, kept) == cells.truncate(seq, kept)
        else:
            assert ledger.drop(seq) == cells.truncate(seq, 0)
            assert seq not in ledger
        yield ledger, cells


@settings(max_examples=500)
@given(st.lists(STEP, max_size=40))
def test_it_counts_like_a_cache_that_knows_the_sequences_of_each_cell(steps):
    for ledger, cells in run(steps):
        assert ledger.used == len(cells.cells)
        for seq in range(SEQS):
            assert ledger.length(seq) == len(cells.of(seq))


@settings(max_examples=500)
@given(st.lists(STEP, max_size=40))
def test_each_cell_has_one_owner_which_has_it_and_sources_form_a_forest(steps):
    for ledger, cells in run(steps):
        assert sum(ledger.owned(seq) for seq in range(SEQS)) == len(cells.cells)
        for position, seqs in cells.cells:
            assert sum(ledger.start(seq) <= position for seq in seqs) == 1
        for seq in range(SEQS):
            source = ledger.source(seq)
            assert (source is None) == (ledger.start(seq) == 0)
            if source is not None:
                assert seq in ledger.sharers(source)
                assert ledger.start(source) < ledger.start(seq) <= ledger.length(source)
                assert any({seq, source} <= seqs for position, seqs in cells.cells if position == ledger.start(seq) - 1)
            assert all(ledger.source(sharer) == seq for sharer in ledger.sharers(seq))


@settings(max_examples=300)
@given(st.lists(STEP, max_size=25), st.lists(st.tuples(SEQ, st.floats(0, 1)), max_size=5))
def test_distinct_counts_the_cells_of_prefixes_once(steps, prefixes):
    for ledger, cells in run(steps):
        asked = [(seq, round(part * ledger.length(seq))) for seq, part in prefixes]
        wanted = sum(any(seq in seqs and position < n for seq, n in asked) for position, seqs in cells.cells)
        assert ledger.distinct(asked) == wanted


def test_the_sharer_that_copied_furthest_is_the_heir():
    ledger = Ledger()
    ledger.grow(0, 10)
    ledger.copy(0, 1, 8)
    ledger.grow(1, 4)
    ledger.copy(1, 2, 4)
    ledger.grow(2, 3)
    assert (ledger.source(1), ledger.source(2)) == (0, 0)
    assert ledger.used == 17
    assert ledger.drop(0) == 2
    assert (ledger.owned(1), ledger.owned(2)) == (12, 3)
    assert (ledger.source(1), ledger.source(2)) == (None, 1)
    assert ledger.truncate(1, 2) == 8  # 2 and 3 go to sequence 2
    assert (ledger.owned(1), ledger.owned(2), ledger.start(2)) == (2, 5, 2)
    assert ledger.drop(2) == 5
    assert ledger.drop(1) == 2
    assert ledger.used == 0


def test_misuse_is_refused():
    ledger = Ledger()
    ledger.grow(0, 3)
    ledger.grow(1, 1)
    with pytest.raises(ValueError, match="count"):
        ledger.grow(0, -1)
    with pytest.raises(ValueError, match="dest"):
        ledger.copy(0, 1, 2)
    with pytest.raises(ValueError, match="length"):
        ledger.copy(0, 2, 4)
    with pytest.raises(ValueError, match="length"):
        ledger.truncate(0, 4)
    with pytest.raises(KeyError):
        ledger.truncate(7, 0)
