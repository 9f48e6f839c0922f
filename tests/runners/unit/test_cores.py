"""Cores are shared out evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.cores import Cores


@given(st.integers(1, 16), st.lists(st.integers(1, 8), max_size=20), st.data())
def test_nobody_doubles_up_while_a_core_has_fewer_holders(available, wishes, data):
    cores = Cores()
    held: list[tuple[int, ...]] = []
    for wanted in wishes:
        if held and data.draw(st.booleans()):
            cores.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        load = {core: sum(core in taken for taken in held) for core in range(available)}
        taken = cores.take(wanted, range(available))
        if wanted >= available:
            assert taken == ()
            continue
        assert len(set(taken)) == wanted
        others = [load[core] for core in range(available) if core not in taken]
        assert max(load[core] for core in taken) <= min(others)
        held.append(taken)


def test_two_workers_of_two_cores_each_and_a_replacement_beside_them():
    cores = Cores()
    assert [cores.take(2, {0, 1, 2, 3}) for _ in range(3)] == [(0, 1), (2, 3), (0, 1)]
    cores.give_back((0, 1))
    cores.give_back((0, 1))
    assert cores.take(2, {0, 1, 2, 3}) == (0, 1)
    cores.give_back(())
