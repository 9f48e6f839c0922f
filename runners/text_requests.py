"""From what callers of `LlamaRunner` give to the requests that cross to its worker: checked, and named when wrong."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import msgspec

from runners.errors import InvalidInput, InvalidType
from runners.protocol.generation import Ask, Chat, Complete, Sampling
from runners.protocol.generation_check import check, check_messages, check_template_options, check_tools

#: How much of a prompt says which worker may know its beginning.
_BEGINNING = 1024
#: More than any model has.
_TOKENS = 2**31
_encode = msgspec.msgpack.Encoder().encode


class SamplingOptions(TypedDict, total=False):
    """Keywords of `complete`, `chat` and their streams: how tokens are chosen, and when to stop. See
    `runners.protocol.generation.Sampling` for what each does, and the defaults.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    seed: int | None
    stop: str | Sequence[str]
    logit_bias: Mapping[int, float]
    logprobs: int | None
    n: int
    grammar: str | None
    json_schema: dict[str, Any] | bool | None


@contextmanager
def as_invalid_input() -> Iterator[None]:
    """What a check of the caller's arguments raises becomes an `InvalidInput`, which guards know for what it is.

    A TypeError becomes an `InvalidType`: both can still be caught as the TypeError or ValueError that they are.
    """
    try:
        yield
    except InvalidInput:
        raise
    except TypeError as error:
        raise InvalidType(str(error)) from error
    except ValueError as error:
        raise InvalidInput(str(error)) from error


@as_invalid_input()
def complete(prompt: str | Sequence[int], options: SamplingOptions, *, streams: bool = False) -> Complete:
    """Go on with `prompt`.

    Raises:
        InvalidInput: an argument is not what it should be; the message names it.
    """
    if isinstance(prompt, str):
        return Complete(as_texts([prompt])[0], as_sampling(options, streams=streams))
    tokens = list(prompt)
    if not all(type(token) is int for token in tokens):
        raise TypeError("prompt takes a str or a sequence of token ids")
    wrong = next((token for token in tokens if not 0 <= token < _TOKENS), None)
    if wrong is not None:
        raise InvalidInput(f"prompt: no model has a token {wrong}")
    return Complete(tokens, as_sampling(options, streams=streams))


@as_invalid_input()
def chat(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    template: str | None,
    template_options: Mapping[str, Any] | None,
    options: SamplingOptions,
    *,
    streams: bool = False,
) -> Chat:
    """Answer `messages`.

    Raises:
        InvalidInput: an argument is not what it should be; the message names it.
    """
    if isinstance(messages, str | Mapping):
        raise TypeError("messages takes a sequence of dicts: [{'role': 'user', 'content': '...'}]")
    given = [dict(message) for message in messages]
    check_messages(given)
    functions = None if tools is None else [dict(tool) for tool in tools]
    check_tools(functions)
    more = dict(template_options or {})
    check_template_options(more)
    return Chat(given, as_sampling(options, streams=streams), functions, template, more)


def as_sampling(options: SamplingOptions, *, streams: bool) -> Sampling:
    """The options, checked. Raises ValueError, with the name of the one that is wrong."""
    stop = options.get("stop", ())
    known: dict[str, Any] = dict(options)  # what is of no use is refused by `check`, by name
    if isinstance(stop, str):
        known["stop"] = (stop,)
    elif isinstance(stop, Sequence):
        known["stop"] = tuple(stop)
    if isinstance(options.get("logit_bias"), Mapping):
        known["logit_bias"] = dict(options["logit_bias"])
    sampling = Sampling(**known)
    check(sampling)
    if streams and sampling.n != 1:
        raise ValueError(f"n takes 1 where the text is streamed, not {sampling.n}: make several streams")
    return sampling


def as_texts(texts: Sequence[str]) -> list[str]:
    """A list of texts that can be encoded. Raises InvalidInput."""
    if isinstance(texts, str):
        raise InvalidInput("texts takes a list of str, not one str")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidInput(f"a text must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"a text holds half of a surrogate pair, at {error.start}: it is not Unicode") from None
    return list(texts)


def beginning(ask: Ask) -> int | None:
    """What prompts with the same beginning have in common: a conversation's first messages, or a prompt's first
    characters.
    """
    if isinstance(ask, Chat):
        first = ask.messages[: 2 if ask.messages[0].get("role") == "system" else 1]
        return zlib.crc32(_encode([first, ask.tools]))
    if isinstance(ask, Complete):
        return zlib.crc32(_encode(ask.prompt[:_BEGINNING]))
    return None


def operation_of(ask: Ask) -> str:
    """What events call it: as OpenTelemetry's conventions for generative AI do."""
    return "chat" if isinstance(ask, Chat) else "text_completion"
