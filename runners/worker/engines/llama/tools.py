r"""From a generated text to the tool calls in it. Pure.

Formats, as models were trained on them::

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Hermes, Qwen; the closing tag may be missing at the end
    <tool_call>[{"name": ..., "arguments": {...}}]</tool_call>   SmolLM2
    [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]         Mistral; also [TOOL_CALLS]name{...} and name[ARGS]{...}
    <|python_tag|>{"name": ..., "parameters": {...}}; ...        Llama 3, also without the tag, if that is all the text

A call counts if its name is one of the tools' and its arguments are an object. Anything else stays text.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from runners.protocol.generation import ToolCall

#: Calls in one text, at most; what comes after them stays text.
MAX_CALLS = 128
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MISTRAL = "[TOOL_CALLS]"
_PYTHON = "<|python_tag|>"
_MARK = re.compile("|".join(map(re.escape, (_OPEN, _MISTRAL, _PYTHON))))
_NAMED = re.compile(r"\s*([\w.\-]{1,256})(?:\[ARGS\])?\s*(?=\{)")
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*;\s*")
_read_value = json.JSONDecoder().raw_decode

#: A name and its arguments, as JSON text.
_Call = tuple[str, str]


def parse(text: str, known_names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """The text without its calls, and the calls in order.

    Args:
        text: a whole answer. Any text is taken.
        known_names: names of the tools that were offered; calls of others stay text.

    Returns:
        the text, without space at its ends if there were calls, and the calls, with ids that are new each time.
    """
    known = frozenset(known_names)
    whole = _whole(text, known)
    if whole is not None:
        return "", _numbered(whole)
    kept: list[str] = []
    calls: list[_Call] = []
    at = 0
    while len(calls) < MAX_CALLS and (mark := _MARK.search(text, at)) is not None:
        found, end = _after(mark[0], text, mark.end(), known)
        # What is no call is kept with its mark, and read on behind the mark.
        kept.append(text[at : mark.start()] if found else text[at : mark.end()])
        calls.extend(found)
        at = end if found else mark.end()
    if not calls:
        return text, []
    kept.append(text[at:])
    return "".join(kept).strip(), _numbered(calls)


class Held:
    """What a reader along may be shown of an answer that can hold calls: all before what may be the first one.

    Args:
        known_names: as for `parse`.
    """

    def __init__(self, known_names: Collection[str]) -> None:
        self._known = known_names
        self._shown = False  # something that is not space
        self._held = ""
        self._calls = False  # a mark was seen, or the text began like a call without one

    def feed(self, text: str) -> str:
        """More of the answer. Returns what can be shown of it, and of what was held back before."""
        self._held += text
        if self._calls:
            return ""
        start = _skip(self._held, 0)
        if not self._shown:
            first = self._held[start : start + len(_MISTRAL)]
            if not first or _MISTRAL.startswith(first):  # nothing yet, or perhaps a mark
                return ""
            if first[0] in "{[":  # perhaps a call without a mark
                self._calls = True
                return ""
        return self._until_mark()

    def _until_mark(self) -> str:
        mark = _MARK.search(self._held)
        self._calls = mark is not None
        end = len(self._held) - _begun(self._held) if mark is None else mark.start()
        shown, self._held = self._held[:end], self._held[end:]
        self._shown = self._shown or bool(shown.strip())
        return shown

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The answer is over: what else can be shown, and the calls."""
        held, self._held = self._held, ""
        return parse(held, self._known)


def _begun(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    longest = max(map(len, (_OPEN, _MISTRAL, _PYTHON))) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in (_OPEN, _MISTRAL, _PYTHON)):
            return count
    return 0


def _whole(text: str, known: frozenset[str]) -> list[_Call] | None:
    """Calls without any mark, if the text is nothing else (Llama 3)."""
    start = _skip(text, 0)
    if not text.startswith(("{", "["), start):
        return None
    calls, end = _list(text, start, known)
    return calls if calls and not text[end:].strip() else None


def _after(mark: str, text: str, at: int, known: frozenset[str]) -> tuple[list[_Call], int]:
    """The calls that follow a mark, and where the text goes on."""
    if mark == _MISTRAL:
        calls, end = _named(text, at, known)
        return (calls, end) if calls else _list(text, at, known)
    if mark == _PYTHON:
        return _list(text, at, known)
    calls, end = _list(text, at, known)
    end = _skip(text, end)
    if text.startswith(_CLOSE, end):
        return calls, end + len(_CLOSE)
    # The closing tag is often the token that ends the answer, which is not part of the text.
    return (calls, end) if end == len(text) or text.startswith(_OPEN, end) else ([], at)


def _list(text: str, at: int, known: frozenset[str]) -> tuple[list[_Call], int]:
    """A JSON list of calls, or calls with semicolons or space between them. None, unless all are calls."""
    calls: list[_Call] = []
    start = at
    while len(calls) < MAX_CALLS:
        value, end = _value(text, _skip(text, at))
        items = value if isinstance(value, list) else [value]
        read = [_call(item, known) for item in items]
        if not read or None in read or len(calls) + len(read) > MAX_CALLS:
            break
        calls.extend(call for call in read if call is not None)
        at = end
        separator = _SEPARATOR.match(text, end)
        if separator is not None:
            end = separator.end()
        if not text.startswith("{", _skip(text, end)):
            break
        at = end if separator is None else separator.end()
    return calls, at if calls else start


def _named(text: str, at: int, known: frozenset[str]) -> tuple[list[_Call], int]:
    """``name{...}``, once: the next has its own mark."""
    name = _NAMED.match(text, at)
    if name is None or name[1] not in known:
        return [], at
    value, end = _value(text, name.end())
    return ([(name[1], _written(value))], end) if isinstance(value, dict) else ([], at)


def _call(value: Any, known: frozenset[str]) -> _Call | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner)
    if not isinstance(name, str) or name not in known:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        # Some models write the arguments as JSON in a text.
        read, end = _value(arguments, _skip(arguments, 0))
        arguments = read if not arguments[end:].strip() else None
    if arguments is None and not {"arguments", "parameters"} & value.keys():
        arguments = {}
    return (name, _written(arguments)) if isinstance(arguments, dict) else None


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at `at` and its end; None and `at` if there is none."""
    if not text.startswith(("{", "["), at):
        return None, at
    try:
        return _read_value(text, at)
    except (ValueError, RecursionError):  # of numbers too long to read, too
        return None, at


def _written(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space is not None else at


def _numbered(calls: list[_Call]) -> list[ToolCall]:
    ids: Iterator[str] = (f"call_{secrets.token_hex(12)}" for _ in itertools.count())
    return [ToolCall(id=next(ids), name=name, arguments=arguments) for name, arguments in calls]
