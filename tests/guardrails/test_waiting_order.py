"""The deciders of the waiting room: order, pace, permits."""

from __future__ import annotations

import gc
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrails.core.fair_queue import FairQueue
from guardrails.core.permits import Ledger, Permits
from guardrails.core.service_rate import ServiceRate
from guardrails.core.waiting import FairRoom, Waiter

AGING = 10


class Naive:
    """The rules word for word: least (priority - whole steps waited), then the key whose turn it is, then arrival."""

    def __init__(self):
        self.items = []  # (item, arrived, priority, key)
        self.turns = {}
        self.turn = 0

    def next_turn(self):
        self.turn += 1
        return self.turn

    def push(self, item, now, priority, key):
        if not any(other[3] == key for other in self.items):
            self.turns[key] = self.next_turn()
        self.items.append((item, now, priority, key))

    def head(self, now):
        def rank(entry):
            _, arrived, priority, key = entry
            return (arrived + priority * AGING - now) // AGING, self.turns[key], arrived + priority * AGING

        return min(self.items, key=rank)[0] if self.items else None

    def serve(self, item):
        key = next(entry[3] for entry in self.items if entry[0] == item)
        self.turns[key] = self.next_turn()
        self.discard(item)

    def discard(self, item):
        self.items = [entry for entry in self.items if entry[0] != item]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "serve", "leave", "wait"]),
        st.integers(0, 3),  # priority
        st.sampled_from("abc"),
        st.integers(0, 30),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_order_equals_the_rules_word_for_word(steps):
    queue, naive, now = FairQueue(AGING), Naive(), 100
    for number, (action, priority, key, amount) in enumerate(steps):
        if action == "push":
            queue.push(number, now=now, priority=priority, key=key)
            naive.push(number, now, priority, key)
        elif action == "wait":
            now += amount
        elif action == "serve" and naive.items:
            head = naive.head(now)
            assert queue.head(now) == head
            queue.serve(head)
            naive.serve(head)
        elif action == "leave" and naive.items:
            item = naive.items[amount % len(naive.items)][0]
            queue.discard(item)
            queue.discard(item)
            naive.discard(item)
        assert len(queue) == len(naive.items)
        assert queue.head(now) == naive.head(now)
        assert all(entry[0] in queue for entry in naive.items)


@given(STEPS)
def test_with_one_key_and_one_priority_it_is_a_list(steps):
    queue, model, now = FairQueue(AGING), [], 0
    for number, (action, _, _, amount) in enumerate(steps):
        if action == "push":
            queue.push(number, now=now)
            model.append(number)
        elif action == "wait":
            now += amount
        elif model:
            item = model.pop(0 if action == "serve" else amount % len(model))
            assert action == "leave" or queue.head(now) == item
            (queue.serve if action == "serve" else queue.discard)(item)
        assert queue.head(now) == (model[0] if model else None)


def order(queue, now=0):
    served = []
    while (head := queue.head(now)) is not None:
        queue.serve(head)
        served.append(head)
    return served


def test_a_lower_number_is_served_first():
    queue = FairQueue(AGING)
    for priority in (2, 0, 1, 0):
        queue.push((priority, len(queue)), now=0, priority=priority)
    assert order(queue) == [(0, 1), (0, 3), (1, 2), (2, 0)]


def test_nothing_starves():
    # A low priority under a stream of high ones that never ends is passed for ten seconds a step, and no longer.
    queue = FairQueue(AGING)
    queue.push("low", now=0, priority=3)
    now = 0
    queue.push(now, now=now, priority=0)
    while queue.head(now) != "low":
        queue.serve(queue.head(now))
        now += 1
        queue.push(now, now=now, priority=0)
    assert now == 30


