from __future__ import annotations

import dis
import gc
import os
import threading
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.events import CallFinished, CallRejected, CallSettled, Event, emit, subscribe
from guardrails.core.names import KeyedName
from guardrails.telemetry import meters as module
from guardrails.telemetry.instruments import Registry, counter, gauge, histogram, sampled, updown
from guardrails.telemetry.labels import OTHER
from guardrails.telemetry.meters import Distribution, Meters


class Came(Event):
    pass


class Went(Event):
    pass


class Snapshot(Event):
    def __init__(self, source, **values):
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "values", values)

    __slots__ = ("values",)


CAME, WENT, SNAPSHOT = (f"{__name__}:{kind.__name__}" for kind in (Came, Went, Snapshot))


def meters_of(*instruments, **options):
    registry = Registry()
    registry.register(*instruments)
    return Meters(registry=registry, **options)


def readings(meters):
    return {reading.instrument.name: dict(reading.series) for reading in meters.collect()}


ARRIVALS = counter("test.arrivals", "", "Help.", "guard", {CAME: lambda e: ((e.source,), 1)})
PRESENT = updown(
    "test.present", "", "Help.", "guard", {CAME: lambda e: ((e.source,), 1), WENT: lambda e: ((e.source,), -1)}
)
LAST = gauge(
    "test.last", "", "Help.", "guard", {CAME: lambda e: [((e.source,), 1)], WENT: lambda e: [((e.source,), 0)]}
)
SIZES = sampled("test.size", "By", "Help.", "thing", {SNAPSHOT: lambda e: [((k,), v) for k, v in e.values.items()]})
SHARES = sampled("test.share", "1", "Help.", "thing", {SNAPSHOT: lambda e: [((k,), v) for k, v in e.values.items()]})


def test_what_comes_and_goes():
    meters = meters_of(ARRIVALS, PRESENT, LAST)
    for event in (Came("a"), Came("a"), Went("a"), Came("b"), Went("b")):
        meters(event)
    assert readings(meters) == {
        "test.arrivals": {("a",): 2, ("b",): 1},
        "test.present": {("a",): 1, ("b",): 0},
        "test.last": {("a",): 0, ("b",): 0},
    }


def test_metrics_come_in_the_order_of_the_table_and_without_events_not_at_all():
    meters = meters_of(LAST, ARRIVALS, SIZES, PRESENT)
    meters(Came("a"))
    assert [reading.instrument for reading in meters.collect()] == [LAST, ARRIVALS, PRESENT]
    assert meters_of(LAST).collect() == []


def test_what_began_before_we_counted_does_not_make_less_than_none():
    meters = meters_of(PRESENT)
    for event in (Went("a"), Went("a"), Came("a")):
        meters(event)
    assert readings(meters)["test.present"] == {("a",): 1}


@given(st.lists(st.floats(0, 400)))
def test_a_distribution_holds_every_value_in_its_bucket(seconds):
    meters = Meters()
    for value in seconds:
        meters(CallFinished("a", 1, value, "success"))
    found = readings(meters).get("guardrails.call.duration", {})
    if not seconds:
        assert found == {}
        return
    distribution = found["a", "success"]
    bounds = next(each.instrument.buckets for each in meters.collect() if each.instrument.kind == "histogram")
    edges = [float("-inf"), *bounds, float("inf")]
    expected = tuple(sum(low < value <= high for value in seconds) for low, high in pairwise(edges))
    assert distribution == Distribution(pytest.approx(sum(seconds)), expected)
    assert distribution.count == len(seconds)


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from(["open", "tripped"]))), st.integers(1, 8))
def test_counts_are_those_of_a_plain_count_and_labels_are_bounded(rejections, limit):
    meters = Meters(max_values=limit)
    for guard, reason in rejections:
        meters(CallRejected(guard, reason, None))
    series = readings(meters).get("guardrails.gate.rejections", {})
    assert sum(series.values()) == len(rejections)
    assert len({guard for guard, _ in series} - {OTHER}) <= limit
    kept = {guard for guard, _ in rejections if any(guard == named for named, _ in series)}
    if limit >= 2:  # both reasons have a label of their own
        plain = Counter(pair for pair in rejections if pair[0] in kept)
        assert {pair: count for pair, count in series.items() if pair[0] != OTHER} == plain


