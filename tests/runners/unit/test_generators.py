"""The turns of generator functions, in this process: in order, within the window, one answer each."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.protocol.messages import Submit
from runners.protocol.values import pack
from runners.spec import Faults
from runners.worker.engines.base import CANCELLED, EngineError, Job
from runners.worker.engines.function import FunctionEngine
from runners.worker.engines.generators import Streams
from runners.worker.engines.tasks import Tasks
from runners.worker.faults import FaultyEngine


class Record:
    """What an engine answers, and what it says of its steps."""

    def __init__(self):
        self.items = {}
        self.ends = {}
        self.steps = []
        self.recalled = set()

    def item(self, job, body, payload=b""):
        assert job.id not in self.ends
        self.items.setdefault(job.id, []).append(msgspec.msgpack.decode(body))

    def done(self, job, body, payload=b""):
        assert job.id not in self.ends
        self.ends[job.id] = "done"

    def failed(self, job, error):
        assert job.id not in self.ends
        self.ends[job.id] = error.kind

    def dropped(self, job):
        assert not job.begun

    def claim(self, job):
        job.begun = job.begun or job.number not in self.recalled
        return job.begun

    def begin(self, ids):
        self.steps.append(ids)

    def end(self):
        self.steps.append(None)


def job(number, *args, window=1, timeout=None, place=0):
    return Job(Submit(number, timeout, False, msgspec.Raw(pack((args, {}))[0]), window), memoryview(b""), place)


acts = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 6), st.integers(1, 4)),
    st.tuples(st.just("more"), st.integers(0, 5), st.integers(0, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
)


@pytest.mark.parametrize("asynchronous", [False, True])
@given(st.lists(acts, max_size=40))
def test_any_order_of_what_may_come(asynchronous, script):
    opened, ended = [], []

    def numbers(name, length):
        opened.append(name)
        try:
            yield from range(length)
        finally:
            ended.append(name)

    async def numbers_async(name, length):
        for number in numbers(name, length):
            yield number

    with asyncio.Runner() as loop:
        if asynchronous:
            streams = Tasks("m:f", numbers_async, loop.get_loop(), concurrency=16, streams=True)
        else:
            streams = Streams("m:f", numbers)
        record, allowed, lengths, left = Record(), {}, {}, set()
        for act, first, second in script:
            if act == "submit":
                name = len(lengths)
                lengths[name], allowed[name] = first, second
                streams.submit(job(name, name, first, window=second))
            elif act == "more" and asynchronous and first not in streams._calls:
                continue  # a reader takes nothing of what has not begun
            elif act == "more":
                streams.more(first, second)
                if first in allowed:
                    allowed[first] += second
            elif act == "cancel":
                streams.cancel(first, record)
                if first in lengths:
                    left.add(first)
            else:
                for _ in range(first):
                    streams.step(record, record)
            for name, items in record.items.items():
                assert items == list(range(len(items)))
                assert len(items) <= min(allowed[name], lengths[name])
        while streams.step(record, record):
            pass
        for name, length in lengths.items():
            items = record.items.get(name, [])
            if name in left and record.ends[name] == "cancelled":
                continue
            if allowed[name] > length:
                assert record.ends[name] == "done"
            assert len(items) == min(length, allowed[name])  # as far as it may, and no further
        for name in lengths:
            streams.cancel(name, record)
        while streams.step(record, record):
            pass
        assert set(record.ends) == set(lengths)
        assert (streams._calls if asynchronous else streams._streams) == {}
        assert not (streams._waiting if asynchronous else streams._turns)
        if not asynchronous:
            assert sorted(ended) == sorted(opened)
        assert record.steps[1::2] == [None] * (len(record.steps) // 2)


def test_open_streams_are_advanced_in_turns():
    def numbers(length):
        yield from range(length)

    record, streams = Record(), Streams("m:f", numbers)
    streams.submit(job(1, 10**9, window=100))
    for _ in range(5):
        streams.step(record, record)
    streams.submit(job(2, 20, window=30))  # comes in the middle of a long one
    streams.submit(job(3, 20, window=30))
    while 2 not in record.ends or 3 not in record.ends:
        assert streams.step(record, record)
    order = [ids[0] for ids in record.steps if ids is not None]
    assert order[:5] == [1] * 5
    assert order[5:] == [1, 2, 3] * 21  # an item a turn, and the last turn finds the end


def test_one_that_has_expired_is_not_begun():
    def never():
        raise AssertionError
        yield

    streams, record = Streams("m:f", never), Record()
    streams.submit(job(1, timeout=0.0))
    assert streams.step(record, record)
    assert record.ends == {1: "expired"}
    assert record.steps == []
    assert not streams.step(record, record)


def test_an_item_too_large_ends_the_stream():
    closed = []

    def large():
        try:
            yield 1
        finally:
            closed.append(True)

    class Full(Record):
        def item(self, job, body, payload=b""):
            raise EngineError("unsendable", "an item is too large")

    streams, record = Streams("m:f", large), Full()
    streams.submit(job(1))
    streams.step(record, record)
    assert record.ends == {1: "unsendable"}
    assert closed == [True]


def test_a_job_that_waits_for_its_fault_can_be_cancelled():
    engine = FaultyEngine(FunctionEngine({"function": "os:getpid"}), Faults(trigger="boom", effect="hang"))
    engine.load()
    record = Record()
    engine.submit(job(1, "boom", window=0))
    engine.cancel(1, record)
    assert record.ends == {1: CANCELLED.kind}
    engine.more(1, 3)
    assert not engine.step(record, record)


@pytest.mark.parametrize("kind", ["call", "generator", "async call", "async generator"])
def test_a_job_that_was_taken_back_and_came_again_is_run_once_and_can_be_cancelled(kind):
    ran = []

    def call(value):
        ran.append(value)

    def generator(value):
        ran.append(value)
        yield value

    async def async_call(value):
        ran.append(value)

    async def async_generator(value):
        ran.append(value)
        yield value

    functions = {"call": call, "generator": generator, "async call": async_call, "async generator": async_generator}
    window = 2 if "generator" in kind else 0
    with asyncio.Runner() as loop:
        if kind == "call":
            engine = FunctionEngine({"function": "m:f"})
            engine._function = call
        elif kind == "generator":
            engine = Streams("m:f", generator)
        else:
            engine = Tasks("m:f", functions[kind], loop.get_loop(), concurrency=1, streams=window > 0)
        record = Record()
        record.recalled = {1, 3}
        for place, (number, value) in enumerate([(7, "a"), (8, "b"), (9, "c"), (7, "a again"), (9, "c again")], 1):
            engine.submit(job(number, value, window=window, place=place))
        engine.cancel(9, record)
        record.ends.pop(9, None)
        while engine.step(record, record):
            record.ends.pop(7, None)
    assert ran == ["b", "a again"]
