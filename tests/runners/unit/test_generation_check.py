"""The bounds of what a caller may ask of text generation."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.protocol.generation import Sampling
from runners.protocol.generation_check import check, check_grammar, check_messages, check_schema

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_tokens": 1, "temperature": 0, "top_p": 0, "top_k": 0, "min_p": 1, "n": 16, "seed": 2**32 - 1},
        {"temperature": 100.0, "penalty_last_n": -1, "logprobs": 20, "seed": 0},
        {"stop": ("x" * 200,) * 16, "logit_bias": dict.fromkeys(range(1000), -100.0)},
        {"logit_bias": {0: -INF}},
        {"grammar": 'root ::= "a"'},
        {"json_schema": True},
        {"json_schema": {"type": "object"}},
    ],
)
def test_what_is_taken(arguments):
    check(Sampling(**arguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (0, -1, 1.5, True, "1", 2**31, 10**30)],
        *[("temperature", value) for value in (-0.1, 100.1, NAN, INF, True, "1", None)],
        *[(name, value) for name in ("top_p", "min_p") for value in (-0.01, 1.01, NAN, False, None)],
        *[("top_k", value) for value in (-1, 2.0, True)],
        *[("repeat_penalty", value) for value in (0, -1, NAN, INF)],
        *[(name, value) for name in ("presence_penalty", "frequency_penalty") for value in (NAN, INF, -101, True)],
        *[("penalty_last_n", value) for value in (-2, 1.0, None)],
        *[("seed", value) for value in (-1, 2**32, 0.5, True)],
        *[("stop", value) for value in ("text", ("x",) * 17, ("",), ("x" * 201,), (1,), ("\ud800",), None)],
        *[("logit_bias", value) for value in ([], dict.fromkeys(range(1001), 1.0), {-1: 1.0}, {"1": 1.0})],
        *[("logit_bias", {7: value}) for value in (NAN, INF, True, "x")],
        *[("logprobs", value) for value in (-1, 21, True, 1.0)],
        *[("n", value) for value in (0, 17, True, None)],
        *[("grammar", value) for value in ("", " \n", 7, "x" * 65537, "a\0b", "\ud800")],
        *[("json_schema", value) for value in (False, [], "x", {"a": NAN}, {1: 2}, {"a": object()}, {"\ud800": 1})],
        ("json_schema", {"enum": ["x" * 65536]}),
    ],
)
def test_what_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        check(Sampling(**{name: value}))


def test_grammar_and_schema_exclude_each_other():
    with pytest.raises(ValueError, match="grammar and json_schema"):
        check(Sampling(grammar='root ::= "a"', json_schema=True))


def test_an_error_shows_numbers_and_no_texts():
    with pytest.raises(ValueError, match=r"from 0 to 1, not 7$"):
        check(Sampling(top_p=7))
    with pytest.raises(ValueError) as caught:
        check(Sampling(top_p="my secret"))
    assert "secret" not in str(caught.value)


def test_a_grammar_that_would_overflow_the_parser():
    check_grammar("root ::= " + "(" * 64 + '"a"' + ")" * 64)
    with pytest.raises(ValueError, match="64 deep"):
        check_grammar("root ::= " + "(" * 65 + '"a"' + ")" * 65)
    # Brackets in literals, sets and comments are none.
    check_grammar('root ::= "' + "(" * 100 + r'\"" [((\]' + "(" * 100 + "] # " + "(" * 100)
    # Neither are quotes in a set.
    with pytest.raises(ValueError, match="64 deep"):
        check_grammar('root ::= ["] ' + "(" * 100)
    check_grammar('root ::= "a"{10000} "b"{0,10000}')
    with pytest.raises(ValueError, match="repetitions"):
        check_grammar('root ::= "a"{10000} "b"{0,10001}')


@given(st.text('ro:= "\\[]{}(),1#\n', max_size=200))
def test_any_text_as_a_grammar_is_taken_or_refused(text):
    with contextlib.suppress(ValueError):
        check_grammar(text)


def test_a_schema_deeper_than_the_stack():
    deep = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="64 levels"):
        check_schema(deep)
    while deep:  # a deep dict is freed level by level, or the interpreter's stack is what ends
        deep = deep["items"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"role": "user"}],
    ],
)
def test_messages_that_are_taken(messages):
    check_messages(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        None,
        ({"role": "user"},),
        ["hi"],
        [{"content": "my secret"}],
        [{"role": 1, "content": "my secret"}],
        [{"role": ""}],
        [{"role": "x" * 65}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": ["my secret"]}],
        [{"role": "user", "content": [{"type": "image", "url": "my secret"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", 1: "my secret"}],
        [{"role": "user", "extra": b"my secret"}],
        [{"role": "user"}] * 10_001,
    ],
)
def test_messages_that_are_refused(messages):
    with pytest.raises(ValueError, match=r"^messages") as caught:
        check_messages(messages)
    assert "secret" not in str(caught.value)
