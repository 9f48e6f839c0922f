"""The codec: any cut gives the same messages, and nothing that comes in raises anything but `ProtocolError`."""

from __future__ import annotations

import contextlib
import itertools
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.protocol import frames
from runners.protocol.frames import DISCARD, FrameTooLarge, ProtocolError, child_decoder, cut, encode, parent_decoder
from runners.protocol.messages import (
    Cancel,
    Done,
    Drain,
    ErrorInfo,
    Failed,
    Item,
    LoadFailed,
    More,
    Ready,
    Start,
    Submit,
)
from runners.protocol.parts import SLICE, Part, Parts, Received
from runners.spec import Faults, WorkerSpec

BODY = msgspec.msgpack.encode({"any": [1, "b"]})
numbers = st.integers(0, 2**63)
bodies = st.sampled_from([BODY, b"\xc0", msgspec.msgpack.encode(b"x" * 300)]).map(msgspec.Raw)
errors = st.builds(ErrorInfo, kind=st.text(max_size=5), message=st.text(max_size=20), traceback=st.text(max_size=20))
to_parent = st.one_of(
    st.builds(Done, numbers, bodies),
    st.builds(Item, numbers, bodies),
    st.builds(Failed, numbers, errors),
    st.builds(LoadFailed, errors),
    st.builds(Ready, numbers, st.dictionaries(st.text(max_size=3), numbers, max_size=2)),
)
to_child = st.one_of(
    st.builds(Submit, numbers, st.none() | st.floats(0, 1e9), st.booleans(), bodies, st.sampled_from([0, 1, 32])),
    st.builds(More, numbers, numbers),
    st.builds(Cancel, numbers),
    st.just(Drain()),
    st.just(
        Start(WorkerSpec(name="n", engine="function", options={"a": None}, sys_path=("x",), faults=Faults(leak=1)))
    ),
)
payloads = st.binary(max_size=40)


