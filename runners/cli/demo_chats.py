"""The demo's second act: 16 chats at once with SmolLM2-135M in two workers, one of which is killed in the middle.

The runner gives a request whose worker died to the other one by itself, as long as nothing of its answer was read. Of
these chats most have been read in part: they get `RunnerCrashed` with the text so far, and are asked again with that
text, to go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runners.cli.progress import Progress
from runners.errors import RunnerCrashed
from runners.llama import LlamaRunner

QUESTIONS = (
    "What is the sea?", "Tell me about bread.", "Why is the sky blue?", "What does a baker do?",
    "Describe a forest in winter.", "How do birds fly?", "What is a good breakfast?", "Tell me about the moon.",
    "Why do we sleep?", "What is a river?", "How is paper made?", "Tell me about violins.",
    "What is a volcano?", "How do bees make honey?", "What is a lighthouse for?", "Tell me a story about a cat.",
)  # fmt: skip
_WORKERS = 2
_EVERY = 0.12
#: The worker is killed when this share of the text is there.
_KILL_AT = 0.4
#: How often a chat is asked again, at most.
_AGAIN = 3
#: SmolLM2's own format, but the last message is left open: the model goes on with it.
_GO_ON = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
)


@dataclass
class Chat:
    """One of the chats.

    Attributes:
        question: the user's message.
        text: the answer so far.
        tokens: how many that are.
        state: ``waiting``, ``talking``, ``again`` (talking, after it was asked again), ``done`` or ``lost``.
        first: seconds to the first token.
        asked_again: how often.
        error: why it is lost.
    """

    question: str
    text: str = ""
    tokens: int = 0
    state: str = "waiting"
    first: float | None = None
    asked_again: int = 0
    error: str = ""


@dataclass
class Act:
    """What happened; `limit` in tokens of each answer, `began` and `killed_at` in seconds of `time.perf_counter`."""

    limit: int = 96
    chats: list[Chat] = field(default_factory=lambda: [Chat(question) for question in QUESTIONS])
    began: float = 0.0
    killed: int | None = None
    killed_at: float = 0.0
    seconds: float = 0.0
    redelivered: int = 0

    @property
    def tokens(self) -> int:
        """Of all chats."""
        return sum(chat.tokens for chat in self.chats)

    def headline(self) -> str:
        """How it goes, in one line."""
        now = self.seconds or time.perf_counter() - self.began
        done = sum(chat.state == "done" for chat in self.chats)
        lost = sum(chat.state == "lost" for chat in self.chats)
        killed = f"   worker {self.killed} killed after {self.killed_at - self.began:.1f} s" if self.killed else ""
        rate = self.tokens / max(now, 1e-9)
        return f"{self.tokens:,} tokens   {rate:,.0f} tokens/s   {done} of {len(self.chats)} done   lost {lost}{killed}"


def play(model: Path, limit: int) -> int:
    """Play the act with answers of so many tokens; 0 if every chat came to its end."""
    act = Act(limit=limit)
    asyncio.run(_play(model, act))
    print("\n".join(report(act)))
    return 0 if act.killed and all(chat.state == "done" for chat in act.chats) else 1


async def _play(model: Path, act: Act) -> None:
    progress = Progress("loading SmolLM2-135M in two workers", total=1)
    runner = LlamaRunner(
        model, name="smollm2", workers=_WORKERS, slots=len(act.chats) // _WORKERS, context=2048, memory="512MiB"
    )
    async with runner:
        progress.done(f"SmolLM2-135M is loaded: {_WORKERS} workers, {runner.info['slots']} slots each")
        act.began = time.perf_counter()
        with _shown(act) as show:
            helpers = [asyncio.create_task(_show(show)), asyncio.create_task(_kill(runner, act))]
            await asyncio.gather(*(_talk(runner, chat, seed, act.limit) for seed, chat in enumerate(act.chats)))
            act.seconds = time.perf_counter() - act.began
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            show()
        act.redelivered = runner.stats().redelivered


async def _talk(runner: LlamaRunner, chat: Chat, seed: int, limit: int) -> None:
    """Read an answer to its end, asking again where its worker dies."""
    asked = time.perf_counter()
    question = {"role": "user", "content": chat.question}
    chat.state = "talking"
    while True:
        left = max(1, limit - chat.tokens)
        if chat.text:
            so_far = {"role": "assistant", "content": chat.text}
            pieces = runner.stream_chat(
                [question, so_far], template=_GO_ON, max_tokens=left, temperature=0.6, seed=seed
            )
        else:
            pieces = runner.stream_chat([question], max_tokens=left, temperature=0.6, seed=seed)
        try:
            async for text in pieces:
                chat.first = chat.first or time.perf_counter() - asked
                chat.text += text
                chat.tokens += 1
        except RunnerCrashed as error:
            if chat.asked_again == _AGAIN:
                chat.state, chat.error = "lost", str(error)
                return
            chat.asked_again += 1
            chat.state = "again"
        except Exception as error:  # every kind of loss is counted, and shown
            chat.state, chat.error = "lost", f"{type(error).__name__}: {error}"
            return
        else:
            chat.state = "done"
            return


async def _kill(runner: LlamaRunner, act: Act) -> None:
    """Kill the busier worker, with its chats in the middle."""
    enough = _KILL_AT * act.limit * len(act.chats)
    while True:
        await asyncio.sleep(0.02)
        done = sum(chat.state == "done" for chat in act.chats)
        if act.tokens >= enough or done >= len(act.chats) // 2:
            break
    busy = max(runner.stats().workers, key=lambda worker: worker.in_flight)
    os.kill(busy.pid, signal.SIGKILL)
    act.killed, act.killed_at = busy.pid, time.perf_counter()


# What is shown meanwhile


async def _show(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(_EVERY)


@contextlib.contextmanager
def _shown(act: Act) -> Iterator[Callable[[], None]]:
    """Shows the chats in a grid, where there are a terminal with room for it and rich; else in lines."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from runners.cli.demo_grid import live_grid

        with live_grid(act) as show:
            if show is not None:
                yield show
                return
    yield _Lines(act)


