"""Messages on the wire: arrays with the type first, and forward compatible."""

from __future__ import annotations

import msgspec
import pytest

from runners.protocol.messages import (
    Cancel,
    Done,
    Drain,
    ErrorInfo,
    Failed,
    Item,
    More,
    Ready,
    Start,
    Submit,
    ToChild,
    ToParent,
)
from runners.spec import Faults, WorkerSpec


def on_the_wire(message):
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def test_the_wire_format():
    body = msgspec.Raw(msgspec.msgpack.encode([1]))
    assert on_the_wire(Submit(7, 1.5, False, body)) == ["submit", 7, 1.5, False, [1], 0]
    assert on_the_wire(Submit(7, 1.5, False, body, 32)) == ["submit", 7, 1.5, False, [1], 32]
    assert on_the_wire(More(7, 16)) == ["more", 7, 16]
    assert on_the_wire(Item(7, body)) == ["item", 7, [1]]
    assert on_the_wire(Cancel(7)) == ["cancel", 7]
    assert on_the_wire(Drain()) == ["drain"]
    assert on_the_wire(Done(7, body)) == ["done", 7, [1]]
    assert on_the_wire(Ready(16, {"dim": 3})) == ["ready", 16, {"dim": 3}, {}, 0, False]
    assert on_the_wire(Failed(7, ErrorInfo(kind="k", message="m"))) == [
        "failed", 7, {"kind": "k", "message": "m", "type": "", "traceback": "", "numbers": {},
                          "outcome": "failure", "retry_after": None},
    ]  # fmt: skip


def test_a_spec_survives():
    spec = WorkerSpec(
        name="n",
        engine="onnx",
        options={"a": [1, None]},
        sys_path=("/x",),
        environment={"A": "b"},
        faults=Faults(leak=3),
    )
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(Start(spec)), type=ToChild)
    assert again.spec == spec


@pytest.mark.parametrize(
    "wire",
    [
        [],
        ["submit"],
        ["nonsense", 1],
        ["cancel", "x"],
        ["cancel"],
        {"cancel": 1},
        5,
        ["done", 1],
        ["more", 1],
        ["item", 1],
    ],
)
def test_what_is_no_message(wire):
    for kind in (ToChild, ToParent):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(wire), type=kind)
