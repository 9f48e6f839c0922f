"""Which worker gets a request that comes with a key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.supervision import affinity
from runners.supervision.affinity import LEAD, Affinity


def test_without_a_key_the_least_loaded_the_first_of_several():
    assert Affinity().choose(None, [("a", 3, 16), ("b", 5, 16), ("c", 5, 16)]) == "b"


def test_nobody_has_room():
    assert Affinity().choose(7, [("a", 0, 16), ("b", 0, 16)]) is None
    assert Affinity().choose(7, []) is None


def test_a_key_stays_where_it_was_until_that_one_is_much_busier():
    known = Affinity()
    assert known.choose(7, [("a", 16, 16), ("b", 10, 16)]) == "a"
    assert known.choose(7, [("a", 8, 16), ("b", 16, 16)]) == "a"
    assert known.choose(7, [("a", 7, 16), ("b", 16, 16)]) == "b"  # and it has moved
    assert known.choose(7, [("a", 16, 16), ("b", 9, 16)]) == "b"


def test_one_without_room_is_passed_over_and_one_that_has_gone_is_forgotten():
    known = Affinity()
    assert known.choose(7, [("a", 1, 1), ("b", 1, 1)]) == "a"
    assert known.choose(7, [("a", 0, 1), ("b", 1, 1)]) == "b"
    known.forget("b")
    assert known.choose(7, [("a", 1, 1), ("b", 1, 1)]) == "a"


def test_the_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(affinity, "KEYS", 3)
    known = Affinity()
    known.choose(0, [("a", 1, 9), ("b", 2, 9)])
    for key in (1, 2, 3):
        known.choose(key, [("a", 9, 9), ("b", 1, 9)])
    assert known.choose(0, [("a", 2, 9), ("b", 1, 9)]) == "a"  # that it was b's is not known any more
    assert known.choose(3, [("a", 1, 9), ("b", 2, 9)]) == "a"


places = st.lists(st.tuples(st.integers(0, 16), st.just(16)), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.none() | st.integers(0, 3), places), max_size=50))
def test_always_one_with_room_and_never_far_from_the_least_loaded(steps):
    known = Affinity()
    for key, rooms in steps:
        workers = [(number, free, all_) for number, (free, all_) in enumerate(rooms)]
        chosen = known.choose(key, workers)
        most = max(free for free, _ in rooms)
        if most == 0:
            assert chosen is None
        else:
            free, all_ = rooms[chosen]
            assert free > 0
            assert most - free <= LEAD * all_
