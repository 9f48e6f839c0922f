"""The budget that a refusal names is one that works."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.spec import budget_fits, budget_for, largest_load

MIB = 1 << 20
sizes = st.integers(MIB, 1 << 42)


@given(sizes)
def test_a_worker_that_comes_up_larger_by_what_loads_differ_fits_too(loaded):
    named = budget_for(loaded)
    assert named % MIB == 0
    assert budget_fits(named, loaded)
    assert budget_fits(named, loaded * 115 // 100 + 4 * MIB - 4096)
    assert named <= 1.45 * loaded + 7 * MIB


@given(sizes)
def test_what_may_be_loaded_is_what_the_budget_is_named_for(budget):
    loaded = largest_load(budget)
    assert loaded == 0 or budget_for(loaded) <= budget + MIB
    assert budget_for(loaded + MIB) > budget - MIB


def test_a_budget_leaves_a_quarter_to_work():
    assert budget_fits(125 * MIB, 100 * MIB)
    assert not budget_fits(125 * MIB - 1, 100 * MIB)
