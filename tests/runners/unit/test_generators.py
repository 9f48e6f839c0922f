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
from runners.worker.faults import FaultyEngine


class Record:
    """What an engine answers, and what it says of its steps."""

    def __init__(self):
        self.items = {}
        self.ends = {}
        self.steps = []

    def item(self, job, body, payload=b""):
        assert job.id not in self.ends
        self.items.setdefault(job.id, []).append(msgspec.msgpack.decode(body))

    def done(self, job, body, payload=b""):
        assert job.id not in self.ends
        self.ends[job.id] = "done"

    def failed(self, job, error):
        assert job.id not in self.ends
        self.ends[job.id] = error.kind

    def begin(self, ids):
        self.steps.append(ids)

    def end(self):
        self.steps.append(None)


def job(number, *args, window=1, timeout=None):
    return Job(Submit(number, timeout, False, msgspec.Raw(pack((args, {}))[0]), window), memoryview(b""))


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
        streams = Streams("m:f", numbers_async if asynchronous else numbers, loop.get_loop)
        record, allowed, lengths, left = Record(), {}, {}, set()
        for act, first, second in script:
            if act == "submit":
                name = len(lengths)
                lengths[name], allowed[name] = first, second
                streams.submit(job(name, name, first, window=second))
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
        assert streams._streams == {}
        assert not streams._turns
        if not asynchronous:
            assert sorted(ended) == sorted(opened)
        assert record.steps[1::2] == [None] * (len(record.steps) // 2)


def test_open_streams_are_advanced_in_turns():
    def numbers(length):
        yield from range(length)

    record, streams = Record(), Streams("m:f", numbers, lambda: None)
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

    streams, record = Streams("m:f", never, lambda: None), Record()
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

    streams, record = Streams("m:f", large, lambda: None), Full()
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
