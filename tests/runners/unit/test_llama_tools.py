"""Tool calls in generated texts."""

# ruff: noqa: E501 - a generated text on one line is easier to read

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.worker.engines.llama.tools import MAX_CALLS, parse

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
