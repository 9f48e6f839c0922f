"""The load: chats that have never been seen before, how many are asked at once, and what was heard when."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Messages = list[dict[str, str]]

_TOPICS = (
    "lighthouse keeper",
    "mountain train",
    "old violin",
    "desert caravan",
    "river otter",
    "winter market",
    "broken clock",
    "space gardener",
)
_SYSTEM = "You are a careful storyteller who answers in plain English prose."
#: Some 13 tokens each.
_RULES = (
    "Section {} says that every {} is checked twice and written down in the book. ",
    "In case {} the {} goes back to its owner before the end of the day. ",
    "Rule {} asks whoever finds a {} to tell the office without delay. ",
    "By order {} no {} leaves the house unless two people have seen it. ",
)


def chats(first: int, count: int) -> list[Messages]:
    """Chats about the numbers from `first` on: three digits, so that all are about as long."""
    return [
        [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"Write a long story about a {_TOPICS[i % 8]} number {i}."},
        ]
        for i in range(first, first + count)
    ]


def chats_with_one_system(first: int, count: int) -> list[Messages]:
    """As `chats`, all with one system prompt of about 400 tokens, which begins with the number `first`."""
    rules = "".join(_RULES[i % 4].format(i, _TOPICS[i % 8]) for i in range(11, 33))
    system = {"role": "system", "content": f"You know handbook {first} by heart. {rules}Answer by it."}
    return [[system, messages[1]] for messages in chats(first, count)]


@dataclass
class Heard:
    """One chat. `times` are those at which pieces of text came, in the seconds of `time.perf_counter`."""

    began: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None

    def piece(self) -> None:
        """A piece has come, usually a token."""
        self.times.append(time.perf_counter())
        self.tokens += 1

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.began


Listen = Callable[[Messages, int, Heard], Awaitable[None]]


async def ask_all(listen: Listen, asked: Sequence[Messages], most: int, *, at_once: int) -> list[Heard]:
    """Ask all, `at_once` at the same time, for `most` tokens each. What went wrong is in `Heard.error`."""
    todo = iter(asked)
    heard: list[Heard] = []

    async def caller() -> None:
        for messages in todo:
            one = Heard()
            heard.append(one)
            try:
                await listen(messages, most, one)
            except Exception as error:
                one.error = f"{type(error).__name__}: {str(error)[:200]}"

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return heard


def answered(heard: Sequence[Heard]) -> list[Heard]:
    """Those that came to an end."""
    return [one for one in heard if one.error is None and one.times]


def aggregate_rate(heard: Sequence[Heard]) -> float:
    """Tokens a second, of all, from the first question to the last token."""
    good = answered(heard)
    if not good:
        return float("nan")
    return sum(one.tokens for one in good) / (max(one.times[-1] for one in good) - min(one.began for one in good))


def decode_rate(heard: Sequence[Heard]) -> float:
    """Tokens a second while everybody generates: from the last first token to the first last one."""
    good = answered(heard)
    if not good:
        return float("nan")
    start, end = max(one.times[0] for one in good), min(one.times[-1] for one in good)
    if end <= start:
        return float("nan")
    return sum(start < when <= end for one in good for when in one.times) / (end - start)


def first_tokens(heard: Sequence[Heard]) -> tuple[float, float]:
    """Seconds to the first token: median, and 95th percentile."""
    firsts = [one.first for one in answered(heard)]
    if len(firsts) < 2:
        return (float("nan"), float("nan"))
    cuts = statistics.quantiles(firsts, n=20, method="inclusive")
    return cuts[9], cuts[18]