def test_keys_are_served_in_turn():
    queue = FairQueue(AGING)
    for number in range(5):
        queue.push(f"a{number}", now=0, key="a")
    queue.push("b0", now=0, key="b")
    queue.push("b1", now=0, key="b")
    queue.push("c0", now=0, key="c")
    assert order(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_a_key_that_comes_back_does_not_jump_the_round():
    queue = FairQueue(AGING)
    queue.push("a0", now=0, key="a")
    queue.push("a1", now=0, key="a")
    queue.push("b0", now=0, key="b")
    assert queue.head(0) == "a0"
    queue.serve("a0")
    queue.serve("b0")
    queue.push("b1", now=0, key="b")
    assert queue.head(0) == "a1"


def test_priority_goes_before_the_turn_of_a_key():
    queue = FairQueue(AGING)
    queue.push("a", now=0, priority=1, key="a")
    queue.push("b", now=0, priority=0, key="b")
    assert order(queue) == ["b", "a"]


def test_those_who_leave_do_not_pile_up():
    queue = FairQueue(AGING)
    queue.push("first", now=0)
    for number in range(10_000):
        queue.push(number, now=1)
        queue.discard(number)
    assert len(next(iter(queue._lanes.values())).entries) < 50
    queue.push("last", now=2)
    assert order(queue) == ["first", "last"]
    assert queue._lanes == {}


def test_drain_takes_everybody_out():
    queue = FairQueue(AGING)
    for number in range(5):
        queue.push(number, now=0, key=number % 2)
    assert queue.drain() == [0, 1, 2, 3, 4]
    assert (len(queue), queue.head(0)) == (0, None)


@given(STEPS, st.integers(0, 3), st.sampled_from("abcd"))
@example([("push", 0, "a", 0), ("push", 0, "b", 0), ("push", 1, "b", 0), ("push", 1, "b", 0)], 1, "a")
def test_how_many_are_ahead_is_right_within_one_a_key(steps, priority, key):
    queue, now = FairQueue(AGING), 100
    for number, (action, other, whose, amount) in enumerate(steps):
        if action == "push":
            queue.push(number, now=now, priority=other, key=whose)
        elif action == "wait":
            now += amount % 5
    told = queue.ahead(now=now, priority=priority, key=key)
    queue.push("new", now=now, priority=priority, key=key)
    lanes = len(queue._lanes)
    true = order(queue, now).index("new")
    assert abs(told - true) < lanes
    if lanes == 1:
        assert told == true


# The room


def test_the_room_offers_its_head_only_and_marks_whom_it_grants():
    room = FairRoom(10)
    heavy, light = Waiter(5), Waiter(1)
    room.join(heavy)
    room.join(light)
    offered = []
    assert room.grant(offered.append) == []
    assert (offered, heavy.granted, len(room), heavy in room) == ([5], False, 2, True)
    assert room.grant(lambda weight: True) == [heavy, light]
    assert heavy.granted
    assert heavy not in room


def test_the_room_is_full_at_its_capacity_and_can_be_cleared():
    room = FairRoom(2)
    waiters = [Waiter(1), Waiter(2)]
    for waiter in waiters:
        assert not room.full
        room.join(waiter)
    assert room.full
    assert room.ahead(now=0, priority=0, key=None) == 2
    assert room.dismiss() == waiters
    assert len(room) == 0


# The pace


def test_nothing_is_told_before_enough_was_seen():
    rate, now = ServiceRate(), 0
    rate.began(now)
    for _ in range(4):
        now += 2
        rate.granted(now, 1, 1)
        assert rate.interval(now) is None
    rate.granted(now + 2, 1, 1)
    assert rate.interval(now + 2) == 2
    assert rate.wait(0, now + 2) == 2
    assert rate.wait(4, now + 2) == 10


def test_time_in_which_nobody_waited_does_not_count():
    rate = ServiceRate()
    now = 0
    for _ in range(10):
        rate.began(now)
        rate.granted(now + 1, 1, 0)
        rate.granted(now + 2, 1, 0)
        now += 50
    assert rate.interval(now - 40) == 1


def test_grants_together_are_that_much_faster():
    rate, now = ServiceRate(), 0
    rate.began(now)
    for _ in range(50):
        now += 10
        rate.granted(now, 5, 1)
    assert rate.interval(now) == pytest.approx(2)


def test_what_was_seen_long_ago_is_forgotten():
    rate, now = ServiceRate(), 0
    rate.began(now)
    for _ in range(10):
        now += 1
        rate.granted(now, 1, 1)
    assert rate.interval(now + 60) == 1
    assert rate.interval(now + 61) is None
    rate.granted(now + 100, 1, 1)
    assert rate.interval(now + 100) is None


@given(st.lists(st.floats(0.001, 50), min_size=5, max_size=50))
def test_the_pace_lies_between_the_fastest_and_the_slowest_grant(gaps):
    rate, now = ServiceRate(), 0.0
    rate.began(now)
    for gap in gaps:
        now += gap
        rate.granted(now, 1, 1)
    assert min(gaps) - 1e-6 <= rate.interval(now) <= max(gaps) + 1e-6


# Permits


@given(
    st.integers(0, 400),
    st.lists(st.tuples(st.sampled_from(["take", "take", "give", "resize", "fast", "back"]), st.integers(0, 400))),
)
def test_permits_equal_a_number(size, steps):
    permits, limit, held = Permits(size, 7), size, 0
    for action, number in steps:
        if action == "take":
            took = permits.take(7)
            assert took == (held < limit)
            held += took
        elif action == "fast" and permits.free:  # what a turnstile does without the lock
            assert permits.free.pop() == 7
            held += 1
            assert held <= limit
        elif action == "give" and held:
            permits.give(7)
            held -= 1
        elif action == "back" and held and permits.spare >= 0:
            permits.free.append(7)
            held -= 1
        elif action == "resize":
            limit = number
            permits.resize(number)
        assert (permits.in_use, permits.reserved, permits.size) == (held, 7 * held, limit)


def test_a_huge_number_of_permits_costs_no_memory():
    permits = Permits(1 << 40, 1)
    assert len(permits.free) < 1000
    for _ in range(1000):
        assert permits.take(1)
    assert permits.in_use == 1000


def test_permits_in_threads_balance():
    permits = Permits(3, 1)
    most, lock, running = [0], threading.Lock(), [0]

    def work():
        for _ in range(2000):
            try:
                permit = permits.free.pop()
            except IndexError:
                continue
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            with lock:
                running[0] -= 1
            permits.free.append(permit)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 3
    assert permits.in_use == 0


@given(st.lists(st.tuples(st.sampled_from(["take", "give", "resize"]), st.integers(0, 9))))
def test_a_ledger_equals_a_list(steps):
    ledger, size, held = Ledger(3, lambda total: total <= 20), 3, []
    for action, number in steps:
        if action == "take":
            took = ledger.take(number)
            assert took == (len(held) < size and (number == 0 or sum(held) + number <= 20))
            if took:
                held.append(number)
        elif action == "give" and held:
            ledger.give(held.pop(number % len(held)))
        elif action == "resize":
            size = number
            ledger.resize(number)
        assert (ledger.in_use, ledger.reserved, ledger.free) == (len(held), sum(held), [])


def test_the_garbage_collector_may_settle_a_call_in_the_middle_of_a_grant(clock):
    # A guarded generator that is dropped in a cycle is finalised wherever the collector strikes: here, just after the
    # head was offered a permit in vain.
    from guardrails.core.guard import Call
    from guardrails.core.outcome import SUCCESS
    from guardrails.gates.bulkhead import bulkhead

    gate = bulkhead(1, clock=clock)
    ticket = gate.try_enter(Call((), {}))
    waiter = Waiter(0)
    waiter._ready = lambda: None
    gate._room.join(waiter)
    gate._waiting = 1
    take, struck = gate._books.take, []

    def interrupted(cost):
        took = take(cost)
        if not struck:
            struck.append(True)
            gate.settle(ticket, SUCCESS)
        return took

    class Books:
        def __getattr__(self, name):
            return interrupted if name == "take" else getattr(books, name)

    books, gate._books = gate._books, Books()
    gate._pump()
    gc.collect()
    assert struck
    assert waiter.granted
    assert (gate.in_flight, gate.waiting) == (1, 0)
