"""What callers of a text model ask for, checked before it crosses: each mistake is theirs, whatever it is."""

from __future__ import annotations

import pytest

from guardrails.core.outcome import classify
from runners.errors import InvalidInput
from runners.text_requests import chat, complete

MESSAGES = [{"role": "user", "content": "Hi"}]


def chatted(messages=MESSAGES, tools=None, template_options=None, **options):
    return chat(messages, tools, None, template_options, options)


@pytest.mark.parametrize(
    ("ask", "builtin"),
    [
        (lambda: complete("a", {"temperature": -5}), ValueError),
        (lambda: complete("a", {"max_tokens": "many"}), ValueError),
        (lambda: complete("a", {"stop": 5}), ValueError),
        (lambda: complete("a", {"n": 2}, streams=True), ValueError),
        (lambda: complete("a", {"grammar": "", "json_schema": True}), ValueError),
        (lambda: complete("a", {"unknown": 1}), TypeError),
        (lambda: complete([1, "b"], {}), TypeError),
        (lambda: complete(7, {}), TypeError),
        (lambda: complete([-1], {}), ValueError),
        (lambda: complete("\ud800", {}), ValueError),
        (lambda: chatted("Hi"), TypeError),
        (lambda: chatted([7]), TypeError),
        (lambda: chatted([{"role": 7}]), ValueError),
        (lambda: chatted(tools=[{}]), ValueError),
        (lambda: chatted(template_options={7: 7}), ValueError),
        (lambda: chatted(top_p=7), ValueError),
    ],
)
def test_a_wrong_argument_is_the_callers_mistake(ask, builtin):
    with pytest.raises(builtin) as caught:
        ask()
    assert isinstance(caught.value, InvalidInput)
    assert classify(caught.value).kind == "ignored"
