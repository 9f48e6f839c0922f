"""Checks what a caller asks of text generation, before it costs anything. Pure; both sides call it.

Every error names the argument, what it takes, and what came; never a prompt.
"""

# ruff: noqa: TRY004 - a wrong type is refused like a wrong size: one kind of error for whatever an argument does not take

from __future__ import annotations

import json
import math
import re
from typing import Any

from runners.protocol.generation import Sampling

#: Bounds on stop texts: how many, and characters of one.
MAX_STOPS, MAX_STOP_LENGTH = 16, 200
MAX_LOGIT_BIAS = 1_000
MAX_LOGPROBS = 20
MAX_CHOICES = 16
#: UTF-8 bytes of a grammar or of a schema as JSON.
MAX_GRAMMAR_BYTES = 64 * 1024
#: Levels of a schema, and of brackets in a grammar: the library's parser calls itself for each.
MAX_DEPTH = 64
#: All counted repetitions of a grammar together: each becomes a rule.
MAX_REPETITIONS = 20_000
_INT32 = 2**31 - 1

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TEMPLATE_OPTIONS = 100
_MAX_ROLE = 64
_MAX_NAME = 256


def check(sampling: Sampling) -> None:
    """Raises ValueError if an argument is out of its bounds or of the wrong type."""
    if sampling.max_tokens is not None:
        _integer("max_tokens", sampling.max_tokens, 1, _INT32)
    _number("temperature", sampling.temperature, 0, 100)
    _number("top_p", sampling.top_p, 0, 1)
    _integer("top_k", sampling.top_k, 0, _INT32)
    _number("min_p", sampling.min_p, 0, 1)
    _number("repeat_penalty", sampling.repeat_penalty, 0.01, 100)
    _number("presence_penalty", sampling.presence_penalty, -100, 100)
    _number("frequency_penalty", sampling.frequency_penalty, -100, 100)
    _integer("penalty_last_n", sampling.penalty_last_n, -1, _INT32)
    if sampling.seed is not None:
        _integer("seed", sampling.seed, 0, 2**32 - 1)
    _check_stop(sampling.stop)
    _check_bias(sampling.logit_bias)
    if sampling.logprobs is not None:
        _integer("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    _integer("n", sampling.n, 1, MAX_CHOICES)
    if sampling.grammar is not None:
        check_grammar(sampling.grammar)
    if sampling.json_schema is not None:
        check_schema(sampling.json_schema)
        if sampling.grammar is not None:
            raise ValueError("grammar and json_schema: both were given; the text can follow one of them")


def check_grammar(grammar: object) -> None:
    """Raises ValueError if `grammar` is no text, too large, or would overflow the stack of the library's parser."""
    if not isinstance(grammar, str):
        raise ValueError(f"grammar: takes GBNF as a str, not {_shown(grammar)}")
    _sized("grammar", grammar)
    if not grammar.strip():
        raise ValueError("grammar: is empty; leave it out for free text")
    if "\0" in grammar:
        raise ValueError("grammar: holds a NUL character, where the library would end it")
    depth = repetitions = 0
    # What stands in quotes, brackets and comments is no structure. An unclosed one runs to the end.
    for token in _GBNF.finditer(grammar):
        text = token[0]
        if text == "(":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"grammar: parentheses stand more than {MAX_DEPTH} deep; give the inner ones a name")
        elif text == ")":
            depth -= 1
        elif text[0] == "{":
            counts = [int(number) for number in re.findall(r"\d{1,9}", text)]
            repetitions += max(counts, default=0)
            if repetitions > MAX_REPETITIONS:
                raise ValueError(f"grammar: counted repetitions add up to more than {MAX_REPETITIONS:,}")


_GBNF = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)|\[(?:[^\]\\]|\\.)*(?:\]|\Z)|#[^\n\r]*|[()]|\{[^}]*\}?', re.DOTALL)


def check_schema(schema: object) -> None:
    """Raises ValueError if `schema` is no JSON schema in form and size."""
    if schema is True:
        return
    if not isinstance(schema, dict):
        raise ValueError(f"json_schema: takes a dict, or True for any JSON object, not {_shown(schema)}")
    _check_json("json_schema", schema, MAX_DEPTH)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema: cannot be written as JSON: {error}") from None
    _sized("json_schema", text)


def check_messages(messages: object) -> None:
    """Raises ValueError if `messages` are not 1 to 10,000 dicts with a role, and content that is a text, a list of
    text parts or None.
    """
    if not isinstance(messages, list):
        raise ValueError(f"messages: takes a list of dicts, not {_shown(messages)}")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise ValueError(f"messages: takes 1 to {MAX_MESSAGES:,} messages, not {len(messages):,}")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where}: takes a dict, not {_type(message)}")
        _check_json(where, message, MAX_DEPTH)
        role = message.get("role")
        if not isinstance(role, str) or not role or len(role) > _MAX_ROLE:
            raise ValueError(f'{where}: "role" takes a text of 1 to {_MAX_ROLE} characters, such as "user"')
        _check_content(message.get("content"), where)


