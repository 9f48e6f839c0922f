"""A request while its text is generated: its sequences, what they have said, and what its reader may be sent.

Nothing here calls the library.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from runners.protocol.generation import (
    LENGTH,
    STOP,
    TOOL_CALLS,
    Choice,
    Completion,
    Piece,
    Sampling,
    TokenLogprob,
    ToolCall,
)
from runners.worker.engines.base import Job, Replies
from runners.worker.engines.llama import tools
from runners.worker.engines.llama.text import TextStream

if TYPE_CHECKING:
    from runners.worker.engines.llama.sampler import Sampler

_encode = msgspec.msgpack.Encoder().encode


class Generation:
    """One sequence: one of the `n` answers of a request.

    Attributes:
        number: its name in `Slots`.
        most: tokens that it may have.
    """

    __slots__ = (
        "begun",
        "choice",
        "held",
        "logprobs",
        "most",
        "number",
        "request",
        "sampler",
        "shown",
        "text",
        "tokens",
    )

    def __init__(self, number: int, request: Request, choice: int, sampler: Sampler, most: int) -> None:
        self.number = number
        self.request = request
        self.choice = choice
        self.sampler = sampler
        self.most = most
        self.text = TextStream(request.sampling.stop)
        self.held = tools.Held(request.tool_names) if request.tool_names else None
        self.begun = False
        self.tokens = 0
        self.shown: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def note_start(self, position: int) -> None:
        """Its first tokens were computed: what is before `position` came from another sequence."""
        if not self.begun:
            self.begun = True
            self.request.cached_tokens += position if self.choice == 0 else 0

    def take(self, data: bytes, *, ends: bool) -> str | None:
        """A token has come, which stands for `data`, or ends the text. The reason to finish, or None to go on."""
        if ends:
            return STOP
        self.tokens += 1
        self._show(self.text.feed(data))
        if self.text.stopped:
            return STOP
        return LENGTH if self.tokens >= self.most else None

    def finish(self, reason: str) -> None:
        """It has ended: give out what was held back."""
        self._show(self.text.finish())
        calls: list[ToolCall] = []
        if self.held is not None:
            rest, calls = self.held.finish()
            self._pass_on(rest)
        text = "".join(self.shown)
        if calls:
            text = text.strip()
        self.request.choices[self.choice] = Choice(
            text=text,
            finish_reason=TOOL_CALLS if calls and reason == STOP else reason,
            tokens=self.tokens,
            logprobs=self.logprobs if self.request.sampling.logprobs is not None else None,
            tool_calls=calls,
        )
        self.sampler.free()

    def _show(self, text: str) -> None:
        self._pass_on(text if self.held is None else self.held.feed(text))

    def _pass_on(self, text: str) -> None:
        if text:
            self.shown.append(text)
            self.request.pieces.append((self.choice, text))

    def note(self, logprob: TokenLogprob) -> None:
        """The log probability of the token that has come."""
        self.logprobs.append(logprob)
        self.request.noted.setdefault(self.choice, []).append(logprob)


class Request:
    """A job that generates.

    Attributes:
        credit: items that its reader may still be sent.
        pieces: text that was not sent yet, with the number of its choice.
        choices: the answers that are ready.
        running: its sequences that go on.
    """

    def __init__(self, job: Job, sampling: Sampling, *, prompt_tokens: int, tool_names: frozenset[str]) -> None:
        self.job = job
        self.sampling = sampling
        self.tool_names = tool_names
        self.credit = job.window
        self.pieces: deque[tuple[int, str]] = deque()
        self.noted: dict[int, list[TokenLogprob]] = {}
        self.choices: dict[int, Choice] = {}
        self.running: list[Generation] = []
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0

    @property
    def streams(self) -> bool:
        """Whether somebody reads along."""
        return self.job.window > 0

    @property
    def held_up(self) -> bool:
        """Whether its reader has to take something before it may go on."""
        return self.streams and self.credit <= 0

    def send(self, replies: Replies) -> None:
        """Send what its reader may be sent: all pieces of a choice that have gathered as one."""
        if not self.streams:
            self.pieces.clear()
            self.noted.clear()
            return
        while self.pieces and self.credit > 0:
            choice, text = self.pieces.popleft()
            parts = [text]
            while self.pieces and self.pieces[0][0] == choice:
                parts.append(self.pieces.popleft()[1])
            replies.item(self.job, _encode(Piece("".join(parts), choice, self.noted.pop(choice, None))))
            self.credit -= 1

    @property
    def complete(self) -> bool:
        """Whether all is generated and sent."""
        return len(self.choices) == self.sampling.n and not (self.streams and self.pieces)

    def answer(self, replies: Replies) -> None:
        """The whole of it."""
        choices = [self.choices[number] for number in range(self.sampling.n)]
        completion = Completion(choices=choices, prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens)
        replies.done(self.job, _encode(completion))
