"""What a text generation request and its answer hold: the terms that `LlamaRunner` and the llama engine share."""

from __future__ import annotations

from typing import Any

import msgspec

#: Values of `Choice.finish_reason`.
STOP, LENGTH, TOOL_CALLS = "stop", "length", "tool_calls"


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen, and when to stop. The names and meanings are those of the OpenAI and llama.cpp interfaces.

    Attributes:
        max_tokens: tokens to generate, at most; 1 or more. None: what the context leaves, or 512 if that is less.
        temperature: 0 is greedy: always the most likely token.
        top_p: of the most likely tokens those that together have this probability; 1 is all.
        top_k: of the most likely tokens so many; 0 is all.
        min_p: only tokens with at least this share of the most likely one's probability; 0 is all.
        repeat_penalty: logits of tokens among the last `penalty_last_n` are divided (if negative: multiplied) by it.
        presence_penalty: taken from the logit of each token that is among them.
        frequency_penalty: taken once for each time that it is among them.
        penalty_last_n: tokens that the penalties look back on; -1: the whole context.
        seed: of the random numbers; the same seed gives the same choice of tokens for the same probabilities. None: a
            random one.
        stop: texts that end the generation; the answer does not hold them.
        logit_bias: added to the logits of these tokens, by token id; -100 or less forbids one.
        logprobs: None, or for so many of the likeliest alternatives, 0 to 20, their log probabilities beside each
            token's own.
        n: independent answers to make.
        grammar: GBNF that the text must follow.
        json_schema: a JSON schema that the text must follow; True is any JSON object.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    logprobs: int | None = None
    n: int = 1
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    """Go on with a text (special tokens in it are text), or with token ids."""

    prompt: str | list[int]
    sampling: Sampling


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """Answer messages, through the model's chat template.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` each, and what else the template knows.
        sampling: how to generate.
        tools: tools that may be called, as JSON-schema functions, if the template has a place for them.
        template: a Jinja template instead of the model's own; None: that.
        template_options: variables for the template.
    """

    messages: list[dict[str, Any]]
    sampling: Sampling
    tools: list[dict[str, Any]] | None = None
    template: str | None = None
    template_options: dict[str, Any] = msgspec.field(default_factory=dict)


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """The pooled, normalised embedding of each text. The answer's payload: float32, texts x dim."""

    texts: list[str]


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Token ids of a text, or only how many (`count`); of messages through the template, if given instead."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    count: bool = False
    special: bool = False


Ask = Complete | Chat | Embed | Tokenize


class TokenLogprob(msgspec.Struct, frozen=True):
    """One generated token: its text, its id, the log of its probability, and the likeliest alternatives as pairs of
    text and log probability.
    """

    text: str
    token: int
    logprob: float
    top: list[tuple[str, float]] = []


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model asks for: the function's name, and its arguments as JSON text."""

    id: str
    name: str
    arguments: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One generated text.

    Attributes:
        text: it.
        finish_reason: ``"stop"`` (the model ended, or a stop text came), ``"length"`` (`max_tokens`, or the context is
            full) or ``"tool_calls"``.
        tokens: how many were generated.
        logprobs: of each token, if asked for.
        tool_calls: calls that the text asked for.
    """

    text: str
    finish_reason: str
    tokens: int
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCall] = []


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `Complete` and `Chat`. ``str(completion)`` is the text of the first choice.

    Attributes:
        choices: `n` of them.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those among them that had been computed for another request.
    """

    choices: list[Choice]
    prompt_tokens: int
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """The first choice's."""
        return self.choices[0].finish_reason

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, of all choices."""
        return sum(choice.tokens for choice in self.choices)

    def __str__(self) -> str:
        return self.text


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """An item of a stream: a piece of text of a choice, never cut within a character."""

    text: str
    choice: int = 0
    logprobs: list[TokenLogprob] | None = None
