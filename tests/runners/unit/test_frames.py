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
from runners.protocol.frames import FrameTooLarge, ProtocolError, child_decoder, encode, parent_decoder
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