def test_guards_of_keys_are_counted_together_and_not_with_a_guard_that_has_the_name_of_one():
    meters = meters_of(ARRIVALS, LAST)
    for number in range(500):
        meters(Came(KeyedName(f"user-{number}", "users")))
    meters(Came("user-1"))
    meters(Came(KeyedName("user-1", "users")))
    assert readings(meters)["test.arrivals"] == {("users",): 501, ("user-1",): 1}
    # The last value of one is not that of all: there is none.
    assert readings(meters)["test.last"] == {("user-1",): 1}


def test_a_gauge_of_what_has_no_label_of_its_own_has_no_value():
    meters = meters_of(LAST, max_values=1)
    meters(Came("a"))
    meters(Came("b"))
    assert readings(meters)["test.last"] == {("a",): 1}


# Snapshots


def test_a_snapshot_takes_the_place_of_the_one_before(clock):
    meters = meters_of(SIZES, clock=clock)
    meters(Snapshot("r", one=5, two=7))
    meters(Snapshot("r", two=8))
    meters(Snapshot("other", three=1))
    assert readings(meters)["test.size"] == {("two",): 8, ("three",): 1}
    assert dict(meters.collect_one(SIZES)) == {("two",): 8, ("three",): 1}


def test_an_old_snapshot_has_no_value(clock):
    meters = meters_of(SIZES, stale_after=10, clock=clock)
    meters(Snapshot("a", one=5))
    clock.advance(8)
    meters(Snapshot("b", two=7))
    clock.advance(2)
    assert readings(meters)["test.size"] == {("one",): 5, ("two",): 7}
    clock.advance(0.1)
    assert readings(meters)["test.size"] == {("two",): 7}
    clock.advance(10)
    assert readings(meters) == {}


def test_bytes_of_things_that_share_a_name_are_summed_and_shares_are_not(clock):
    meters = meters_of(SIZES, SHARES, max_values=2, clock=clock)
    meters(Snapshot("r", a=1, b=2, c=4, d=8))
    assert readings(meters) == {
        "test.size": {("a",): 1, ("b",): 2, (OTHER,): 12},
        "test.share": {("a",): 1, ("b",): 2},
    }
    assert dict(meters.collect_one(SHARES)) == {("a",): 1, ("b",): 2}


def test_so_many_sources_of_snapshots_are_kept(clock):
    meters = meters_of(SIZES, max_values=3, clock=clock)
    for number in range(10):
        meters(Snapshot(f"r{number}", size=1))
    assert readings(meters)["test.size"] == {("size",): 3}


def test_a_metric_that_cannot_be_read_does_not_cost_the_others(caplog):
    broken = sampled("test.broken", "By", "Help.", "thing", {SNAPSHOT: lambda e: 1 / 0})
    meters = meters_of(broken, SIZES)
    meters(Snapshot("r", a=1))
    assert readings(meters) == {"test.size": {("a",): 1}}
    assert "cannot read test.broken from Snapshot" in caplog.text


# Who else counts, and when


def test_histograms_are_handed_on_once_a_series():
    made, got = [], []

    def observe(instrument, values):
        made.append((instrument.name, values))
        return lambda amount: got.append((values, amount))

    waits = histogram("test.wait", "s", "Help.", "guard", [(CAME, lambda e: ((e.source,), 0.5))], buckets=(1, 2))
    meters = meters_of(waits, ARRIVALS, observe=observe, max_values=1)
    for name in ("a", "a", "b", "c", KeyedName("a", "a"), KeyedName("x", "a")):
        meters(Came(name))
    assert made == [("test.wait", ("a",)), ("test.wait", (OTHER,))]
    assert [values for values, _ in got] == [("a",), ("a",), (OTHER,), (OTHER,), ("a",), ("a",)]
    assert "test.wait" not in readings(meters)