def check_tools(tools: object) -> None:
    """Raises ValueError if `tools` is neither None nor a list of functions with names of their own."""
    if tools is None:
        return
    if not isinstance(tools, list):
        raise ValueError(f"tools: takes a list of dicts, not {_type(tools)}")
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools: takes at most {MAX_TOOLS} tools, not {len(tools):,}")
    for number, tool in enumerate(tools):
        _check_json(f"tools[{number}]", tool, MAX_DEPTH)
    names = tool_names(tools)
    if len(set(names)) < len(names):
        raise ValueError("tools: two have the same name")


def tool_names(tools: list[dict[str, Any]]) -> list[str]:
    """The name of each tool: ``{"type": "function", "function": {"name": ...}}``, or the inner dict alone."""
    names = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME:
            raise ValueError(f'tools[{number}]: takes {{"type": "function", "function": {{"name": ..., ...}}}}')
        names.append(name)
    return names


def check_template_options(options: object) -> None:
    """Raises ValueError if `options` is no dict of names and plain values."""
    if not isinstance(options, dict):
        raise ValueError(f"template_options: takes a dict, not {_type(options)}")
    if len(options) > MAX_TEMPLATE_OPTIONS:
        raise ValueError(f"template_options: takes at most {MAX_TEMPLATE_OPTIONS} variables, not {len(options):,}")
    _check_json("template_options", options, MAX_DEPTH)


def _check_content(content: object, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ValueError(f'{where}: "content" takes a text, a list of text parts or None, not {_type(content)}')
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'{where}: "content"[{number}] takes {{"type": "text", "text": ...}}; only text is read')


def _check_json(name: str, value: object, depth: int) -> None:
    """Only what JSON has, with text keys and at most `depth` levels. Walks without calling itself: a value may be
    deeper than the stack.
    """
    left: list[tuple[object, int]] = [(value, depth)]
    while left:
        item, levels = left.pop()
        if isinstance(item, dict | list):
            if not levels:
                raise ValueError(f"{name}: is more than {depth} levels deep")
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise ValueError(f"{name}: holds a key that is no text; JSON has text keys")
                left.extend((key, levels) for key in item)
                left.extend((inner, levels - 1) for inner in item.values())
            else:
                left.extend((inner, levels - 1) for inner in item)
        elif isinstance(item, str):
            _encodable(name, item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{name}: holds {item}, which JSON has no word for")
        elif item is not None and not isinstance(item, bool | int | float):
            raise ValueError(f"{name}: holds {_type(item)}, which JSON cannot hold")


def _check_stop(stop: Any) -> None:
    if not isinstance(stop, tuple | list):
        raise ValueError(f"stop: takes a list of texts, not {_type(stop)}")
    if len(stop) > MAX_STOPS:
        raise ValueError(f"stop: takes at most {MAX_STOPS} texts, not {len(stop):,}")
    for number, text in enumerate(stop):
        if not isinstance(text, str):
            raise ValueError(f"stop[{number}]: takes a text, not {_type(text)}")
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise ValueError(f"stop[{number}]: takes 1 to {MAX_STOP_LENGTH} characters, not {len(text):,}")
        _encodable(f"stop[{number}]", text)


def _check_bias(bias: Any) -> None:
    if not isinstance(bias, dict):
        raise ValueError(f"logit_bias: takes a dict of token ids and numbers, not {_type(bias)}")
    if len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias: takes at most {MAX_LOGIT_BIAS:,} tokens, not {len(bias):,}")
    for token, value in bias.items():
        _integer("logit_bias: a token id", token, 0, _INT32)
        # Minus infinity is the library's own word for "never".
        if value != -math.inf:
            _number(f"logit_bias[{token}]", value, -1e9, 1e9)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: takes a whole number from {low:,} to {high:,}, not {_shown(value)}")


def _number(name: str, value: object, low: float, high: float) -> None:
    # NaN is not between any two numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: takes a number from {low:,} to {high:,}, not {_shown(value)}")


def _sized(name: str, text: str) -> None:
    _encodable(name, text)
    size = len(text.encode())
    if size > MAX_GRAMMAR_BYTES:
        raise ValueError(f"{name}: takes at most {MAX_GRAMMAR_BYTES:,} bytes, not {size:,}")


def _encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: holds a lone surrogate at character {error.start}, which is no text") from None


def _shown(value: object) -> str:
    """A number as it is; of anything else the type: texts may be somebody's."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**20:
        return repr(value)
    return _type(value)


def _type(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
