"""Tool calls in generated texts."""

# ruff: noqa: E501 - a generated text on one line is easier to read

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.worker.engines.llama.tools import MAX_CALLS, Held, parse

NAMES = ("weather", "get_time", "a.b-c")
CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'
LLAMA = '{"name": "weather", "parameters": {"city": "Zürich"}}'
TIME = '{"name": "get_time", "arguments": {}}'
CITY = ("weather", {"city": "Zürich"})


def calls_of(text):
    rest, calls = parse(text, NAMES)
    return rest, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [CITY]),
        (f"I look.\n<tool_call>{CALL}</tool_call>\n", "I look.", [CITY]),
        (f"<tool_call>{CALL}</tool_call><tool_call>{TIME}</tool_call>", "", [CITY, ("get_time", {})]),
        (f"<tool_call>\n{CALL}", "", [CITY]),  # the closing tag ended the answer
        (f"<tool_call>[{CALL}, {TIME}]</tool_call>", "", [CITY, ("get_time", {})]),
        (f"a <tool_call>{CALL}</tool_call> b", "a  b", [CITY]),
        (LLAMA, "", [CITY]),
        (f"<|python_tag|>{LLAMA}", "", [CITY]),
        (f"<|python_tag|>{LLAMA}; {LLAMA}", "", [CITY, CITY]),
        (f" {LLAMA};{LLAMA}\n", "", [CITY, CITY]),
        ('{"type": "function", "function": {"name": "get_time", "parameters": {}}}', "", [("get_time", {})]),
        ('{"type": "function", "function": "get_time", "parameters": {}}', "", [("get_time", {})]),
        (f"[TOOL_CALLS][{CALL}, {TIME}]", "", [CITY, ("get_time", {})]),
        (f"Well. [TOOL_CALLS] [{CALL}]", "Well.", [CITY]),
        ('[TOOL_CALLS]a.b-c{"x": 1}[TOOL_CALLS]get_time[ARGS]{}', "", [("a.b-c", {"x": 1}), ("get_time", {})]),
        ('<tool_call>{"name": "get_time"}</tool_call>', "", [("get_time", {})]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Z\\"}"}</tool_call>', "", [("weather", {"city": "Z"})]),
    ],
)  # fmt: skip
def test_the_formats(text, rest, calls):
    assert calls_of(text) == (rest, calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  plain text with space \n",
        "{}",
        "[]",
        "[1, 2]",
        '{"name": "unknown", "arguments": {}}',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "no json"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {</tool_call>',
        '<tool_call>{"name": 7}</tool_call>',
        "<tool_call></tool_call>",
        "<tool_call>[]</tool_call>",
        f"<tool_call>{CALL} and more</tool_call>",
        f'<tool_call>[{CALL}, {{"name": "unknown"}}]</tool_call>',
        f"An example: {CALL}",
        f"{LLAMA} is how it is called",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]unknown{}",
        "[TOOL_CALLS]weather",
        "<|python_tag|>print(1)",
        "<tool_call>" * 1000,
        "<tool_call>" + "[" * 100_000,
        "<tool_call>" + '{"name":' * 50_000,
        '{"name": "weather", "arguments": {"n": ' + "9" * 5000 + "}}",
        "\ud800<tool_call>\ud800",
    ],
    ids=range(26),
)
def test_what_is_no_call_stays_as_it_is(text):
    assert parse(text, NAMES) == (text, [])


def test_a_broken_call_does_not_hide_the_next():
    rest, calls = calls_of(f"<tool_call>broken</tool_call><tool_call>{CALL}</tool_call>")
    assert (rest, calls) == ("<tool_call>broken</tool_call>", [CITY])


def test_every_call_has_an_id_of_its_own():
    _, calls = parse(f"<tool_call>[{CALL}, {TIME}]</tool_call>", NAMES)
    assert len({call.id for call in calls}) == 2
    assert all(call.id.startswith("call_") for call in calls)


def test_calls_are_bounded():
    _, calls = parse(f"<tool_call>{TIME}</tool_call>" * (MAX_CALLS + 5), NAMES)
    assert len(calls) == MAX_CALLS


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans(), max_size=3),
        )
    )
)
def test_arguments_come_through(wanted):
    text = "".join(
        f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>" for name, arguments in wanted
    )
    assert calls_of(text) == ("", wanted)


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", CALL, LLAMA, "[", "]", "{", "}", ",", ";", " ", '"',
     "weather", "[ARGS]", '"name"', ":", "\\", "9" * 20, "text", "1e999", "NaN"]
)  # fmt: skip


@given(st.text() | st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_taken(text):
    rest, calls = parse(text, NAMES)
    if not calls:
        assert rest == text
    for call in calls:
        assert call.name in NAMES
        assert isinstance(json.loads(call.arguments), dict)


@given(st.text() | st.lists(PIECES, max_size=12).map("".join))
def test_without_tools_nothing_is_a_call(text):
    assert parse(text, ()) == (text, [])


def shown(parts):
    """What a reader along is shown before the end, and at it, and the calls."""
    held = Held(NAMES)
    before = "".join(map(held.feed, parts))
    rest, calls = held.finish()
    return before, rest, [(call.name, json.loads(call.arguments)) for call in calls]


def test_a_reader_along_is_shown_no_call():
    assert shown(["I look.", "\n<tool", "_call>", CALL, "</tool_call>"]) == ("I look.\n", "", [CITY])
    assert shown(["  ", "{", CALL[1:]]) == ("", "", [CITY])
    assert shown(["[TOOL", "_CALLS]", f"[{CALL}]"]) == ("", "", [CITY])


def test_what_only_looks_like_a_call_is_shown_as_soon_as_it_is_known():
    held = Held(NAMES)
    assert [held.feed(part) for part in ["a <", "tool", " b <too", "<"]] == ["a ", "", "<tool b ", "<too"]
    assert held.finish() == ("<", [])
    assert shown(['{"no": ', "1} call"]) == ("", '{"no": 1} call', [])
    assert shown(["<tool_call>", "nothing"]) == ("", "<tool_call>nothing", [])
    assert shown(["[TOO", " much]"]) == ("", "[TOO much]", [])


BITS = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<|python_tag|>",
            CALL,
            TIME,
            "[",
            "{",
            "a",
            " ",
            "\n",
            "<",
            ";",
            "weather",
            "{}",
        ]
    ),
    max_size=10,
).map("".join)


@given(BITS, st.lists(st.integers(0, 200), max_size=8))
def test_read_along_or_at_the_end_it_is_the_same_answer(text, cuts):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    before, rest, calls = shown([text[a:b] for a, b in itertools.pairwise(edges)])
    whole, wanted = calls_of(text)
    assert calls == wanted
    assert "".join((before + rest).split()) == "".join(whole.split())
    assert text.startswith(before)
    if not calls:
        assert before + rest == text
