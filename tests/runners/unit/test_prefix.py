import random
import time
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.worker.engines.llama.prefix import RadixTree

HOLDER = st.integers(0, 7)
#: Few different tokens, so that prefixes meet; a stem, so that edges are long enough to be cut in the middle.
STRING = st.builds(
    lambda stem, length, tail: stem[:length] + tail,
    st.sampled_from([[1] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9, 9, 9, 9]]),
    st.integers(0, 9),
    st.lists(st.integers(0, 2), max_size=4),
)
INSERT = st.tuples(st.just("insert"), HOLDER, STRING)
REMOVE = st.tuples(st.just("remove"), HOLDER, st.just([]))


def common(one, two):
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def nodes(tree):
    found, rest = [], [tree._root]
    while rest:
        node = rest.pop()
        found.append(node)
        rest += node.children.values()
    return found


@settings(max_examples=300)
@given(st.lists(INSERT | REMOVE, max_size=30), STRING)
def test_every_holder_is_found_with_what_it_has_in_common(steps, wanted):
    tree, held = RadixTree(), {}
    for step, holder, tokens in steps:
        if step == "insert":
            tree.insert(tokens, holder)
            held[holder] = tokens
        else:
            tree.remove(holder)
            held.pop(holder, None)
    found = tree.matches(wanted)
    assert {holder: length for length, holders in found for holder in holders} == {
        holder: common(tokens, wanted) for holder, tokens in held.items() if common(tokens, wanted)
    }
    assert [length for length, _ in found] == sorted({length for length, _ in found}, reverse=True)
    assert sum(len(holders) for _, holders in found) == len(set().union(*(holders for _, holders in found)))
    assert tree.longest(wanted) == (found[0] if found else (0, set()))
    assert len(tree) == len(held)
    assert all((holder in tree) == (holder in held) for holder in range(8))


@settings(max_examples=300)
@given(st.lists(INSERT | REMOVE, max_size=30))
def test_it_stays_compressed_and_is_empty_when_all_have_gone(steps):
    tree = RadixTree()
    for step, holder, tokens in steps:
        if step == "insert":
            tree.insert(tokens, holder)
        else:
            tree.remove(holder)
        ends = list(tree._ends.values())
        for node in nodes(tree):
            assert node.holders or node is tree._root
            assert len(node.tokens) > 0 or node is tree._root
            assert len(node.children) != 1 or node in ends or node is tree._root
            assert all(child.parent is node and child.tokens[0] == key for key, child in node.children.items())
    for holder in range(8):
        tree.remove(holder)
    assert len(nodes(tree)) == 1
    assert tree.matches([1, 2, 3]) == []


def test_an_example():
    tree = RadixTree()
    tree.insert([1, 5, 9, 2, 7, 7, 3], 0)
    tree.insert([1, 5, 9, 2, 4], 1)
    tree.insert([1, 5, 9, 2, 4, 8, 8], 2)
    assert tree.matches([1, 5, 9, 2, 4, 8, 0]) == [(6, {2}), (5, {1}), (4, {0})]
    assert tree.longest([1, 5]) == (2, {0, 1, 2})
    assert tree.longest([2]) == (0, set())
    tree.remove(2)
    assert tree.longest(array("i", [1, 5, 9, 2, 4, 8, 0])) == (5, {1})


def test_what_a_holder_had_before_is_replaced():
    tree = RadixTree()
    tree.insert([1, 2, 3], 0)
    tree.insert([4], 0)
    assert tree.matches([1, 2, 3]) == []
    assert tree.longest([4]) == (1, {0})


@pytest.mark.parametrize("alike", [True, False])
def test_long_prompts_of_many_holders_are_found_fast(alike):
    rng = random.Random(1)
    stem = [rng.randrange(50_000) for _ in range(32_000)]
    tree = RadixTree()
    for holder in range(256):
        own = holder * 120 if alike else 0
        tree.insert([*stem[:own], 50_000 + holder, *stem[own + 1 :]], holder)
    wanted = array("i", stem[:4_000])
    best = min(_timed(lambda: tree.longest(wanted)) for _ in range(20))
    assert best < 0.001, f"{best * 1e6:.0f} us"
    for holder in range(256):
        tree.remove(holder)
    assert len(nodes(tree)) == 1


def _timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
