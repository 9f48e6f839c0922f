"""The sides' turns. A turn is a fresh process, measured alone: nothing that was computed in one helps the next."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.generate_sides.load import (
    Heard,
    Listen,
    Messages,
    aggregate_rate,
    answered,
    ask_all,
    chats,
    chats_with_one_system,
    decode_rate,
    first_tokens,
)
from benchmarks.generate_sides.native import END, run_apart
from benchmarks.generate_sides.servers import Server, Setting
from runners import FunctionRunner, LlamaRunner

#: What a side measured in a turn, by the names of `FIGURES`.
Figures = dict[str, float]

#: Every figure's name, with the head of its column, how it is written, and what it is.
FIGURES = {
    "answered": ("answered", "{:.0f}", "chats of the load that came to their end"),
    "rate": ("tok/s", "{:.1f}", "of the load, from the first question to the last token"),
    "first_p50": ("p50 ms", "{:,.0f}", "to the first token of a chat of the load"),
    "first_p95": ("p95 ms", "{:,.0f}", "the same"),
    "decode": ("decode", "{:.1f}", "tok/s of 16 chats from the last one's first token on, until the first one ends"),
    "aggregate": ("all", "{:.1f}", "tok/s of the same chats, with their prompts"),
    "alone": ("alone", "{:.1f}", "tok/s of one chat after its first token, with nothing beside it"),
    "beside": ("in turns", "{:.1f}", "tok/s of one chat alone, in turns with the Llama object, chat by chat"),
    "llama beside": ("Llama's", "{:.1f}", "the Llama object's in these turns"),
    "shared": ("shared ms", "{:,.0f}", "to the last first token of 16 chats with one system prompt of 400 tokens"),
}


@dataclass(frozen=True)
class Load:
    """How much is asked. `most` is the tokens of each answer."""

    chats: int = 32
    at_once: int = 16
    most: int = 64
    alone: int = 3


QUICK = Load(chats=16, most=16, alone=1)


@contextlib.asynccontextmanager
async def run_runner(setting: Setting) -> AsyncIterator[tuple[LlamaRunner, Listen]]:
    """A `LlamaRunner` in this process, and how to ask it."""
    async with LlamaRunner(
        setting.path, slots=setting.slots, context=setting.context, threads=setting.threads, name="bench"
    ) as runner:

        async def listen(messages: Messages, most: int, heard: Heard) -> None:
            async with runner.stream_chat(messages, max_tokens=most, temperature=0) as pieces:
                async for _ in pieces:
                    heard.piece()
            assert pieces.completion is not None
            heard.tokens = pieces.completion.completion_tokens

        yield runner, listen


async def measure_bare(setting: Setting, load: Load, number: int, found: Figures) -> None:
    """The raw calls, 16 sequences."""
    asked = chats(number + 50, load.at_once)
    figures = await run_apart(
        "bare", asked, path=setting.path, most=load.most, threads=setting.threads, context=setting.context
    )
    found |= {"decode": figures["decode"], "aggregate": figures["aggregate"]}


async def measure_llama(setting: Setting, load: Load, number: int, found: Figures) -> None:
    """The `Llama` object, one chat after the other."""
    results = await run_apart(
        "llama",
        chats(number + 79, load.alone + 1),
        path=setting.path,
        most=load.most,
        threads=setting.threads,
        context=setting.context,
    )
    found["alone"] = statistics.median(result["rate"] for result in results[1:])  # the first one warms


async def measure_runner(setting: Setting, load: Load, number: int, found: Figures) -> None:
    """The runner, in process. One stream alone is measured in turns with the `Llama` object, chat by chat: the speed of
    a machine that is shared changes from one minute to the next by more than what they differ by.
    """
    async with run_runner(setting) as (_, listen):
        await _measure(listen, load, number, frozenset(PARTS), found)
        raw = FunctionRunner("benchmarks.generate_sides.native:llama_alone", name="llama-alone")
        async with raw:

            async def ours(asked: Messages) -> float:
                (heard,) = await ask_all(listen, [asked], load.most, at_once=1)
                return decode_rate([heard])

            async def theirs(asked: Messages) -> float:
                rate: float = await raw(setting.path, setting.context, setting.threads, asked, load.most)
                return rate

            both: list[tuple[float, float]] = []
            for pair, asked in enumerate(chats(number + 150, _PAIRS + 1)):
                rates = {}
                for side in (ours, theirs) if pair % 2 else (theirs, ours):
                    await asyncio.sleep(_REST)
                    rates[side] = await side(asked)
                both.append((rates[ours], rates[theirs]))
        found["beside"] = statistics.median(rate for rate, _ in both[1:])  # the first one loads
        found["llama beside"] = statistics.median(rate for _, rate in both[1:])


async def measure_server(
    server: Server, parts: frozenset[str], setting: Setting, load: Load, number: int, found: Figures
) -> None:
    """A server, over HTTP: the load, and those `parts`."""
    async with server.run(setting) as listen:
        await _measure(listen, load, number, parts, found)


#: Seconds before each: the library's threads spin on for a moment after their last token.
_REST = 0.2
#: Chats of the runner and of the `Llama` object in turns, each of the two first every other time.
_PAIRS = 8
#: Beside the load: 16 chats at once, one alone, 16 with one system prompt.
PARTS = ("decode", "alone", "shared")


async def _measure(listen: Listen, load: Load, number: int, parts: frozenset[str], found: Figures) -> None:
    """Put what is measured into `found` as it comes: what it has is kept if the rest takes too long."""
    await ask_all(listen, chats(number + 99, 1), 8, at_once=1)  # warm
    heard = await ask_all(listen, chats(number, load.chats), load.most, at_once=load.at_once)
    p50, p95 = first_tokens(heard)
    found["answered"] = float(len(answered(heard)))
    if found["answered"]:
        found |= {"rate": aggregate_rate(heard), "first_p50": p50 * 1e3, "first_p95": p95 * 1e3}
    if "decode" in parts:
        heard = await ask_all(listen, chats(number + 50, load.at_once), load.most, at_once=load.at_once)
        if len(answered(heard)) == load.at_once:
            found |= {"decode": decode_rate(heard), "aggregate": aggregate_rate(heard)}
    if "alone" in parts:
        alone = answered(await ask_all(listen, chats(number + 80, load.alone), load.most, at_once=1))
        if alone:
            found["alone"] = statistics.median(decode_rate([one]) for one in alone)
    if "shared" in parts:
        began = time.perf_counter()
        heard = await ask_all(listen, chats_with_one_system(number, load.at_once), 4, at_once=load.at_once)
        good = answered(heard)
        if len(good) == load.at_once:
            found["shared"] = (max(one.times[0] for one in good) - began) * 1e3


# Greedy output, token for token

#: Differences of logits below this may always come of the order in which a batch adds numbers up.
_ROUNDING = 0.1


@dataclass(frozen=True)
class Difference:
    """Chat `chat`'s output first differs at token `at`, where the `Llama` object's logit of its own choice was `margin`
    above that of the runner's; infinite if that was not among the likeliest.
    """

    chat: int
    at: int
    margin: float


@dataclass(frozen=True)
class Greedy:
    """`count` chats were compared, all at once. `rounding` is how far the library's own results differ between two ways
    to batch the same prompts: a smaller margin is a tie. `alone` is how many are equal when the runner is given one at
    a time too: then both have the same batches, and nothing explains a difference.
    """

    count: int
    differences: list[Difference]
    rounding: float
    alone: int

    def is_tie(self, difference: Difference) -> bool:
        """Whether rounding explains it."""
        return difference.margin <= max(_ROUNDING, self.rounding)

    @property
    def wrong(self) -> int:
        """Chats that differ by more."""
        return sum(not self.is_tie(one) for one in self.differences)


async def compare_greedy(setting: Setting, load: Load, number: int) -> Greedy:
    """Chats all at once through the runner, one by one through another, and one by one through `Llama`."""
    asked = chats(number, load.chats)
    async with run_runner(setting) as (runner, _):
        ids = await _greedy(runner, asked, load.most, at_once=load.chats)
    single = LlamaRunner(
        setting.path,
        slots=1,
        parked=0,
        prefix_memory=0,
        context=setting.context,
        threads=setting.threads,
        name="single",
    )
    async with single:
        singly = await _greedy(single, asked, load.most, at_once=1)
    apart = functools.partial(
        run_apart, path=setting.path, most=load.most, threads=setting.threads, context=setting.context
    )
    expected: list[dict[str, Any]] = await apart("greedy", asked)
    differences = []
    for chat, result in enumerate(expected):
        wanted, got = result["ids"], ids[chat]
        if got == wanted:
            continue
        shorter = min(len(got), len(wanted))
        at = next((i for i in range(shorter) if got[i] != wanted[i]), shorter)
        differences.append(Difference(chat, at, _margin(result["best"], got, at)))
    alone = sum(singly[chat] == result["ids"] for chat, result in enumerate(expected))
    return Greedy(len(asked), differences, await apart("rounding", asked), alone)


async def _greedy(runner: LlamaRunner, asked: list[Messages], most: int, *, at_once: int) -> dict[int, list[int]]:
    """The token ids of each chat's greedy answer."""
    ids: dict[int, list[int]] = {}

    async def listen(messages: Messages, most: int, heard: Heard) -> None:
        answer = await runner.chat(messages, max_tokens=most, temperature=0, logprobs=0)
        end = [END] if answer.finish_reason == "stop" else []
        ids[asked.index(messages)] = [one.token for one in answer.choices[0].logprobs or ()] + end
        heard.piece()

    for one in await ask_all(listen, asked, most, at_once=at_once):
        if one.error is not None:
            raise RuntimeError(f"a chat failed: {one.error}")
    return ids


def _margin(best: list[list[tuple[int, float]]], got: list[int], at: int) -> float:
    if at >= len(best) or at >= len(got):  # one of them ended there
        return float("inf")
    logits = dict(best[at])
    return max(logits.values()) - logits[got[at]] if got[at] in logits else float("inf")


# The machine


class Machine:
    """How busy the machine was with something else, from when this was made: call `others` once all that was started
    has ended.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._began = _busy_seconds(), _own_seconds(), time.perf_counter()

    def others(self) -> float:
        """Cores that were busy with something that is not ours, on average; 0 where that cannot be told."""
        own = _own_seconds() - self._own
        return max(0.0, (_busy_seconds() - self._busy - own) / (time.perf_counter() - self._began))


def _busy_seconds() -> float:
    try:
        with Path("/proc/stat").open() as file:
            fields = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
