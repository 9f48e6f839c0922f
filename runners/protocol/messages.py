"""The messages, as msgspec structs: arrays on the wire, with the type's tag first."""

from __future__ import annotations

from typing import Any

import msgspec

from runners.spec import WorkerSpec


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages."""


class Start(Message, tag="start"):
    """Parent: load this."""

    spec: WorkerSpec


class Submit(Message, tag="submit"):
    """Parent: do this.

    Attributes:
        id: unique for the runner's life; the answer carries it.
        timeout: seconds that the caller will still wait, or None.
        alone: run it by itself, not in one pass with others: it is suspected of having crashed a worker.
        body: what to do, in the engine's own terms (msgpack). Array bytes follow in the frame's payload.
    """

    id: int
    timeout: float | None
    alone: bool
    body: msgspec.Raw


class Cancel(Message, tag="cancel"):
    """Parent: nobody waits for this request any more. It is answered all the same, with `Failed` if it was dropped."""

    id: int


class Drain(Message, tag="drain"):
    """Parent: answer what you have, then exit."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An error that happened in the child.

    Attributes:
        kind: a stable word from which the parent builds the error's class; see `runners.errors`.
        message: for people: what is wrong and how to put it right.
        type: qualified name of the exception's class, where there was one.
        traceback: its formatted traceback, where there was one.
    """

    kind: str
    message: str
    type: str = ""
    traceback: str = ""


class Ready(Message, tag="ready"):
    """Child: loaded and warm.

    Attributes:
        capacity: requests that the parent may have here at once.
        info: facts about what was loaded (``dim``, ``max_tokens`` ...).
    """

    capacity: int
    info: dict[str, Any]


class LoadFailed(Message, tag="load_failed"):
    """Child: it could not be loaded. The child exits after this."""

    error: ErrorInfo


class Done(Message, tag="done"):
    """Child: the answer."""

    id: int
    body: msgspec.Raw


class Failed(Message, tag="failed"):
    """Child: there is no answer, and why."""

    id: int
    error: ErrorInfo


ToChild = Start | Submit | Cancel | Drain
ToParent = Ready | LoadFailed | Done | Failed