def test_first_seen_is_called_before_a_metric_counts_and_without_the_lock():
    def seen(instrument):
        free = []

        def take():
            with meters._lock:
                free.append(True)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(5)
        assert free == [True]
        names.append(instrument.name)

    names = []
    meters = meters_of(ARRIVALS, PRESENT, first_seen=seen)
    meters(Came("a"))
    meters(Came("a"))
    assert names == ["test.arrivals", "test.present"]


def test_what_is_registered_later_is_counted_from_then_on():
    registry = Registry()
    meters = Meters(registry=registry)
    meters(Came("a"))
    registry.register(ARRIVALS)
    meters(Came("a"))
    assert readings(meters)["test.arrivals"] == {("a",): 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_values": 0}, "max_values takes a whole number of at least 1, not 0"),
        ({"max_values": True}, "max_values takes"),
        ({"stale_after": 0}, "stale_after takes seconds above 0, not 0"),
        ({"stale_after": float("nan")}, "stale_after takes"),
        ({"stale_after": "9"}, "stale_after takes"),
    ],
)
def test_misuse_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Meters(**options)


# Threads


@pytest.mark.parametrize("steady", [True, False])
def test_no_event_of_any_thread_is_lost(steady, monkeypatch):
    if steady and not module._STEADY:
        pytest.skip("this interpreter needs the lock")
    monkeypatch.setattr(module, "_STEADY", steady)
    meters = Meters()
    start = threading.Barrier(4)

    def run(number):
        start.wait()
        for turn in range(3000):
            meters(CallSettled(f"g{number % 2}", "success"))
            meters(CallFinished("g", turn, 0.5, "success"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for reading in meters.collect():  # a scrape in between sees whole distributions
            for _, value in reading.series:
                if isinstance(value, Distribution):
                    assert value.total == 0.5 * value.count
    found = readings(meters)
    assert found["guardrails.gate.settled"] == {("g0", "success"): 6000, ("g1", "success"): 6000}
    assert found["guardrails.call.duration"]["g", "success"].count == 12_000


@pytest.mark.parametrize("name", ["_adds", "_distributes"])
def test_an_addition_without_the_lock_is_one_step(name):
    """From where the cell is known to the `return` of the steady way: no call, and no loop."""
    outer = getattr(Meters, name).__code__
    code = next(each for each in outer.co_consts if hasattr(each, "co_code"))
    steps = list(dis.get_instructions(code))
    asked = max(index for index, step in enumerate(steps) if step.argval == "steady")
    rest = steps[asked + 1 :]
    done = next(index for index, step in enumerate(rest) if step.opname in ("RETURN_VALUE", "RETURN_CONST"))
    held = {step.opname for step in rest[:done]}
    assert any(name.startswith("STORE_SUBSCR") for name in held)
    assert not [name for name in held if "CALL" in name or "JUMP_BACKWARD" in name or "FOR_ITER" in name]


def test_an_event_that_the_garbage_collector_emits_in_the_middle_of_counting_is_counted():
    class Dropped:
        def __del__(self):
            meters(Came("dropped"))

    def read(event):
        if event.source == "a":
            circle = Dropped()
            circle.self = circle
            del circle
            gc.collect()
        return ((event.source,), 1)

    meters = meters_of(counter("test.dropped", "", "Help.", "guard", {CAME: read}))
    with meters._lock:  # as in the middle of making a cell
        meters(Came("a"))
    assert readings(meters)["test.dropped"] == {("a",): 1, ("dropped",): 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_child_of_a_fork_counts_from_nothing_even_if_the_lock_was_held():
    meters = meters_of(ARRIVALS)
    meters(Came("parent"))
    held, done = threading.Event(), threading.Event()

    def hold():
        with meters._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            meters(Came("child"))
            right = readings(meters) == {"test.arrivals": {("child",): 1}}
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert readings(meters) == {"test.arrivals": {("parent",): 1}}


def test_it_is_a_sink():
    meters = Meters()
    unsubscribe = subscribe(meters)
    emit(CallSettled("a", "success"))
    unsubscribe()
    emit(CallSettled("a", "success"))
    assert readings(meters)["guardrails.gate.settled"] == {("a", "success"): 1}
