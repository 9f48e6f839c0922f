"""Large messages to a worker: a slice in a turn of the loop, small ones in between, nothing of what is withdrawn."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
import pytest

from runners.protocol.frames import child_decoder
from runners.protocol.messages import Cancel, Drain, Submit
from runners.protocol.parts import SLICE, Part, Parts
from runners.supervision.outbox import Outbox

pytestmark = pytest.mark.anyio
BODY = msgspec.Raw(msgspec.msgpack.encode(None))


class Transport:
    """Takes what is written; `full_at` bytes fill it until `drain`."""

    def __init__(self, outbox, full_at=1 << 40):
        self.outbox, self.full_at = outbox, full_at
        self.held = 0
        self.writes = []
        self.decoder = child_decoder()
        self.got = []

    def is_closing(self):
        return False

    def write(self, data):
        self.writes.append(len(data))
        self.got += [message for message, _ in self.decoder.feed(bytes(data))]
        self.held += len(data)
        if self.held > self.full_at:
            self.outbox.pause()

    def drain(self):
        self.held = 0
        self.outbox.resume()


@pytest.fixture
def anyio_backend():
    return "asyncio"


def submit(number):
    return Submit(number, None, False, BODY)


def payload(slices=8):
    return Parts([], [Part.of(bytes(slices * SLICE))])


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def connected(**options):
    outbox = Outbox(lambda _: None)
    transport = Transport(outbox, **options)
    outbox.connect(transport)
    return outbox, transport


async def test_one_slice_in_a_turn():
    outbox, transport = connected()
    outbox.put(submit(1), payload())
    assert transport.writes == []
    seen = [0]
    for _ in range(12):
        await turns(1)
        seen.append(sum(transport.writes))
    assert max(b - a for a, b in itertools.pairwise(seen)) <= SLICE + 8
    assert [message.id for message in transport.got] == [1]
    assert len(outbox) == 0


async def test_nothing_is_written_while_the_transport_is_full():
    outbox, transport = connected(full_at=SLICE)
    outbox.put(submit(1), payload())
    await turns(20)
    assert sum(transport.writes) <= 2 * SLICE
    for _ in range(20):
        transport.drain()
        await turns(3)
    assert [message.id for message in transport.got] == [1]


async def test_what_waits_before_the_connection_goes_out_after_it():
    outbox = Outbox(lambda _: None)
    outbox.put(submit(1), payload(1))
    await turns(3)
    transport = Transport(outbox)
    outbox.connect(transport)
    await turns(5)
    assert [message.id for message in transport.got] == [1]


async def test_what_is_about_the_same_request_or_about_all_waits():
    outbox, transport = connected()
    assert not outbox.holds_back(Drain())
    outbox.put(submit(1), payload(2))
    assert outbox.holds_back(Cancel(1))
    assert not outbox.holds_back(Cancel(2))
    assert outbox.holds_back(Drain())
    outbox.put_behind(Cancel(1))
    outbox.put_behind(Drain())
    await turns(9)
    assert [type(message) for message in transport.got] == [Submit, Cancel, Drain]


@pytest.mark.parametrize("begun", range(12))
async def test_a_request_withdrawn_at_any_moment_is_never_half_there(begun):
    outbox, transport = connected()
    outbox.put(submit(1), payload(4))
    outbox.put(submit(2), payload(4))
    await turns(begun)
    gone = outbox.withdraw(1)
    assert not outbox.withdraw(7)
    await turns(30)
    assert gone == (begun < 6)
    assert [message.id for message in transport.got] == ([2] if gone else [1, 2])
    assert transport.decoder._parts == []


async def test_one_that_has_not_begun_is_withdrawn_without_a_trace():
    outbox, transport = connected()
    outbox.put(submit(1), payload(4))
    outbox.put(submit(2), payload(4))
    await turns(2)
    assert outbox.withdraw(2)
    await turns(9)
    assert [message.id for message in transport.got] == [1]


async def test_after_the_worker_has_gone_nothing_is_kept():
    outbox, transport = connected()
    outbox.put(submit(1), payload())
    await turns(2)
    outbox.clear()
    written = sum(transport.writes)
    await turns(5)
    assert (len(outbox), sum(transport.writes)) == (0, written)
