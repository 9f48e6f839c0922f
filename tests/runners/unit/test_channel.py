"""The worker's end of the socket."""

from __future__ import annotations

import socket

import msgspec
import pytest

from runners.protocol import frames
from runners.protocol.frames import child_decoder, encode, parent_decoder
from runners.protocol.messages import Cancel, Done, Drain, Failed, Item, Submit
from runners.worker.channel import Channel, ParentGone
from runners.worker.engines.base import CANCELLED, EngineError, Job, exception_info

BODY = msgspec.msgpack.encode(1)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(2)
        yield ours, Channel(theirs, child_decoder())


def job(number=1, window=0):
    return Job(Submit(number, None, False, msgspec.Raw(BODY), window), memoryview(b""))


def test_answers_go_out_together_with_the_flush(pair):
    ours, channel = pair
    channel.done(job(1), BODY, b"xy")
    channel.failed(job(2), CANCELLED)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    channel.flush()
    (first, payload), (second, _) = parent_decoder().feed(ours.recv(9999))
    assert (first.id, bytes(payload), second.error.kind) == (1, b"xy", "cancelled")
    channel.flush()
    with pytest.raises(BlockingIOError):
        ours.recv(1)


def test_a_result_too_large_is_an_answer_too(pair, monkeypatch):
    ours, channel = pair
    monkeypatch.setattr(frames, "MAX_FRAME", 300)
    channel.done(job(5), BODY, b"x" * 400)
    channel.flush()
    ((answer, _),) = parent_decoder().feed(ours.recv(9999))
    assert isinstance(answer, Failed)
    assert (answer.id, answer.error.kind) == (5, "unsendable")
    assert "the result is too large" in answer.error.message


def test_items_go_out_with_the_answers_in_order(pair):
    ours, channel = pair
    stream = job(7, window=2)
    channel.streams += 1
    channel.item(stream, BODY, b"xy")
    channel.item(stream, BODY)
    channel.done(job(8), BODY)
    assert channel.streams == 1
    channel.failed(stream, CANCELLED)
    assert channel.streams == 0
    channel.flush()
    got = parent_decoder().feed(ours.recv(9999))
    assert [(type(message), message.id, bytes(payload)) for message, payload in got] == [
        (Item, 7, b"xy"), (Item, 7, b""), (Done, 8, b""), (Failed, 7, b""),
    ]  # fmt: skip


def test_an_item_too_large_is_the_engines_to_answer(pair, monkeypatch):
    _, channel = pair
    monkeypatch.setattr(frames, "MAX_FRAME", 300)
    with pytest.raises(EngineError, match="an item is too large") as caught:
        channel.item(job(5, window=1), BODY, b"x" * 400)
    assert caught.value.kind == "unsendable"


def test_answers_that_are_many_or_old_are_due(pair):
    _, channel = pair
    assert not channel.due
    channel.done(job(), BODY, b"x" * 70_000)
    assert channel.due


def test_polling_does_not_wait_unless_told(pair):
    ours, channel = pair
    assert channel.poll(wait=False) == []
    ours.sendall(encode(Cancel(1)) + encode(Drain()))
    assert [type(message) for message, _ in channel.poll(wait=True)] == [Cancel, Drain]


def test_what_came_with_the_first_message_is_not_lost(pair):
    ours, channel = pair
    ours.sendall(encode(Cancel(1)) + encode(Cancel(2)))
    assert channel.receive()[0].id == 1
    assert [message.id for message, _ in channel.poll(wait=False)] == [2]


def test_a_parent_that_is_gone(pair):
    ours, channel = pair
    ours.close()
    with pytest.raises(ParentGone):
        channel.poll(wait=True)
    channel.done(job(), BODY)
    with pytest.raises(ParentGone):
        channel.flush()


# Errors on their way to the parent


def test_every_error_can_be_encoded():
    for info in (EngineError("bad_option", "half \udc80").info(), exception_info(ValueError("half \ud800" * 50_000))):
        assert frames.encode(Failed(1, info))
    assert EngineError("k", "half \udc80").info().message == r"half \udc80"


def test_a_done_message_carries_its_body():
    ((message, payload),) = parent_decoder().feed(encode(Done(3, msgspec.Raw(BODY)), b"p"))
    assert (bytes(message.body), bytes(payload)) == (BODY, b"p")
