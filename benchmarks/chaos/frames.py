"""100,000 random and mutated frames, to either side's decoder, and some hundreds to real workers."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from runners.protocol.frames import Decoder, ProtocolError, child_decoder, encode, parent_decoder
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
    ToParent,
)
from runners.spec import WorkerSpec
from runners.supervision.exit import Exit
from runners.supervision.process import WorkerProcess

_BODY = msgspec.Raw(msgspec.msgpack.encode((["x" * 20, 7], {})))
SPEC = WorkerSpec(name="fuzzed", engine="function", options={"function": "os:getpid"}, sys_path=tuple(sys.path))
TO_CHILD = [
    encode(Submit(7, 1.5, False, _BODY), b"payload"),
    encode(Submit(8, None, False, _BODY, 2)),
    encode(More(8, 1)),
    encode(Cancel(7)),
    encode(Drain()),
    encode(Start(SPEC)),
]
TO_PARENT = [
    encode(Ready(16, {"function": "os:getpid"})),
    encode(Item(8, _BODY), b"\x00" * 64),
    encode(Done(7, _BODY), b"\x00" * 64),
    encode(Failed(7, ErrorInfo(kind="input", message="no"))),
    encode(LoadFailed(ErrorInfo(kind="bad_option", message="no"))),
]


def mutated(chance: random.Random, frames: list[bytes]) -> bytes:
    """Random bytes, or frames with some of them changed, taken out, doubled or put in."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    data = bytearray(b"".join(chance.choices(frames, k=chance.randrange(1, 4))))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(4)
        if what == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif what == 2:
            data[at:at] = data[at : at + 8]
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def fuzz(count: int, seed: int) -> tuple[Counter[str], float]:
    """What became of `count` streams, half to each side, and the seconds that the slowest took."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        side, decoder = ("child", child_decoder()) if number % 2 else ("parent", parent_decoder())
        data = mutated(chance, TO_CHILD if number % 2 else TO_PARENT)
        cut = chance.randrange(len(data) + 1)
        began = time.perf_counter()
        ends[f"{side}: {_fed(decoder, data, cut)}"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    return ends, slowest


def _fed(decoder: Decoder[Any], data: bytes, cut: int) -> str:
    try:
        decoder.feed(data[:cut])
        decoder.feed(data[cut:])
    except ProtocolError:
        return "protocol error"
    return "read, or waits for more"


async def fuzz_workers(count: int, seed: int) -> Counter[str]:
    """How real workers ended that were sent such streams, and then nothing more: each within 10 s."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    for _ in range(count):
        ready: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        worker = WorkerProcess(SPEC, on_message=_first_message(ready), on_exit=ended.set_result, on_sent=lambda _: None)
        await worker.start()
        await ready
        transport = worker._transport
        assert transport is not None
        transport.write(mutated(chance, TO_CHILD[:-1]))
        transport.write_eof()
        done, _ = await asyncio.wait((ended,), timeout=10)
        if not done:
            worker.kill("hung")
        end = await ended
        last = end.stderr.rpartition("\n")[2].partition(":")[0].rpartition(".")[2]
        ends["in good order" if end.code == 0 else end.reason or last or end.label] += 1
    return ends


def _first_message(ready: asyncio.Future[object]) -> Callable[[ToParent, object], None]:
    def received(message: ToParent, _: object) -> None:
        if not ready.done():
            ready.set_result(message)

    return received
