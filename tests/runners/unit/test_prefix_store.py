from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.worker.engines.llama.store import Added, Found, Part, PrefixStore


def tokens(*runs):
    return array("i", [token for run in runs for token in run])


A, B, C = range(100, 130), range(200, 230), range(300, 330)


def test_an_entry_holds_what_its_parent_has_not():
    store = PrefixStore(1000, shortest=4)
    assert store.add(tokens(A, B)) == Added(0, 0, ())
    assert store.add(tokens(A, C)) == Added(1, 30, ())
    assert store.add(tokens(A, C, B)) == Added(2, 60, ())
    assert store.used == 60 + 30 + 30
    found = store.find(tokens(A, C, B, [1]), 1000)
    assert found == Found(90, (Part(0, 0, 30), Part(1, 30, 60), Part(2, 60, 90)), 90)
    assert store.find(tokens(A, [1]), 1000) == Found(30, (Part(0, 0, 30),), 60)  # the whole entry comes, and is cut
    assert store.find(tokens(A), 29) == Found(29, (Part(0, 0, 29),), 60)
    assert store.find(tokens(B), 1000) is None


def test_a_parent_is_the_one_that_holds_the_end_of_what_is_shared():
    store = PrefixStore(1000, shortest=4)
    store.add(tokens(A, B))
    store.add(tokens(A, B, C))
    assert store.add(tokens(A, B[:20], C)) == Added(2, 50, ())
    assert store._entries[2].parent == 0


def test_what_is_here_but_for_a_few_is_not_added():
    store = PrefixStore(1000, shortest=4)
    store.add(tokens(A, B))
    assert store.add(tokens(A, B)) is None
    assert store.add(tokens(A[:7])) is None
    assert store.add(tokens(A, B, [1, 2, 3])) is None
    assert store.add(tokens([1, 2, 3])) is None
    assert store.used == 60


def test_entries_without_children_go_first_the_least_recently_used_one_before_the_others():
    store = PrefixStore(100, shortest=4)
    store.add(tokens(A))
    store.add(tokens(A, B))
    store.add(tokens(C))
    store.touch(store.find(tokens(A, B), 60))
    assert store.add(tokens(range(40))) == Added(3, 0, (2,))
    store.touch(store.find(tokens(A), 30))  # the parent only: it is used, its child is not
    assert store.add(tokens(range(500, 530))) == Added(4, 0, (1,))
    assert store.find(tokens(A, B), 60).length == 30
    assert store.add(tokens(range(600, 640))) == Added(5, 0, (3,))


def test_what_is_in_use_is_spared():
    store = PrefixStore(60, shortest=4)
    store.add(tokens(A))
    store.add(tokens(B))
    assert store.add(tokens(C), spare=[0]) == Added(2, 0, (1,))
    assert store.add(tokens(range(40)), spare=[0]) is None
    assert store.add(tokens(A, range(40))) is None  # its own parent would have to go
    assert len(store) == 2
    assert store.add(tokens(range(70))) is None


def test_an_entry_with_children_is_not_dropped():
    store = PrefixStore(100, shortest=4)
    store.add(tokens(A))
    store.add(tokens(A, B))
    with pytest.raises(ValueError, match="key 0"):
        store.drop(0)
    assert sorted(store.clear()) == [0, 1]
    assert (store.used, len(store)) == (0, 0)
    assert store.find(tokens(A), 30) is None


STEMS = [[0] * 30, [1] * 30, [0] * 15 + [1] * 15]
SEQUENCE = st.builds(
    lambda stem, cut, tail: array("i", stem[:cut] + tail),
    st.sampled_from(STEMS),
    st.integers(0, 30),
    st.lists(st.integers(0, 3), max_size=20),
)


@given(st.integers(0, 150), st.integers(1, 6), st.lists(st.tuples(SEQUENCE, st.booleans()), max_size=40))
def test_what_is_found_is_what_was_added(most, shortest, asked):
    store, blobs = PrefixStore(most, shortest=shortest), {}
    for sequence, add in asked:
        if add:
            added = store.add(sequence)
            if added is not None:
                for key in added.dropped:
                    del blobs[key]
                blobs[added.key] = added.start, sequence[added.start :]
        found = store.find(sequence, len(sequence))
        longest = max((_common(sequence, entry.tokens) for entry in store._entries.values()), default=0)
        assert (found.length if found else 0) == longest
        if found:
            back = []
            for key, start, end in found.parts:
                assert blobs[key][0] == start == len(back)
                back += blobs[key][1][: end - start]
                assert end <= found.room
            assert back == list(sequence[: found.length])
            store.touch(found)
        assert store.used == sum(len(held) for _, held in blobs.values()) <= most
        order = list(store._entries)
        assert all(entry.parent is None or entry.parent in order for entry in store._entries.values())


def _common(one, other):
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