def plain(message):
    """Something to compare: raw bodies have no equality of their own."""
    return msgspec.msgpack.encode(message)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(st.tuples(to_parent, payloads), max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_messages(sent, cuts):
    decoder = parent_decoder()
    stream = b"".join(encode(message, payload) for message, payload in sent)
    got = [frame for piece in pieces_of(stream, cuts) for frame in decoder.feed(piece)]
    assert [(plain(m), bytes(p)) for m, p in got] == [(plain(m), p) for m, p in sent]


@given(st.lists(st.tuples(to_child, payloads), max_size=4))
def test_byte_by_byte(sent):
    decoder = child_decoder()
    stream = b"".join(encode(message, payload) for message, payload in sent)
    got = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert [(plain(m), bytes(p)) for m, p in got] == [(plain(m), p) for m, p in sent]


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_random_bytes_are_a_protocol_error_or_wait_for_more(pieces):
    decoder = parent_decoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
    except ProtocolError:
        return
    assert decoder._have <= sum(map(len, pieces))


@given(to_parent, payloads, st.data())
def test_a_damaged_frame_is_a_protocol_error_or_a_message(message, payload, data):
    frame = bytearray(encode(message, payload))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        for got, _ in parent_decoder().feed(bytes(frame)):
            assert isinstance(got, Item | Done | Failed | LoadFailed | Ready)


@given(st.binary(max_size=60), payloads)
def test_a_well_framed_body_of_anything(body, payload):
    data = struct.pack("<II", len(body), len(payload)) + body + payload
    for decoder in (parent_decoder(), child_decoder()):
        with contextlib.suppress(ProtocolError):
            assert len(decoder.feed(data)) == 1


def test_deep_nesting_is_a_protocol_error():
    body = b"\x91" * 200_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        parent_decoder().feed(struct.pack("<II", len(body), 0) + body)


@pytest.mark.parametrize("sizes", [(frames.MAX_FRAME + 1, 0), (0, frames.MAX_FRAME + 1), (2**32 - 1, 2**32 - 1)])
def test_an_oversized_frame_is_refused_on_its_header_alone(sizes):
    with pytest.raises(ProtocolError, match="the limit is 268,435,456"):
        parent_decoder().feed(struct.pack("<II", *sizes))


def test_the_largest_frame_is_waited_for():
    decoder = parent_decoder()
    assert decoder.feed(struct.pack("<II", frames.MAX_FRAME, 0)) == []


def test_the_limit_when_sending(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME", 100)
    encode(Cancel(1), b"x" * 80)
    with pytest.raises(FrameTooLarge, match="send it in parts"):
        encode(Cancel(1), b"x" * 100)


def test_a_message_for_the_other_side_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        parent_decoder().feed(encode(Cancel(1)))
    with pytest.raises(ProtocolError):
        child_decoder().feed(encode(Done(1, msgspec.Raw(BODY))))


def test_a_large_frame_in_many_reads_is_joined_once():
    decoder = parent_decoder()
    payload = bytes(1 << 20)
    frame = encode(Done(1, msgspec.Raw(BODY)), payload)
    got = [item for start in range(0, len(frame), 1000) for item in decoder.feed(frame[start : start + 1000])]
    assert [bytes(p) for _, p in got] == [payload]
    assert decoder._chunks == []


# What is large goes before its message, in slices

OPEN, OPEN_BYTES, A_SLICE, TAKES = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0x80000000


def large(number):
    """A message with a large body, a small payload and two large parts."""
    parts = [Part.of(bytes([number]) * (SLICE + 7)), Part.of(b"\x02" * (2 * SLICE), as_bytes=True)]
    body = msgspec.Raw(msgspec.msgpack.encode("b" * (SLICE + 1)))
    return Done(number, body), Parts([b"sm", b"all"], parts)


def stream_of(frames):
    return b"".join(header + bytes(rest) for header, rest in frames)


def check(message, payload, number):
    assert message.id == number
    assert msgspec.msgpack.decode(message.body) == "b" * (SLICE + 1)
    assert isinstance(payload, Received)
    assert bytes(payload.small) == b"small"
    first, second = payload.large
    assert bytes(first.memory()) == bytes([number]) * (SLICE + 7)
    assert not first.memory().readonly
    assert second.data() == b"\x02" * (2 * SLICE)


def read(decoder, stream, sizes):
    """Read it as a connection does: to where the decoder has room, in pieces of such sizes."""
    frames, position, sizes = [], 0, itertools.cycle(sizes)
    while position < len(stream):
        piece = stream[position : position + next(sizes)]
        room = decoder.room
        if room is None:
            frames += decoder.feed(piece)
        else:
            piece = piece[: len(room)]
            room[: len(piece)] = piece
            frames += decoder.filled(len(piece))
        position += len(piece)
    return frames


@given(st.lists(st.integers(1, 3 * SLICE), min_size=1, max_size=5), st.booleans())
def test_large_messages_arrive_whole_whatever_the_cuts(sizes, room):
    stream = stream_of(cut(*large(1))) + encode(Done(9, msgspec.Raw(BODY)), b"p") + stream_of(cut(*large(2)))
    sizes = [max(size, 500) for size in sizes]
    decoder = parent_decoder()
    if room:
        got = read(decoder, stream, sizes)
    else:
        got, position = [], 0
        for size in itertools.cycle(sizes):
            got += decoder.feed(stream[position : position + size])
            position += size
            if position >= len(stream):
                break
    (first, second), (small, payload), (third, fourth) = got
    check(first, second, 1)
    assert (small.id, bytes(payload)) == (9, b"p")
    check(third, fourth, 2)
    assert decoder.room is None


@given(st.integers(1, 40))
def test_small_messages_between_the_slices_of_a_large_one(size):
    stream, numbers = b"", []
    for number, (header, rest) in enumerate(cut(*large(1))):
        if number:
            numbers.append(100 + number)
            stream += encode(Done(100 + number, msgspec.Raw(BODY)), bytes(number))
        stream += header + bytes(rest)
    *between, last = read(parent_decoder(), stream, [size * 1000, 3])
    assert [(message.id, len(payload)) for message, payload in between] == [(n, n - 100) for n in numbers]
    check(*last, 1)


def test_large_parts_are_read_to_where_they_stay():
    stream = stream_of(cut(Done(1, msgspec.Raw(BODY)), Parts([], [Part.of(bytes(8 * SLICE))])))
    decoder = parent_decoder()
    decoder.feed(stream[:100])
    part = decoder._parts[0]
    assert decoder.room.obj is part.memory().obj


def test_what_is_discarded_is_forgotten():
    frames = list(cut(*large(1)))
    for kept in (1, 2, len(frames) - 1):
        stream = stream_of(frames[:kept]) + DISCARD + stream_of(cut(*large(2)))
        ((message, payload),) = parent_decoder().feed(stream)
        check(message, payload, 2)


def test_a_payload_of_bytes_that_is_large_arrives_as_one():
    ((message, payload),) = parent_decoder().feed(stream_of(cut(Done(1, msgspec.Raw(BODY)), bytes(SLICE + 1))))
    assert (message.id, len(payload), bytes(payload[:3])) == (1, SLICE + 1, bytes(3))


@pytest.mark.parametrize(
    "headers",
    [
        [(10, A_SLICE)],  # of no part
        [(10, OPEN), (11, A_SLICE)],  # more than the part has
        [(10, OPEN), (10, OPEN)],  # the first has not come
        [(10, OPEN), (0, TAKES)],  # the same
        [(0, TAKES | 0x40000000)],  # a body that is not there
        [(0, TAKES | 0x20000000)],  # a payload that is not there
        [(0, OPEN)] * 5000,  # parts of nothing, without end
        [(frames.MAX_FRAME + 1, OPEN)],
        [(frames.MAX_FRAME + 1, OPEN_BYTES)],
        [(0, 0xFFFFFFF0)],  # an unknown kind
    ],
)
def test_headers_of_parts_that_cannot_be_are_refused(headers):
    with pytest.raises(ProtocolError):
        parent_decoder().feed(b"".join(struct.pack("<II", *header) for header in headers))


def test_parts_of_one_message_are_limited_together(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME", 10)
    part = struct.pack("<II", 6, OPEN) + struct.pack("<II", 6, A_SLICE) + bytes(6)
    with pytest.raises(ProtocolError, match="the limit is 10"):
        parent_decoder().feed(part + part)


def test_the_limit_of_a_large_message_when_sending(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME", 3 * SLICE)
    with pytest.raises(FrameTooLarge):
        cut(*large(1))


@given(st.lists(st.sampled_from([0, 5, 10, OPEN, A_SLICE, TAKES, TAKES | 0x60000000, 0xFFFFFFFC]), max_size=60))
def test_any_headers_are_a_protocol_error_or_wait_for_more(numbers):
    data = struct.pack(f"<{len(numbers)}I", *numbers)
    with contextlib.suppress(ProtocolError):
        parent_decoder().feed(data)