class _Lines:
    """A progress line, and a line for each chat that has ended."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self._said: set[int] = set()
        self._progress = Progress("16 chats are asked", total=len(act.chats))

    def __call__(self) -> None:
        for number, chat in enumerate(self._act.chats):
            if chat.state in ("done", "lost") and number not in self._said:
                self._said.add(number)
                print(f"  {chat.question:<30}{plain(chat.text)[:84]}", flush=True)
        if len(self._said) == len(self._act.chats):
            self._progress.done(self._act.headline())
        else:
            self._progress.say(self._act.headline())


def plain(text: str) -> str:
    """A model's text in one line, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def report(act: Act) -> list[str]:
    """The last lines."""
    total = len(act.chats)
    done = sum(chat.state == "done" for chat in act.chats)
    again = sum(chat.asked_again > 0 for chat in act.chats)
    first = sorted(chat.first for chat in act.chats if chat.first is not None) or [0.0]
    p95 = first[min(len(first) - 1, int(0.95 * len(first)))]
    rows = [
        ("chats at once", f"{total}"),
        ("came to their end", f"{done}"),
        ("lost", f"{total - done}"),
        ("worker killed", f"1 of {_WORKERS}, after {act.killed_at - act.began:.1f} s" if act.killed else "none"),
        ("redelivered", f"{act.redelivered}"),
        ("asked again", f"{again}"),
        ("first token p50/p95", f"{first[len(first) // 2] * 1e3:,.0f} / {p95 * 1e3:,.0f} ms"),
        ("tokens per second", f"{act.tokens / act.seconds:,.0f} ({act.tokens:,} in {act.seconds:.1f} s)"),
    ]
    lines = ["", *(f"  {name:<20}{value}" for name, value in rows), ""]
    if act.killed:
        lines.append(
            f"  A chat of which nothing was read yet is redelivered by the runner: {act.redelivered}.\n"
            "  One whose text was being read is not, for that text cannot be taken back: it got RunnerCrashed with\n"
            f"  the text so far, and this demo asked again with that text, to go on from there: {again}."
        )
    lines += [f"  lost: {chat.question} {chat.error}" for chat in act.chats if chat.state == "lost"]
    return lines
