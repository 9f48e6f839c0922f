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
        window: items of the answer that may be sent before `More` allows more. 0: the answer is no stream.
    """

    id: int
    timeout: float | None
    alone: bool
    body: msgspec.Raw
    window: int = 0


class Cancel(Message, tag="cancel"):
    """Parent: nobody waits for this request any more. It is answered all the same, with `Failed` if it was dropped."""

    id: int


class More(Message, tag="more"):
    """Parent: the reader of a stream has taken `count` items, so as many more may be sent."""

    id: int
    count: int


class Drain(Message, tag="drain"):
    """Parent: answer what you have, then exit."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An error that happened in the child.

    Attributes:
        kind: a stable word from which the parent builds the error's class; see `runners.errors`.
        message: for people: what is wrong and how to put it right.
        type: qualified name of the exception's class, where there was one.
        traceback: its formatted traceback, where there was one.
        numbers: sizes that the error's class has as attributes.
        outcome: what an exception of the function counts as for guards: one of `guardrails.core.outcome.Kind`.
        retry_after: seconds that the exception asks to wait.
    """

    kind: str
    message: str
    type: str = ""
    traceback: str = ""
    numbers: dict[str, int] = {}
    outcome: str = "failure"
    retry_after: float | None = None


class Ready(Message, tag="ready"):
    """Child: loaded and warm.

    Attributes:
        capacity: requests that the parent may have here at once.
        info: facts about what was loaded (``dim``, ``max_tokens`` ...).
        files: fingerprints of the files that it was loaded from, by path.
        ahead: further ones that it may have here while steps are very short.
        recallable: whether requests begin in the order in which they were sent, each one claimed on the status page.
    """

    capacity: int
    info: dict[str, Any]
    files: dict[str, str] = {}
    ahead: int = 0
    recallable: bool = False


class LoadFailed(Message, tag="load_failed"):
    """Child: it could not be loaded. The child exits after this."""

    error: ErrorInfo


class Item(Message, tag="item"):
    """Child: the next piece of a streamed answer. The pieces come in order, all before the one `Done` or `Failed`, and
    never more of them than the parent allowed. Array bytes follow in the frame's payload.
    """

    id: int
    body: msgspec.Raw


class Done(Message, tag="done"):
    """Child: the answer; of a stream, its end."""

    id: int
    body: msgspec.Raw


class Failed(Message, tag="failed"):
    """Child: there is no answer, and why."""

    id: int
    error: ErrorInfo


ToChild = Start | Submit | More | Cancel | Drain
ToParent = Ready | LoadFailed | Item | Done | Failed


def stream_mismatch(function: str, *, streams: bool) -> str:
    """What is wrong with a call of a function that is a generator function, or is none. Either side may notice."""
    if streams:
        return f"{function!r} is a generator function: read it with 'async for item in runner.stream(...)'"
    return f"{function!r} is no generator function: call it with 'await runner(...)'"
